"""What must hold of a transformer over a batch of graphs, whatever its mask and pooling."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from attention_core import Edges, Neighborhood
from attention_core.layers import Pooling
from attention_core.spaces.edge_list import EdgeList
from graph import GraphTransformer, NodeEmbedding
from graph.data import pack

MASKS: dict[str, Any] = {
    "all": None,
    "edges": Edges(),
    "two hops": Neighborhood(2),
    "local and global": [Neighborhood(1), None],
}
POOLINGS = get_args(Pooling)


def molecule(nodes: int, seed: int, extra: int = 2) -> dict[str, Tensor]:
    """A random tree with `extra` more edges, both directions, typed."""
    draw = torch.Generator().manual_seed(seed)
    pairs = {(int(torch.randint(0, node, (), generator=draw)), node) for node in range(1, nodes)}
    for _ in range(extra):
        a, b = sorted(torch.randint(0, nodes, (2,), generator=draw).tolist())
        pairs |= {(a, b)} if a != b else set()
    one_way = torch.tensor(sorted(pairs)).reshape(-1, 2).T
    kinds = torch.randint(0, 4, (one_way.shape[1],), generator=draw)
    return {
        "x": torch.randint(0, 7, (nodes,), generator=draw),
        "edge_index": torch.cat([one_way, one_way.flip(0)], dim=1),
        "edge_attr": torch.cat([kinds, kinds]),
        "target": torch.tensor(seed % 2),
    }


def build(mask: Any = None, pooling: Any = "mean", **options: Any) -> GraphTransformer:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "dim": 16,
        "depth": 2,
        "heads": 4,
        "num_classes": 3,
        "node_types": 7,
        "edge_types": 4,
        "max_degree": 4,
        "max_hops": 3,
        "virtual_nodes": int(pooling in ("special", "class")),
    }
    model = GraphTransformer(mask=mask, pooling=pooling, **{**settings, **options}).double().eval()
    for bias in model.encoder.biases:  # drawn small; here they shall matter
        for parameter in bias.parameters():
            torch.nn.init.normal_(parameter)
    return model


def run(model: GraphTransformer, *samples: dict[str, Tensor]) -> Tensor:
    batch = pack(samples)
    batch.pop("target")
    output: Tensor = model(**batch)
    return output


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("mask", MASKS)
def test_a_graph_gives_the_same_alone_and_in_any_company(mask: str, pooling: str) -> None:
    model = build(MASKS[mask], pooling)
    one = molecule(9, seed=1)
    alone = run(model, one)[0]
    mates = run(model, molecule(5, 2), one, molecule(14, 3))[1]
    large = run(model, molecule(200, 4, extra=60), one)[1]
    torch.testing.assert_close(mates, alone)
    torch.testing.assert_close(large, alone)


@pytest.mark.parametrize("mask", MASKS)
def test_permuting_nodes_permutes_tokens_and_leaves_the_graph(mask: str) -> None:
    model = build(MASKS[mask])
    one = molecule(11, seed=5)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    rank = order.argsort()
    other = {**one, "x": one["x"][order], "edge_index": rank[one["edge_index"]]}
    torch.testing.assert_close(run(model, other), run(model, one))
    tokens = []
    for sample in (one, other):
        tokens.append(model.encode(sample["x"], sample["edge_index"], sample["edge_attr"])[0])
    torch.testing.assert_close(tokens[1], tokens[0][order])


def test_the_order_of_edges_does_not_matter() -> None:
    model, one = build(), molecule(8, seed=6)
    order = torch.randperm(one["edge_index"].shape[1])
    other = {
        **one,
        "edge_index": one["edge_index"][:, order],
        "edge_attr": one["edge_attr"][order],
    }
    torch.testing.assert_close(run(model, other), run(model, one))


@pytest.mark.parametrize("mask", MASKS)
def test_edge_types_matter(mask: str) -> None:
    model, one = build(MASKS[mask]), molecule(8, seed=7)
    other = {**one, "edge_attr": (one["edge_attr"] + 1) % 4}
    assert (run(model, other) - run(model, one)).abs().max() > 1e-4


def test_edge_features_instead_of_types() -> None:
    model = build(edge_types=None, edge_features=3)
    one = molecule(8, seed=8)
    features = torch.rand(one["edge_index"].shape[1], 3, dtype=torch.double)
    first = model(one["x"], one["edge_index"], features)
    assert (model(one["x"], one["edge_index"], features + 1) - first).abs().max() > 1e-4


@pytest.mark.parametrize("attr", [torch.zeros(10).long(), torch.zeros(10, 3).double()])
@pytest.mark.parametrize("options", [{}, {"expander_degree": 4}])
def test_edges_that_a_model_makes_nothing_of_are_refused(
    options: dict[str, Any], attr: Tensor
) -> None:
    model, one = build(edge_types=None, **options), molecule(6, seed=8)
    one["edge_index"] = one["edge_index"][:, :10]
    words = r"edge_attr is given to a model that makes nothing of it, got \(10.*build it with"
    with pytest.raises(ValueError, match=words):
        model(one["x"], one["edge_index"], attr)
    with pytest.raises(ValueError, match=words):
        model.space(one["edge_index"], 6, attr)
    model(one["x"], one["edge_index"])


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("mask", MASKS)
def test_isolated_nodes_and_graphs_without_edges(mask: str, pooling: str) -> None:
    model = build(MASKS[mask], pooling)
    lonely = molecule(6, seed=9)
    lonely["x"] = torch.cat([lonely["x"], torch.tensor([3])])
    bare = {**molecule(4, seed=10), "edge_index": torch.empty(2, 0).long()}
    bare["edge_attr"] = torch.empty(0).long()
    both = run(model, lonely, bare)
    assert both.isfinite().all()
    torch.testing.assert_close(both[:1], run(model, lonely))
    torch.testing.assert_close(both[1:], run(model, bare))
    both.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_graph_without_nodes_pools_to_zeros() -> None:
    model = build(num_classes=None)
    one = molecule(5, seed=11)
    batch = torch.ones(5, dtype=torch.long)  # graph 0 and graph 2 have no nodes
    pooled = model(one["x"], one["edge_index"], one["edge_attr"], batch, num_graphs=3)
    assert pooled.shape == (3, 16)
    assert (pooled[[0, 2]] == 0).all()
    torch.testing.assert_close(pooled[1:2], run(model, one))


def test_the_virtual_node_of_a_graph_without_nodes() -> None:
    model = build(pooling="special")
    one = molecule(5, seed=11)
    batch = torch.ones(5, dtype=torch.long)
    inside, last = model(one["x"], one["edge_index"], one["edge_attr"], batch, num_graphs=3)[[0, 2]]
    torch.testing.assert_close(inside, last)


def test_learns_through_every_parameter() -> None:
    model = build(pooling="special")
    run(model, molecule(7, 12), molecule(9, 13)).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_takes_a_batch_of_pyg() -> None:
    data = pytest.importorskip("torch_geometric.data")
    model, samples = build(), [molecule(5, 14), molecule(9, 15)]
    batch = data.Batch.from_data_list(
        [data.Data(x=s["x"], edge_index=s["edge_index"], edge_attr=s["edge_attr"]) for s in samples]
    )
    output = model(batch.x, batch.edge_index, batch.edge_attr, batch.batch, batch.num_graphs)
    torch.testing.assert_close(output, run(model, *samples))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pooling": "median"}, "pooling must be .* got 'median'"),
        ({"pooling": "special", "virtual_nodes": 0}, "virtual_nodes=0: at least 1"),
        ({"edge_features": 2}, "edge_types=4 and edge_features=2"),
        ({"node_features": 2}, "node_types .* node_features .* got 7 and 2"),
        ({"max_degree": 0}, "max_degree must be at least 1"),
        ({"heads": 3}, "dim=16 must be a multiple of heads=3"),
    ],
)
def test_arguments_that_contradict_each_other(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(**options)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"edge_attr": None}, ValueError, "edge_attr is missing"),
        ({"edge_attr": torch.zeros(3).long()}, ValueError, "edge_attr has 3 rows for .* edges"),
        ({"x": torch.full((6,), 7)}, ValueError, "x names node types 7 to 7, but node_types=7"),
        ({"x": torch.zeros(6)}, TypeError, "x must hold integer node types"),
        ({"x": torch.zeros(6, 1).long()}, ValueError, r"shape \(N,\), got \(6, 1\)"),
        ({"edge_index": torch.full((2, 10), 6)}, ValueError, "edge_index names node 6"),
        ({"edge_index": torch.zeros(2, 10)}, TypeError, "edge_index must hold integers"),
        ({"edge_index": torch.zeros(3, 10).long()}, ValueError, r"edge_index must have shape"),
        ({"batch": torch.zeros(4).long()}, ValueError, "batch must hold the graph of each node"),
        (
            {"batch": torch.ones(6).long(), "num_graphs": 1},
            ValueError,
            "num_graphs=1, but .* 2 graphs",
        ),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], words: str) -> None:
    one = molecule(6, seed=1, extra=0)
    one.pop("target")
    with pytest.raises(error, match=words):
        build()(**{**one, **change})


def test_bad_features_are_named() -> None:
    embed = NodeEmbedding(4, features=3)
    edges = EdgeList(torch.empty(2, 0).long(), 2)
    with pytest.raises(TypeError, match=r"float node features \(node_features=3\)"):
        embed(torch.zeros(2, 3).long(), edges)
    with pytest.raises(ValueError, match=r"shape \(N, 3\), got \(2, 4\)"):
        embed(torch.zeros(2, 4), edges)
    with pytest.raises(ValueError, match="not finite, first at node 1"):
        embed(torch.tensor([[0.0, 1, 2], [0, torch.nan, 0]]), edges)
