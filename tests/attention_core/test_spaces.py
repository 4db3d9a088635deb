"""Spaces: where tokens sit, after packing, padding, dropping and appending."""

from __future__ import annotations

import networkx
import pytest
import torch
from torch_geometric.data import Batch, Data

from attention_core import Graph, Grid, Neighborhood, Pairs, Points, Sequence, plan
from attention_core.spaces.edge_list import EdgeList


def distances(space: Sequence | Grid | Graph | Points) -> torch.Tensor:
    return Pairs.all((space, space)).distance[0, 0]


def test_packed_positions_restart() -> None:
    space = Sequence.packed([2, 0, 3], special=1)
    assert space.coordinates.squeeze(-1).tolist() == [-1, 0, 1, -1, -1, 0, 1, 2]
    assert space.segments.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert space.special.nonzero().squeeze(-1).tolist() == [0, 3, 4]
    assert space.num_samples == 3


def test_padding_stands_on_either_side() -> None:
    right, left = (Sequence.padded([1, 3], side=side) for side in ("right", "left"))
    assert right.valid.tolist() == [[True, False, False], [True] * 3]
    assert left.valid.tolist() == [[False, False, True], [True] * 3]
    assert left.coordinates[0].squeeze(-1).tolist() == [0, 0, 0]


def test_padded_grids_are_the_grids_themselves() -> None:
    sizes = [(2, 3), (1, 1), (4, 1)]
    space = Grid.padded(sizes, special=2)
    assert space.batch == 3 and space.length == 8 and space.num_special == 2
    for row, size in enumerate(sizes):
        alone = Grid(*size, special=2)
        present = space.valid[row]
        assert present.tolist() == [True] * alone.length + [False] * (8 - alone.length)
        assert torch.equal(space.coordinates[row][present], alone.coordinates)
    assert torch.equal(space.special, Grid(2, 3, special=2).special)
    with pytest.raises(ValueError, match="one number of axes"):
        Grid.padded([(1, 2), (3,)])


def test_a_token_knows_the_extent_of_its_grid() -> None:
    """Dropped, moved, packed, padded or appended to."""
    sizes = [(2, 3), (1, 4)]

    def extents(space: Grid) -> list[list[int]]:
        return space.extent.expand_as(space.coordinates).tolist()

    assert extents(Grid(2, 3, special=1)) == [[2, 3]] * 7
    assert extents(Grid(2, 3, special=1).keep(torch.tensor([0, 5]))) == [[2, 3]] * 2
    each = torch.tensor([[0, 1], [0, 5]])
    assert extents(Grid(2, 3, special=1).keep(each)) == [[[2, 3]] * 2] * 2
    packed = Grid.packed(sizes, special=1)
    assert extents(packed) == [[2, 3]] * 7 + [[1, 4]] * 5
    assert extents(packed.keep(torch.tensor([1, 7, 8]))) == [[2, 3], [1, 4], [1, 4]]
    assert packed.to("meta").extent.device.type == "meta"
    padded = Grid.padded(sizes)
    assert extents(padded) == [[[2, 3]] * 6, [[1, 4]] * 6]
    assert extents(padded.keep(each)) == [[[2, 3]] * 2, [[1, 4]] * 2]
    assert extents(Grid(2, 3).append(Grid(2, 3))) == [[2, 3]] * 12
    assert Grid(2, 3).append(Grid(1, 4)).extent is None
    assert Sequence(3).extent is None


def test_a_grid_whose_ends_meet() -> None:
    """Offsets are those of the nearest image, also of tokens that are kept, joined and moved."""
    row = Grid(4, wrap=True)
    assert Pairs.all((row, row)).offset[0, 0, :, :, 0].tolist() == [
        [0, 1, 2, -1],
        [-1, 0, 1, 2],
        [2, -1, 0, 1],
        [1, 2, -1, 0],
    ]
    globe = Grid(2, 5, wrap=(False, True), special=1)
    kept = globe.keep(torch.tensor([1, 5, 10]))  # (0, 0), (0, 4) and (1, 4)
    assert distances(kept).tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    assert globe.describe() == ("a 2×5 grid that wraps along axis 1, 11 tokens, 1 of them special")
    joined = Grid.pack([row, Grid(3, wrap=True)])
    assert distances(joined)[:4, :4].amax() == 2 and distances(joined)[4:, 4:].amax() == 1
    assert distances(row.append(row))[0].tolist() == [0, 1, 2, 1] * 2
    with pytest.raises(TypeError, match="wrap differ"):
        row.append(Grid(4))
    with pytest.raises(TypeError, match="wrap at different places"):
        row.append(Grid(3, wrap=True))


def test_grids_run_row_by_row() -> None:
    space = Grid(2, 3, special=1)
    assert space.coordinates[1:].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    packed = Grid.packed([(1, 2), (2, 2)])
    assert packed.coordinates.tolist() == [[0, 0], [0, 1], [0, 0], [0, 1], [1, 0], [1, 1]]
    volume = Grid(2, 2, 2).coordinates
    assert volume[5].tolist() == [1, 0, 1]


def test_chebyshev_and_euclid() -> None:
    assert distances(Grid(3, 3))[0].tolist() == [0, 1, 2, 1, 1, 2, 2, 2, 2]
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert distances(Points(points)).tolist() == [[0, 5], [5, 0]]


@pytest.mark.parametrize("seed", range(5))
def test_hops_equal_networkx(seed: int) -> None:
    graphs = [
        networkx.gnp_random_graph(n, 0.15, seed=seed * 7 + n, directed=True) for n in (1, 12, 30, 2)
    ]
    whole = networkx.disjoint_union_all(graphs)
    edge_index = torch.tensor(list(whole.edges), dtype=torch.long).reshape(-1, 2).T
    segments = torch.repeat_interleave(torch.tensor([1, 12, 30, 2]))
    hops = distances(Graph(edge_index, 45, segments=segments))
    lengths = dict(networkx.all_pairs_shortest_path_length(whole))
    for query in range(45):
        for key in range(45):
            assert hops[query, key] == lengths[key].get(query, float("inf"))
    edges = EdgeList(edge_index, 45, graph=segments)
    for radius in (0, 1, 3):
        target, source, near = edges.within(radius)
        found = torch.full((45, 45), torch.inf)
        found[target, source] = near
        assert len(target) == int((hops <= radius).sum())
        assert torch.equal(found, hops.masked_fill(hops > radius, torch.inf))


def test_graphs_from_pyg() -> None:
    one = Data(
        edge_index=torch.tensor([[0, 1], [1, 2]]), edge_attr=torch.tensor([4, 5]), num_nodes=3
    )
    alone = Data(
        edge_index=torch.zeros(2, 0, dtype=torch.long), edge_attr=torch.zeros(0).long(), num_nodes=2
    )
    space = Graph.from_pyg(Batch.from_data_list([one, alone, one]), special=1)
    assert space.segments.tolist() == [0] * 4 + [1] * 3 + [2] * 4
    assert space.nodes.tolist() == [-1, 0, 1, 2, -1, 3, 4, -1, 5, 6, 7]
    pairs = Pairs.all((space, space))
    edge = pairs.edge[0, 0]
    assert [tuple(at) for at in (edge >= 0).nonzero().tolist()] == [(2, 1), (3, 2), (9, 8), (10, 9)]
    assert pairs.edge_attr[edge[edge >= 0]].tolist() == [4, 5, 4, 5]
    assert Graph.from_pyg(one).segments is None


def test_two_sets_of_nodes() -> None:
    """Spaces of targets and sources over one list of edges, which knows no distance."""
    edge_index = torch.tensor([[4, 0, 1], [0, 1, 1]])
    target, source = Graph.bipartite(edge_index, 5, 2, edge_attr=torch.arange(3))
    assert (target.length, source.length) == (2, 5) and target.whole and source.whole
    assert target.edges is source.edges and source.edge_attr.tolist() == [0, 1, 2]
    pairs = Pairs.all((target, source))
    assert pairs.edge[0, 0].tolist() == [[-1, -1, -1, -1, 0], [1, 2, -1, -1, -1]]
    for ask in (lambda: pairs.distance, lambda: pairs.pair):
        with pytest.raises(TypeError, match="a bipartite graph has edges, but neither hops nor"):
            ask()
    moved = plan((target, source), device="meta", backend="reference").job.spaces
    assert moved[0].edges is moved[1].edges and moved[0].edges.source.is_meta
    with pytest.raises(ValueError, match="names target 1, but num_targets=1: targets are 0 to 0"):
        Graph.bipartite(edge_index, 5, 1)
    with pytest.raises(ValueError, match="names source 4, but num_sources=4"):
        Graph.bipartite(edge_index, 4, 2)


def test_edges_with_one_loop_at_each_node() -> None:
    edge_index = torch.tensor([[2, 1, 1, 0, 1], [0, 1, 1, 2, 2]])
    edges = EdgeList(edge_index, 4, torch.arange(5))
    looped, kept = edges.looped
    assert kept.tolist() == [0, 3, 4] and looped.attr is None
    assert looped.source.tolist() == [2, 0, 1, 0, 1, 2, 3]
    assert looped.target.tolist() == [0, 2, 2, 0, 1, 2, 3]
    assert looped.csr.rows == 4 and len(looped.csr) == 7 and len(edges.csr) == 5
    assert edges.looped[0] is looped
    few, kept = EdgeList(edge_index, 3, num_targets=4).looped
    assert few.source[len(kept) :].tolist() == [0, 1, 2]  # targets that no source is have none


def test_other_features_of_the_same_edges() -> None:
    """They share how the edges are sorted, and not what was computed from features."""
    edges = EdgeList(torch.tensor([[2, 1], [0, 1]]), 3, torch.arange(2))
    edges.memo("attr", lambda: edges.attr)
    other = edges.with_attr(torch.ones(2))
    assert other.csr is edges.csr and edges.attr.tolist() == [0, 1]
    assert other.memo("attr", lambda: other.attr).tolist() == [1, 1]


def test_place_puts_special_tokens_first_in_each_sample() -> None:
    special, tokens = torch.full((1, 2), 9.0), torch.arange(5.0)[:, None].expand(5, 2)
    assert Sequence.packed([2, 3], special=1).place(tokens, special)[:, 0].tolist() == [
        9, 0, 1, 9, 2, 3, 4
    ]  # fmt: skip
    assert Sequence(5, special=1).place(tokens[None], special)[0, :, 0].tolist() == [
        9,
        0,
        1,
        2,
        3,
        4,
    ]
    with pytest.raises(ValueError, match="has 5 places and 1 special tokens; got 4 tokens"):
        Sequence(5, special=1).place(tokens[:4], special)


def test_keep_follows_every_tensor() -> None:
    space = Sequence.padded([2, 4], special=1)
    kept = space.keep(torch.tensor([[0, 2], [1, 4]]))
    assert kept.special.tolist() == [[True, False], [False, False]]
    assert kept.coordinates[0, 1].item() == 1 and kept.coordinates[1].flatten().tolist() == [0, 3]
    assert kept.valid.tolist() == [[True, True], [True, True]] and kept.size is None
    graph = Graph(torch.tensor([[0, 1, 2], [1, 2, 3]]), 4).keep(torch.tensor([3, 1]))
    assert distances(graph).tolist() == [[0, 2], [torch.inf, 0]]
    flags = torch.tensor([True, False, True])
    assert Sequence(3).keep(flags).coordinates.squeeze(-1).tolist() == [0, 2]


def test_append_goes_on() -> None:
    whole = Sequence(3).append(Sequence(2, start=3))
    assert whole.size == (5,) and whole.coordinates.squeeze(-1).tolist() == [0, 1, 2, 3, 4]
    mixed = Sequence.padded([1, 2]).append(Sequence(1, start=torch.tensor([1, 2])))
    assert mixed.coordinates.squeeze(-1).tolist() == [[0, 1, 1], [0, 1, 2]]
    assert mixed.valid.tolist() == [[True, False, True], [True, True, True]]
    with pytest.raises(TypeError, match="cannot append a Grid to a Sequence"):
        Sequence(3).append(Grid(1, 2))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Graph(torch.tensor([[0], [5]]), 3), ValueError, "names node 5, but num_nodes=3"),
        (lambda: Graph(torch.tensor([[0], [-1]]), 3), ValueError, "names node -1"),
        (lambda: Graph(torch.zeros(2, 3), 3), TypeError, "must hold integers, got torch.float32"),
        (lambda: Graph(torch.zeros(3, 2).long(), 3), ValueError, r"shape \(2, E\), got \(3, 2\)"),
        (
            lambda: Graph(torch.zeros(2, 3).long(), 3, edge_attr=torch.zeros(4)),
            ValueError,
            "edge_attr has 4 rows for 3 edges",
        ),
        (
            lambda: Graph(torch.zeros(2, 0).long(), 3, segments=torch.tensor([1, 0, 1])),
            ValueError,
            "must not decrease",
        ),
        (
            lambda: Graph(torch.tensor([[0], [2]]), 3, segments=torch.tensor([0, 0, 1])),
            ValueError,
            "joins nodes of different graphs",
        ),
        (lambda: Sequence.padded([1, -2]), ValueError, "lengths must be whole numbers"),
        (lambda: Sequence.padded([5], length=3), ValueError, "length=3 is shorter"),
        (lambda: Sequence.padded([5], side="top"), ValueError, "side must be"),
        (lambda: Grid(), ValueError, "extent of each axis"),
        (lambda: Grid.packed([(1, 2), (3,)]), ValueError, "one number of axes"),
        (lambda: Points(torch.zeros(3, 2).long()), ValueError, "coordinates must be float"),
        (lambda: Sequence(3).keep(torch.tensor([True])), ValueError, r"shape \(3,\)"),
    ],
)
def test_bad_input_is_named(make: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("axes", [1, 2, 3, 5])
def test_points_find_what_is_near_cell_by_cell(axes: int) -> None:
    """Beside all distances: near pairs are listed, few others are looked at, memory is no N²."""
    generator = torch.Generator().manual_seed(axes)
    places = torch.randn(300, axes, generator=generator)
    segments = torch.arange(300) // 100
    space = Points(places, segments=segments, special=1)
    where = space.special.logical_not().nonzero().squeeze(1)  # type: ignore[union-attr]
    for radius in (0.0, 0.2, 1.0):
        found = space.reach(radius)
        distance = (places[:, None] - places).norm(dim=-1)
        near = (distance <= radius) & (segments[:, None] == segments)
        assert near.sum() <= space.reach_bound(radius)
        if found is not None:
            held = torch.zeros(space.length, space.length, dtype=torch.bool)
            held[found.query, found.key] = True
            assert not bool((near & ~held[where][:, where]).any())
            assert int(held.sum()) <= int(near.sum()) + 2
    many = Points(torch.rand(20_000, axes, generator=generator))
    assert many.reach_bound(0.5 * 20_000 ** (-1 / min(axes, 3))) < 20 * 20_000


def _clouds() -> dict[str, tuple[Points, Points]]:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    valid = draw(3, 80) > 0.2
    whole = Points(draw(80, 3))
    batch, padded = Points(draw(3, 80, 2)), Points(draw(3, 80, 3), valid=valid, special=1)
    packed = Points(draw(80, 3), segments=torch.arange(80) // 30)
    each = Points(draw(3, 80, 3), segments=torch.arange(80) // 50, special=2)
    # Of a cloud farther out, most of which is near to nothing
    far = Points(draw(40, 3) * 9 - 4, segments=torch.arange(40) // 10)
    kept = whole.keep(torch.randperm(80, generator=generator)[:30])
    return {
        "batch": (batch, batch),
        "padded": (padded, padded),
        "packed, a batch": (each, each),
        "cross": (kept, whole),
        "cross, a batch": (Points(draw(3, 20, 3)), padded),
        "cross, one row for all": (whole, padded),
        "cross, packed": (far, packed),
        "double": (Points(draw(80, 1).double()),) * 2,
        "nothing": (Points(draw(0, 3)), whole),
    }


@pytest.mark.parametrize("name", _clouds())
def test_points_of_batches_and_of_two_clouds_are_listed_row_by_row(name: str) -> None:
    query, key = _clouds()[name]
    rows = query.batch or key.batch or 1
    pairs = Pairs.all((query, key), batch=rows)
    real = torch.ones(rows, query.length, key.length, dtype=torch.bool)
    for term in (pairs.same_sample, pairs.valid, None if pairs.special is None else ~pairs.special):
        real = real if term is None else real & term.expand(rows, 1, -1, -1)[:, 0]
    distance = pairs.distance.expand(rows, 1, -1, -1)[:, 0]
    for radius in (0.0, 0.05, 0.08):
        mask, near = Neighborhood(radius), (distance <= radius) & real
        found = mask.candidates((query, key))
        assert found is not None
        held = torch.zeros_like(real)
        held[0 if found.batch is None else found.batch, found.query, found.key] = True
        assert not bool((near & ~held).any())
        assert int(held.sum()) <= int(near.sum()) + 2
        assert mask.count_bound((query, key)) == int(held.sum((1, 2)).max() if len(held) else 0)


def test_scattered_points_are_computed_pair_by_pair() -> None:
    """Most pairs of a block of them are forbidden, which its estimate has to know."""
    generator = torch.Generator().manual_seed(0)
    for axes, count in ((3, 4000), (2, 3000)):
        cloud = Points(torch.rand(2, count, axes, generator=generator))
        volume = 20 / count
        radius = (volume / (4.19 if axes == 3 else 3.14)) ** (1 / axes)
        assert plan(cloud, Neighborhood(radius), heads=8, head_dim=8, grad=True).backend == "edges"


def test_what_was_found_of_points_does_not_keep_spaces_apart() -> None:
    cloud = Points(torch.rand(40, 3))
    assert cloud.reach(0.2) is not None
    other = cloud.keep(torch.arange(30))
    assert other.reach(0.2) is not None
    assert bool(Pairs.all((other, cloud)).distance.isfinite().all())
    assert cloud.append(other).length == 70
