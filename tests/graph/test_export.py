"""Programs of graph models: one for every number of nodes, edges and graphs, equal to the model."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim, export

from attention_core import Edges, Neighborhood
from graph import GraphTransformer
from graph.data.graphs import cut, pack, unpack
from graph.encodings import RandomWalkBias

SHAPES: dict[str, Any] = {
    "x": {0: Dim("nodes")},
    "edge_index": {1: Dim("edges")},
    "edge_attr": {0: Dim("edges")},
    "sizes": {0: Dim("graphs")},
    "edge_label_index": {1: Dim("pairs")},
}


def graphs(*sizes: int, pairs: bool = False) -> dict[str, Tensor]:
    """Paths that are broken behind every fourth node."""
    first, edges = 0, []
    for size in sizes:
        for node in range(first, first + size - 1):
            if (node - first) % 4 != 3:
                edges += [(node, node + 1), (node + 1, node)]
        first += size
    made = {
        "x": torch.arange(first) % 3,
        "edge_index": torch.tensor(edges).reshape(-1, 2).T.long(),
        "edge_attr": torch.arange(len(edges)) % 2,
        "sizes": torch.tensor(sizes),
    }
    return {**made, "edge_label_index": torch.randint(first, (2, 3 + first))} if pairs else made


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {
            "mask": Neighborhood(2), "virtual_nodes": 2, "pooling": "attention",
            "max_hops": 3, "max_degree": 4,
        },
        {
            "local": Edges(), "walk_steps": 4, "edge_dim": 8, "degree_scaler": True,
            "pooling": "max", "biases": 5,
        },
        {"level": "edge", "edge_dim": 4, "virtual_nodes": 1, "score": "additive", "mask": Edges()},
        {"level": "link", "num_classes": None, "max_hops": 2},
    ],
    ids=["hops", "walks", "edges", "links"],
)  # fmt: skip
def test_one_program_runs_other_graphs(options: dict[str, Any]) -> None:
    options = {"num_classes": 2, **options}
    if "biases" in options:
        options["biases"] = [RandomWalkBias(2, options["biases"], hidden=4)]
    model = GraphTransformer(8, 1, 2, node_types=3, edge_types=2, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    pairs = model.level == "link"
    example = graphs(5, 6, 7, pairs=pairs)
    shapes = {name: SHAPES[name] for name in example}
    with torch.no_grad():
        program = export(model, (), example, dynamic_shapes=shapes, strict=False).module()
        outputs = set()
        # One graph; one of a single node; many hops; none but single nodes, without an edge
        for sizes in ((4,), (9, 1, 3, 2), (3, 60), (1, 1)):
            inputs = graphs(*sizes, pairs=pairs)
            expected = model(**inputs)
            torch.testing.assert_close(program(**inputs), expected, rtol=1e-4, atol=1e-5)
            outputs |= set(expected.flatten().tolist())
    assert len(outputs) > 3


def test_what_cannot_be_in_a_program_says_what_to_do() -> None:
    for options, message in (
        ({"eigenvectors": 2}, "AddLaplacian"),
        ({"expander_degree": 2}, "AddExpander"),
    ):
        model = GraphTransformer(8, 1, 2, num_classes=2, node_types=3, **options).eval()  # type: ignore[arg-type]
        example = graphs(5, 6)
        del example["edge_attr"]
        shapes = {name: SHAPES[name] for name in example}
        with pytest.raises(Exception, match=message):
            export(model, (), example, dynamic_shapes=shapes, strict=False)


def test_sizes_stand_for_the_graph_of_each_node() -> None:
    model = GraphTransformer(8, 1, 2, num_classes=2, node_types=3, edge_types=2).eval()
    inputs = graphs(3, 0, 4, 0)
    sizes = inputs.pop("sizes")
    batch = torch.repeat_interleave(sizes)
    expected = model(**inputs, batch=batch, num_graphs=4)
    assert torch.equal(model(**inputs, sizes=sizes), expected)
    with pytest.raises(ValueError, match="sizes must be at least 0 and sum to the number of .* 7"):
        model(**inputs, sizes=sizes + 1)
    with pytest.raises(ValueError, match="sizes stand in place of batch and num_graphs"):
        model(**inputs, sizes=sizes, batch=batch)
    with pytest.raises(ValueError, match=r"sizes must hold integers .G,., got torch.float32"):
        model(**inputs, sizes=sizes.float())


def test_a_large_graph_is_cut_with_all_that_it_has() -> None:
    x, edge_index = torch.arange(4), torch.tensor([[0, 1, 3], [1, 2, 0]])
    asked = torch.tensor([[3, 0], [1, 2]])
    graph = {
        "x": x, "edge_index": edge_index, "edge_attr": torch.tensor([5, 6, 7]),
        "hops": torch.arange(16.0), "edge_label_index": asked, "target": torch.tensor([0, 1]),
    }  # fmt: skip
    batch = pack([graph, graph])
    assert batch["target"].tolist() == [0, 1, 0, 1]
    first, second = unpack(batch)
    assert all(torch.equal(first[name], graph[name]) for name in graph)
    del second["target"]
    small = cut(second, 3)
    assert small["edge_index"].tolist() == [[0, 1], [1, 2]]
    assert small["edge_attr"].tolist() == [5, 6]
    assert small["hops"].tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert small["edge_label_index"].tolist() == [[0], [2]]
    with pytest.raises(ValueError, match="one graph of the batch has hops, another has not"):
        pack([graph, {name: graph[name] for name in graph if name != "hops"}])


def test_pooling_leaves_out_what_does_not_count() -> None:
    """Virtual nodes, and a graph without nodes, in every pooling of a packed row."""
    inputs = graphs(3, 0, 2)
    for pooling in ("mean", "sum", "max", "special", "class", "attention"):
        model = GraphTransformer(
            8, 1, 2, num_classes=None, node_types=3, virtual_nodes=1, pooling=pooling,
            mask=Edges(),
        ).eval()  # fmt: skip
        together = model(**{k: v for k, v in inputs.items() if k != "edge_attr"})
        alone = graphs(2)
        del alone["edge_attr"]
        alone["x"] = inputs["x"][3:]
        torch.testing.assert_close(together[2:], model(**alone))
        if pooling not in ("special", "class"):
            assert not together[1].any()
