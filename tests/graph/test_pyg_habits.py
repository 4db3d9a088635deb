"""How PyG users build and call a layer: `reset_parameters`, lazy sizes, `size` and `adj_t`."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
import torch_geometric.transforms as T
from torch import nn
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.utils import to_torch_coo_tensor

import graph
from attention_core import EdgeBias
from graph import GATConv, GATv2Conv, GraphAttention, HeteroGraphAttention, TransformerConv

CONVS = ["GATConv", "GATv2Conv", "TransformerConv"]
#: Self-loops, one of them twice, a repeated edge, and a node without edges.
EDGES = torch.tensor([[0, 1, 2, 2, 3, 4, 4, 1, 3], [1, 0, 2, 2, 1, 3, 3, 1, 0]])
PLAIN = torch.tensor([[0, 1, 2, 3, 4, 4], [1, 0, 1, 1, 3, 0]])
NODES, IN, OUT, HEADS = 6, 5, 4, 2


def made(where: Any, name: str, channels: Any = IN, **options: Any) -> nn.Module:
    layer: nn.Module = getattr(where, name)(channels, OUT, heads=HEADS, **options)
    return layer


# -- learning anew -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        GATConv(IN, OUT, HEADS, edge_dim=2, residual=True),
        GATv2Conv((IN, IN), OUT, HEADS, edge_dim=2),
        TransformerConv(IN, OUT, HEADS, edge_dim=2, beta=True),
        GraphAttention(IN, HEADS, head_dim=OUT, bias=EdgeBias(HEADS, types=3)),
        HeteroGraphAttention(8, 8, HEADS, (["n"], [("n", "e", "n")]), edge_dim=3),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_reset_parameters_begins_again(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.constant_(parameter, 7)
    torch.manual_seed(0)
    layer.reset_parameters()
    first = copy.deepcopy(layer.state_dict())
    assert not [name for name, value in first.items() if (value == 7).any()]
    assert not [name for name, value in first.items() if name.endswith("bias") and value.any()]
    torch.manual_seed(0)
    layer.reset_parameters()
    for name, value in layer.state_dict().items():
        assert torch.equal(value, first[name])


def test_lazy_sizes_by_type_of_nodes() -> None:
    edges = {("a", "to", "b"): PLAIN, ("b", "of", "b"): PLAIN}
    metadata = ["a", "b"], list(edges)
    x, attr = (
        {"a": torch.randn(6, 3), "b": torch.randn(6, 8)},
        {("a", "to", "b"): torch.randn(6, 2)},
    )
    told = HeteroGraphAttention(
        {"a": 3, "b": 8}, 8, HEADS, metadata, edge_dim={("a", "to", "b"): 2}
    )
    lazy = HeteroGraphAttention(-1, 8, HEADS, metadata, edge_dim={("a", "to", "b"): -1})
    loaded = copy.deepcopy(lazy)
    with pytest.raises(
        ValueError, match="x_dict has no nodes 'a'.*, but dim=-1 leaves the size to"
    ):
        lazy({"b": x["b"]}, {})
    with pytest.raises(ValueError, match="is missing: edge_dim=-1 asks for floats"):
        copy.deepcopy(lazy)(x, {})
    lazy(x, edges, attr)
    for layer in (lazy, loaded):  # `loaded` before any input
        layer.load_state_dict(told.state_dict())
        torch.testing.assert_close(layer(x, edges, attr), told(x, edges, attr))
    with pytest.raises(ValueError, match=r"x_dict\['a'\] must be float \(N, 3\)"):
        lazy({"a": x["b"], "b": x["b"]}, edges, attr)


# -- sizes left to the first input ---------------------------------------------------------------


@pytest.mark.parametrize("name", CONVS)
def test_sizes_are_left_to_the_first_input(name: str) -> None:
    x, attr = (torch.randn(6, IN), torch.randn(6, 3)), torch.randn(6, 2)
    told = made(graph, name, (IN, 3), edge_dim=2)
    lazy = made(graph, name, (-1, -1), edge_dim=-1)
    assert lazy.source_dim == lazy.target_dim == lazy.edge_dim == -1
    loaded = copy.deepcopy(lazy)
    lazy(x, PLAIN, attr)
    assert (lazy.source_dim, lazy.target_dim, lazy.edge_dim) == (IN, 3, 2)
    lazy.load_state_dict(told.state_dict())
    loaded.load_state_dict(told.state_dict())  # before any input
    torch.testing.assert_close(lazy(x, PLAIN, attr), told(x, PLAIN, attr))
    torch.testing.assert_close(loaded(x, PLAIN, attr), told(x, PLAIN, attr))
    with pytest.raises(ValueError, match=r"must be float \(N, 5\)"):
        lazy((x[1], x[1]), PLAIN, attr)
    begun = made(graph, name, -1)
    assert begun(x[0], PLAIN).shape == (6, OUT * HEADS)
    weight = begun.key.weight  # Xavier's, as of a layer that was told
    assert 0.5 < weight.abs().max() / (6 / (IN + OUT * HEADS)) ** 0.5 <= 1
    assert len(list(begun.parameters())) == len(list(made(graph, name).parameters()))


def test_lazy_sizes_of_a_pyg_model_are_loaded() -> None:
    theirs, mine = (made(where, "GATConv", (-1, -1)) for where in (pyg, graph))
    x = torch.randn(6, IN), torch.randn(6, 3)
    theirs(x, PLAIN)
    mine.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(mine(x, PLAIN), theirs(x, PLAIN))


# -- who says how many nodes there are ------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        ((6, 6), {"size": (6, 5)}, ValueError, "size tells of 5 targets, but there are 6"),
        ((6, 6), {"size": (7, 6)}, ValueError, "size tells of 7 sources, but there are 6"),
        ((6,), {"size": (6, 5)}, ValueError, "size tells of 5 targets, but there are 6"),
        ((6, None), {"size": (6, 2)}, ValueError, "names target 3, but num_targets=2"),
        ((6, None), {"size": (6, -1)}, TypeError, "size must be (number of sources, number of t"),
        ((6, 6), {"size": 6}, TypeError, "size must be (number of sources, number of targets)"),
        ((6, 6), {"size": (6, "6")}, TypeError, "size must be (number of sources, number of t"),
    ],
)
def test_sizes_that_disagree(x: Any, options: Any, error: type[Exception], message: str) -> None:
    sets = [None if count is None else torch.randn(count, IN) for count in x]
    given = sets[0] if len(sets) == 1 else tuple(sets)
    with pytest.raises(error, match=re.escape(message)):
        made(graph, "GATConv", (IN, IN) if len(sets) == 2 else IN)(given, PLAIN, **options)


def test_an_edge_index_of_pyg_tells_how_many_targets() -> None:
    edge_index = EdgeIndex(PLAIN, sparse_size=(6, 9))
    layer = made(graph, "GATConv", (IN, IN))
    assert layer((torch.randn(6, IN), None), edge_index).shape == (9, OUT * HEADS)
    with pytest.raises(ValueError, match="edge_index tells of 9 targets, but there are 6"):
        layer((torch.randn(6, IN), torch.randn(6, IN)), edge_index)


def test_without_targets_only_the_source_is_asked() -> None:
    """PyG's GATConv does so, its GATv2Conv does not: its score is then that of a query of zeros."""
    layer = made(graph, "GATv2Conv", (IN, IN))
    x, adj = torch.randn(6, IN), to_torch_coo_tensor(PLAIN.flip(0), size=(6, 6))
    out = layer((x, None), PLAIN)
    torch.testing.assert_close(layer((x, None), adj), out)
    nn.init.zeros_(layer.query.weight)
    nn.init.zeros_(layer.query.bias)
    torch.testing.assert_close(layer((x, x), PLAIN), out)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (TransformerConv((IN, IN), OUT), "score='dot' needs them"),
        (GraphAttention(4, score="additive", residual="gated"), "residual='gated' needs them"),
    ],
)
def test_targets_that_are_needed(layer: nn.Module, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        layer((torch.randn(6, layer.source_dim), None), PLAIN)
    with pytest.raises(TypeError, match=re.escape("x must be a tensor, or (sources, targets)")):
        layer((None, torch.randn(6, layer.source_dim)), PLAIN)


# -- adj_t -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_adjacency_of_the_transform(name: str, layout: torch.layout) -> None:
    """PyG's transform sorts edges; what it makes of their features is `edge_attr`."""
    x, order = torch.randn(NODES, IN), torch.randperm(6)
    edge_index, attr = PLAIN[:, order], torch.randn(6, 3)
    layer = made(graph, name, edge_dim=3)
    wanted = layer(x, edge_index, attr)
    data = Data(x=x, edge_index=edge_index, edge_attr=attr)
    sorted_edges = T.ToSparseTensor(layout=layout)(copy.copy(data))
    torch.testing.assert_close(layer(x, sorted_edges.adj_t, sorted_edges.edge_attr), wanted)
    inside = T.ToSparseTensor(attr="edge_attr", layout=layout)(copy.copy(data))
    torch.testing.assert_close(layer(x, inside.adj_t), wanted)


def test_a_bias_reads_the_values_of_an_adjacency() -> None:
    layer, x = GraphAttention(4, HEADS, bias=EdgeBias(HEADS, features=3)), torch.randn(6, 4)
    attr = torch.randn(6, 3)
    adj = torch.sparse_coo_tensor(PLAIN.flip(0), attr, (6, 6, 3))
    torch.testing.assert_close(layer(x, adj), layer(x, PLAIN, attr))


def test_repeated_edges_of_an_adjacency_are_several() -> None:
    layer, x = made(graph, "GATv2Conv", add_self_loops=False), torch.randn(NODES, IN)
    adj = torch.sparse_coo_tensor(EDGES.flip(0), torch.ones(9), (NODES, NODES))
    torch.testing.assert_close(layer(x, adj), layer(x, EDGES))
    _, (edges, weights) = layer(x, EDGES, return_attention_weights=True)
    _, (matrix, _) = layer(x, adj, return_attention_weights=True)
    dense = torch.zeros(NODES, NODES, HEADS)
    dense.index_put_((edges[1], edges[0]), weights, accumulate=True)
    torch.testing.assert_close(matrix.to_dense(), dense)


def test_adjacency_by_type_of_edges() -> None:
    writes, cites = ("author", "writes", "paper"), ("paper", "cites", "paper")
    layer = HeteroGraphAttention(
        IN, 4, HEADS, (["author", "paper"], [writes, cites]), edge_dim={writes: 2}
    )
    x = {"author": torch.randn(5, IN), "paper": torch.randn(4, IN)}
    edges = {writes: PLAIN, cites: PLAIN[:, :4]}
    attr = torch.randn(6, 2)
    order = (PLAIN[1] * 5 + PLAIN[0]).argsort()
    adj = {
        writes: to_torch_coo_tensor(PLAIN.flip(0), attr, size=(4, 5)),
        cites: to_torch_coo_tensor(PLAIN[:, :4].flip(0), size=(4, 4)).to_sparse_csr(),
    }
    wanted, of_edges = layer(x, edges, {writes: attr}, return_attention_weights=True)
    found, matrices = layer(x, adj, return_attention_weights=True)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(matrices[writes][1], of_edges[writes][1][order])
    assert matrices[cites][0].shape == (4, 4, HEADS)
    with pytest.raises(ValueError, match="tells of 5 targets, but there are 4"):
        layer(x, {writes: to_torch_coo_tensor(PLAIN.flip(0), attr, size=(5, 5))})


@pytest.mark.parametrize(
    ("edge_index", "error", "message"),
    [
        (torch.ones(6, 6).to_sparse_bsr((2, 2)), TypeError, "must be a dense tensor (2, E)"),
        (torch.ones(6, 6, 6).to_sparse(), ValueError, "must be a sparse matrix (targets, sources)"),
        (torch.ones(6, 5).to_sparse(), ValueError, "edge_index tells of 5 sources, but there are"),
        (torch.ones(5, 6).to_sparse(), ValueError, "edge_index tells of 5 targets, but there are"),
        (object(), TypeError, "must be a dense tensor (2, E) of integers, or a sparse"),
    ],
)
def test_other_adjacencies(edge_index: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        made(graph, "GATConv")(torch.randn(NODES, IN), edge_index)
