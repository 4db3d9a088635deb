"""What is asked of graph transformers: graphs, nodes, edges and links; and what they refuse."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.nn.kge import DistMult

from attention_core import Edges, Neighborhood
from graph import GraphTransformer
from graph.data import pack
from graph.heads import LinkHead
from tests.graph.test_graph_transformer import molecule


def build(**options: Any) -> GraphTransformer:
    torch.manual_seed(0)
    given: dict[str, Any] = {"num_classes": 3, "node_types": 7, "edge_types": 4, **options}
    return GraphTransformer(16, 2, 4, **given).double().eval()


def inputs(*graphs: tuple[int, int]) -> dict[str, Any]:
    batch = pack([molecule(nodes, seed) for nodes, seed in graphs])
    batch.pop("target")
    return batch


def test_nodes() -> None:
    batch = inputs((5, 1), (8, 2))
    mask = torch.arange(13) % 3 == 0
    for virtual_nodes in (0, 2):
        model = build(level="node", virtual_nodes=virtual_nodes)
        outputs = model(**batch)
        assert outputs.shape == (13, 3)
        torch.testing.assert_close(model(**batch, node_mask=mask), outputs[mask])
        alone = inputs((8, 2))
        torch.testing.assert_close(model(**alone), outputs[5:])
    assert build(level="node", num_classes=None)(**batch).shape == (13, 16)


def test_seeds_of_a_sampled_batch_are_as_in_the_whole_graph() -> None:
    """With all neighbors of as many hops as there are layers."""
    from graph.sampling import NeighborLoader
    from tests.graph.graphs import random_graph

    torch.manual_seed(0)
    graph = random_graph()
    graph.x = torch.arange(60) % 7
    model = build(level="node", mask=Edges(), edge_types=None, edge_features=2, edge_dim=4)
    whole = model(graph.x, graph.edge_index, graph.edge_attr)
    for drawn in NeighborLoader(graph, [-1, -1], batch_size=16):
        found = model(drawn.x, drawn.edge_index, drawn.edge_attr)[: drawn.batch_size]
        torch.testing.assert_close(found, whole[drawn.input_id])


@pytest.mark.parametrize("edge_dim", [None, 4])
def test_edges(edge_dim: int | None) -> None:
    model = build(level="edge", edge_dim=edge_dim, virtual_nodes=1)
    batch = inputs((5, 1), (8, 2))
    every = model(**batch)
    assert every.shape == (batch["edge_index"].shape[1], 3)
    some = batch["edge_index"][:, [3, 0]]
    torch.testing.assert_close(model(**batch, edge_label_index=some), every[[3, 0]])
    back = model(**batch, edge_label_index=some.flip(0))
    assert (back - every[[3, 0]]).abs().max() > 1e-3  # direction matters
    no_edge = torch.tensor([[0], [12]])
    assert model(**batch, edge_label_index=no_edge).isfinite().all()


def test_links_score_as_distmult_of_pyg() -> None:
    torch.manual_seed(0)
    peer = DistMult(num_nodes=9, num_relations=4, hidden_channels=6)
    head = LinkHead(6, relations=4)
    with torch.no_grad():
        for layer in (head.source, head.target):
            torch.nn.init.eye_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        head.relation.copy_(peer.rel_emb.weight)
    source, relation, target = (torch.randint(n, (7, 5)) for n in (9, 4, 9))
    tokens = peer.node_emb.weight
    expected = peer(source.flatten(), relation.flatten(), target.flatten()).view(7, 5)
    found = head(tokens, torch.stack([source, target]), relation)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("grad", [True, False])
def test_one_node_against_many_is_scored_as_pair_by_pair(
    grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    head, tokens = LinkHead(6, relations=4).double(), torch.randn(9, 6).double()
    one, other = torch.randint(9, (2, 8, 1)).expand(2, 8, 9), torch.arange(9).expand(8, 9)
    pairs = torch.stack(
        [torch.cat([one[0, :4], other[4:]]), torch.cat([other[:4], one[1, 4:]])]
    )  # four sources against all, then four targets
    kind = torch.randint(4, (8, 1))
    with torch.set_grad_enabled(grad):
        found = head(tokens, pairs, kind)
        monkeypatch.setattr("graph.heads._CHUNK", 1)  # row by row where no gradient is needed
        by_pair = head(tokens, pairs, kind.expand(8, 9))
        flat = head(tokens, pairs.flatten(1), kind.expand(8, 9).flatten())
    torch.testing.assert_close(found, by_pair)
    torch.testing.assert_close(flat, by_pair.flatten())


def test_links_of_a_model() -> None:
    batch = inputs((6, 1))
    model = build(level="link", num_classes=None, relations=3, virtual_nodes=1)
    pairs, kind = torch.tensor([[0, 3], [5, 1]]), torch.tensor([2, 0])
    scores = model(**batch, edge_label_index=pairs, edge_label_type=kind)
    assert scores.shape == (2,)
    several = model(
        **batch, edge_label_index=pairs[..., None].expand(2, 2, 4), edge_label_type=kind[:, None]
    )
    torch.testing.assert_close(several, scores[:, None].expand(2, 4))
    back = model(**batch, edge_label_index=pairs.flip(0), edge_label_type=kind)
    assert (back - scores).abs().min() > 1e-4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"level": "hyperedge"},
            "level must be 'graph', 'node', 'edge' or 'link', got 'hyperedge'",
        ),
        ({"level": "link"}, "level='link' gives one score per pair; got num_classes=3"),
        (
            {"level": "link", "num_classes": None, "relations": 0},
            "relations must be at least 1, got 0",
        ),
        ({"level": "node", "relations": 2}, "relations=2 are of links, but level='node'"),
        ({"level": "edge", "num_classes": None}, "level='edge' needs num_classes"),
        ({"edge_types": None, "edge_dim": 4}, "edge_dim=4 needs edge_types or edge_features"),
        ({"score": "cosine"}, "score must be .* got 'cosine'"),
        ({"walk_steps": 0}, "walk_steps must be at least 1"),
        ({"eigenvectors": 0}, "eigenvectors must be at least 1"),
        ({"expander_degree": 3}, "^expander_degree must be even"),
    ],
)
def test_arguments_that_contradict_each_other(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        model = build(**options)
        model(**inputs((5, 1)))


PAIRS = torch.tensor([[0], [1]])


@pytest.mark.parametrize(
    ("level", "change", "error", "words"),
    [
        ("node", {"node_mask": torch.ones(4).bool()}, ValueError, r"node_mask must be bool \(5,\)"),
        (
            "node",
            {"node_mask": torch.ones(5)},
            ValueError,
            r"node_mask must be bool \(5,\), got torch.float",
        ),
        (
            "edge",
            {"edge_label_index": PAIRS + 4},
            ValueError,
            "edge_label_index names nodes 4 to 5",
        ),
        ("edge", {"edge_label_index": PAIRS - 1}, ValueError, "edge_label_index names nodes -1"),
        ("edge", {"edge_label_index": PAIRS.float()}, ValueError, "edge_label_index must hold int"),
        ("edge", {"edge_label_index": PAIRS.T}, ValueError, r"edge_label_index .*\(1, 2\)"),
        ("link", {}, ValueError, "edge_label_index is missing"),
        ("link", {"edge_label_index": PAIRS}, ValueError, "edge_label_type is missing"),
        (
            "link",
            {"edge_label_index": PAIRS, "edge_label_type": torch.tensor([2])},
            ValueError,
            "edge_label_type names relations 2 to 2, but relations=2",
        ),
        ("graph", {"edge_attr": torch.full((8,), 4)}, ValueError, "edge_attr names edge types 4"),
        (
            "graph",
            {"edge_attr": torch.zeros(8)},
            TypeError,
            "edge_attr must hold integer edge types",
        ),
        ("graph", {"rwse": torch.zeros(5, 2)}, ValueError, r"rwse must be \(5, 3\), got \(5, 2\)"),
        ("graph", {"hops": torch.zeros(24)}, ValueError, r"pair_attr\['hops'\] has 24 rows"),
        ("graph", {"colour": torch.zeros(5)}, ValueError, r"pair_attr\['colour'\] has 5 rows"),
        (
            "graph",
            {"x": torch.empty(0).long(), "edge_index": torch.empty(2, 0).long(), "batch": None},
            ValueError,
            r"x is \(0,\), an empty batch: there is no node",
        ),
    ],
)
def test_bad_input_is_named(
    level: Any, change: dict[str, Tensor], error: type[Exception], words: str
) -> None:
    options = {"num_classes": None, "relations": 2} if level == "link" else {}
    model = build(level=level, walk_steps=3, **options)
    given = inputs((5, 1))
    given = {key: value[:, :8] if key == "edge_index" else value for key, value in given.items()}
    given |= {"edge_attr": given["edge_attr"][:8], "num_graphs": None}
    with pytest.raises(error, match=words):
        model(**{**given, **change})


def test_edge_features_that_are_not_numbers() -> None:
    model = build(edge_types=None, edge_features=2, mask=Neighborhood(1))
    batch = inputs((5, 1))
    attr = torch.rand(batch["edge_index"].shape[1], 2).double()
    attr[3, 1] = torch.nan
    with pytest.raises(ValueError, match="edge_attr has a feature .* not finite, first at edge 3"):
        model(**{**batch, "edge_attr": attr})
    with pytest.raises(ValueError, match=r"edge_attr must have shape \(E, 2\)"):
        model(**{**batch, "edge_attr": attr[:, :1]})


def test_a_batch_of_graphs_without_nodes() -> None:
    none = torch.empty(0).long()
    batch = {"x": none, "edge_index": none.expand(2, 0), "edge_attr": none, "batch": none}
    assert (build(num_classes=None)(**batch, num_graphs=2) == torch.zeros(2, 16)).all()
