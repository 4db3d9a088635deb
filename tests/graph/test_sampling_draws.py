"""What is drawn, how often, and how old: against the distributions of scipy and brute force."""

from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.sampler import NodeSamplerInput

from graph.sampling import NeighborLoader, NeighborSampler
from tests.graph.graphs import first, random_graph, star


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def draws(data: Data, times: int, count: int, **options: Any) -> Tensor:
    """(times, ·) the edges drawn into node 0, many times independently."""
    sampler = NeighborSampler(data, [count], disjoint=True, **options)
    seeds = torch.zeros(times, dtype=torch.int64)
    out = sampler.sample_from_nodes(NodeSamplerInput(None, seeds))
    return out.edge.view(times, -1)


def test_every_set_of_neighbors_is_equally_likely() -> None:
    drawn = draws(star(6), 20_000, 3).sort(1).values
    _, counts = drawn.unique(dim=0, return_counts=True)
    assert len(counts) == 20
    assert chisquare(counts).pvalue > 1e-4
    _, counts = draws(star(30), 5_000, 25).unique(return_counts=True)
    assert len(counts) == 30
    assert chisquare(counts).pvalue > 1e-4


def test_with_replacement_draws_are_independent() -> None:
    drawn = draws(star(5), 10_000, 2, replace=True)
    _, counts = drawn.unique(dim=0, return_counts=True)
    assert len(counts) == 25
    assert chisquare(counts).pvalue > 1e-4


def test_weights_are_probabilities() -> None:
    weight = torch.tensor([1.0, 2.0, 0.0, 4.0]).double()
    data = star(4, w=weight)
    drawn = draws(data, 20_000, 2, replace=True, weight_attr="w")
    expected = 40_000 * weight / weight.sum()
    counts = torch.bincount(drawn.flatten(), minlength=4)
    assert counts[2] == 0
    assert chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-4
    # Without replacement: the first by weight, the second by weight among the rest
    pairs = draws(data, 20_000, 2, weight_attr="w").sort(1).values
    found, counts = pairs.unique(dim=0, return_counts=True)
    share = weight / weight.sum()
    expected = torch.stack([
        share[a] * share[b] / (1 - share[a]) + share[b] * share[a] / (1 - share[b])
        for a, b in found.tolist()
    ])  # fmt: skip
    assert found.tolist() == [[0, 1], [0, 3], [1, 3]]
    assert chisquare(counts, 20_000 * expected / expected.sum()).pvalue > 1e-4
    assert draws(data, 7, 4, weight_attr="w").sort(1).values.tolist() == [[0, 1, 3]] * 7
    assert draws(data, 7, -1, weight_attr="w").sort(1).values.tolist() == [[0, 1, 3]] * 7


def test_small_weights_are_kept_beside_large_ones_of_other_nodes() -> None:
    edge_index = torch.tensor([[1, 2, 3, 4], [0, 0, 5, 5]])
    data = Data(edge_index=edge_index, num_nodes=6, w=torch.tensor([1e30, 1e30, 1.0, 3.0]).double())
    sampler = NeighborSampler(data, [1], replace=True, disjoint=True, weight_attr="w")
    seeds = torch.full((4000,), 5)
    edge = sampler.sample_from_nodes(NodeSamplerInput(None, seeds)).edge
    assert chisquare(torch.bincount(edge)[2:], [1000, 3000]).pvalue > 1e-4


def test_the_same_seed_draws_the_same() -> None:
    data = random_graph()
    batches = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        loader = NeighborLoader(data, [2, 2], batch_size=16, shuffle=True)
        batches.append([batch.e_id for batch in loader])
    assert all(torch.equal(*pair) for pair in zip(batches[0], batches[1], strict=True))
    assert not torch.equal(batches[0][0], batches[2][0])


def test_a_hub_is_drawn_from_evenly_and_quickly() -> None:
    batch = first(star(200_000), [10], [0])
    assert batch.num_edges == 10
    _, counts = (draws(star(200_000), 5_000, 10) // 20_000).unique(return_counts=True)
    assert chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("strategy", ["uniform", "last"])
@pytest.mark.parametrize("of", ["nodes", "edges"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_no_neighbor_is_newer_than_the_seed(
    of: str, strategy: str, replace: bool, dtype: torch.dtype
) -> None:
    data = random_graph()
    count = 60 if of == "nodes" else 240
    data.when = torch.randint(20, (count,)).to(dtype)
    seeds = torch.arange(57)
    times = torch.randint(20, (57,)).to(dtype)
    batch = first(
        data, [3, 2], seeds, times, replace=replace, temporal_strategy=strategy, time_attr="when",
        batch_size=57,
    )  # fmt: skip
    limit = times[batch.batch]
    if of == "nodes":
        later = batch.when[57:] > limit[57:]
        time = data.when[data.edge_index[0]]
    else:
        later = batch.when > limit[batch.edge_index[1]]
        time = data.when
    assert not bool(later.any())
    assert torch.equal(batch.seed_time, times)
    for seed, until in zip(seeds.tolist(), times.tolist(), strict=True):
        possible = time[(data.edge_index[1] == seed) & (time <= until)]
        into = batch.edge_index[1] == seed
        drawn = time[batch.e_id[into]].sort().values
        if not replace:
            assert len(drawn) == min(3, len(possible))
        if strategy == "last" and not replace:
            assert torch.equal(drawn, possible.sort().values[-3:])
        if strategy == "last" and len(possible) and len(drawn):
            assert drawn.min() >= possible.sort().values[-3:].min()


def test_seeds_have_the_time_of_their_node() -> None:
    data = random_graph(when=torch.arange(60))
    batch = first(data, [-1, -1], time_attr="when", batch_size=60)
    assert bool((batch.when <= batch.n_id[batch.batch]).all())
    older = data.edge_index[0] <= data.edge_index[1]
    assert batch.num_sampled_edges[0] == int(older.sum())
    induced = first(data, [-1, -1], time_attr="when", batch_size=60, subgraph_type="induced")
    assert bool((induced.when <= induced.n_id[induced.batch]).all())
    assert torch.equal(induced.n_id, batch.n_id)
    assert induced.num_edges >= batch.num_edges


def test_temporal_draws_are_uniform_over_what_is_old_enough() -> None:
    data = star(6, edge_time=torch.tensor([5, 1, 4, 2, 9, 3]))
    loader = NeighborLoader(
        data, [2], torch.zeros(15_000, dtype=torch.int64), torch.full((15_000,), 4),
        time_attr="edge_time", batch_size=15_000,
    )  # fmt: skip
    pairs = next(iter(loader)).e_id.view(-1, 2).sort(1).values
    found, counts = pairs.unique(dim=0, return_counts=True)
    assert set(found.unique().tolist()) == {1, 2, 3, 5}
    assert len(found) == 6
    assert chisquare(counts).pvalue > 1e-4
