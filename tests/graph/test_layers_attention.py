"""`GraphAttention`: against torch's attention, the other backends, and what a graph asks of it."""

from __future__ import annotations

import copy
import gc
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_core import EdgeBias, Graph, RelativeTable, record_attention
from graph import GraphAttention
from graph.layers import edges as layer_edges

DIM, HEADS, F = 12, 4, 3
SCORES = ["dot", "additive", "additive_v2"]


def drawn(nodes: int = 20, edges: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes, of which the last two are isolated, edges that are not repeated, and features."""
    generator = torch.Generator().manual_seed(0)
    n = nodes - 2
    pairs = torch.randperm(n * n, generator=generator)[:edges]
    x = torch.randn(nodes, DIM, generator=generator)
    return x, torch.stack([pairs % n, pairs // n]), torch.randn(edges, F, generator=generator)


def results(layer: GraphAttention, x: Tensor, *args: Any, **options: Any) -> list[Tensor]:
    """The output, and the gradients of nodes and parameters."""
    layer.zero_grad()
    given = x.clone().requires_grad_()
    out = layer(given, *args, **options)
    generator = torch.Generator().manual_seed(3)
    (out * torch.randn(out.shape, generator=generator)).sum().backward()
    return [out, given.grad, *(p.grad for p in layer.parameters())]


def assert_same(found: list[Tensor], wanted: list[Tensor]) -> None:
    for got, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)


def test_on_a_complete_graph_it_is_torchs_attention() -> None:
    torch.manual_seed(0)
    n, peer = 9, nn.MultiheadAttention(DIM, HEADS, batch_first=True)
    layer = GraphAttention(DIM, HEADS, output_bias=False)
    with torch.no_grad():
        for i, mine in enumerate((layer.query, layer.key, layer.value)):
            mine.weight.copy_(peer.in_proj_weight.chunk(3)[i])
            mine.bias.copy_(peer.in_proj_bias.chunk(3)[i].normal_())
    x = torch.randn(n, DIM)
    node = torch.arange(n)
    edge_index = torch.cartesian_prod(node, node).T[:, torch.randperm(n * n)]
    found = []
    for run in (
        lambda x: peer.out_proj(layer(x, edge_index)),
        lambda x: peer(x[None], x[None], x[None])[0][0],
    ):
        given = x.clone().requires_grad_()
        out = run(given)
        out.square().sum().backward()
        found.append([out, given.grad])
    assert_same(*found)
    of_peer = peer.in_proj_weight.grad.chunk(3)
    assert_same([m.weight.grad for m in (layer.query, layer.key, layer.value)], list(of_peer))
    _, (_, weights) = layer(x, edge_index, return_attention_weights=True)
    by_head = peer(x[None], x[None], x[None], average_attn_weights=False)[1][0]
    torch.testing.assert_close(weights, by_head[:, edge_index[1], edge_index[0]].T)


@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize("score", SCORES)
def test_each_backend_with_a_bias_of_edges(score: str, self_loops: bool) -> None:
    """Grouped heads and a learned bias: the edges, their weights and all pairs agree."""
    torch.manual_seed(0)
    layer = GraphAttention(
        DIM, HEADS, score=score, kv_heads=2, bias=EdgeBias(HEADS, features=F),
        self_loops=self_loops, concat=False,
    )  # fmt: skip
    nn.init.normal_(layer.bias.table)
    x, edge_index, edge_attr = drawn()
    wanted = results(layer, x, edge_index, edge_attr, backend="reference")
    for backend in ["edges", None, *(["dense", "blocks"] if score == "dot" else [])]:
        assert_same(results(layer, x, edge_index, edge_attr, backend=backend), wanted)
    assert layer.bias.table.grad.abs().sum() > 0


@pytest.mark.parametrize("residual", [False, True, "gated"])
@pytest.mark.parametrize("score", SCORES)
def test_features_of_edges_in_keys_and_values(score: str, residual: Any) -> None:
    layer = GraphAttention(
        DIM, HEADS, score=score, kv_heads=2, edge_dim=F, edge_values=True, residual=residual
    )
    x, edge_index, edge_attr = drawn()
    wanted = results(layer, x, edge_index, edge_attr, backend="reference")
    assert_same(results(layer, x, edge_index, edge_attr, backend="edges"), wanted)
    keys_alone = copy.deepcopy(layer)
    keys_alone.edge_values = False
    assert not torch.allclose(keys_alone(x, edge_index, edge_attr), wanted[0])


def test_other_biases() -> None:
    """Types of edges, with a type of their own for self-loops; hops, of which a loop is none."""
    x, edge_index, _ = drawn()
    types = torch.arange(edge_index.shape[1]) % 3
    layer = GraphAttention(DIM, HEADS, bias=EdgeBias(HEADS, types=4), self_loops=True, fill_value=3)
    layer(x, edge_index, types).sum().backward()
    nn.init.normal_(layer.bias.table)
    results(layer, x, edge_index, types)
    assert layer.bias.table.grad.abs().sum(1).gt(0).all()
    hops = GraphAttention(DIM, HEADS, bias=RelativeTable.hops(HEADS, 2), self_loops=True)
    nn.init.normal_(hops.bias.table)
    assert_same(results(hops, x, edge_index), results(hops, x, edge_index, backend="reference"))


@pytest.mark.parametrize("score", SCORES)
def test_weights_by_input_edge(score: str) -> None:
    """Repeated edges, and loops given once, twice and not at all: the weights make the output."""
    torch.manual_seed(0)
    layer = GraphAttention(
        DIM, HEADS, score=score, self_loops=True, edge_dim=F, edge_values=False, output_bias=False
    )
    x, edge_index, edge_attr = drawn()
    edge_index = edge_index[:, edge_index[0] != edge_index[1]]
    edge_index = torch.cat([torch.tensor([[4], [4]]), edge_index[:, :1], edge_index,
                            torch.tensor([[4, 7], [4, 7]])], 1)  # fmt: skip
    edge_attr = torch.randn(edge_index.shape[1], F)
    out, (edges, weights) = layer(x, edge_index, edge_attr, return_attention_weights=True)
    count = edge_index.shape[1]
    assert torch.equal(edges[:, :count], edge_index)
    assert edges[:, count:].tolist() == [[n for n in range(20) if n not in (4, 7)]] * 2
    assert weights[0].gt(0).all() and weights[count - 2].eq(0).all()  # the first loop of node 4
    v = (layer.key if layer.value is None else layer.value)(x).unflatten(-1, (HEADS, -1))
    sums = torch.zeros(20, HEADS, DIM // HEADS)
    sums.index_add_(0, edges[1], weights[..., None] * v[edges[0]])
    torch.testing.assert_close(out, sums.flatten(1))
    total = torch.zeros(20, HEADS).index_add(0, edges[1], weights)
    torch.testing.assert_close(total, torch.ones(20, HEADS))
    same = (edge_index == edge_index[:, 1:2]).all(0).nonzero().flatten().tolist()
    assert same == [1, 2]  # the same edge with other features
    assert not torch.allclose(weights[1], weights[2])
    parameter = layer.key.weight
    assert torch.autograd.grad(weights[3].sum(), parameter)[0].abs().sum() > 0


def test_weights_are_from_before_dropout() -> None:
    layer = GraphAttention(DIM, HEADS, attention_dropout=0.5)
    x, edge_index, _ = drawn()
    torch.manual_seed(0)
    out, (given, weights) = layer(x, edge_index, return_attention_weights=True)
    assert given is edge_index
    kept, (_, same) = layer.eval()(x, edge_index, return_attention_weights=True)
    torch.testing.assert_close(weights, same)
    assert not torch.allclose(out, kept)
    plain = layer(x, edge_index, return_attention_weights=False)  # no tuple, unlike in PyG
    torch.testing.assert_close(plain, kept)
    many = torch.stack([layer.train()(x, edge_index) for _ in range(300)]).mean(0)
    ratio = (many * kept).sum() / kept.square().sum()
    assert ratio.item() == pytest.approx(1, abs=0.05)


def test_records() -> None:
    """As tensors of all pairs, and as pairs; the output is the same."""
    model = nn.ModuleList([GraphAttention(DIM, HEADS, score=s, self_loops=True) for s in SCORES])
    x, edge_index, _ = drawn()
    plain = [layer(x, edge_index) for layer in model]
    for pairs in (False, True):
        with record_attention(model, [-1, 0], pairs=pairs) as maps:
            for layer, wanted in zip(model, plain, strict=True):
                torch.testing.assert_close(layer(x, edge_index), wanted)
        for map_, layer in zip(maps, (model[2], model[0]), strict=True):
            _, (edges, weights) = layer(x, edge_index, return_attention_weights=True)
            dense = map_.dense() if pairs else map_
            torch.testing.assert_close(dense[0, :, edges[1], edges[0]].T, weights.detach())
    with record_attention(model) as maps:  # beside weights that the caller asks for
        _, (edges, weights) = model[1](x, edge_index, return_attention_weights=True)
    torch.testing.assert_close(maps[1][0, :, edges[1], edges[0]].T, weights)


@pytest.mark.parametrize("score", SCORES)
def test_relabelled_nodes_and_another_order_of_edges(score: str) -> None:
    layer = GraphAttention(DIM, HEADS, score=score, edge_dim=F, self_loops=True, residual="gated")
    x, edge_index, edge_attr = drawn()
    node, edge = torch.randperm(len(x)), torch.randperm(len(edge_attr))
    label = node.argsort()
    moved = layer(x[node], label[edge_index[:, edge]], edge_attr[edge])
    torch.testing.assert_close(moved, layer(x, edge_index, edge_attr)[node])


@pytest.mark.parametrize("score", SCORES)
def test_a_graph_is_the_same_beside_others(score: str) -> None:
    layer = GraphAttention(DIM, HEADS, score=score, self_loops=True)
    x, edge_index, _ = drawn()
    mate = torch.randn(200, DIM)
    both = layer(torch.cat([x, mate]), torch.cat([edge_index, torch.randint(20, 220, (2, 900))], 1))
    torch.testing.assert_close(both[:20], layer(x, edge_index))


@pytest.mark.parametrize("score", SCORES)
def test_hubs_isolated_nodes_and_empty_graphs(score: str) -> None:
    torch.manual_seed(0)
    layer = GraphAttention(DIM, HEADS, score=score, residual=True, edge_dim=F, edge_values=True)
    nn.init.normal_(layer.residual.bias)
    leaves = torch.arange(1, 400)
    hub = torch.stack([leaves, torch.zeros_like(leaves)])
    x, edge_attr = 3 * torch.randn(401, DIM), torch.randn(len(leaves), F)
    found = results(layer, x, hub, edge_attr)
    assert_same([found[0]], [results(layer, x, hub, edge_attr, backend="reference")[0]])
    assert all(tensor.isfinite().all() for tensor in found)
    torch.testing.assert_close(found[0][1:], layer.residual(x[1:]))  # no edge leads there
    none, of_none = torch.zeros(2, 0, dtype=torch.long), torch.zeros(0, F)
    for loops in (False, True):
        layer.self_loops = loops
        out, (_, weights) = layer(x[:0], none, of_none, return_attention_weights=True)
        assert out.shape == (0, DIM) and weights.shape == (0, HEADS)
    layer.self_loops = False
    for tensor in results(layer, x[:5], none, of_none):
        assert tensor.isfinite().all()
    two = layer((x[:4], x[:0]), none, of_none), layer((x[:0], x[:4]), none, of_none)
    assert two[0].shape == (0, DIM)
    torch.testing.assert_close(two[1], layer.residual(x[:4]))


def test_edges_are_sorted_once() -> None:
    """For all layers that are given one tensor, as long as it lives and stays as it is."""
    layers = [GraphAttention(DIM, HEADS, self_loops=loops) for loops in (True, False, True)]
    x, edge_index, _ = drawn()
    known = len(layer_edges._known)
    out = [layer(x, edge_index, backend="edges") for layer in layers]
    assert len(layer_edges._known) == known + 1
    (edges,) = layer_edges._known[edge_index].values()
    looped = edges.looped[0]
    assert "csr" in vars(edges) and "csr" in vars(looped)
    again = [layer(x, edge_index, backend="edges") for layer in layers]
    assert layer_edges._known[edge_index].popitem()[1].looped[0] is looped
    for first, second in zip(out, again, strict=True):
        assert torch.equal(first, second)
    edge_index.numpy()[:] = edge_index.flip(0).numpy()  # in place, unseen by torch
    turned = [layer(x, edge_index.clone()) for layer in layers]
    for layer, wanted in zip(layers, turned, strict=True):
        assert torch.equal(layer(x, edge_index), wanted)
    del edges, looped, edge_index
    gc.collect()
    assert len(layer_edges._known) <= known


def test_another_dtype_and_autocast() -> None:
    layer = GraphAttention(DIM, HEADS, edge_dim=F, self_loops=True)
    x, edge_index, edge_attr = drawn()
    wanted = layer(x, edge_index, edge_attr)
    double = copy.deepcopy(layer).double()(x.double(), edge_index.int(), edge_attr.double())
    torch.testing.assert_close(double.float(), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x, edge_index, edge_attr)
    torch.testing.assert_close(half.float(), wanted, rtol=0.05, atol=0.05)


# -- what is refused -----------------------------------------------------------------------------

X, EDGES, ATTR = drawn()
NAN = X.clone()
NAN[3, 1] = torch.nan


@pytest.mark.parametrize(
    ("x", "edge_index", "edge_attr", "error", "message"),
    [
        (X[:, :3], EDGES, ATTR, ValueError, "x must be float (N, 12), got torch.float32 (20, 3)"),
        (X.long(), EDGES, ATTR, ValueError, "x must be float (N, 12), got torch.int64 (20, 12)"),
        (NAN, EDGES, ATTR, ValueError, "x has a feature that is not finite, first in row 3"),
        ((X, X[:, 1:]), EDGES, ATTR, ValueError, "x, the targets, must be float (N, 12), got"),
        ((X, NAN), EDGES, ATTR, ValueError, "x has a feature that is not finite"),
        ((X, None), EDGES, ATTR, TypeError, "x must be a tensor, or (sources, targets), got"),
        (X, EDGES + 5, ATTR, ValueError, "edge_index names node 22, but num_nodes=20"),
        (X, EDGES - 1, ATTR, ValueError, "edge_index names node -1, but num_nodes=20"),
        ((X, X[:9]), EDGES, ATTR, ValueError, "edge_index names target 17, but num_targets=9"),
        (X, EDGES.float(), ATTR, TypeError, "edge_index must hold integers, got torch.float32"),
        (X, EDGES.bool(), ATTR, TypeError, "edge_index must hold integers, got torch.bool"),
        (X, EDGES.T, ATTR, ValueError, "edge_index must have shape (2, E), got (60, 2)"),
        (X, EDGES[0], ATTR, ValueError, "edge_index must have shape (2, E), got (60,)"),
        (X, torch.eye(20).to_sparse(), ATTR, ValueError, "edge_attr has 60 rows for 20 edges in"),
        (X, EDGES.tolist(), ATTR, TypeError, "edge_index must be a dense tensor (2, E) of int"),
        (X, EDGES, ATTR[1:], ValueError, "edge_attr has 59 rows for 60 edges in edge_index"),
        (X, EDGES, ATTR[:, 1:], ValueError, "edge_attr must be float (E, 3) for edge_dim=3, got"),
        (X, EDGES, ATTR[:, 0], ValueError, "edge_attr must be float (E, 3) for edge_dim=3, got"),
        (X, EDGES, ATTR.long(), ValueError, "edge_attr must be float (E, 3) for edge_dim=3, got"),
        (X, EDGES, ATTR / 0, ValueError, "edge_attr has a feature that is not finite, first in"),
        (X, EDGES, None, ValueError, "edge_attr is missing: edge_dim=3 asks for floats (E, 3)"),
    ],
)
def test_bad_input(
    x: Any, edge_index: Any, edge_attr: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        GraphAttention(DIM, HEADS, edge_dim=F)(x, edge_index, edge_attr)


def test_features_for_nothing_and_types_of_loops() -> None:
    with pytest.raises(ValueError, match="edge_attr is given to a layer that makes nothing of it"):
        GraphAttention(DIM, HEADS)(X, EDGES, ATTR)
    layer = GraphAttention(DIM, HEADS, bias=EdgeBias(HEADS, types=3), self_loops=True)
    with pytest.raises(ValueError, match="give an integer fill_value, got 'mean'"):
        layer(X, EDGES, torch.zeros(60, dtype=torch.long))
    large = GraphAttention(1, 1)(torch.full((9, 1), 1e38), EDGES % 9)  # its sum is infinite
    assert large.shape == (9, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "dim=12 must be a multiple of heads=5, or give head_dim"),
        ({"kv_heads": 3}, "heads=4 must be a multiple of kv_heads=3"),
        ({"dim": 0}, "dim must be at least 1, or -1 for that of the first input, got 0"),
        ({"score": "cosine"}, "score must be 'dot', 'additive' or 'additive_v2', got 'cosine'"),
        ({"residual": "beta"}, "residual must be a bool or 'gated', got 'beta'"),
        ({"attention_dropout": 1.0}, "attention_dropout must be in [0, 1), got 1.0"),
        ({"fill_value": "median"}, "fill_value must be a number, a tensor or one of add, mean, "),
        ({"dim": (3, 12), "share_weights": True}, "share_weights needs one dim and as many"),
        ({"kv_heads": 2, "share_weights": True}, "share_weights needs one dim and as many"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        GraphAttention(**{"dim": DIM, "heads": HEADS} | options)


def test_a_space_of_two_sets_has_no_distance() -> None:
    layer = GraphAttention(DIM, HEADS, bias=RelativeTable.hops(HEADS, 2))
    with pytest.raises(TypeError, match="a bipartite graph has edges, but neither hops nor"):
        layer((X, X), EDGES)
    target, source = Graph.bipartite(EDGES, 20, 18)
    assert (target.length, source.length, target.edges is source.edges) == (18, 20, True)
