"""Features of edges through layers and the plan: `edge_dim=` and `edge_features=`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv

from attention_core import (
    AdditiveV2,
    BackendError,
    Decoder,
    Edges,
    Encoder,
    GlobalTokens,
    Graph,
    Mask,
    MultiheadAttention,
    Neighborhood,
    Sequence,
    explain,
    plan,
)

N, E, F, H, D = 30, 90, 3, 4, 5


def graph(**options: int) -> Graph:
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randperm(N * N, generator=generator)[:E]
    attr = torch.randn(E, F, generator=generator)
    return Graph(torch.stack([pairs % N, pairs // N]), N, edge_attr=attr, **options)


@pytest.mark.parametrize("backend", ["reference", "edges", None])
def test_a_layer_is_a_transformer_conv(backend: str | None) -> None:
    """Shi et al.'s layer, with the weights of PyG's: values and all gradients."""
    torch.manual_seed(0)
    conv = TransformerConv(H * D, D, heads=H, edge_dim=F, root_weight=False)
    layer = MultiheadAttention(H * D, H, edge_dim=F)
    layer.out = nn.Identity()  # type: ignore[assignment]
    layer.query.load_state_dict(conv.lin_query.state_dict())
    with torch.no_grad():
        layer.key_value.weight.copy_(torch.cat([conv.lin_key.weight, conv.lin_value.weight]))
        layer.key_value.bias.copy_(torch.cat([conv.lin_key.bias, conv.lin_value.bias]))
        layer.edge_key_value.weight.copy_(conv.lin_edge.weight.repeat(2, 1))
    space, x = graph(), torch.randn(N, H * D)
    edge_index = torch.stack([space.edges.source, space.edges.target])
    goal, results = torch.randn(N, H * D), []
    for call in (
        lambda x: layer(x, space=space, mask=Edges(), backend=backend),
        lambda x: conv(x, edge_index, space.edge_attr),
    ):
        given = x.clone().requires_grad_()
        out = call(given)
        (out * goal).sum().backward()
        results.append([out, given.grad])
    pairs = zip(*results, strict=True)
    of_layer, of_conv = layer.edge_key_value.weight.grad, conv.lin_edge.weight.grad
    for got, wanted in [*pairs, (sum(of_layer.chunk(2)), of_conv)]:
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mask", [Edges(), Neighborhood(2), Edges() | GlobalTokens(3), None])
@pytest.mark.parametrize("special", [0, 1])
def test_an_encoder_is_the_same_in_each_backend(mask: Mask | None, special: int) -> None:
    """Grouped heads, a batch of two over one graph, a virtual node: values and gradients."""
    torch.manual_seed(0)
    encoder = Encoder(16, 2, 4, kv_heads=2, edge_dim=F, qk_norm=True, mask=mask)
    space = graph(special=special)
    x, results = torch.randn(2, space.length, 16), []
    for backend in ("edges", "reference"):
        encoder.zero_grad()
        out = encoder(x, space, backend=backend)
        out.square().mean().backward()
        results.append([out, *(p.grad for p in encoder.parameters())])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
    learned = encoder.blocks[0].attention.edge_key_value.weight.grad
    assert all(half.abs().sum() > 0 for half in learned.chunk(2))


def test_only_self_attention_has_edges() -> None:
    """A context has tokens of its own, which no edge leads to."""
    block = Decoder(16, 1, 4, edge_dim=F, cross=True).blocks[0]
    assert block.attention.edge_key_value is not None
    assert block.cross_attention is not None and block.cross_attention.edge_key_value is None


def test_keys_and_values_start_as_projections_of_their_own() -> None:
    """As for tokens: the bound of Xavier's initialisation is that of (F, Hkv · D)."""
    weight: Tensor = MultiheadAttention(64, 4, edge_dim=2).edge_key_value.weight
    bound = (6 / (2 + 64)) ** 0.5
    for half in weight.chunk(2):
        assert 0.9 * bound < half.abs().max() <= bound


def test_the_plan_chooses_among_those_that_can() -> None:
    ring = torch.stack([torch.arange(2000), torch.arange(2000).roll(1)])
    assert plan(Graph(ring, 2000), Edges(), edge_features=True, grad=True).backend == "edges"
    assert plan(graph(), edge_features=True).backend in ("reference", "edges")
    assert plan(graph(), edge_features=True, score=AdditiveV2(1, 64)).backend != "dense"
    for backend in ("dense", "blocks"):
        with pytest.raises(BackendError, match=f"backend='{backend}' cannot.*no edge features"):
            plan(graph(), Edges(), edge_features=True, backend=backend)
    with pytest.raises(TypeError, match="a graph of .* attending to a sequence"):
        plan((graph(), Sequence(3)), edge_features=True)


def test_the_plan_says_so() -> None:
    text = explain(graph(), Edges(), heads=4, edge_features=True)
    assert "4 heads of 64, edge features in keys or values." in text
    assert "dense is out: " in text and "blocks is out: " in text
    assert "edge features" not in explain(graph(), Edges())
