"""Batches of neighborhoods against PyG's utilities, and what is refused."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch_geometric.sampler
import torch_geometric.typing
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.sampler import NodeSamplerInput
from torch_geometric.utils import barabasi_albert_graph, k_hop_subgraph, sort_edge_index, subgraph

from graph.sampling import LinkNeighborLoader, NeighborLoader, NeighborSampler
from tests.graph.graphs import equal_sets, first, global_edges, random_graph


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("hops", [0, 1, 2, 3])
def test_all_neighbors_are_the_k_hop_subgraph(hops: int) -> None:
    data = random_graph()
    seeds = torch.tensor([3, 17, 40])
    batch = first(data, [-1] * hops, seeds, subgraph_type="induced")
    nodes, _, _, mask = k_hop_subgraph(seeds, hops, data.edge_index, num_nodes=60)
    assert equal_sets(batch.n_id[None], nodes[None])
    assert equal_sets(global_edges(batch), data.edge_index[:, mask])
    assert sorted(batch.e_id.tolist()) == mask.nonzero().squeeze(1).tolist()
    # Only the edges that the layers need: into nodes at most hops - 1 away
    directional = first(data, [-1] * hops, seeds)
    assert torch.equal(directional.n_id, batch.n_id)
    if hops:
        inner = k_hop_subgraph(seeds, hops - 1, data.edge_index, num_nodes=60)[0]
        needed = torch.isin(data.edge_index[1], inner)
        assert equal_sets(global_edges(directional), data.edge_index[:, needed])


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("kind", ["directional", "induced", "bidirectional"])
@pytest.mark.parametrize("disjoint", [False, True])
def test_every_field_of_a_batch_is_of_the_graph(replace: bool, kind: str, disjoint: bool) -> None:
    data = random_graph()
    seeds = torch.tensor([5, 58, 5, 30])  # twice the same, and one isolated
    batch = first(data, [3, 2], seeds, replace=replace, subgraph_type=kind, disjoint=disjoint)
    assert torch.equal(batch.n_id[: batch.batch_size], seeds)
    assert torch.equal(batch.input_id, torch.arange(4))
    assert torch.equal(batch.x, data.x[batch.n_id])
    if kind == "bidirectional":
        reverse = batch.edge_index.flip(0)
        assert equal_sets(batch.edge_index.unique(dim=1), reverse.unique(dim=1))
    else:
        assert torch.equal(global_edges(batch), data.edge_index[:, batch.e_id])
        assert torch.equal(batch.edge_attr, data.edge_attr[batch.e_id])
    if disjoint:
        assert torch.equal(batch.batch[:4], torch.arange(4))
        source, target = batch.batch[batch.edge_index]
        assert torch.equal(source, target)
        assert len({*zip(batch.batch.tolist(), batch.n_id.tolist(), strict=True)}) == len(batch.x)
    else:
        assert batch.batch is None
        assert len(batch.n_id[2:].unique()) == len(batch.n_id) - 2  # but for the repeated seed
    if kind != "bidirectional":
        assert sum(batch.num_sampled_nodes) == len(batch.n_id)
    if kind == "directional":
        assert sum(batch.num_sampled_edges) == batch.num_edges
        hop = torch.repeat_interleave(torch.tensor(batch.num_sampled_edges))
        node_hop = torch.repeat_interleave(torch.tensor(batch.num_sampled_nodes))
        assert torch.equal(node_hop[batch.edge_index[1]], hop)
        assert bool((node_hop[batch.edge_index[0]] <= hop + 1).all())


def test_degrees_are_bounded_and_reached() -> None:
    data = Data(edge_index=barabasi_albert_graph(300, 4), num_nodes=300)  # with hubs
    in_degree = torch.bincount(data.edge_index[1], minlength=300)
    for replace in (False, True):
        batch = first(data, [5, 3], batch_size=50, replace=replace)
        drawn = torch.bincount(batch.edge_index[1], minlength=len(batch.n_id))
        hop = torch.repeat_interleave(torch.tensor(batch.num_sampled_nodes))
        wanted = torch.tensor([5, 3, 0])[hop]
        has = in_degree[batch.n_id]
        expected = wanted * (has > 0) if replace else wanted.minimum(has)
        assert torch.equal(drawn, expected)
        if not replace:
            assert len(batch.e_id.unique()) == len(batch.e_id)


def test_an_induced_batch_is_the_subgraph_of_its_nodes() -> None:
    data = random_graph()
    batch = first(data, [2, 2], torch.tensor([0, 1, 2]), subgraph_type="induced")
    expected, _ = subgraph(batch.n_id, data.edge_index, relabel_nodes=False, num_nodes=60)
    assert equal_sets(global_edges(batch), expected)
    assert "num_sampled_edges" not in batch  # they belong to no hop
    apart = first(data, [2, 2], torch.tensor([0, 1, 2]), subgraph_type="induced", disjoint=True)
    for number in range(3):
        own = apart.batch == number
        expected, _ = subgraph(apart.n_id[own], data.edge_index, num_nodes=60)
        inside = own[apart.edge_index[1]]
        assert equal_sets(global_edges(apart)[:, inside], expected)


def test_bidirectional_edges_keep_the_number_of_the_drawn_one() -> None:
    data = random_graph()
    batches = []
    for kind in ("directional", "bidirectional"):
        torch.manual_seed(1)
        batches.append(first(data, [2, 2], torch.arange(4), subgraph_type=kind))
    one_way, both = batches
    assert torch.equal(both.n_id, one_way.n_id)
    wanted = torch.cat([one_way.edge_index, one_way.edge_index.flip(0)], dim=1).unique(dim=1)
    assert torch.equal(sort_edge_index(both.edge_index), sort_edge_index(wanted))
    ends = data.edge_index[:, both.e_id].sort(0).values
    assert torch.equal(ends, global_edges(both).sort(0).values)


def test_loader_options_are_those_of_a_data_loader() -> None:
    data = random_graph()
    mask = torch.zeros(60, dtype=torch.bool)
    mask[10:31] = True
    loader = NeighborLoader(data, [2], mask, batch_size=8, shuffle=True, drop_last=True)
    batches = list(loader)
    assert [batch.batch_size for batch in batches] == [8, 8]
    seen = torch.cat([batch.n_id[:8] for batch in batches])
    assert bool(mask[seen].all())
    assert torch.equal(torch.cat([batch.input_id for batch in batches]), seen)

    def double(batch: Data) -> Data:
        batch.x = 2 * batch.x
        return batch

    batch = first(data, [2], transform=double)
    assert torch.equal(batch.x, 2 * data.x[batch.n_id])
    shared = loader.node_sampler
    other = NeighborLoader(data, None, torch.arange(5), neighbor_sampler=shared)
    assert other.node_sampler is shared
    assert len(list(other)) == 5


@pytest.mark.slow
def test_workers_draw_as_much() -> None:
    data = random_graph()
    loader = NeighborLoader(data, [2, 2], batch_size=16, num_workers=2, shuffle=True)
    seen = torch.cat([batch.n_id[: batch.batch_size] for batch in loader])
    assert sorted(seen.tolist()) == list(range(60))


def test_nothing_to_draw_from() -> None:
    none = torch.empty(2, 0, dtype=torch.int64)
    batch = first(Data(x=torch.randn(3, 2), edge_index=none), [2, -1])
    assert batch.n_id.tolist() == [0, 1, 2]
    assert batch.edge_index.shape == (2, 0)
    assert batch.num_sampled_nodes == [3, 0, 0]
    assert list(NeighborLoader(random_graph(), [2], [])) == []
    isolated = first(random_graph(), [2, 2], [59])
    assert isolated.n_id.tolist() == [59]
    assert isolated.num_sampled_edges == [0, 0]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"edge_index": torch.tensor([[0, 60], [1, 2]])}, ValueError, "source node 60.*0 to 59"),
        ({"edge_index": torch.tensor([[0, 1], [1, -2]])}, ValueError, "target node -2"),
        ({"edge_index": torch.rand(2, 3)}, TypeError, "edge_index must hold integers.*float32"),
        ({"edge_index": torch.tensor([0, 1, 2])}, ValueError, r"edge_index.*\(2, E\).*\(3,\)"),
        ({"edge_index": None}, TypeError, "edge_index must be a dense tensor.*NoneType"),
        ({"x": torch.full((60, 4), torch.nan)}, ValueError, "x has a feature that is not finite"),
        ({"edge_attr": torch.zeros(9, 2)}, ValueError, r"edge_attr must hold a row per edge, 240"),
        ({"edge_attr": torch.full((240, 2), torch.inf)}, ValueError, "edge_attr.*not finite"),
        ({"num_neighbors": 5}, TypeError, "num_neighbors must list a number per hop, got 5"),
        ({"num_neighbors": [2, -3]}, ValueError, "num_neighbors.*-3"),
        ({"num_neighbors": [2.5]}, ValueError, "num_neighbors.*2.5"),
        ({"input_nodes": torch.tensor([60])}, ValueError, "input_nodes names node 60"),
        ({"input_nodes": torch.tensor([0.5])}, TypeError, "input_nodes must hold integers"),
        ({"input_nodes": torch.ones(9, dtype=torch.bool)}, ValueError, r"mask of shape \(60,\)"),
        ({"subgraph_type": "both"}, ValueError, "both"),
        ({"temporal_strategy": "first"}, ValueError, "temporal_strategy.*'first'"),
        ({"time_attr": "when"}, ValueError, "time_attr='when'.*neither"),
        ({"time_attr": "edge_time"}, ValueError, "input_time is missing"),
        ({"input_time": torch.zeros(60)}, ValueError, "input_time needs time_attr"),
        (
            {"input_time": torch.zeros(2).long(), "time_attr": "edge_time"},
            ValueError,
            r"input_time must hold a number per seed, shape \(60,\), got \(2,\)",
        ),
        (
            {"input_time": torch.zeros(60), "time_attr": "edge_time"},
            TypeError,
            "input_time must be of the same kind",
        ),
        ({"weight_attr": "w"}, TypeError, "weight_attr='w' must be a tensor"),
        ({"weight_attr": "negative"}, ValueError, "weight_attr='negative' must be at least 0"),
        ({"weight_attr": "edge_attr"}, ValueError, r"weight_attr='edge_attr'.*\(240,\)"),
        ({"directed": False}, TypeError, "directed"),  # PyG's old name of a subgraph_type
    ],
)
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], said: str) -> None:
    data = random_graph(edge_time=torch.arange(240), negative=torch.full((240,), -1.0))
    of_graph = {name: change[name] for name in ("x", "edge_index", "edge_attr") if name in change}
    data.update(of_graph)
    options = {"num_neighbors": [2, 2]}
    options.update({name: value for name, value in change.items() if name not in of_graph})
    with pytest.raises(error, match=said):
        next(iter(NeighborLoader(data, batch_size=4, **options)))


@pytest.mark.parametrize("data", [(random_graph(), random_graph()), None, "graph"])
@pytest.mark.parametrize("loader", [NeighborLoader, LinkNeighborLoader])
def test_stores_are_refused_by_name(loader: Any, data: Any) -> None:
    """PyG's loaders also take a tuple of a feature store and a graph store."""
    said = r"data must be PyG's Data or HeteroData, got (\(Data, Data\): stores|NoneType|str)"
    with pytest.raises(TypeError, match=said):
        loader(data, num_neighbors=[2])


def test_seeds_and_edges_come_in_many_forms() -> None:
    data = random_graph()
    expected = first(data, [-1, -1], torch.tensor([1, 4]))
    given = [position in (1, 4) for position in range(60)]
    for seeds in ([1, 4], torch.tensor([1, 4], dtype=torch.int32), given, torch.tensor(given)):
        assert torch.equal(first(data, [-1, -1], seeds).n_id, expected.n_id)
    ordered, permutation = EdgeIndex(data.edge_index, sparse_size=(60, 60)).sort_by("col")
    same = Data(x=data.x, edge_index=ordered, edge_attr=data.edge_attr[permutation])
    found = first(same, [-1, -1], [1, 4])
    assert equal_sets(global_edges(found), global_edges(expected))
    assert torch.equal(found.edge_attr, same.edge_attr[found.e_id])


def test_pyg_lib_draws_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in: the wheels of pyg-lib are not on PyPI."""
    asked: list[Any] = []

    def neighbor_sample(
        start: Tensor, source: Tensor, seed: Tensor, num_neighbors: list[int], *rest: Any
    ) -> Any:
        asked.append((num_neighbors, *rest))
        target = torch.repeat_interleave(start.diff())
        graph = Data(edge_index=torch.stack([source, target]), num_nodes=len(start) - 1)
        out = NeighborSampler(graph, num_neighbors).sample_from_nodes(NodeSamplerInput(None, seed))
        return out.row, out.col, out.node, out.edge, out.num_sampled_nodes, out.num_sampled_edges

    data, links = random_graph(), torch.tensor([[3, 8], [9, 9]])
    ours = first(data, [-1, -1], [5, 2])
    our_links = next(iter(LinkNeighborLoader(data, [-1], links, batch_size=2)))
    monkeypatch.setattr(torch_geometric.typing, "WITH_PYG_LIB", True)
    pyg = SimpleNamespace(neighbor_sample=neighbor_sample)
    monkeypatch.setattr(torch.ops, "pyg", pyg, raising=False)
    loader = NeighborLoader(data, [-1, -1], [5, 2], replace=True, batch_size=2)
    assert type(loader.node_sampler) is torch_geometric.sampler.NeighborSampler
    theirs = next(iter(loader))
    # csc, replace, directed, disjoint, strategy, edge numbers
    assert asked == [([-1, -1], None, None, True, True, True, False, "uniform", True)]
    assert theirs.n_id[:2].tolist() == [5, 2]
    for name in ("batch_size", "num_sampled_nodes", "num_sampled_edges"):
        assert theirs[name] == ours[name]
    for name in ("n_id", "e_id", "input_id"):  # PyG sorts edges in an order of its own
        assert torch.equal(theirs[name].sort().values, ours[name].sort().values)
    assert torch.equal(theirs.x, data.x[theirs.n_id])
    assert torch.equal(global_edges(theirs), data.edge_index[:, theirs.e_id])
    their_links = next(iter(LinkNeighborLoader(data, [-1], links, batch_size=2)))
    assert torch.equal(their_links.n_id.sort().values, our_links.n_id.sort().values)
    assert torch.equal(their_links.n_id[their_links.edge_label_index], links)
    assert len(asked) == 2
    induced = NeighborLoader(data, [2], subgraph_type="induced")  # of which pyg-lib knows nothing
    assert type(induced.node_sampler) is NeighborSampler
    with pytest.raises(ValueError, match="edge_index names source node 60"):
        NeighborLoader(data.update({"edge_index": torch.tensor([[60], [0]])}), [2])
