"""`HeteroGraphAttention`: as PyG's HGTConv, and with features of edges as `GraphAttention`."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import HGTConv

from attention_core import record_attention
from graph import GraphAttention, HeteroGraphAttention

WRITES, CITES = ("author", "writes", "paper"), ("paper", "cites", "paper")
RATES = ("editor", "rates", "author")
NODES, TYPES = ["author", "paper", "editor"], [WRITES, CITES, RATES]
DIMS, SIZES = {"author": 5, "paper": 8, "editor": 3}, {"author": 6, "paper": 9, "editor": 4}
OUT, HEADS, F = 8, 2, 3


def drawn() -> tuple[dict[str, Tensor], dict[tuple[str, str, str], Tensor]]:
    """Repeated edges, self-loops, and papers without edges."""
    torch.manual_seed(0)
    x = {name: torch.randn(SIZES[name], DIMS[name]) for name in NODES}
    edges = {}
    for edge in TYPES:
        source, target = SIZES[edge[0]], max(SIZES[edge[-1]] - 2, 1)
        edges[edge] = torch.stack([torch.randint(source, (20,)), torch.randint(target, (20,))])
    return x, edges


def made(**options: Any) -> HeteroGraphAttention:
    torch.manual_seed(1)
    return HeteroGraphAttention(DIMS, OUT, HEADS, (NODES, TYPES), **options)


def test_equal_to_hgt_with_its_weights() -> None:
    """Values and gradients. The published priority is a factor of our matrices."""
    x, edges = drawn()
    theirs = HGTConv(DIMS, OUT, (NODES, TYPES), HEADS)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    mine = made()
    with torch.no_grad():
        for name in NODES:
            key, kqv = f"[{name}]", theirs.kqv_lin.lins[name]
            for i, layers in enumerate((mine.key, mine.query, mine.value)):
                if key in layers:
                    layers[key].weight.copy_(kqv.weight.chunk(3)[i])
                    layers[key].bias.copy_(kqv.bias.chunk(3)[i])
            if key in mine.out:
                mine.out[key].load_state_dict(theirs.out_lin.lins[name].state_dict())
            if key in mine.share:
                mine.share[key].copy_(theirs.skip[name].squeeze())
        for i, edge in enumerate(TYPES):
            of_heads = torch.arange(HEADS) * len(TYPES) + i
            priority = theirs.p_rel["__".join(edge)].view(HEADS, 1, 1)
            mine.key_relation[i] = theirs.k_rel.weight[of_heads] * priority
            mine.value_relation[i] = theirs.v_rel.weight[of_heads]
    results = []
    for layer in (mine, theirs):
        given = {name: nodes.clone().requires_grad_() for name, nodes in x.items()}
        out = layer(given, edges)
        sum(o.square().sum() for o in out.values()).backward()
        results.append((out, {name: nodes.grad for name, nodes in given.items()}))
    assert results[0][0].keys() == results[1][0].keys() == {"author", "paper"}
    for got, wanted in zip(*results, strict=True):
        for name in got:
            torch.testing.assert_close(got[name], wanted[name], rtol=1e-5, atol=1e-5)


def test_with_one_type_it_is_graph_attention() -> None:
    """With features of edges, in values and gradients, and the weights of each edge."""
    torch.manual_seed(0)
    edge, x = ("n", "e", "n"), torch.randn(9, OUT)
    edge_index, attr = torch.randint(8, (2, 30)), torch.randn(30, F)
    layer = HeteroGraphAttention(OUT, OUT, HEADS, (["n"], [edge]), edge_dim=F)
    plain = GraphAttention(OUT, HEADS, edge_dim=F, output_bias=False)
    plain.query.load_state_dict(layer.query["[n]"].state_dict())
    plain.edge.load_state_dict(layer.edge["[n e n]"].state_dict())
    with torch.no_grad():
        for own, relation, mine in (
            (layer.key["[n]"], layer.key_relation[0], plain.key),
            (layer.value["[n]"], layer.value_relation[0], plain.value),
        ):
            turn = torch.block_diag(*relation)
            mine.weight.copy_(turn.T @ own.weight)
            mine.bias.copy_(own.bias @ turn)
    share = torch.sigmoid(layer.share["[n]"])
    attention, (_, weights) = plain(x, edge_index, attr, return_attention_weights=True)
    wanted = share * layer.out["[n]"](nn.functional.gelu(attention)) + (1 - share) * x
    out, of_types = layer({"n": x}, {edge: edge_index}, {edge: attr}, return_attention_weights=True)
    torch.testing.assert_close(out["n"], wanted)
    assert of_types[edge][0] is edge_index
    torch.testing.assert_close(of_types[edge][1], weights)
    learned = [layer.edge["[n e n]"].weight], [plain.edge.weight]
    for got, right in zip(
        torch.autograd.grad(out["n"].sum(), learned[0]),
        torch.autograd.grad(wanted.sum(), learned[1]),
        strict=True,
    ):
        torch.testing.assert_close(got, right)


def test_features_of_some_types_and_one_softmax_over_all() -> None:
    """Equal in both backends that know features; weights into a node sum to 1 over all types."""
    x, edges = drawn()
    layer = made(edge_dim={CITES: F})
    attr = {CITES: torch.randn(20, F)}
    found = []
    for backend in ("edges", "reference"):
        if backend == "reference":  # tells no repeated edges apart
            edges = {edge: index.unique(dim=1) for edge, index in edges.items()}
            attr = {CITES: torch.randn(edges[CITES].shape[1], F)}
            found.append(layer(x, edges, attr, backend="edges")["paper"])
        out, weights = layer(x, edges, attr, return_attention_weights=True, backend=backend)
        found.append(out["paper"])
        total = torch.zeros(9, HEADS)
        for edge in (WRITES, CITES):
            assert torch.equal(weights[edge][0], edges[edge])
            total.index_add_(0, edges[edge][1], weights[edge][1])
        reached = torch.cat([edges[WRITES], edges[CITES]], 1)[1].unique()
        torch.testing.assert_close(total[reached], torch.ones(len(reached), HEADS))
        assert len(reached) < 9
        torch.testing.assert_close(total.sum(), torch.tensor(float(HEADS * len(reached))))
    torch.testing.assert_close(found[1], found[2])


def test_dropout_and_records() -> None:
    x, edges = drawn()
    layer = made(attention_dropout=0.5)
    with record_attention(layer, pairs=True) as maps:
        one = layer(x, edges, return_attention_weights=True)
        two = layer.eval()(x, edges, return_attention_weights=True)
    assert not torch.allclose(one[0]["paper"], two[0]["paper"])
    for edge in TYPES:
        torch.testing.assert_close(one[1][edge][1], two[1][edge][1])
    recorded = maps[0].of_edges()[0].split([20] * 3)
    for edge, weights in zip(TYPES, recorded, strict=True):
        torch.testing.assert_close(weights, two[1][edge][1].detach())


def test_types_without_edges_or_nodes() -> None:
    """As in a sampled batch: the types that are left give what they give."""
    x, edges = drawn()
    layer = made()
    few = layer(x, {WRITES: edges[WRITES]}, return_attention_weights=True)
    assert few[1].keys() == {WRITES}
    no_cites = {**edges, CITES: edges[CITES][:, :0]}
    torch.testing.assert_close(few[0]["paper"], layer(x, no_cites)["paper"])
    none = layer(x, {})
    torch.testing.assert_close(none["paper"][-1], few[0]["paper"][-1])  # a paper without edges
    assert none["author"].shape == (6, OUT)
    empty = layer({**x, "paper": x["paper"][:0]}, {RATES: edges[RATES]})
    assert empty["paper"].shape == (0, OUT)


def test_names_that_modules_must_not_have() -> None:
    edge = "a.b", "keys", "type"
    layer = HeteroGraphAttention(4, 4, 2, (["a.b", "type"], [edge]), edge_dim=1)
    x, edges = {"a.b": torch.randn(3, 4), "type": torch.randn(2, 4)}, torch.tensor([[2], [1]])
    out = layer(x, {edge: edges}, {edge: torch.ones(1, 1)})
    assert out["type"].shape == (2, 4) and "key.[a:b].weight" in layer.state_dict()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": {"paper": None}}, ValueError, "x_dict has no nodes 'paper'; it has ['author', "),
        ({"x": {"paper": torch.zeros(9, 2)}}, ValueError, "x_dict['paper'] must be float (N, 8)"),
        (
            {"x": {"editor": torch.full((4, 3), torch.inf)}},
            ValueError,
            "x_dict['editor'] has a feature",
        ),
        (
            {"e": {CITES: torch.tensor([[9], [0]])}},
            ValueError,
            "names nodes 9 to 9 of 'paper', but",
        ),
        ({"e": {CITES: torch.zeros(2, 3)}}, TypeError, f"edge_index_dict[{CITES}] must hold int"),
        ({"e": {CITES: torch.zeros(3, 2).int()}}, ValueError, f"dict[{CITES}] must have shape (2"),
        (
            {"e": {("a", "b", "c"): torch.zeros(2, 1).int()}},
            ValueError,
            "edge_index_dict has edges",
        ),
        ({"a": {CITES: torch.zeros(19, F)}}, ValueError, "must be float (E, 3) for 20 edges, got"),
        ({"a": {CITES: None}}, ValueError, f"edge_attr_dict[{CITES}] is missing: edge_dim=3"),
        ({"a": {WRITES: torch.zeros(20, F)}}, ValueError, "edge_attr_dict has features of"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    x, edges = drawn()
    attr = {CITES: torch.zeros(20, F)}
    given = [
        {
            name: value
            for name, value in (usual | change.get(which, {})).items()
            if value is not None
        }
        for which, usual in (("x", x), ("e", edges), ("a", attr))
    ]
    with pytest.raises(error, match=re.escape(message)):
        made(edge_dim={CITES: F})(*given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "out_dim=8 must be a multiple of heads=3"),
        ({"attention_dropout": -1.0}, "attention_dropout must be in [0, 1), got -1.0"),
        (
            {"dim": {"author": 5}},
            "metadata has nodes ['author', 'paper', 'editor'], its edges join",
        ),
        ({"metadata": (NODES[:2], TYPES), "dim": 8}, "metadata has nodes ['author', 'paper'], its"),
        ({"metadata": (NODES, [])}, "metadata names no types of edges"),
        ({"edge_dim": {("a", "b", "c"): 3}}, "edge_dim has edges [('a', 'b', 'c')], but metadata"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    usual = {"dim": DIMS, "out_dim": OUT, "heads": HEADS, "metadata": (NODES, TYPES)}
    with pytest.raises(ValueError, match=re.escape(message)):
        HeteroGraphAttention(**usual | options)
