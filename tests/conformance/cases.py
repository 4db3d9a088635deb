"""What the suite runs over: backends, spaces, masks and biases, each small and named.

A new backend joins with one word in `BACKENDS`, and a line in `REFUSALS` for each thing it refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from attention_core import (
    ALiBi,
    Bias,
    Causal,
    ContinuousBias,
    DenseBias,
    DenseMask,
    Dilated,
    EdgeBias,
    Edges,
    GlobalTokens,
    Graph,
    Grid,
    Mask,
    Nearest,
    Neighborhood,
    Points,
    PrefixLM,
    RelativeTable,
    Sequence,
    Space,
    Window,
    attend,
)
from tests.conformance import oracle
from tests.conformance.oracle import Claim, Modify, Row, Scored, Token, World

BACKENDS = ["reference", "dense", "blocks", "flex", "edges"]

#: (backend, feature): what a backend refuses by name. `test_refusals.py` holds it to each line.
REFUSALS = {
    ("dense", "softcap"), ("dense", "score"), ("dense", "edge features"), ("dense", "score mod"),
    ("blocks", "score"), ("blocks", "edge features"),
    ("flex", "score"), ("flex", "edge features"), ("flex", "network"),
}  # fmt: skip

#: Those with second derivatives.
TWICE = [name for name in BACKENDS if name not in ("dense", "flex")]

HEADS, KV_HEADS, DIM, VALUE_DIM = 4, 2, 4, 3


def can(feature: str) -> list[str]:
    """The backends that do not refuse `feature`."""
    return [name for name in BACKENDS if (name, feature) not in REFUSALS]


def serving(space: Space | tuple[Space, Space], bias: Bias | None) -> list[str]:
    """The backends that do not refuse a bias in a space: a network of offsets that are no whole
    numbers would have to run on each pair."""
    one = space[0] if isinstance(space, tuple) else space
    leaves = () if bias is None else bias.leaves()
    network = isinstance(one, Points) and any(isinstance(x, ContinuousBias) for x in leaves)
    return can("network") if network else BACKENDS


# -- spaces --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A space of the core, and the same as a plain list of tokens."""

    name: str
    space: Space | tuple[Space, Space]
    world: World

    def __str__(self) -> str:
        return self.name

    @property
    def spaces(self) -> tuple[Space, Space]:
        return self.space if isinstance(self.space, tuple) else (self.space, self.space)

    @property
    def kind(self) -> str:
        return self.world.kind

    @property
    def axes(self) -> int:
        return self.spaces[1].axes

    @property
    def shape(self) -> tuple[int, int, int, int]:
        world = self.world
        return len(world.queries), HEADS, len(world.queries[0]), len(world.keys[0])


def row(length: int, *, start: int = 0, special: int = 0, sample: int = 0) -> Row:
    """Special tokens, then `length` tokens in a row."""
    nowhere = (Token(sample, special=True),) * special
    size = (start + length,)
    return nowhere + tuple(Token(sample, (start + i,), size=size) for i in range(length))


def pad(tokens: Row, length: int, side: str = "right") -> Row:
    padding = (Token(0, (0,), valid=False),) * (length - len(tokens))
    return tokens + padding if side == "right" else padding + tokens


def cells(*size: int, special: int = 0, sample: int = 0) -> Row:
    places: list[tuple[int, ...]] = [()]
    for n in size:
        places = [(*place, i) for place in places for i in range(n)]
    located = tuple(Token(sample, place, size=size) for place in places)
    return (Token(sample, special=True),) * special + located


def nodes(segments: list[int], *, special: int = 0, graphs: int | None = None) -> Row:
    tokens: Row = ()
    for graph in range(max(segments) + 1 if graphs is None else graphs):
        tokens += (Token(graph, special=True),) * special
        tokens += tuple(Token(graph, node=n) for n, g in enumerate(segments) if g == graph)
    return tokens


def points(coordinates: Tensor, segments: list[int] | None = None, special: int = 0) -> Row:
    segments = [0] * len(coordinates) if segments is None else segments
    tokens: Row = ()
    for sample in range(max(segments) + 1):
        tokens += (Token(sample, special=True),) * special
        tokens += tuple(
            Token(sample, tuple(place))
            for place, of in zip(coordinates.tolist(), segments, strict=True)
            if of == sample
        )
    return tokens


def alike(*samples: Row) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    return samples, samples


def twice(*samples: Row) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """A space without a batch serves both samples of a batch."""
    return samples * 2, samples * 2


def chosen(tokens: Row, index: Tensor) -> Row:
    return tuple(tokens[i] for i in index.tolist())


#: A hub (0), a self-loop (2), one-way edges and an isolated node (6).
ONE_GRAPH = ((1, 0), (2, 0), (3, 0), (4, 0), (0, 1), (1, 2), (2, 2), (5, 4), (2, 3))
#: A triangle, a node on its own, a chain both ways, and in `Graph` an empty graph at the end.
SEGMENTS = [0, 0, 0, 1, 2, 2, 2]
GRAPHS = ((0, 1), (1, 2), (2, 0), (4, 5), (5, 4), (5, 6), (6, 5))
#: From five sources to four targets: a hub (0), targets and sources without edges.
TWO_SETS = ((0, 0), (1, 0), (2, 0), (4, 0), (1, 1), (2, 2))


def features(edges: tuple[tuple[int, int], ...]) -> Tensor:
    return torch.arange(len(edges)) % 3


def graph(edges: tuple[tuple[int, int], ...], count: int, **options: Any) -> Graph:
    edge_index = torch.tensor(edges).reshape(-1, 2).T
    return Graph(edge_index, count, edge_attr=features(edges), **options)


def _cloud(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def _places() -> dict[str, tuple[Space | tuple[Space, Space], World]]:
    cloud, clouds = _cloud(6, 3), _cloud(2, 4, 2)
    some, each = torch.tensor([5, 1, 3]), torch.tensor([[4, 1, 0], [2, 3, 7]])
    segments = torch.tensor(SEGMENTS)
    whole, batched = graph(ONE_GRAPH, 7), graph(GRAPHS, 7, segments=segments, num_graphs=4)
    virtual = graph(ONE_GRAPH, 7, special=1)
    two_sets = Graph.bipartite(torch.tensor(TWO_SETS).T, 5, 4, edge_attr=features(TWO_SETS))
    ball_valid = torch.tensor([[True] * 4, [True, True, False, False]])
    ball_rows = tuple(
        tuple(Token(0, t.place, valid=bool(ok)) for t, ok in zip(points(c), valid, strict=True))
        for c, valid in zip(clouds, ball_valid, strict=True)
    )

    def w(
        kind: str, both: tuple[tuple[Row, ...], tuple[Row, ...]], edges: Any = (), wrap: Any = ()
    ) -> World:
        return World(kind, *both, edges, wrap)

    s, g, t, n, p = "sequence", "grid", "torus", "graph", "points"
    around = (False, True)
    ragged = alike(*(pad(row(m), 5) for m in (3, 0, 5)))
    ragged_left = alike(*(pad(row(m), 5, "left") for m in (3, 0, 5)))
    ragged_special = alike(*(pad(row(m, special=1), 5) for m in (2, 0, 4)))
    per_row = alike(
        chosen(cells(3, 3, special=1), each[0]), chosen(cells(3, 3, special=1), each[1])
    )
    node_rows = alike(chosen(nodes([0] * 7), each[0]), chosen(nodes([0] * 7), each[1] - 1))
    return {
        "sequence": (Sequence(6), w(s, twice(row(6)))),
        "sequence+special": (Sequence(4, special=2), w(s, alike(row(4, special=2)))),
        "padded": (Sequence.padded([3, 0, 5]), w(s, ragged)),
        "padded-left": (Sequence.padded([3, 0, 5], side="left"), w(s, ragged_left)),
        "padded+special": (Sequence.padded([2, 0, 4], special=1), w(s, ragged_special)),
        "packed": (
            Sequence.packed([3, 0, 4]),
            w(s, alike(row(3) + row(4, sample=2))),
        ),
        "packed+special": (
            Sequence.packed([2, 0, 3], special=1),
            w(s, twice(row(2, special=1) + row(0, special=1, sample=1)
                       + row(3, special=1, sample=2))),
        ),
        "grid": (Grid(2, 4), w(g, alike(cells(2, 4)))),
        "grid+special": (Grid(3, 2, special=1), w(g, alike(cells(3, 2, special=1)))),
        "volume": (Grid(2, 2, 2), w(g, alike(cells(2, 2, 2)))),
        "volume+special": (Grid(3, 1, 2, special=2), w(g, alike(cells(3, 1, 2, special=2)))),
        "packed-grids": (
            Grid.packed([(2, 2), (1, 3)]), w(g, alike(cells(2, 2) + cells(1, 3, sample=1)))
        ),
        "packed-grids+special": (
            Grid.packed([(2, 1), (0, 3), (2, 2)], special=1),
            w(g, alike(cells(2, 1, special=1) + cells(0, 3, special=1, sample=1)
                       + cells(2, 2, special=1, sample=2))),
        ),
        "graph": (whole, w(n, twice(nodes([0] * 7)), ONE_GRAPH)),
        "graph+virtual": (
            virtual, w(n, alike(nodes([0] * 7, special=1)), ONE_GRAPH)
        ),
        "graphs": (batched, w(n, alike(nodes(SEGMENTS)), GRAPHS)),
        "graphs+virtual": (
            graph(GRAPHS, 7, segments=segments, num_graphs=4, special=1),
            w(n, alike(nodes(SEGMENTS, special=1, graphs=4)), GRAPHS),
        ),
        "points": (Points(cloud), w(p, alike(points(cloud)))),
        "points+special": (Points(cloud[:5], special=1), w(p, alike(points(cloud[:5], special=1)))),
        "packed-points": (
            Points(cloud, segments=torch.tensor([0, 0, 1, 1, 1, 1])),
            w(p, alike(points(cloud, [0, 0, 1, 1, 1, 1]))),
        ),
        "packed-points+special": (
            Points(cloud, segments=torch.tensor([0, 0, 1, 1, 1, 1]), special=1),
            w(p, alike(points(cloud, [0, 0, 1, 1, 1, 1], special=1))),
        ),
        "batched-points": (Points(clouds), w(p, alike(*(points(c) for c in clouds)))),
        "padded-points": (Points(clouds, valid=ball_valid), w(p, alike(*ball_rows))),
        "torus": (Grid(2, 4, wrap=around), w(t, alike(cells(2, 4)), wrap=around)),
        "packed-torus": (
            Grid.packed([(1, 4), (2, 2)], wrap=around),
            w(t, alike(cells(1, 4) + cells(2, 2, sample=1)), wrap=around),
        ),
        "padded-torus+special": (
            Grid.padded([(2, 4), (1, 2)], wrap=around, special=1),
            w(t, alike(cells(2, 4, special=1), pad(cells(1, 2, special=1), 9)), wrap=around),
        ),
        "kept-torus": (
            Grid(2, 4, wrap=True).keep(each),
            w(t, alike(*(chosen(cells(2, 4), one) for one in each)), wrap=(True, True)),
        ),
        "kept-sequence": (Sequence(8).keep(some), w(s, twice(chosen(row(8), some)))),
        "kept-grid-each": (Grid(3, 3, special=1).keep(each), w(g, per_row)),
        "kept-packed": (
            Sequence.packed([3, 0, 4], special=1).keep(torch.tensor([0, 2, 3, 5, 7])),
            w(s, twice((Token(0, special=True), Token(0, (1,)), Token(0, (2,)),
                        Token(2, special=True), Token(2, (1,))))),
        ),
        "kept-graph": (whole.keep(some), w(n, alike(chosen(nodes([0] * 7), some)), ONE_GRAPH)),
        "kept-graph-each": (
            whole.keep(torch.stack([each[0], each[1] - 1])), w(n, node_rows, ONE_GRAPH)
        ),
        "cross-sequence": (
            (Sequence(3, start=2), Sequence(6)), w(s, ((row(3, start=2),) * 2, (row(6),) * 2))
        ),
        "cross-padded": (
            (Sequence(3), Sequence.padded([3, 0, 5])), w(s, ((row(3),) * 3, ragged[1]))
        ),
        "cross-packed": (
            (Sequence.packed([2, 0, 1, 1]), Sequence.packed([3, 2, 0, 1])),
            w(s, ((row(2) + row(1, sample=2) + row(1, sample=3),),
                  (row(3) + row(2, sample=1) + row(1, sample=3),))),
        ),
        "cross-grid": (
            (Grid(2, 2), Grid(3, 3, special=1)),
            w(g, ((cells(2, 2),), (cells(3, 3, special=1),))),
        ),
        "cross-graph": (
            (whole.keep(some), whole),
            w(n, ((chosen(nodes([0] * 7), some),), (nodes([0] * 7),)), ONE_GRAPH),
        ),
        "cross-graph+virtual": (
            (virtual.keep(some), virtual),
            w(n, ((chosen(nodes([0] * 7, special=1), some),), (nodes([0] * 7, special=1),)),
              ONE_GRAPH),
        ),
        "cross-graph-from-virtual": (
            (virtual.keep(each[0]), virtual.keep(some)),
            w(n, ((chosen(nodes([0] * 7, special=1), each[0]),),
                  (chosen(nodes([0] * 7, special=1), some),)), ONE_GRAPH),
        ),
        "bipartite": (
            two_sets, w("bipartite", ((nodes([0] * 4),), (nodes([0] * 5),)), TWO_SETS)
        ),
        "kept-bipartite": (
            (two_sets[0].keep(torch.tensor([2, 0])), two_sets[1].keep(torch.tensor([4, 2, 0]))),
            w("bipartite", ((chosen(nodes([0] * 4), torch.tensor([2, 0])),),
                            (chosen(nodes([0] * 5), torch.tensor([4, 2, 0])),)), TWO_SETS),
        ),
        "cross-points": (
            (Points(_cloud(5, 3)), Points(cloud, special=1)),
            w(p, ((points(_cloud(5, 3)),), (points(cloud, special=1),))),
        ),
        "nowhere": (
            (Space(2), Space(5)), w("nowhere", (((Token(),) * 2,) * 2, ((Token(),) * 5,) * 2))
        ),
        "decoding": (
            (Sequence(1, start=5), Sequence(6)), w(s, ((row(1, start=5),) * 2, (row(6),) * 2))
        ),
        "decoding-each": (
            (Sequence(2, start=torch.tensor([1, 4])), Sequence(6)),
            w(s, ((row(2, start=1), row(2, start=4)), (row(6),) * 2)),
        ),
    }  # fmt: skip


PLACES = {name: Place(name, *parts) for name, parts in _places().items()}
GRAPH_PLACES = [name for name, place in PLACES.items() if place.kind == "graph"]
#: Where there are edges; without distances where targets are a set of their own.
EDGE_PLACES = [name for name, place in PLACES.items() if place.world.edges]


# -- masks ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Masked:
    """A mask of the core, and what it claims."""

    name: str
    mask: Mask | None
    claim: Claim

    def __and__(self, other: Masked) -> Masked:
        assert self.mask is not None and other.mask is not None
        name = f"({self.name} & {other.name})"
        return Masked(name, self.mask & other.mask, self.claim & other.claim)

    def __or__(self, other: Masked) -> Masked:
        assert self.mask is not None and other.mask is not None
        name = f"({self.name} | {other.name})"
        return Masked(name, self.mask | other.mask, self.claim | other.claim)

    def __invert__(self) -> Masked:
        assert self.mask is not None
        return Masked(f"~{self.name}", ~self.mask, ~self.claim)

    def __str__(self) -> str:
        return self.name


NO_MASK = Masked("none", None, oracle.everything())


def single_masks(place: Place) -> dict[str, Masked]:
    """Every class of mask that this kind of space can serve."""
    kind, axes, shape = place.kind, place.axes, place.shape
    generator = torch.Generator().manual_seed(3)
    flat, full = (torch.rand(*s, generator=generator) > 0.4 for s in (shape[2:], shape))
    each = full[:1, :, :, :1].clone()
    each[:, 0] = False  # this head may attend to nothing
    found: dict[str, tuple[Mask, Claim]] = {
        "dense": (DenseMask(flat), oracle.given(flat)),
        "dense-heads": (DenseMask(each), oracle.given(each)),
        "dense-full": (DenseMask(full), oracle.given(full)),
    }
    if kind in ("sequence", "grid"):
        radii, sizes = (1, 0, 2)[:axes], (2, 1, 3)[:axes]
        spot = (1, 0, 1)[:axes] if axes > 1 else 1
        found |= {
            "causal": (Causal(), oracle.causal()),
            "near": (Neighborhood(1), oracle.near(1)),
            "near-axes": (Neighborhood(radii), oracle.near(radii)),
            "window": (Window(2), oracle.window(2)),
            "window-shift": (Window(sizes, shift=1), oracle.window(sizes, 1)),
            "dilated": (Dilated(2), oracle.dilated(2)),
            "global": (GlobalTokens(spot), oracle.global_tokens(spot)),
        }
    if kind == "torus":
        found = {
            "near": (Neighborhood(1), oracle.near(1)),
            "near-axes": (Neighborhood((0, 2)), oracle.near((0, 2))),
            "window-shift": (Window(2, shift=1), oracle.window(2, 1)),
            "dilated": (Dilated(2), oracle.dilated(2)),
            "shift": (Neighborhood((0.5, 1), "shift"), oracle.shifted((0.5, 1))),
            "global": (GlobalTokens((1, 0)), oracle.global_tokens((1, 0))),
        }
        if not place.world.wrap[0]:
            found["causal-axis"] = Causal(axes=0), oracle.causal_along(0)
            strides = {"dilation": (2, 1), "stride": (2, 1)}
            one = Neighborhood((0.5, 1.5), "shift", **strides)
            found["shift-strided"] = one, oracle.shifted((0.5, 1.5), **strides)
    if kind == "grid":
        found |= {
            "causal-axis": (Causal(axes=0), oracle.causal_along(0)),
            "dilated-axis": (Dilated(2, axes=-1), oracle.dilated(2, axes - 1)),
        }
    if kind == "points":
        found["causal-axes"] = Causal(axes=(1, 0)), oracle.causal_along(0, 1)
    if (kind == "grid" and place.name != "cross-grid") or place.name in ("sequence", "decoding"):
        windows = {
            "shift": {},
            "shift-strided": {"dilation": (2, 1, 1)[:axes], "stride": 2},
            "shift-causal": {"stride": 2, "is_causal": (True, False, True)[:axes]},
        }
        sizes = (1, 0.5, 1)[:axes]
        found |= {
            name: (Neighborhood(sizes, "shift", **options), oracle.shifted(sizes, **options))
            for name, options in windows.items()
        }
    if place.name in ("decoding-each", "packed+special"):  # an end that does not matter
        one = Neighborhood(1, "shift", is_causal=True)
        found["shift-causal"] = one, oracle.shifted(1, is_causal=True)
    if kind == "sequence":
        lengths = [2, 0, 3, 1]
        found |= {
            "prefix": (PrefixLM(2), oracle.prefix(2)),
            "global-two": (GlobalTokens(0, 4), oracle.global_tokens(0, 4)),
        }
        samples = max(place.spaces[0].num_samples, shape[0])
        of_sample = torch.tensor(lengths[:samples])
        # the tokens of the oracle number samples within a row only
        each = _prefix_of_row if place.spaces[0].segments is None else oracle.prefix
        found["prefix-each"] = (PrefixLM(of_sample), each(lengths))
    if kind == "graph":
        found |= {
            "edges": (Edges(), oracle.edges()),
            "near-0": (Neighborhood(0), oracle.near(0)),
            "near-1": (Neighborhood(1), oracle.near(1)),
            "near-2": (Neighborhood(2), oracle.near(2)),
            "global": (GlobalTokens(0, 5), oracle.global_tokens(0, 5)),
        }
    if kind == "bipartite":
        found["edges"] = Edges(), oracle.edges()
    if kind == "points":
        radii_f = (1.5, 0.5, 1.0)[:axes]
        found |= {
            "near": (Neighborhood(1.3), oracle.near(1.3)),
            "window": (Window(2, shift=1), oracle.window(2, 1)),
            "near-axes": (Neighborhood(radii_f), oracle.near(radii_f)),
        }
    if kind not in ("nowhere", "bipartite"):
        one_space = place.spaces[0] is place.spaces[1]
        found["nearest"] = Nearest(2), oracle.nearest(2)
        if kind == "points":
            others = oracle.nearest(3, loop=False, one_space=one_space)
            found["nearest-others"] = Nearest(3, loop=False), others
    return {name: Masked(name, *parts) for name, parts in found.items()}


def _prefix_of_row(lengths: list[int]) -> Claim:
    return oracle.claim(
        lambda pair: pair.key.place[0] < lengths[pair.batch] or pair.key.place <= pair.query.place
    )


@cache
def masks_of(name: str) -> dict[str, Masked]:
    """No mask, every single mask, and some compositions, for the space of that name."""
    single = single_masks(PLACES[name])
    found = [NO_MASK, *single.values()]
    kind = PLACES[name].kind
    if kind in ("sequence", "grid"):
        found += [
            single["causal"] & single["near"],
            (single["near"] | single["global"]) & ~single["dilated"],
            ~single["causal"],
            single["causal"] & ~single["dense"],
            ~(single["near"] | single["dense-heads"]),
        ]
    if kind == "torus":
        found += [(single["near"] | single["global"]) & ~single["dilated"], ~single["shift"]]
    if kind == "graph":
        found += [
            single["edges"] | single["global"],
            single["edges"] & ~single["near-0"],
            ~single["edges"] & single["dense"],
            single["near-2"] & ~single["near-1"],
        ]
    if kind == "points":
        found += [single["near"] & ~single["near-axes"], ~single["near"] | single["dense-heads"]]
    return {mask.name: mask for mask in found}


# -- biases --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Biased:
    """A bias of the core with its parameters, and the same score from these parameters.

    Where it modifies scores, `modify` does so first, and `scored` is what is added then.
    """

    name: str
    bias: Bias | None
    scored: Scored
    modify: Modify | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [] if self.bias is None else list(self.bias.parameters())


def _table(bias: RelativeTable, bucket: Callable[[oracle.Pair], int]) -> tuple[Bias, Scored]:
    return bias, oracle.by_table(bias.table, bucket, bias.special_table)


def _continuous(axes: int) -> tuple[Bias, Scored]:
    extent = (3.0, 2.0, 1.0)[:axes]
    bias = ContinuousBias(HEADS, extent, hidden=5).double()
    first, last = bias.mlp[0], bias.mlp[2]
    return bias, oracle.continuous(first.weight, first.bias, last.weight, extent)


def _written(*shape: int) -> tuple[Bias, Scored]:
    table = nn.Parameter(torch.randn(*shape, dtype=torch.float64))
    return DenseBias(table), oracle.written(table)


def _edge_types(place: Place) -> tuple[Bias, Scored]:
    bias = EdgeBias(HEADS, types=3).double()
    types = features(place.world.edges).tolist()
    return bias, oracle.of_edge(lambda edge: bias.table[types[edge]])


def biases_of(name: str) -> dict[str, Biased]:
    """No bias, every class of bias that the space can serve, and sums; freshly drawn."""
    place = PLACES[name]
    kind, axes, shape = place.kind, place.axes, place.shape
    with torch.random.fork_rng():
        torch.manual_seed(11)
        found: dict[str, tuple[Bias | None, Scored]] = {
            "none": (None, oracle.nothing()),
            "dense": _written(*shape[2:]),
            "dense-heads": _written(1, HEADS, *shape[2:]),
            "dense-row": _written(shape[0], 1, 1, shape[3]),
        }
        if kind not in ("nowhere", "bipartite"):
            found["alibi"] = (ALiBi(HEADS), oracle.alibi(HEADS))
        if kind == "sequence":
            for special in (False, True):
                found["t5+special" if special else "t5"] = _table(
                    RelativeTable.t5(HEADS, 6, 4, special=special).double(),
                    oracle.t5_of(6, 4, True),
                )
            found["t5-oneway"] = _table(
                RelativeTable.t5(HEADS, 4, 5, bidirectional=False).double(),
                oracle.t5_of(4, 5, False),
            )
        if kind in ("sequence", "grid", "torus"):
            sizes = (3, 2, 2)[:axes]
            found["swin"] = _table(RelativeTable.swin(HEADS, sizes).double(), oracle.swin_of(sizes))
        if kind in ("sequence", "grid", "torus", "graph"):
            found["hops"] = _table(
                RelativeTable.hops(HEADS, 2, special=True).double(), oracle.hops_of(2)
            )
        if kind in ("sequence", "grid", "torus", "points"):
            found["continuous"] = _continuous(axes)
        if place.world.edges:
            found["edge-types"] = _edge_types(place)
            first = found.get("hops", found["dense-heads"])
            second = found["edge-types"]
        else:
            first, second = found["dense-heads"], found.get("continuous", found["dense"])
        assert first[0] is not None and second[0] is not None
        found["sum"] = (first[0] + second[0], oracle.added(first[1], second[1]))
        if kind not in ("nowhere", "bipartite"):
            alibi = found["alibi"]
            found["sum-alibi"] = (first[0] + alibi[0], oracle.added(first[1], alibi[1]))
    return {name: Biased(name, *parts) for name, parts in found.items()}


# -- tensors and runs ----------------------------------------------------------------------------


def tensors(
    place: Place, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values that need a gradient; two query heads share a key head."""
    batch, _, queries, keys = place.shape
    generator = torch.Generator().manual_seed(seed)
    shapes = (
        (batch, HEADS, queries, DIM),
        (batch, KV_HEADS, keys, DIM),
        (batch, KV_HEADS, keys, VALUE_DIM),
    )
    return tuple(
        torch.randn(*s, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
        for s in shapes
    )


def edge_features(place: Place, *, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Features of the edges for keys and values, which need a gradient."""
    generator = torch.Generator().manual_seed(9)
    shape = len(place.world.edges), KV_HEADS
    return {
        name: torch.randn(*shape, size, dtype=torch.float64, generator=generator)
        .to(dtype)
        .requires_grad_()
        for name, size in (("edge_key", DIM), ("edge_value", VALUE_DIM))
    }


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Of a sum of the output with fixed weights; zeros where an input has no part in it."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(output.shape, dtype=torch.float64, generator=generator)
    loss = (output * weight.to(output.dtype)).sum()
    if not loss.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [
        torch.zeros_like(x) if gradient is None else gradient
        for x, gradient in zip(inputs, found, strict=True)
    ]


def attend_with_gradients(
    backend: str, place: Place, mask: Masked, biased: Biased, **options: Any
) -> list[Tensor]:
    """Output, weights and log-sum-exp of a backend, then the gradients of q, k, v, the bias and
    the options that learn."""
    q, k, v = tensors(place)
    out, weights, lse = attend(
        q, k, v, space=place.space, mask=mask.mask, bias=biased.bias, backend=backend,
        return_weights=True, return_lse=True, **options,
    )  # fmt: skip
    learned = [options[name] for name in LEARNED if name in options]
    return [out, weights, lse, *gradients(out, [q, k, v, *biased.parameters, *learned])]


def oracle_with_gradients(
    place: Place, mask: Masked, biased: Biased, **options: Any
) -> list[Tensor]:
    """The same from the oracle."""
    q, k, v = tensors(place)
    out, weights, lse = oracle.attention(
        place.world, mask.claim, biased.scored, q, k, v, modify=biased.modify, **options
    )
    learned = [options[name] for name in LEARNED if name in options]
    return [out, weights, lse, *gradients(out, [q, k, v, *biased.parameters, *learned])]


def assert_same(actual: list[Tensor], expected: list[Tensor], what: str, **tolerance: Any) -> None:
    for i, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        name = (*RESULTS, *(f"gradient of parameter {n}" for n in range(9)))[i]
        torch.testing.assert_close(
            got, wanted, **tolerance, msg=lambda m, name=name: f"{what}: {name}: {m}"
        )


#: Options of `attend` that may need a gradient.
LEARNED = ("sink", "edge_key", "edge_value")
RESULTS = ("output", "weights", "lse", "gradient of q", "gradient of k", "gradient of v")
