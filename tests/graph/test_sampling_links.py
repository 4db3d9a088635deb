"""Batches of links, with negatives and times, against PyG's utilities and brute force."""

from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch_geometric.sampler import NegativeSampling
from torch_geometric.utils import k_hop_subgraph

from graph.sampling import LinkNeighborLoader
from tests.graph.graphs import random_graph
from tests.graph.test_sampling_types import shop


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def drawn(data: Any, *args: Any, **options: Any) -> Any:
    options.setdefault("batch_size", 6)
    return next(iter(LinkNeighborLoader(data, *args, **options)))


def test_both_ends_are_seeds() -> None:
    data = random_graph()
    links, label = data.edge_index[:, 20:40], torch.arange(20)
    loader = LinkNeighborLoader(data, [-1, -1], links, label, batch_size=6, shuffle=True)
    batches = list(loader)
    for batch in batches:
        assert torch.equal(batch.n_id[batch.edge_label_index], links[:, batch.input_id])
        assert torch.equal(batch.edge_label, label[batch.input_id])
        ends = links[:, batch.input_id].flatten()
        nodes, _, _, _ = k_hop_subgraph(ends, 2, data.edge_index, num_nodes=60)
        assert torch.equal(batch.n_id.sort().values, nodes)
        assert torch.equal(batch.x, data.x[batch.n_id])
    assert sorted(torch.cat([b.input_id for b in batches]).tolist()) == list(range(20))
    every = LinkNeighborLoader(data, [1])
    assert len(every) == data.num_edges


@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("amount", [1, 3])
def test_binary_negatives_follow_the_links(disjoint: bool, amount: int) -> None:
    data = random_graph()
    batch = drawn(data, [2], neg_sampling={"mode": "binary", "amount": amount}, disjoint=disjoint)
    assert batch.edge_label.tolist() == [1] * 6 + [0] * 6 * amount
    ends = batch.n_id[batch.edge_label_index]
    assert torch.equal(ends[:, :6], data.edge_index[:, :6])
    assert ends.shape == (2, 6 + 6 * amount)
    if disjoint:  # those of a link are numbered as it is
        assert torch.equal(
            batch.batch[batch.edge_label_index], torch.arange(6).repeat(2, 1 + amount)
        )


def test_classes_of_links_begin_at_one_beside_negatives() -> None:
    data = random_graph()
    label = torch.arange(240) % 4
    batch = drawn(data, [1], edge_label=label, neg_sampling_ratio=0.5)
    assert batch.edge_label.tolist() == [1, 2, 3, 4, 1, 2, 0, 0, 0]


@pytest.mark.parametrize("amount", [1, 2])
@pytest.mark.parametrize("disjoint", [False, True])
def test_triplets_share_their_source(disjoint: bool, amount: int) -> None:
    data = random_graph()
    negatives = NegativeSampling("triplet", amount)
    batch = drawn(data, [2], neg_sampling=negatives, disjoint=disjoint)
    assert torch.equal(batch.n_id[batch.src_index], data.edge_index[0, :6])
    assert torch.equal(batch.n_id[batch.dst_pos_index], data.edge_index[1, :6])
    assert batch.dst_neg_index.shape == ((6,) if amount == 1 else (6, 2))
    assert "edge_label_index" not in batch
    if disjoint:
        numbers = batch.batch[batch.dst_neg_index].view(6, -1)
        assert bool((numbers == torch.arange(6)[:, None]).all())


def test_negatives_are_any_nodes_by_weight() -> None:
    data = random_graph(12, 4000)
    weight = torch.arange(12).double()
    negatives = NegativeSampling("binary", 5, dst_weight=weight)
    batch = drawn(data, [0], neg_sampling=negatives, batch_size=2000)
    source, target = batch.n_id[batch.edge_label_index[:, 2000:]]
    assert chisquare(torch.bincount(source, minlength=12)).pvalue > 1e-4
    expected = 10_000 * weight / weight.sum()
    counts = torch.bincount(target, minlength=12)
    assert counts[0] == 0
    assert chisquare(counts[1:], expected[1:]).pvalue > 1e-4


def test_neither_neighbor_nor_negative_is_newer_than_the_link() -> None:
    data = random_graph(when=torch.randint(10, (60,)))
    data.when[:5] = 0  # old enough for every link
    time = torch.randint(10, (240,))
    batch = drawn(
        data, [-1, -1], edge_label_time=time, time_attr="when", neg_sampling="binary", batch_size=50
    )
    assert torch.equal(batch.edge_label_time, time[:50].repeat(2))
    negatives = batch.edge_label_index[:, 50:]
    assert bool((batch.when[negatives] <= time[:50]).all())
    seed = torch.zeros(len(batch.n_id), dtype=torch.bool)
    seed[batch.edge_label_index.flatten()] = True
    assert bool((batch.when <= time[:50][batch.batch])[~seed].all())


@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("kind", [("user", "buys", "item"), ("user", "knows", "user")])
def test_links_of_a_type(kind: tuple[str, str, str], disjoint: bool) -> None:
    data = shop()
    batch = drawn(data, [2, 2], kind, neg_sampling="binary", disjoint=disjoint)
    source, target = batch[kind].edge_label_index
    assert torch.equal(batch[kind[0]].n_id[source[:6]], data[kind].edge_index[0, :6])
    assert torch.equal(batch[kind[2]].n_id[target[:6]], data[kind].edge_index[1, :6])
    if disjoint:
        for end, index in ((kind[0], source), (kind[2], target)):
            assert torch.equal(batch[end].batch[index], torch.arange(6).repeat(2))
    chosen = data[kind].edge_index[:, 5:9]
    for given in ((kind, chosen), ((kind[0], kind[2]), chosen)):
        again = drawn(data, [1], given)
        assert torch.equal(again[kind[0]].n_id[again[kind].edge_label_index[0]], chosen[0])


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"edge_label_index": torch.tensor([[60], [0]])}, ValueError, "edge_label_index.*node 60"),
        ({"edge_label_index": torch.rand(2, 4)}, TypeError, "edge_label_index.*integers"),
        ({"edge_label_index": torch.arange(4)}, ValueError, r"edge_label_index.*\(2, E\)"),
        ({"edge_label": torch.ones(3)}, ValueError, "edge_label must hold a value per link, 240"),
        ({"edge_label_time": torch.ones(240)}, ValueError, "time_attr is missing"),
        ({"time_attr": "when"}, ValueError, "edge_label_time is missing"),
        (
            {"neg_sampling": {"mode": "binary", "amount": 0.5}, "disjoint": True},
            ValueError,
            "whole amount.*0.5",
        ),
        ({"neg_sampling": "triplet", "edge_label": torch.ones(240)}, ValueError, "edge_label"),
    ],
)
def test_bad_links_are_named(options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        LinkNeighborLoader(random_graph(), [2], **options)


def test_a_type_of_links_is_needed() -> None:
    with pytest.raises(ValueError, match="edge_label_index must be a type of edges.*sells.*None"):
        LinkNeighborLoader(shop(), [2])
