"""`attention_core.testing` finds each promise that is broken, by name; right spaces, masks and
biases pass."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_core import (
    ALiBi,
    Bias,
    Causal,
    DenseBias,
    DenseMask,
    Dilated,
    EdgeBias,
    Edges,
    Graph,
    Grid,
    Mask,
    MultiheadAttention,
    Multiplier,
    Neighborhood,
    Pairs,
    Points,
    ScoreMod,
    Sequence,
    Space,
    attend,
    explain,
)
from attention_core.spaces import BlockKey, PairList, TilePairs, TileStatus
from attention_core.spaces.tiles import coordinates
from attention_core.testing import check_bias, check_mask, check_space

COUNT = 12


def table() -> Tensor:
    some = torch.randint(1, 6, (COUNT, COUNT), generator=torch.Generator().manual_seed(0)).float()
    return (some + some.T).fill_diagonal_(0)


def entities() -> Tensor:
    return torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))


class Tree(Space):
    """A space that defines `distance` alone, from what it holds of each token."""

    def __init__(self, entity: Tensor, distances: Tensor) -> None:
        super().__init__(len(entity), tokenwise={"entity": entity})
        self.table = distances

    def distance(self, pairs: Pairs) -> Tensor:
        return self.table[pairs.take("entity", "query"), pairs.take("entity", "key")]


class Sphere(Space):
    """A space with a norm: places as unit vectors, geodesic distance."""

    def __init__(self, places: Tensor, **options: Any) -> None:
        super().__init__(places.shape[-2], coordinates=places, **options)

    def norm(self, offset: Tensor) -> Tensor:
        chord = torch.linalg.vector_norm(offset, dim=-1)
        return 2 * torch.asin((chord / 2).clamp(max=1))


def places(*shape: int) -> Tensor:
    vectors = torch.randn(*shape, 3, generator=torch.Generator().manual_seed(2))
    return nn.functional.normalize(vectors, dim=-1)


# -- right ones --------------------------------------------------------------------------------


class Street(Points):
    """A distance of its own under a class that has a norm: the inherited one is void."""

    def distance(self, pairs: Pairs) -> Tensor:
        return pairs.offset.abs().sum(-1)


class Manhattan(Grid):
    def norm(self, offset: Tensor) -> Tensor:
        return offset.abs().sum(-1)


class Half(Sequence):
    def distance(self, pairs: Pairs) -> Tensor:
        return pairs.offset.abs().squeeze(-1) / 2


class Lengths(Graph):
    """Paths of edges of unequal length: neither hops nor edges say what is near."""

    def distance(self, pairs: Pairs) -> Tensor:
        return 3 * super().distance(pairs)


RING = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 0]])
RIGHT: dict[str, Callable[[], Space]] = {
    "tree": lambda: Tree(entities(), table()),
    "tree with edges": lambda: Tree(entities(), table()).with_edges(RING),
    "sphere": lambda: Sphere(places(90)),
    "batch of spheres": lambda: Sphere(places(2, 9)),
    "streets": lambda: Street(places(70), special=1),
    "manhattan": lambda: Manhattan(8, 10),
    "halves": lambda: Half(70),
    "lengths": lambda: Lengths(RING, 6),
    "few bits": lambda: Points(places(30).bfloat16()),
    "multigraph": lambda: Graph(torch.cat([RING, RING], dim=1), 6, special=1),
    "padded with edges": lambda: Sequence.padded([3, 5]).with_edges(RING + 5),
    "packed grids": lambda: Grid.pack([Grid(2, 3, special=1), Grid(4, 2, special=1)]),
    "packed graphs": lambda: Graph.pack([Graph(RING, 6, special=1), Graph(RING, 5, special=1)]),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_spaces_pass(name: str) -> None:
    check_space(RIGHT[name]())


# -- wrong spaces ------------------------------------------------------------------------------


class ByIndex(Tree):
    def distance(self, pairs: Pairs) -> Tensor:
        return self.table[pairs.query, pairs.key]


class Untold(Space):
    def __init__(self) -> None:
        super().__init__(COUNT)
        self.entity, self.table = entities(), table()

    def distance(self, pairs: Pairs) -> Tensor:
        return self.table[self.entity[pairs.query], self.entity[pairs.key]]


class Remembering(Tree):
    def distance(self, pairs: Pairs) -> Tensor:
        if not hasattr(self, "_all"):
            self._all = self.table[self.tokenwise["entity"]][:, self.tokenwise["entity"]]
        return self._all[pairs.query, pairs.key]


class Misspelt(Tree):
    def distance(self, pairs: Pairs) -> Tensor:
        return self.table[pairs.take("entty", "query"), pairs.take("entity", "key")]


class Hidden(Tree):
    def __init__(self) -> None:
        super().__init__(entities(), table())
        self.table = SimpleNamespace(hops=self.table)  # type: ignore[assignment]


class Shaped(Tree):
    def distance(self, pairs: Pairs) -> Tensor:
        return super().distance(pairs).reshape(1, 1, COUNT, COUNT)


class NotANumber(Tree):
    def distance(self, pairs: Pairs) -> Tensor:
        return super().distance(pairs).sqrt() * torch.where(pairs.query == 3, torch.nan, 1.0)


class Undefined(Space):
    def distance(self, pairs: Pairs) -> Tensor:
        return super().distance(pairs)


class NoBound(Points):
    def distance(self, pairs: Pairs) -> Tensor:
        return torch.linalg.vector_norm(pairs.offset, dim=-1)

    def norm(self, offset: Tensor) -> Tensor:
        return offset.abs().amax(-1)


class Falling(Points):
    def norm(self, offset: Tensor) -> Tensor:
        return torch.cos(offset).sum(-1)


class Signed(Points):
    def norm(self, offset: Tensor) -> Tensor:
        return offset.clamp(min=0).sum(-1)


class LeavesOut(Tree):
    def reach(self, radius: float) -> PairList:
        entity = self.tokenwise["entity"]
        return PairList(*(self.table[entity][:, entity] < 0.9 * radius).nonzero(as_tuple=True))


class WrongDistances(Tree):
    def reach(self, radius: float) -> PairList:
        entity = self.tokenwise["entity"]
        near = (self.table[entity][:, entity] <= radius).nonzero(as_tuple=True)
        return PairList(*near, distance=torch.ones(len(near[0])))


class TooFew(Tree):
    def reach_bound(self, radius: float) -> float:
        return 3.0


class FirstRow(Tree):
    """Lists what is near in the first sample of a batch."""

    def reach(self, radius: float) -> PairList:
        entity = self.tokenwise["entity"].view(-1, len(self))[0]
        return PairList(*(self.table[entity][:, entity] <= radius).nonzero(as_tuple=True))


class Negative(Tree):
    def distance(self, pairs: Pairs) -> Tensor:
        return -super().distance(pairs)


class NotChebyshev(Manhattan):
    chebyshev = True


class WrongAlong(Tree):
    def distance_along(self, edge: Tensor) -> Tensor:
        return torch.zeros(len(edge))


def tree(kind: type[Tree]) -> Space:
    return kind(entities(), table())


WRONG: dict[str, tuple[Callable[[], Space], str]] = {
    "index of a token": (lambda: tree(ByIndex), r"keep\(index\) changes ByIndex.distance: query"),
    "data outside tokenwise": (Untold, r"keep\(index\) changes Untold.distance.*tokenwise="),
    "a cache that is kept": (lambda: tree(Remembering), r"keep\(index\) changes Remembering"),
    "a misspelt name": (lambda: tree(Misspelt), r"no entty: give.*of each token: entity"),
    "a table to stays behind": (Hidden, r"to\(device\) leaves table behind"),
    "one layout": (lambda: tree(Shaped), r"in a list of pairs \(E,\).* raises RuntimeError"),
    "NaN": (lambda: tree(NotANumber), "is nan at query 3, key"),
    "no distance": (lambda: Undefined(5), r"must define distance\(self, pairs\)"),
    "a norm that is no bound": (
        lambda: NoBound(places(20)), r"NoBound.norm\(offset\) must be the distance.*apart"
    ),
    "a norm that falls": (lambda: Falling(places(20)), "must rise with each component"),
    "a norm of signs": (lambda: Signed(places(20)), "must not ask for signs|must rise"),
    "a reach that leaves out a pair": (lambda: tree(LeavesOut), r"LeavesOut.reach\(.*leaves out"),
    "a reach with other distances": (lambda: tree(WrongDistances), r"gives query .* the distance"),
    "a reach of the first sample": (
        lambda: tree(FirstRow), "after keep.* each sample, FirstRow.reach.*leaves out .* sample 1"
    ),
    "less than nothing": (lambda: tree(Negative), "is -.* at query .* must be at least 0"),
    "a bound that is none": (lambda: tree(TooFew), r"reach_bound\(.*\) is 3.0, but"),
    "not Chebyshev": (lambda: NotChebyshev(4, 5), "chebyshev is True, but"),
    "distances along edges": (lambda: tree(WrongAlong).with_edges(RING), "distance_along"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_spaces_are_found_by_name(name: str) -> None:
    make, message = WRONG[name]
    with pytest.raises(AssertionError, match=message):
        check_space(make())


# -- masks and biases --------------------------------------------------------------------------


class Near(Mask):
    """Right by itself: what its subclasses say of it is not."""

    def allowed(self, pairs: Pairs) -> Tensor:
        return (pairs.offset.abs() <= 2).all(-1)


class SaysNone(Near):
    def tile_status(self, tiles: TilePairs) -> TileStatus:
        low, high = tiles.offset
        return TileStatus(((low <= 0) & (high >= 0)).all(-1), tiles.answer(False))


class SaysAll(Near):
    def tile_status(self, tiles: TilePairs) -> TileStatus:
        return TileStatus(tiles.answer(True), tiles.answer(True))


class ListsFew(Near):
    def candidates(self, spaces: Any) -> PairList:
        every = torch.arange(spaces[0].length)
        return PairList(every, every)


class ListsOfOne(Near):
    """Lists pairs of the keys' space, whatever that of the queries is."""

    def candidates(self, spaces: Any) -> PairList:
        assert spaces[1].coordinates is not None
        at = spaces[1].coordinates.squeeze(-1)
        return PairList(*((at[:, None] - at).abs() <= 2).nonzero(as_tuple=True))


class AllOfFew(Near):
    """Asks what queries see of themselves."""

    def allows_all(self, spaces: Any) -> bool:
        return bool(spaces[0].length < 16)


class TilesOfOne(Near):
    def tile_status(self, tiles: TilePairs) -> TileStatus:
        low, high = tiles.query.span("coordinates", coordinates)
        query, key = tiles.at[0], tiles.at[1].clamp(max=len(low) - 1)
        some = (low[query] - 2 <= high[key]) & (low[key] - 2 <= high[query])
        return TileStatus(some.all(-1), tiles.answer(False))


class CountsFew(Near):
    def count_bound(self, spaces: Any) -> float:
        return 5


class AllowsAll(Near):
    def allows_all(self, spaces: Any) -> bool:
        return True


class Apart(Near):
    def partition(self, space: Space) -> Tensor:
        assert space.coordinates is not None
        return space.coordinates // 3


class ShortSighted(Near):
    lookback = 1.0


class KeyOfNothing(Near):
    def block_key(self, space: Space) -> BlockKey:
        return BlockKey()


class UntilTheEnd(Mask):
    """The last two tokens, wherever a sequence ends."""

    def allowed(self, pairs: Pairs) -> Tensor:
        space = pairs.spaces[1]
        end = 30 if space.size is None else space.size[0]
        return pairs.take("coordinates", "key").squeeze(-1) >= end - 2


class Positions(Mask):
    def allowed(self, pairs: Pairs) -> Tensor:
        return (pairs.query - pairs.key).abs() <= 2


WRONG_MASKS = {
    SaysNone: "says of two tiles of tokens that no pair of theirs is allowed, but query",
    SaysAll: "that every pair of theirs is allowed, but query .* is not allowed",
    ListsFew: "candidates leave out query",
    ListsOfOne: "queries and keys are not the same, ListsOfOne.candidates list a query beyond",
    AllOfFew: "queries and keys are not the same, AllOfFew.*allows_all is True, but query",
    TilesOfOne: "queries and keys are not the same, TilesOfOne.tile_status says of two tiles",
    CountsFew: "count_bound is 5, but",
    AllowsAll: "allows_all is True, but query",
    Apart: "partition keeps apart query",
    ShortSighted: "lookback is 1.0, but query",
    KeyOfNothing: "block_key is alike for query",
    UntilTheEnd: "let UntilTheEnd.needs_end be True",
    Positions: r"keep\(index\) changes Positions.allowed",
}


@pytest.mark.parametrize("kind", WRONG_MASKS, ids=lambda kind: kind.__name__)
def test_wrong_masks_are_found_by_name(kind: type[Mask]) -> None:
    with pytest.raises(AssertionError, match=WRONG_MASKS[kind]):
        check_mask(kind(), Sequence(30))


class Gravity(Bias):
    heads = 2

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor([0.3, -0.1]))

    def score(self, pairs: Pairs) -> Tensor:
        return -self.strength[pairs.head] * pairs.distance**2


class WrongKey(Gravity):
    def block_key(self, space: Space) -> BlockKey:
        return BlockKey()


class Indexed(Gravity):
    def score(self, pairs: Pairs) -> Tensor:
        return self.strength[pairs.head] * (pairs.query - pairs.key)


class Undefined0(Gravity):
    def score(self, pairs: Pairs) -> Tensor:
        return self.strength[pairs.head] * pairs.distance.float().log() * 0


class Undeclared(Gravity):
    heads = None


class UntoldTensor(ScoreMod):
    """What it learns is no parameter, and not among `tensors()`."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.ones((), requires_grad=True)

    def modify(self, score: Tensor, pairs: Pairs) -> Tensor:
        return score * self.factor


class Centred(ScoreMod):
    """Asks about all keys of a query, which only some backends show: another log-sum-exp."""

    def modify(self, score: Tensor, pairs: Pairs) -> Tensor:
        return score - score.mean(-1, keepdim=True)


class OfLayers(ScoreMod):
    """A right one, whose layers want scores in their own dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def modify(self, score: Tensor, pairs: Pairs) -> Tensor:
        return self.layer(score[..., None]).squeeze(-1)


WRONG_BIASES = {
    WrongKey: "WrongKey.block_key is alike for query",
    Indexed: r"keep\(index\) changes Indexed.score",
    Undeclared: "asked about 4 heads on a sequence .* raises IndexError",
    UntoldTensor: "backend='blocks' raises ValueError: tensors.* leaves out",
    Centred: "log-sum-exp of backend='edges' differ",
    Undefined0: "Undefined0.score is nan at query 0, key 0",
}


@pytest.mark.parametrize("kind", WRONG_BIASES, ids=lambda kind: kind.__name__)
def test_wrong_biases_are_found_by_name(kind: type[Bias]) -> None:
    with pytest.raises(AssertionError, match=WRONG_BIASES[kind]):
        check_bias(kind(), Sequence(20))


def test_right_masks_and_biases_pass() -> None:
    check_mask(Near(), Grid(5, 6, special=1))
    check_mask(DenseMask(torch.rand(9, 9) > 0.5), Sequence(9))
    check_mask(Neighborhood(3.0), Tree(entities(), table()))
    check_mask(Edges(), Graph(RING, 6, special=1))
    check_bias(Gravity(), Sphere(places(2, 9)))
    check_bias(DenseBias(torch.rand(9, 9)), Sequence(9))
    check_bias(Multiplier(DenseBias(torch.rand(9, 9))) + ALiBi(2), Sequence(9))
    check_mask(Causal() & ~DenseMask(torch.rand(9, 9) > 0.5), Sequence(9))
    check_bias(OfLayers(), Sequence(20))
    check_bias(EdgeBias(2, types=3), Graph(RING, 6, edge_attr=torch.arange(5) % 3))


def test_wrong_arguments_are_named() -> None:
    for check in (lambda: check_mask(Causal(), None), lambda: check_bias(ALiBi(2), [Sequence(3)])):
        with pytest.raises(TypeError, match="space must be a Space, got"):
            check()
    with pytest.raises(ValueError, match="space must be on the CPU to be checked, got .* meta"):
        check_space(Sequence(4).to("meta"))


def test_what_serves_no_space_is_said() -> None:
    with pytest.raises(AssertionError, match="serves no space that was tried"):
        check_bias(DenseBias(torch.rand(5, 5)))
    with pytest.raises(AssertionError, match="refuses a sequence of 5 tokens: .*edges"):
        check_mask(Edges(), Sequence(5))


# -- data per token, and edges -----------------------------------------------------------------


def test_data_per_token_follows_tokens() -> None:
    """Of every kind of space, in numbers and in rows, for all samples or for each."""
    colour, vector = torch.arange(7), torch.rand(7, 3)
    space = Sequence(5, special=2).with_tokenwise({"colour": colour, "vector": vector})
    kept = space.keep(torch.tensor([6, 1, 1]))
    assert kept.tokenwise["colour"].tolist() == [6, 1, 1]
    assert torch.equal(kept.tokenwise["vector"], vector[[6, 1, 1]])
    assert space.append(kept).tokenwise["colour"].tolist() == [*range(7), 6, 1, 1]
    packed = Sequence.pack([kept, space])
    assert packed.tokenwise["colour"].tolist() == [6, 1, 1, *range(7)]
    assert packed.segments.tolist() == [0] * 3 + [1] * 7
    padded = Sequence.pad([kept, space])
    assert padded.tokenwise["vector"].shape == (2, 7, 3) and padded.batch == 2
    assert padded.valid.sum(-1).tolist() == [3, 7]
    each = Space(4, tokenwise={"colour": torch.arange(8).view(2, 4)})
    assert each.batch == 2
    assert Space(4, tokenwise={"colour": torch.arange(4)[None]}).batch == 1
    assert each.keep(torch.tensor([[0, 1], [3, 2]])).tokenwise["colour"].tolist() == [
        [0, 1],
        [7, 6],
    ]
    assert each.to("meta").tokenwise["colour"].device.type == "meta"
    pairs = Pairs.all((space, kept))
    assert pairs.take("colour", "key").flatten().tolist() == [6, 1, 1]


@pytest.mark.parametrize(
    ("tokenwise", "error", "message"),
    [
        ({"colour": torch.arange(3)}, ValueError, r"tokenwise\['colour'\] must have .*\(4, ...\)"),
        ({"valid": torch.arange(4)}, ValueError, "names 'valid', which a Space has"),
        ({"distance": torch.arange(4)}, ValueError, "names 'distance', which a Space has"),
        ({"colour": [1, 2, 3, 4]}, TypeError, "tokenwise must be a mapping or None, got dict"),
        ({"colour": torch.tensor(1)}, ValueError, r"got \(\)"),
    ],
)  # fmt: skip
def test_wrong_data_per_token_is_refused(
    tokenwise: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Space(4, tokenwise=tokenwise)


LINE = Sequence(5).with_edges(RING, edge_attr=torch.rand(5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LINE.keep(torch.tensor([0, 5])), "positions of 0 to 4, got 0 to 5"),
        (lambda: LINE.keep(torch.tensor([[0], [-1]])), "positions of 0 to 4, got -1 to 0"),
        (lambda: Sequence.padded([2, 3]).keep(torch.zeros(3, 1).long()), "in 3 samples, but got"),
        (lambda: Sequence.pack([LINE, LINE.to("meta")]), "cannot pack a space on cpu and one on"),
        (
            lambda: Sequence.pack([LINE, Sequence(5).with_edges(RING, edge_attr=torch.rand(5, 2))]),
            "a row of edge_attr has one shape",
        ),
    ],
)
def test_what_cannot_be_kept_or_joined_is_named(call: Callable[[], Space], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_place_that_is_missing_is_no_data_per_token() -> None:
    x = torch.rand(1, 1, COUNT, 4)
    with pytest.raises(TypeError, match="no coordinates, which pairs.offset reads: give coord"):
        attend(x, x, x, space=Tree(entities(), table()), mask=Dilated(2))


def test_spaces_that_hold_different_tables_are_not_joined() -> None:
    one, other = Tree(entities(), table()), Tree(entities(), table() + 1)
    for join in (one.append, lambda space: Tree.pack([one, space])):
        with pytest.raises(TypeError, match="two spaces whose table differ"):
            join(other)
    with pytest.raises(TypeError, match="has no entity, and one that has|no colour"):
        Sequence(3).append(Sequence(3).with_tokenwise({"colour": torch.arange(3)}))


@pytest.mark.parametrize("backend", ["reference", "blocks", "dense", "edges", None])
def test_edges_of_any_space_are_those_of_a_graph(backend: str | None) -> None:
    """Masks, biases and features of edges, beside a Graph of the same."""
    edge_index = torch.tensor([[0, 1, 2, 4, 0], [1, 2, 0, 3, 4]])
    attr = torch.rand(5, 6, dtype=torch.float64)
    graph = Graph(edge_index, 5, edge_attr=attr)
    line = Sequence(5).with_edges(edge_index, edge_attr=attr)
    layer = MultiheadAttention(8, 2, edge_dim=6).double()
    x = torch.rand(2, 5, 8, dtype=torch.float64)
    features = backend not in ("dense", "blocks")
    if features:
        assert torch.allclose(
            layer(x, space=line, mask=Edges(), backend=backend),
            layer(x, space=graph, mask=Edges(), backend=backend),
        )
    q = torch.rand(2, 3, 5, 4, dtype=torch.float64)
    bias = EdgeBias(3, features=6).double()
    near = Edges() | Neighborhood(0)
    outputs = [
        attend(q, q, q, space=space, mask=near, bias=bias, backend=backend)
        for space in (line, graph)
    ]
    assert torch.allclose(*outputs)
    causal = attend(q, q, q, space=line, mask=Edges() & Causal(), bias=ALiBi(3), backend=backend)
    dense = torch.zeros(5, 5, dtype=torch.bool)
    dense[edge_index[1], edge_index[0]] = True
    wanted = attend(q, q, q, space=Sequence(5), mask=DenseMask(dense) & Causal(), bias=ALiBi(3))
    assert torch.allclose(causal, wanted)


def test_spaces_of_different_edges_or_tables_do_not_attend_to_each_other() -> None:
    x, mask = torch.rand(1, 1, 5, 4), Edges()
    here, there = (Graph(edges, 5) for edges in (RING, RING.flip(0)))
    with pytest.raises(TypeError, match="find the edge between two spaces whose edges differ"):
        attend(x, x, x, space=(here, there), mask=mask)
    same = Graph(RING.clone(), 5)  # an equal one is no other one
    assert torch.equal(
        attend(x, x, x, space=(here, same), mask=mask), attend(x, x, x, space=here, mask=mask)
    )
    one, other = Tree(entities(), table()), Tree(entities(), table() + 1)
    x = torch.rand(1, 1, COUNT, 4)
    with pytest.raises(TypeError, match="find the distance between two spaces whose table differ"):
        attend(x, x, x, space=(one, other), mask=Neighborhood(2))


def test_explain_names_a_space_of_ones_own() -> None:
    assert "Tree of 12 tokens" in explain(Tree(entities(), table()), Neighborhood(2))


class Unmade(Space):
    """One whose `__init__` leaves out that of `Space`."""

    def __init__(self, table: Tensor) -> None:
        self.table = table


def test_a_space_that_was_not_made_is_named() -> None:
    x, space = torch.rand(1, 1, 3, 4), Unmade(torch.rand(3, 3))
    for use in (lambda: attend(x, x, x, space=space), lambda: check_space(space)):
        with pytest.raises(
            TypeError, match=r"Unmade.__init__ must call super\(\).__init__\(length"
        ):
            use()
    assert "Unmade" in repr(space)  # whoever prints it to find out


class SecondAxis(Mask):
    def allowed(self, pairs: Pairs) -> Tensor:
        return pairs.offset[..., 1].abs() < 2


class BySecondAxis(Bias):
    def score(self, pairs: Pairs) -> Tensor:
        return pairs.offset[..., 1].float()


@pytest.mark.parametrize("backend", ["reference", "blocks", "edges", "flex"])
def test_an_axis_that_a_space_lacks_is_named(backend: str) -> None:
    x, words = (
        torch.rand(1, 1, 4, 8),
        "{}: index 1 is out of bounds.*sequence of 4 tokens has 1 axis",
    )
    for mask in (SecondAxis(), Causal() & ~SecondAxis()):
        with pytest.raises(IndexError, match=words.format("SecondAxis")):
            attend(x, x, x, space=Sequence(4), mask=mask, backend=backend)
    for bias in (BySecondAxis(), ALiBi(1) + BySecondAxis()):
        with pytest.raises(IndexError, match=words.format("BySecondAxis")):
            attend(x, x, x, space=Sequence(4), bias=bias, backend=backend)
