"""Sampling from graphs with types of nodes and edges, against brute force."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch_geometric.data import HeteroData

from tests.graph.graphs import first


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def shop() -> HeteroData:
    data = HeteroData()
    data["user"].x = torch.randn(20, 3)
    data["item"].x = torch.randn(30, 5)
    data["shop"].num_nodes = 4
    for source, name, target, edges in (
        ("user", "buys", "item", 90), ("item", "bought_by", "user", 80),
        ("user", "knows", "user", 40), ("shop", "sells", "item", 25),
    ):  # fmt: skip
        sizes = {"user": 20, "item": 30, "shop": 4}
        index = torch.stack([torch.randint(sizes[kind], (edges,)) for kind in (source, target)])
        data[source, name, target].edge_index = index
        data[source, name, target].edge_attr = torch.randn(edges, 2)
    return data


def test_all_neighbors_of_each_type_are_those_of_brute_force() -> None:
    data = shop()
    seeds = [2, 9]
    batch = first(data, [-1, -1], ("item", torch.tensor(seeds)))
    found = {"user": set(), "item": set(seeds), "shop": set()}
    edges: dict[Any, set[int]] = {kind: set() for kind in data.edge_types}
    frontier = {"user": set(), "item": set(seeds), "shop": set()}
    for _ in range(2):
        new = {kind: set() for kind in found}
        for kind in data.edge_types:
            for number, (a, b) in enumerate(data[kind].edge_index.T.tolist()):
                if b in frontier[kind[2]]:
                    edges[kind].add(number)
                    new[kind[0]].add(a)
        frontier = {kind: new[kind] - found[kind] for kind in found}
        found = {kind: found[kind] | new[kind] for kind in found}
    for kind, nodes in found.items():
        assert sorted(batch[kind].n_id.tolist()) == sorted(nodes)
        assert sum(batch[kind].num_sampled_nodes) == len(nodes)
    for kind, numbers in edges.items():
        store = batch[kind]
        assert sorted(store.e_id.tolist()) == sorted(numbers)
        assert sum(store.num_sampled_edges) == len(numbers)
        source, target = store.edge_index
        ends = torch.stack([batch[kind[0]].n_id[source], batch[kind[2]].n_id[target]])
        assert torch.equal(ends, data[kind].edge_index[:, store.e_id])
        assert torch.equal(store.edge_attr, data[kind].edge_attr[store.e_id])
    assert batch["item"].batch_size == 2
    assert torch.equal(batch["item"].x, data["item"].x[batch["item"].n_id])


@pytest.mark.parametrize("kind", ["directional", "induced", "bidirectional"])
@pytest.mark.parametrize("disjoint", [False, True])
def test_typed_draws_are_bounded_by_type(kind: str, disjoint: bool) -> None:
    data = shop()
    counts = {
        ("user", "buys", "item"): [2, 1], ("item", "bought_by", "user"): [0, 3],
        ("user", "knows", "user"): [1, 2], ("shop", "sells", "item"): [1, 0],
    }  # fmt: skip
    warned = pytest.warns(UserWarning, match="shop.*does not seem to have a reverse")
    with warned if kind == "bidirectional" else nullcontext():
        batch = first(data, counts, "item", subgraph_type=kind, disjoint=disjoint)
    assert torch.equal(batch["item"].n_id[:8], torch.arange(8))
    for edge_type, (once, again) in counts.items():
        store = batch[edge_type]
        source, target = store.edge_index
        if disjoint:
            ends = batch[edge_type[0]].batch[source], batch[edge_type[2]].batch[target]
            assert torch.equal(*ends)
        if kind == "directional":
            drawn = torch.bincount(target, minlength=batch[edge_type[2]].num_nodes)
            assert int(drawn.max()) <= max(once, again)
            if edge_type[2] == "item":
                assert int(drawn[8:].max()) <= again
    with pytest.raises(ValueError, match="number of hops"):
        first(data, {**counts, ("shop", "sells", "item"): [1]}, "item")
    with pytest.raises(ValueError, match="edge type"):
        first(data, {("user", "buys", "item"): [1]}, "item")


def test_times_of_some_types_bind_only_those() -> None:
    data = shop()
    data["user"].when = torch.randint(10, (20,))
    batch = first(data, [-1, -1], ("item", torch.arange(10)), torch.full((10,), 4),
                  time_attr="when", batch_size=10)  # fmt: skip
    assert bool((batch["user"].when <= 4).all())
    kind = ("shop", "sells", "item")
    into = (data[kind].edge_index[1] < 10).sum()
    assert batch[kind].num_sampled_edges[0] == int(into)
