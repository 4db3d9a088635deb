"""Which edges a prediction rests on: against PyG's layers, and where we planted them."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.explain import Explainer
from torch_geometric.nn import GATConv as PyGGATConv, TransformerConv as PyGTransformerConv

from attention_core import Edges, Neighborhood
from graph import GATConv, GraphTransformer, TransformerConv
from graph.interpret.explainer import EdgeAttribution, explain_prediction, log_odds

#: With a self-loop, an edge listed twice and a node without edges.
EDGES = torch.tensor([[0, 1, 2, 3, 0, 2, 2, 4, 1, 1], [1, 0, 1, 1, 2, 2, 3, 3, 4, 4]])
NODES = 6


class ReadOut(nn.Module):
    """One layer, and a linear function of each node."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(6, 1)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Tensor:
        out: Tensor = self.head(self.layer(x, edge_index, edge_attr))
        return out


@pytest.mark.parametrize("self_loops", [False, True])
def test_of_one_layer_it_is_the_message_of_pyg(self_loops: bool) -> None:
    """Attention weight times value, read out: what is linear needs no integral."""
    torch.manual_seed(0)
    theirs = PyGGATConv(4, 3, heads=2, add_self_loops=self_loops)
    model = ReadOut(GATConv(4, 3, heads=2, add_self_loops=self_loops)).eval()
    model.layer.load_state_dict(theirs.state_dict())
    x = torch.randn(NODES, 4)
    _, (edge_index, alpha) = theirs(x, EDGES, return_attention_weights=True)
    value = theirs.lin(x).view(NODES, 2, 3)
    message = (alpha[..., None] * value[edge_index[0]]).flatten(1) @ model.head.weight[0]
    found = explain_prediction(model, x, EDGES, mode="regression", steps=1)
    kept = EDGES[0] != EDGES[1] if self_loops else torch.ones(EDGES.shape[1]).bool()
    torch.testing.assert_close(found[kept], message[: int(kept.sum())])
    if self_loops:  # PyG lists them last
        torch.testing.assert_close(found[~kept], message[-NODES:][2:3])
    into_one = explain_prediction(model, x, EDGES, mode="regression", steps=1, index=1)
    torch.testing.assert_close(into_one, torch.where(EDGES[1] == 1, found, 0))


def test_values_have_the_features_of_their_edges() -> None:
    torch.manual_seed(0)
    theirs = PyGTransformerConv(4, 3, heads=2, edge_dim=2)
    model = ReadOut(TransformerConv(4, 3, heads=2, edge_dim=2)).eval()
    model.layer.load_state_dict(theirs.state_dict())
    x, edge_attr = torch.randn(NODES, 4), torch.randn(EDGES.shape[1], 2)
    _, (_, alpha) = theirs(x, EDGES, edge_attr, return_attention_weights=True)
    value = (theirs.lin_value(x)[EDGES[0]] + theirs.lin_edge(edge_attr)).view(-1, 2, 3)
    message = (alpha[..., None] * value).flatten(1) @ model.head.weight[0]
    found = explain_prediction(model, x, EDGES, mode="regression", steps=1, edge_attr=edge_attr)
    torch.testing.assert_close(found, message)


def random_graph(nodes: int, edges: int) -> tuple[Tensor, Tensor]:
    both = torch.randint(nodes, (2, edges)).unique(dim=1)
    both = both[:, both[0] < both[1]]
    return torch.randint(4, (nodes,)), torch.cat([both, both.flip(0)], dim=1)


@pytest.mark.parametrize("backend", ["edges", "dense"])
def test_attributions_sum_to_what_all_edges_add(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a mask of edges, a model without any message is the model on a graph without edges."""
    torch.manual_seed(0)
    x, edge_index = random_graph(30, 70)
    model = GraphTransformer(
        16, 3, 4, num_classes=3, node_types=4, mask=Edges(), level="node", kv_heads=2
    ).eval()
    plain = model.encoder.forward
    monkeypatch.setattr(
        model.encoder, "forward", lambda x, space, **_: plain(x, space, backend=backend)
    )
    with torch.no_grad():
        full, empty = (model(x, edges) for edges in (edge_index, edge_index[:, :0]))
    predicted = full.argmax(1)
    for target in (None, 1, predicted):
        found = explain_prediction(model, x, edge_index, target=target, steps=32)
        of = predicted if target is None else target
        expected = log_odds(full, of).sum() - log_odds(empty, of).sum()
        torch.testing.assert_close(found.sum(), expected, atol=1e-3, rtol=1e-3)


def test_a_batch_of_graphs_is_explained_graph_by_graph() -> None:
    torch.manual_seed(0)
    graphs = [random_graph(n, 3 * n) for n in (7, 12)]
    model = GraphTransformer(
        16, 2, 2, num_classes=2, node_types=4, max_hops=3, virtual_nodes=1, pooling="attention"
    ).eval()
    apart = [explain_prediction(model, *graph) for graph in graphs]
    (x, edges), (other, others) = graphs
    batch = torch.tensor([0] * 7 + [1] * 12)
    both = torch.cat([edges, others + 7], dim=1)
    found = explain_prediction(model, torch.cat([x, other]), both, batch=batch, num_graphs=2)
    torch.testing.assert_close(found, torch.cat(apart), atol=1e-5, rtol=1e-4)
    assert found.abs().max() > 1e-3


def test_expander_edges_of_a_model_are_none_of_the_input() -> None:
    torch.manual_seed(0)
    x, edge_index = random_graph(20, 40)
    model = GraphTransformer(
        16, 2, 2, num_classes=2, node_types=4, mask=Edges(), expander_degree=4
    ).eval()
    found = explain_prediction(model, x, edge_index)
    order = torch.randperm(edge_index.shape[1])
    again = explain_prediction(model, x, edge_index[:, order])
    torch.testing.assert_close(again, found[order], atol=1e-5, rtol=1e-4)


def with_neighbours_of_type_3() -> tuple[Tensor, Tensor, Tensor]:
    """A graph in which a node is of class 1 where a neighbour is of type 3."""
    x, edge_index = random_graph(300, 600)
    x = torch.where((x == 3) & (torch.rand(300) < 0.5), 2, x)
    source, target = edge_index
    label = torch.zeros(300).long().index_add(0, target, (x[source] == 3).long()).clamp(max=1)
    return x, edge_index, label


@pytest.fixture(scope="module")
def trained() -> GraphTransformer:
    torch.manual_seed(0)
    model = GraphTransformer(
        16, 1, 2, num_classes=2, node_types=4, level="node", mask=Neighborhood(1)
    )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(80):
        x, edge_index, label = with_neighbours_of_type_3()
        loss = F.cross_entropy(model(x, edge_index), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def found_first(scores: Tensor, edge_index: Tensor, x: Tensor, label: Tensor) -> float:
    """Of nodes with one neighbour of type 3 among at least three: the share in which the edge from
    that neighbour has the highest score."""
    source, target = edge_index
    hits = []
    for node in label.nonzero().squeeze(-1).tolist():
        into = (target == node).nonzero().squeeze(-1)
        planted = x[source[into]] == 3
        if len(into) >= 3 and int(planted.sum()) == 1:
            hits.append(bool(planted[scores[into].argmax()]))
    assert len(hits) > 30
    return sum(hits) / len(hits)


def test_planted_edges_are_found(trained: GraphTransformer) -> None:
    torch.manual_seed(1)
    x, edge_index, label = with_neighbours_of_type_3()
    with torch.no_grad():
        right = trained(x, edge_index).argmax(1) == label
    assert right.float().mean() > 0.9
    ones = label.nonzero().squeeze(-1)
    found = explain_prediction(trained, x, edge_index, target=1, index=ones)
    assert found_first(found, edge_index, x, label) > 0.95
    assert found_first(torch.rand(len(found)), edge_index, x, label) < 0.5


def molecule(has_link: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A tree with two nodes of type 1 and two of type 2, apart from each other, and one edge more:
    between one of each where `has_link`, which is what tells, else between two of type 1. Returns
    types, edges, and which of them that one is."""
    nodes = int(torch.randint(10, 18, ()))
    child = torch.arange(1, nodes)
    parent = (torch.rand(nodes - 1) * child).long()
    tree = torch.stack([child, parent])
    chosen: list[int] = []
    for node in torch.randperm(nodes).tolist():
        near = tree[:, (tree == node).any(0)].flatten().tolist()
        if len(chosen) < 4 and not set(chosen) & set(near):
            chosen.append(node)
    types = torch.zeros(nodes, dtype=torch.long)
    types[chosen] = torch.tensor([1, 2, 1, 2])[: len(chosen)]
    link = torch.tensor([[chosen[0]], [chosen[1 if has_link else 2]]])
    planted = torch.arange(2 * nodes) % nodes == nodes - 1
    edge_index = torch.cat([tree, link], dim=1)
    return types, torch.cat([edge_index, edge_index.flip(0)], dim=1), planted


@pytest.mark.slow
def test_a_planted_edge_is_found_through_several_layers() -> None:
    torch.manual_seed(0)
    model = GraphTransformer(32, 2, 2, num_classes=2, node_types=3, mask=Neighborhood(1))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(250):
        label = torch.randint(2, (50,))
        drawn = [molecule(bool(has)) for has in label]
        sizes = torch.tensor([len(x) for x, _, _ in drawn])
        starts = sizes.cumsum(0) - sizes
        edge_index = torch.cat(
            [edges + start for (_, edges, _), start in zip(drawn, starts, strict=True)], dim=1
        )
        x = torch.cat([types for types, _, _ in drawn])
        logits = model(x, edge_index, batch=torch.repeat_interleave(sizes), num_graphs=50)
        loss = F.cross_entropy(logits, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    hits = []
    for _ in range(30):
        x, edge_index, planted = molecule(True)
        assert int(model(x, edge_index).argmax()) == 1
        found = explain_prediction(model, x, edge_index)
        # of both directions
        hits.append(bool(planted[(found + found.roll(len(found) // 2)).argmax()]))
    assert sum(hits) >= 27


def test_pygs_explainer_gives_the_same(trained: GraphTransformer) -> None:
    torch.manual_seed(1)
    x, edge_index, label = with_neighbours_of_type_3()
    explainer = Explainer(
        trained,
        EdgeAttribution(),
        explanation_type="phenomenon",
        edge_mask_type="object",
        model_config={
            "mode": "multiclass_classification",
            "task_level": "node",
            "return_type": "raw",
        },
    )
    ones = label.nonzero().squeeze(-1)
    explanation = explainer(x, edge_index, target=label, index=ones)
    own = explain_prediction(trained, x, edge_index, target=1, index=ones)
    torch.testing.assert_close(explanation.edge_mask, own)
    assert found_first(explanation.edge_mask, edge_index, x, label) > 0.95
    part = explanation.get_explanation_subgraph()
    assert part.edge_index.shape[1] == int((own > 0).sum())


class Probabilities(nn.Module):
    """The outputs of another model in the forms that PyG knows."""

    def __init__(self, model: nn.Module, form: str) -> None:
        super().__init__()
        self.model, self.form = model, form

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        logits: Tensor = self.model(x, edge_index)
        if self.form == "log_probs":
            return logits.log_softmax(1)
        if self.form == "probs":
            return logits.softmax(1)
        odds = logits[:, 1] - logits[:, 0]
        return odds.sigmoid() if self.form == "binary probs" else odds


@pytest.mark.parametrize("form", ["raw", "log_probs", "probs", "binary raw", "binary probs"])
def test_all_forms_of_output_are_explained_alike(form: str) -> None:
    torch.manual_seed(0)
    x, edge_index = random_graph(12, 30)
    model = GraphTransformer(16, 2, 2, num_classes=2, node_types=4, mask=Edges()).eval()
    expected = explain_prediction(model, x, edge_index)
    mode = "binary" if form.startswith("binary") else "multiclass"
    explainer = Explainer(
        model if form == "raw" else Probabilities(model, form).eval(),
        EdgeAttribution(),
        explanation_type="model",
        edge_mask_type="object",
        model_config={
            "mode": f"{mode}_classification",
            "task_level": "graph",
            "return_type": form.split()[-1],
        },
    )
    found = explainer(x, edge_index).edge_mask
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)
    assert expected.abs().max() > 1e-3


def test_pygs_explainer_regression() -> None:
    torch.manual_seed(0)
    x, edge_index = random_graph(12, 30)
    model = GraphTransformer(16, 2, 2, num_classes=1, node_types=4, mask=Edges()).eval()
    explainer = Explainer(
        model,
        EdgeAttribution(steps=4),
        explanation_type="model",
        edge_mask_type="object",
        model_config={"mode": "regression", "task_level": "graph", "return_type": "raw"},
    )
    expected = explain_prediction(model, x, edge_index, mode="regression", steps=4)
    torch.testing.assert_close(explainer(x, edge_index).edge_mask, expected)


def test_pygs_explainer_is_refused_what_there_is_not() -> None:
    with pytest.raises(ValueError, match="does not support the given explanation settings"):
        Explainer(
            nn.Identity(),
            EdgeAttribution(),
            explanation_type="model",
            node_mask_type="object",
            model_config={"mode": "regression", "task_level": "graph", "return_type": "raw"},
        )


def test_log_odds_are_those_of_the_softmax() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    share = logits.softmax(1).gather(1, target[:, None]).squeeze(1)
    torch.testing.assert_close(log_odds(logits, target), share.logit())
    binary = torch.randn(4)
    torch.testing.assert_close(log_odds(binary, 1), binary)
    torch.testing.assert_close(log_odds(binary[:, None], 0), -binary)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"mode": "ranking"}, "mode must be 'classification' or 'regression', got 'ranking'"),
        ({"target": 2}, "target names classes 2 to 2, but the output has 2"),
        ({"target": torch.zeros(3).long()}, r"integers \(1,\), got torch.int64 \(3,\)"),
    ],
)
def test_what_cannot_be_explained(options: dict[str, object], words: str) -> None:
    x, edge_index = random_graph(6, 12)
    model = GraphTransformer(8, 1, 2, num_classes=2, node_types=4).eval()
    with pytest.raises(ValueError, match=words):
        explain_prediction(model, x, edge_index, **options)  # type: ignore[arg-type]


def test_models_that_cannot_be_explained() -> None:
    x, edge_index = random_graph(6, 12)
    model = GraphTransformer(8, 1, 2, num_classes=2, node_types=4)
    with pytest.raises(ValueError, match="eval mode"):
        explain_prediction(model, x, edge_index)
    with pytest.raises(TypeError, match="of a graph with one type of nodes, got dict and Tensor"):
        explain_prediction(model.eval(), {"a": x}, edge_index)  # type: ignore[arg-type]

    class Alone(nn.Module):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return F.one_hot(x, 4).float().requires_grad_()

    with pytest.raises(ValueError, match="no layer of Alone attends along an edge given"):
        explain_prediction(Alone().eval(), x, edge_index)
