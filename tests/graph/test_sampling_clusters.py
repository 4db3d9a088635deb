"""Partitions beside random ones and planted ones, and the batches made of them."""

from math import ceil

import pytest
import torch
from torch import Tensor
from torch_geometric.utils import (
    barabasi_albert_graph,
    grid,
    stochastic_blockmodel_graph,
    subgraph,
)

from graph.sampling import ClusterData, ClusterLoader, partition
from tests.graph.graphs import equal_sets, global_edges, random_graph


def cut(edge_index: Tensor, part: Tensor) -> float:
    """The share of edges between parts."""
    return float((part[edge_index[0]] != part[edge_index[1]]).double().mean())


def shuffled(count: int, parts: int) -> Tensor:
    return (torch.arange(count) * parts // count)[torch.randperm(count)]


# At most this share of the edges that a random partition cuts
@pytest.mark.parametrize(
    ("name", "parts", "share"), [("grid", 20, 0.15), ("hubs", 10, 0.8), ("random", 10, 0.85)]
)
def test_fewer_edges_are_cut_than_by_chance(name: str, parts: int, share: float) -> None:
    torch.manual_seed(0)
    edge_index = {
        "grid": lambda: grid(60, 60)[0],
        "hubs": lambda: barabasi_albert_graph(3600, 4),
        "random": lambda: torch.randint(3600, (2, 10_000)),
    }[name]()
    part = partition(edge_index, 3600, parts)
    by_chance = cut(edge_index, shuffled(3600, parts))
    assert cut(edge_index, part) <= share * by_chance, (cut(edge_index, part), by_chance)


def test_planted_clusters_are_found() -> None:
    torch.manual_seed(0)
    within = 0.1 * torch.eye(8) + 0.002
    edge_index = stochastic_blockmodel_graph([100] * 8, within)
    planted = torch.arange(800) // 100
    relabel = torch.randperm(800)
    part = partition(relabel[edge_index], 800, 8)[relabel]
    assert cut(edge_index, part) <= 1.1 * cut(edge_index, planted)


@pytest.mark.parametrize("parts", [1, 2, 7, 60])
@pytest.mark.parametrize("imbalance", [0.0, 0.05, 0.5])
def test_parts_are_as_large_as_promised(parts: int, imbalance: float) -> None:
    torch.manual_seed(0)
    for edge_index in (random_graph().edge_index, torch.empty(2, 0, dtype=torch.int64)):
        part = partition(edge_index, 60, parts, imbalance=imbalance)
        sizes = torch.bincount(part, minlength=parts)
        assert part.shape == (60,)
        assert len(sizes) == parts
        assert int(sizes.min()) >= max(1, int((1 - imbalance) * 60 / parts))
        assert int(sizes.max()) <= ceil((1 + imbalance) * 60 / parts)


def test_a_partition_depends_on_its_seed_alone() -> None:
    edge_index, _ = grid(30, 30)
    torch.manual_seed(0)
    one = partition(edge_index, 900, 9)
    torch.manual_seed(1)
    assert torch.equal(partition(edge_index, 900, 9), one)
    assert not torch.equal(partition(edge_index, 900, 9, seed=1), one)


def test_a_batch_is_the_subgraph_of_its_clusters() -> None:
    torch.manual_seed(0)
    data = random_graph(y=torch.arange(60))
    clusters = ClusterData(data, 10)
    part = clusters.parts
    assert torch.equal(part, partition(data.edge_index, 60, 10))
    loader = ClusterLoader(clusters, batch_size=3, shuffle=True)
    nodes = []
    for batch in loader:
        own = part[batch.n_id].unique()
        expected = torch.isin(part, own).nonzero().squeeze(1)
        assert torch.equal(batch.n_id.sort().values, expected)
        inside, _ = subgraph(expected, data.edge_index, num_nodes=60)
        assert equal_sets(global_edges(batch), inside)
        assert torch.equal(batch.edge_attr, data.edge_attr[batch.e_id])
        assert torch.equal(batch.y, batch.n_id)
        nodes.append(batch.n_id)
    assert len(loader) == len(nodes) == 4
    assert sorted(torch.cat(nodes).tolist()) == list(range(60))


def test_clusters_may_be_known() -> None:
    data = random_graph()
    known = torch.arange(60) % 4 * 5  # with numbers that nothing has
    batches = list(ClusterLoader(ClusterData(data, known)))
    assert [batch.n_id.tolist() for batch in batches] == [
        list(range(first, 60, 4)) for first in range(4)
    ]


def test_bad_partitions_are_named() -> None:
    data = random_graph()
    with pytest.raises(ValueError, match="num_parts must be 1 to num_nodes=60, got 61"):
        partition(data.edge_index, 60, 61)
    with pytest.raises(ValueError, match="imbalance"):
        partition(data.edge_index, 60, 5, imbalance=-0.1)
    with pytest.raises(ValueError, match="edge_index names"):
        partition(data.edge_index, 20, 5)
    with pytest.raises(ValueError, match=r"parts must hold.*\(60,\), got \(59,\)"):
        ClusterData(data, torch.zeros(59, dtype=torch.int64))
    with pytest.raises(TypeError, match="parts must hold integers"):
        ClusterData(data, torch.zeros(60))
    with pytest.raises(TypeError, match="data must be PyG's Data"):
        ClusterData([], 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="recursive"):
        ClusterData(data, 3, recursive=True)
    with pytest.raises(ValueError, match="x has a feature that is not finite, first in row 0"):
        ClusterData(random_graph().update({"x": torch.full((60, 4), torch.inf)}), 3)
