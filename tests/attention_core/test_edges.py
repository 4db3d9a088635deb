"""The `edges` backend against PyG's layers, finite differences and the explicit sum over pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GATv2Conv, TransformerConv

from attention_core import Additive, AdditiveV2, EdgeBias, Edges, Graph, Score, attend
from attention_core.backends.edges import pairs as edges_pairs
from attention_core.backends.edges.operator import edge_attention
from attention_core.spaces.csr import CSR

H, D, N = 4, 5, 3000


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Chunks of 100 pairs, so that borders fall inside the pairs of the hub."""
    monkeypatch.setattr(edges_pairs, "_CHUNK", 100 * H * D)
    yield


def hubs() -> Tensor:
    """Edges (2, E) with a hub of degree 2,416 both ways, self-loops, duplicates and nodes alone."""
    generator = torch.Generator().manual_seed(0)
    spokes = torch.randperm(N - 500, generator=generator)[:2416]
    hub = torch.full_like(spokes, 7)
    some = torch.randint(N - 500, (2, 3000), generator=generator)
    loops = torch.arange(0, 100).expand(2, -1)
    edges = torch.cat(
        [torch.stack([spokes, hub]), torch.stack([hub, spokes]), some, some[:, :50], loops], dim=1
    )
    return edges[:, torch.randperm(edges.shape[1], generator=generator)]


def heads(x: Tensor) -> Tensor:
    return x.view(len(x), -1, D).transpose(0, 1)


def same(found: Tensor, expected: Tensor, learned: list[Tensor], exact: bool = True) -> None:
    """Outputs and gradients, to 1e-10 in float64 and 1e-5 in float32."""
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if exact else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found, expected, **tolerance)
    goal = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(found)
    for got, wanted in zip(
        *(torch.autograd.grad((out * goal).mean(), learned) for out in (found, expected)),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, **tolerance)


def edge_features(
    conv: nn.Module, size: int | None, edge_index: Tensor, learned: list[Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """Features of edges (E, F) that are to be learned, too, and what a layer of PyG makes of them,
    (E, H, D)."""
    if size is None:
        return None, None
    attr = torch.randn(edge_index.shape[1], size, dtype=learned[0].dtype, requires_grad=True)
    learned.append(attr)
    return attr, conv.lin_edge(attr).view(-1, H, D)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("features", [None, 3])
def test_transformer_conv(features: int | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    edge_index = hubs()
    conv = TransformerConv(6, D, heads=H, edge_dim=features, root_weight=False).to(dtype)
    x = torch.randn(N, 6, dtype=dtype, requires_grad=True)
    q, k, v = (heads(linear(x)) for linear in (conv.lin_query, conv.lin_key, conv.lin_value))
    learned = [x, *(p for n, p in conv.named_parameters() if "skip" not in n)]
    attr, edge = edge_features(conv, features, edge_index, learned)
    out = attend(
        q[None], k[None], v[None], space=Graph(edge_index, N), mask=Edges(), edge_key=edge,
        edge_value=edge, backend="edges",
    )[0]  # fmt: skip
    expected = conv(x, edge_index, attr)
    same(out.transpose(0, 1).flatten(1), expected, learned, dtype == torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("features", [None, 3])
def test_gat_conv(features: int | None, dtype: torch.dtype) -> None:
    """The term of an edge is inside the LeakyReLU, with a weight of its own."""
    torch.manual_seed(0)
    edge_index = hubs()
    conv = GATConv(6, D, heads=H, add_self_loops=False, bias=False, edge_dim=features).to(dtype)
    score = Additive(H, D, edge=features is not None)
    score.query, score.key = nn.Parameter(conv.att_dst[0]), nn.Parameter(conv.att_src[0])
    conv.att_dst, conv.att_src = score.query, score.key  # (H, D) broadcasts as (1, H, D) does
    if features is not None:
        score.edge = conv.att_edge = nn.Parameter(conv.att_edge[0])
    x = torch.randn(N, 6, dtype=dtype, requires_grad=True)
    learned = [x, *conv.parameters()]
    attr, edge = edge_features(conv, features, edge_index, learned)
    h = heads(conv.lin(x))[None]
    out = attend(
        h, h, h, space=Graph(edge_index, N), mask=Edges(), score=score, edge_key=edge,
        backend="edges",
    )  # fmt: skip
    expected = conv(x, edge_index, attr)
    same(out[0].transpose(0, 1).flatten(1), expected, learned, dtype == torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("features", [None, 3])
def test_gatv2_conv(features: int | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    edge_index = hubs()
    conv = GATv2Conv(6, D, heads=H, add_self_loops=False, bias=False, edge_dim=features).to(dtype)
    score = AdditiveV2(H, D)
    score.weight = conv.att = nn.Parameter(conv.att[0].detach())
    x = torch.randn(N, 6, dtype=dtype, requires_grad=True)
    q, k = heads(conv.lin_r(x))[None], heads(conv.lin_l(x))[None]
    learned = [x, *conv.parameters()]
    attr, edge = edge_features(conv, features, edge_index, learned)
    out = attend(
        q, k, k, space=Graph(edge_index, N), mask=Edges(), score=score, edge_key=edge,
        backend="edges",
    )  # fmt: skip
    expected = conv(x, edge_index, attr)
    same(out[0].transpose(0, 1).flatten(1), expected, learned, dtype == torch.float64)


# -- the explicit sum over pairs -------------------------------------------------------------------


class Product(Score):
    """A score that the backend does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, query: Tensor, key: Tensor, head: Tensor) -> Tensor:
        return self.strength * (query * key).sum(-1).tanh() + 0.1 * head


SCORES: dict[str, Any] = {
    "dot": lambda: None,
    "additive": lambda: Additive(H, D, edge=True).double(),
    "additive_v2": lambda: AdditiveV2(H, D).double(),
    "own": Product,
}


def explicit_sum(
    q: Tensor, k: Tensor, v: Tensor, csr: CSR, **options: Any
) -> tuple[Tensor, Tensor]:
    """Each query of each head on its own, by autograd."""
    score, bias, sink = (options.get(name) for name in ("score", "bias", "sink"))
    scale, cap, p = (options.get(n, d) for n, d in (("scale", 1.0), ("softcap", None),
                                                    ("dropout_p", 0.0)))  # fmt: skip
    outs, sums = [], []
    for h in range(len(q)):
        g = h * len(k) // len(q)
        for i in range(q.shape[1]):
            at = (csr.row == i).nonzero().squeeze(-1)
            column, item = csr.column[at].long(), csr.item[at].long()
            keys, values, edges = k[g, column], v[g, column], 0
            if options.get("edge_key") is not None:
                edges = options["edge_key"][item, g]
            if options.get("edge_value") is not None:
                values = values + options["edge_value"][item, g]
            if score is None:
                s = (keys + edges) @ q[h, i]
            elif isinstance(score, Additive):
                s = q[h, i] @ score.query[h] + keys @ score.key[h] + (edges * score.edge[h]).sum(-1)
                s = torch.where(s > 0, s, 0.2 * s)
            else:
                s = score(q[h, i].expand_as(keys), keys + edges, torch.full((len(at),), h))
            s = s * scale
            s = s if cap is None else cap * torch.tanh(s / cap)
            s = s if bias is None else s + bias.expand(len(q), len(csr))[h, at]
            if options.get("allowed") is not None:
                s = s.masked_fill(~options["allowed"][h, at], -torch.inf)
            sums.append(s.logsumexp(0) if len(s) and s.max() > -torch.inf else s.sum() - torch.inf)
            everyone = s if sink is None else torch.cat([s, sink[h, None]])
            if not len(everyone) or everyone.max() == -torch.inf:
                outs.append(0 * v[g, 0])
                continue
            weights = everyone.softmax(0)[: len(s)]
            if options.get("keep") is not None:
                weights = weights * options["keep"][h, at] / (1 - p)
            outs.append(weights @ values)
    shape = len(q), q.shape[1]
    return torch.stack(outs).view(*shape, -1), torch.stack(sums).view(shape)


def drawn(seed: int, pairs: int, rows: int, columns: int, kv_heads: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        x = torch.randn(*shape, dtype=torch.float64, generator=generator)
        return x.requires_grad_()

    row, column = (torch.randint(n, (pairs,), generator=generator) for n in (rows, columns))
    return {
        "q": normal(H, rows, D), "k": normal(kv_heads, columns, D),
        "v": normal(kv_heads, columns, 3), "csr": CSR(row, column, rows, columns),
        "bias": normal(H, pairs), "sink": normal(H), "edge_key": normal(pairs, kv_heads, D),
        "edge_value": normal(pairs, kv_heads, 3), "scale": 0.6, "softcap": 1.5,
        "allowed": torch.rand(H, pairs, generator=generator) > 0.3,
        "keep": torch.rand(H, pairs, generator=generator) > 0.4, "dropout_p": 0.4,
    }  # fmt: skip


OPTIONS = ("bias", "sink", "edge_key", "edge_value", "scale", "softcap", "allowed", "keep")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000), pairs=st.integers(0, 40), rows=st.integers(1, 6),
    columns=st.integers(1, 6), kv_heads=st.sampled_from([1, 2, 4]),
    kind=st.sampled_from(list(SCORES)), left_out=st.sets(st.sampled_from(OPTIONS)),
)  # fmt: skip
def test_any_graph_with_any_options(
    seed: int, pairs: int, rows: int, columns: int, kv_heads: int, kind: str, left_out: set[str]
) -> None:
    """Multigraphs on both sides of dense; every option, alone and with others."""
    torch.manual_seed(seed)
    inputs = drawn(seed, pairs, rows, columns, kv_heads)
    for name in left_out | ({"dropout_p"} if "keep" in left_out else set()):
        del inputs[name]
    inputs["score"] = score = SCORES[kind]()
    learned = [x for x in inputs.values() if isinstance(x, Tensor) and x.requires_grad]
    learned += [] if score is None else list(score.parameters())
    found, expected = edge_attention(**inputs), explicit_sum(**inputs)
    goals = [torch.randn(x.shape, dtype=torch.float64) for x in found]
    of = []
    for result in (found, expected):
        out, lse = result
        torch.testing.assert_close(out, expected[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(lse, expected[1], rtol=1e-9, atol=1e-9)
        loss = (out * goals[0]).sum() + (lse * goals[1])[lse.isfinite()].sum()
        gradients = torch.autograd.grad(loss, learned, allow_unused=True)
        of.append([torch.zeros_like(x) if g is None else g
                   for x, g in zip(learned, gradients, strict=True)])  # fmt: skip
    for got, wanted in zip(*of, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", SCORES)
def test_gradcheck(kind: str) -> None:
    torch.manual_seed(0)
    inputs = drawn(3, 20, 5, 4, 2) | {"score": SCORES[kind]()}
    names = [n for n, x in inputs.items() if isinstance(x, Tensor) and x.requires_grad]
    weights = [] if inputs["score"] is None else list(inputs["score"].parameters())

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        out, lse = edge_attention(**inputs | dict(zip(names, tensors, strict=False)))
        return out, lse.masked_fill(lse.isinf(), 0)

    assert torch.autograd.gradcheck(function, [*(inputs[n] for n in names), *weights])


def test_second_derivatives_pass_gradgradcheck() -> None:
    """Output and log-sum-exp over pairs that come twice, to queries that have none."""
    inputs = drawn(3, 20, 5, 4, 2)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, lse = edge_attention(**{**inputs, "q": q, "k": k, "v": v})
        return torch.cat([out.flatten(), lse[lse.isfinite()]])

    assert torch.autograd.gradgradcheck(function, [inputs[name] for name in "qkv"], fast_mode=True)


# -- through attend --------------------------------------------------------------------------------


def test_parallel_edges_have_their_own_bias_and_gradient() -> None:
    """Two edges between the same nodes are two scores, which no matrix of pairs could hold."""
    edge_index = torch.tensor([[1, 1, 2], [0, 0, 0]])
    bias = EdgeBias(1, types=3).double()
    q, k, v = (torch.randn(1, 1, 3, 2, dtype=torch.float64) for _ in range(3))
    space = Graph(edge_index, 3, edge_attr=torch.arange(3))
    out = attend(q, k, v, space=space, mask=Edges(), bias=bias, backend="edges")
    scores = (k[0, 0, [1, 1, 2]] @ q[0, 0, 0]) * 2**-0.5 + bias.table[:, 0]
    expected = scores.softmax(0) @ v[0, 0, [1, 1, 2]]
    torch.testing.assert_close(out[0, 0, 0], expected)
    got, wanted = (torch.autograd.grad(x.sum(), bias.table)[0] for x in (out[0, 0, 0], expected))
    torch.testing.assert_close(got, wanted)


def test_dropout_follows_the_seed() -> None:
    """The same seed drops the same weights; backward sees the mask that forward drew."""
    space = Graph(hubs(), N)
    q, k, v = (torch.randn(1, H, N, D, dtype=torch.float64) for _ in range(3))

    def run(seed: int, values: Tensor) -> Tensor:
        torch.manual_seed(seed)
        return attend(
            q, k, values, space=space, mask=Edges(), dropout_p=0.4, backend="edges"
        ).square()  # fmt: skip

    assert torch.equal(run(1, v), run(1, v)) and not torch.equal(run(1, v), run(2, v))
    direction = torch.randn_like(v)
    _, tangent = torch.autograd.functional.vjp(lambda x: run(1, x), v, torch.ones_like(v))
    step = 1e-6 * direction
    change = (run(1, v + step) - run(1, v - step)).sum() / 2e-6
    torch.testing.assert_close((tangent * direction).sum(), change, rtol=1e-6, atol=1e-6)
