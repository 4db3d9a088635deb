"""PyG's tools on our layers beside PyG's own: `to_hetero`, `HeteroConv`, explainers and hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric.explain import (
    AttentionExplainer,
    Explainer,
    GNNExplainer,
    GraphMaskExplainer,
    PGExplainer,
)

import graph
from graph import GraphAttention
from tests.graph.test_pyg_habits import CONVS, HEADS, IN, NODES, OUT, PLAIN, made

#: Self-loops, one of them twice, a repeated edge, and a node without edges.
EDGES = torch.tensor([[0, 1, 2, 2, 3, 4, 4, 1, 3], [1, 0, 2, 2, 1, 3, 3, 1, 0]])

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


def test_a_layer_made_before_one_of_its_subclass_hides_no_messages() -> None:
    class Mine(graph.GATConv):
        pass

    graph.GATConv(IN, 4)
    layer = Mine(IN, 4)
    layer.explain = True
    with pytest.raises(ValueError, match="no explainer has set an edge mask"):
        layer(torch.randn(NODES, IN), EDGES)
