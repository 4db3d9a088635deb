"""No nodes, edges or graphs: layers and models give what is left; no size is refused by name."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import nn

import graph
from attention_core import Edges
from graph import GATConv, GraphAttention, GraphTransformer, HeteroGraphAttention, TransformerConv

NONE = torch.empty(2, 0, dtype=torch.long)
NO_TYPES = torch.empty(0, dtype=torch.long)


@pytest.mark.parametrize(("sources", "targets"), [(5, 4), (0, 4), (4, 0), (0, 0)])
@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv", "TransformerConv"])
def test_layers_give_what_pygs_give(name: str, sources: int, targets: int) -> None:
    """Without edges: with a list of none, and with a matrix of none."""
    theirs, mine = (
        getattr(where, name)((6, 3), 4, heads=2, edge_dim=2, bias=True) for where in (pyg, graph)
    )
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    mine.load_state_dict(theirs.state_dict())
    x, attr = (torch.randn(sources, 6), torch.randn(targets, 3)), torch.empty(0, 2)
    wanted = theirs(x, NONE, attr)
    torch.testing.assert_close(mine(x, NONE, attr), wanted)
    matrix = torch.sparse_csr_tensor(
        torch.zeros(targets + 1, dtype=torch.long), NO_TYPES, torch.empty(0), (targets, sources)
    )
    out, (_, weights) = mine(x, matrix, attr, return_attention_weights=True)
    torch.testing.assert_close(out, wanted)
    loops = 0 if name == "TransformerConv" else min(sources, targets)
    assert weights.shape == (loops, 2)


def test_no_nodes_of_any_type() -> None:
    edge = ("a", "to", "b")
    layer = HeteroGraphAttention(4, 4, 2, (["a", "b"], [edge]))
    assert layer({}, {}) == {} and layer({}, {edge: NONE}) == {}
    x = {"a": torch.empty(0, 4), "b": torch.randn(3, 4)}
    out, weights = layer(x, {edge: NONE}, return_attention_weights=True)
    torch.testing.assert_close(out, layer({"b": x["b"]}, {}))
    assert weights[edge][1].shape == (0, 2)


@pytest.mark.parametrize(
    "options", [{}, {"local": Edges(), "virtual_nodes": 1}, {"mask": Edges(), "score": "additive"}]
)
@pytest.mark.parametrize("level", ["graph", "node", "edge", "link"])
def test_models_of_no_graphs(level: Any, options: dict[str, Any]) -> None:
    of_links = level == "link"
    model = GraphTransformer(
        16, 2, 2, num_classes=None if of_links else 3, level=level, node_types=2, **options
    )
    asked = {"edge_label_index": NONE} if of_links else {}
    wanted = (0,) if of_links else (0, 3)
    assert model(NO_TYPES, NONE, batch=NO_TYPES, num_graphs=0, **asked).shape == wanted
    assert model(NO_TYPES, NONE, batch=NO_TYPES, **asked).shape == wanted
    if level == "graph":
        assert model(NO_TYPES, NONE, batch=NO_TYPES, num_graphs=2).shape == (2, 3)
    else:
        assert model(NO_TYPES, NONE, **asked).shape == wanted


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GATConv(8, 0), "out_channels must be at least 1, got 0"),
        (lambda: TransformerConv(8, -1), "out_channels must be at least 1, got -1"),
        (lambda: GATConv((8, 0), 4), "in_channels must be at least 1, or -1 for that of the first"),
        (lambda: GATConv(8, 4, 0), "heads must be at least 1, got 0"),
        (lambda: GATConv(8, 4, edge_dim=0), "edge_dim must be at least 1, or -1 for that of the"),
        (lambda: GraphAttention(8, 2, head_dim=0), "head_dim must be at least 1, or None, got 0"),
        (lambda: GraphAttention(-1, 2), "dim=-1 must be a multiple of heads=2, or give head_dim"),
        (lambda: hetero(dim=0), "dim must be at least 1, or -1 for that of the first input"),
        (lambda: hetero(out_dim=0), "out_dim must be at least 1, got 0"),
        (lambda: hetero(edge_dim=0), "edge_dim must be at least 1, or -1"),
    ],
)
def test_layers_have_no_size_of_zero(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        make()


def hetero(**options: Any) -> HeteroGraphAttention:
    usual: dict[str, Any] = {"dim": 8, "out_dim": 8, "heads": 2}
    return HeteroGraphAttention(**usual | options, metadata=(["n"], [("n", "e", "n")]))


SIZES = ["dim", "heads", "depth", "num_classes", "node_types", "edge_types", "edge_dim", "max_hops"]


@pytest.mark.parametrize("name", [*SIZES, "expander_degree", "head_dim", "hidden", "kv_heads"])
@pytest.mark.parametrize("size", [0, -2])
def test_models_have_no_size_of_zero(name: str, size: int) -> None:
    usual = {"dim": 8, "depth": 1, "heads": 2, "num_classes": 2, "node_types": 3, "edge_types": 2}
    with pytest.raises(ValueError, match=f"{name} must be at least 1(, or None)?, got {size}"):
        GraphTransformer(**{**usual, name: size})


@pytest.mark.parametrize("kind", ["node", "edge"])
def test_features_have_a_size(kind: str) -> None:
    usual = {"node_types": 3} if kind == "edge" else {}
    with pytest.raises(ValueError, match=f"{kind}_features must be at least 1, or None, got 0"):
        GraphTransformer(8, 1, 2, num_classes=2, **usual, **{f"{kind}_features": 0})


def test_a_size_is_told_by_no_nodes() -> None:
    layer = GATConv(-1, 2)
    assert layer(torch.empty(0, 5), NONE).shape == (0, 2) and layer.source_dim == 5
