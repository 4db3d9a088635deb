"""What PyG's users do with a layer besides calling it: `to_hetero`, explainers, hooks, lazy sizes,
`adj_t` and `reset_parameters`, each beside PyG's layers where those can."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
import torch_geometric.transforms as T
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.explain import (
    AttentionExplainer,
    Explainer,
    GNNExplainer,
    GraphMaskExplainer,
    PGExplainer,
)
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


# -- several types of nodes ------------------------------------------------------------------------

METADATA = (
    ["author", "paper"],
    [("author", "writes", "paper"), ("paper", "cites", "paper"), ("paper", "by", "author")],
)


class TwoLayers(nn.Module):
    def __init__(self, where: Any, name: str) -> None:
        super().__init__()
        loops = {} if name == "TransformerConv" else {"add_self_loops": False}
        self.conv1 = made(where, name, (-1, -1), **loops)
        self.conv2 = made(where, name, (-1, -1), **loops)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x, edge_index).relu(), edge_index)
        return out


def typed_graph() -> tuple[dict[str, Tensor], dict[tuple[str, str, str], Tensor]]:
    torch.manual_seed(0)
    x = {"author": torch.randn(6, IN), "paper": torch.randn(5, 3)}
    edges = {
        edge: torch.stack([torch.randint(len(x[end]), (9,)) for end in (edge[0], edge[-1])])
        for edge in METADATA[1]
    }
    return x, edges


@pytest.mark.parametrize("name", CONVS)
def test_to_hetero_copies_a_layer_for_each_type_of_edges(name: str) -> None:
    x, edges = typed_graph()
    theirs, mine = (pyg.to_hetero(TwoLayers(where, name), METADATA) for where in (pyg, graph))
    wanted = theirs(x, edges)  # tells the sizes
    mine(x, edges)
    drawn = [mine.conv1[key].key.weight for key in mine.conv1]
    assert len(drawn) == 3 and not torch.equal(drawn[1], drawn[2])
    mine.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(mine(x, edges), wanted)


def test_a_layer_by_type_of_edges() -> None:
    """`HeteroConv`; and both refuse self-loops between two types of nodes, as for PyG's layers."""
    x, edges = typed_graph()
    convs = [
        pyg.HeteroConv({
            edge: made(where, "GATConv", (-1, -1), add_self_loops=False) for edge in METADATA[1]
        })
        for where in (pyg, graph)
    ]  # fmt: skip
    theirs, mine = convs
    wanted = theirs(x, edges)
    mine.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(mine(x, edges), wanted)
    with pytest.raises(ValueError, match="add_self_loops"):
        pyg.HeteroConv({METADATA[1][0]: made(graph, "GATConv", (-1, -1))})


# -- explainers and hooks --------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self, where: Any, name: str, **options: Any) -> None:
        super().__init__()
        self.conv1 = made(where, name, **options)
        self.conv2 = made(where, name, OUT * HEADS, **options)
        self.head = nn.Linear(OUT * HEADS, 3)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Tensor:
        hidden = self.conv1(x, edge_index, edge_attr).relu()
        out: Tensor = self.head(self.conv2(hidden, edge_index, edge_attr))
        return out


def models(name: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    theirs, mine = Model(pyg, name, **options), Model(graph, name, **options)
    mine.load_state_dict(theirs.state_dict())
    return mine, theirs


CONFIG = {"mode": "multiclass_classification", "task_level": "node", "return_type": "raw"}


@pytest.mark.parametrize("edges", [PLAIN, EDGES], ids=["plain", "self-loops"])
@pytest.mark.parametrize("name", CONVS)
def test_gnn_explainer(name: str, edges: Tensor) -> None:
    """The masks that it learns, and so their gradients in every step, are those of PyG's layers."""
    found = []
    for model in models(name, edge_dim=2):
        explainer = Explainer(
            model, GNNExplainer(epochs=4), explanation_type="model", model_config=CONFIG,
            node_mask_type="attributes", edge_mask_type="object",
        )  # fmt: skip
        torch.manual_seed(1)
        x, attr = torch.randn(NODES, IN), torch.randn(edges.shape[1], 2)
        found.append((model, x, attr, explainer(x, edges, edge_attr=attr, index=1)))
    (mine, x, attr, got), (*_, wanted) = found
    torch.testing.assert_close(got.edge_mask, wanted.edge_mask)
    torch.testing.assert_close(got.node_mask, wanted.node_mask)
    assert got.edge_mask.any() and not mine.conv1.watched  # and is left as it was
    torch.testing.assert_close(mine(x, edges, attr), found[1][0](x, edges, attr))


@pytest.mark.parametrize("name", CONVS)
def test_attention_explainer(name: str) -> None:
    x = torch.randn(NODES, IN)
    mine, theirs = models(name)
    found = [
        Explainer(
            model,
            AttentionExplainer(),
            explanation_type="model",
            model_config=CONFIG,
            edge_mask_type="object",
        )
        for model in (mine, theirs)
    ]
    got, wanted = (explainer(x, PLAIN).edge_mask for explainer in found)
    torch.testing.assert_close(got, wanted)
    # Where loops are listed PyG shows the weights of others: ours are those of the edges given
    hidden, (_, first) = mine.conv1(x, EDGES, return_attention_weights=True)
    _, (_, second) = mine.conv2(hidden.relu(), EDGES, return_attention_weights=True)
    of_edges = torch.stack([first, second], -1)[: EDGES.shape[1]].amax((1, 2))
    torch.testing.assert_close(found[0](x, EDGES).edge_mask, of_edges)


@pytest.mark.parametrize("algorithm", [PGExplainer, GraphMaskExplainer])
def test_other_explainers(algorithm: Any) -> None:
    """Networks that are trained on messages and nodes' states, and put masks on messages."""
    torch.manual_seed(0)
    x, found = torch.randn(NODES, IN), []
    for model in models("GATConv", add_self_loops=False):
        torch.manual_seed(1)
        if algorithm is PGExplainer:
            target, made_of = torch.zeros(NODES, dtype=torch.long), PGExplainer(epochs=2)
            options = {"explanation_type": "phenomenon"}
        else:
            target, made_of = None, GraphMaskExplainer(2, epochs=2, log=False)
            options = {"explanation_type": "model", "node_mask_type": "attributes"}
        explainer = Explainer(
            model, made_of, model_config=CONFIG, edge_mask_type="object", **options
        )
        if algorithm is PGExplainer:
            for epoch in range(2):
                made_of.train(epoch, model, x, PLAIN, target=target, index=1)
        found.append(explainer(x, PLAIN, target=target, index=1).edge_mask)
    torch.testing.assert_close(*found)


class OfAuthors(nn.Module):
    def __init__(self, where: Any) -> None:
        super().__init__()
        self.typed = pyg.to_hetero(TwoLayers(where, "GATv2Conv"), METADATA)

    def forward(self, x: Any, edge_index: Any) -> Tensor:
        out: Tensor = self.typed(x, edge_index)["author"]
        return out


@pytest.mark.parametrize("algorithm", [GNNExplainer, AttentionExplainer])
def test_explainers_by_type_of_edges(algorithm: Any) -> None:
    x, edges = typed_graph()
    models = [OfAuthors(where) for where in (pyg, graph)]
    for model in models:
        model(x, edges)
    models[1].load_state_dict(models[0].state_dict())
    found = []
    for model in models:
        torch.manual_seed(1)
        gnn = algorithm is GNNExplainer
        explainer = Explainer(
            model,
            GNNExplainer(epochs=2) if gnn else AttentionExplainer(),
            explanation_type="model",
            model_config=CONFIG,
            node_mask_type="attributes" if gnn else None,
            edge_mask_type="object",
        )
        found.append(explainer(x, edges, index=1).edge_mask_dict)
    torch.testing.assert_close(*found)


def test_hooks_see_and_change_messages() -> None:
    layer = GraphAttention(IN, 4, head_dim=OUT, kv_heads=2, edge_dim=2, self_loops=True)
    x, attr = torch.randn(NODES, IN), torch.randn(EDGES.shape[1], 2)
    wanted, (_, weights) = layer(x, EDGES, attr, return_attention_weights=True)
    seen = {}

    def see(module: nn.Module, inputs: tuple[dict[str, Tensor]], out: Tensor) -> None:
        seen.update(inputs[0])

    handle = layer.register_message_forward_hook(see)
    torch.testing.assert_close(layer(x, EDGES, attr), wanted)
    torch.testing.assert_close(seen["alpha"], weights)
    handle.remove()
    with_out = layer.register_message_forward_hook(lambda module, inputs, out: 0 * out)
    torch.testing.assert_close(layer(x, EDGES, attr), layer.output_bias.expand(NODES, -1))
    with_out.remove()
    torch.testing.assert_close(layer(x, EDGES, attr), wanted)


def test_a_mask_of_other_edges_is_refused() -> None:
    layer = made(graph, "TransformerConv")
    layer.explain = True
    with pytest.raises(ValueError, match="no explainer has set an edge mask"):
        layer(torch.randn(NODES, IN), PLAIN)
    layer._edge_mask, layer._loop_mask = torch.zeros(4), torch.ones(4).bool()
    with pytest.raises(ValueError, match="mask is of 4 edges, but the layer was given 6"):
        layer(torch.randn(NODES, IN), PLAIN)
