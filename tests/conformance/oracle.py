"""Attention in plain Python, one query after another, in float64: what the rules mean.

Nothing here calls the masks, biases, spaces or pairs of `attention_core`; everything is derived
again from the papers' definitions, over lists of tokens. It is slow and meant to be obvious.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Token:
    """A token of one row: whose sample it is, and where it sits."""

    sample: int = 0
    place: tuple[float, ...] | None = None
    special: bool = False
    valid: bool = True
    node: int = -1
    size: tuple[int, ...] | None = None  # of the grid that it comes from


Row = tuple[Token, ...]


@dataclass(frozen=True)
class World:
    """The tokens of a batch, row by row, and the edges (source, target) between their nodes."""

    kind: str
    queries: tuple[Row, ...]
    keys: tuple[Row, ...]
    edges: tuple[tuple[int, int], ...] = ()
    wrap: tuple[bool, ...] = ()  # the axes of a grid whose ends meet


@dataclass(frozen=True)
class Pair:
    """One query and one key: their indices (batch, head, query, key) in a world."""

    world: World
    batch: int
    head: int
    i: int
    j: int

    @property
    def query(self) -> Token:
        return self.world.queries[self.batch][self.i]

    @property
    def key(self) -> Token:
        return self.world.keys[self.batch][self.j]

    @property
    def special(self) -> bool:
        return self.query.special or self.key.special

    @property
    def offset(self) -> tuple[float, ...]:
        """Key minus query along each axis; of the images of the key, the nearest is meant."""
        plain = tuple(k - q for q, k in zip(self.query.place, self.key.place, strict=True))
        if not any(self.world.wrap):
            return plain
        return tuple(
            min((delta + n * turn for turn in (-1, 0, 1)), key=lambda d: (abs(d), -d))
            if wraps
            else delta
            for delta, n, wraps in zip(plain, self.query.size, self.world.wrap, strict=True)
        )

    @property
    def distance(self) -> float:
        """|Δ| on a sequence, Chebyshev on a grid, hops from key to query, Euclid's for points."""
        if self.world.kind == "graph":
            return hops_from(self.world.edges, self.key.node).get(self.query.node, math.inf)
        if self.world.kind == "points":
            return math.sqrt(sum(delta * delta for delta in self.offset))
        return max(abs(delta) for delta in self.offset)


@cache
def hops_from(edges: tuple[tuple[int, int], ...], start: int) -> dict[int, int]:
    """Breadth-first search along the edges: hops to every node that can be reached."""
    found, waiting = {start: 0}, deque([start])
    while waiting:
        node = waiting.popleft()
        for source, target in edges:
            if source == node and target not in found:
                found[target] = found[node] + 1
                waiting.append(target)
    return found


# -- masks: a claim about a pair, and whether it holds -------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A mask's truth. `holds(pair, wanted)`: does "the mask says `wanted`" hold for this pair?

    Special tokens are exempt: whatever is claimed of them structurally holds, negated or not.
    """

    holds: Callable[[Pair, bool], bool]

    def __and__(self, other: Claim) -> Claim:
        def holds(pair: Pair, wanted: bool) -> bool:
            both = (self.holds(pair, wanted), other.holds(pair, wanted))
            return all(both) if wanted else any(both)

        return Claim(holds)

    def __or__(self, other: Claim) -> Claim:
        return ~(~self & ~other)

    def __invert__(self) -> Claim:
        return Claim(lambda pair, wanted: self.holds(pair, not wanted))


def claim(says: Callable[[Pair], bool]) -> Claim:
    """A claim about tokens that sit somewhere."""
    return Claim(lambda pair, wanted: pair.special or says(pair) == wanted)


def everything() -> Claim:
    return Claim(lambda pair, wanted: wanted)


def given(table: Tensor) -> Claim:
    """A claim written out for each pair, (Lq, Lk) or (B, H, Lq, Lk); also for special tokens."""
    return Claim(lambda pair, wanted: bool(entry(table, pair)) == wanted)


def entry(table: Tensor, pair: Pair) -> Tensor:
    at = (pair.batch, pair.head, pair.i, pair.j)[-table.ndim :]
    return table[tuple(0 if n == 1 else i for i, n in zip(at, table.shape, strict=True))]


def causal() -> Claim:
    """Places compare as words do: row first, then column."""
    return claim(lambda pair: pair.key.place <= pair.query.place)


def causal_along(*axes: int) -> Claim:
    return claim(lambda pair: all(pair.offset[axis] <= 0 for axis in axes))


def near(radius: float | tuple[float, ...]) -> Claim:
    if isinstance(radius, tuple):
        return claim(
            lambda pair: all(abs(d) <= r for d, r in zip(pair.offset, radius, strict=True))
        )
    return claim(lambda pair: pair.distance <= radius)


def nearest(k: int, *, one_space: bool = True, loop: bool = True) -> Claim:
    """The k nearest that can be reached, the first of those that are equally far."""

    def says(pair: Pair) -> bool:
        others = (
            Pair(pair.world, pair.batch, pair.head, pair.i, j)
            for j in range(len(pair.world.keys[pair.batch]))
        )
        found = sorted(
            (other.distance, other.j)
            for other in others
            if other.key.sample == other.query.sample
            and not other.special
            and other.key.valid
            and other.query.valid
            and other.distance < math.inf
            and (loop or not one_space or other.i != other.j)
        )
        return pair.j in [j for _, j in found[:k]]

    return claim(says)


def shifted(
    radius: float | tuple[float, ...],
    dilation: int | tuple[int, ...] = 1,
    stride: int | tuple[int, ...] = 1,
    is_causal: bool | tuple[bool, ...] = False,
) -> Claim:
    """Hassani et al.: 2 · radius + 1 keys along each axis, wherever the query is."""

    def says(pair: Pair) -> bool:
        place, axes = pair.query.place, range(len(pair.query.place))
        options = zip(
            *(_per_axis(value, place) for value in (radius, dilation, stride, is_causal)),
            strict=True,
        )
        wrap = pair.world.wrap or (False,) * len(place)
        for axis, (r, *rest) in zip(axes, options, strict=True):
            n, window = pair.query.size[axis], int(2 * r) + 1
            if wrap[axis]:  # no end, no border
                first = place[axis] - window // 2
                keys = [(first + step) % n for step in range(window)]
            else:
                keys = shifted_keys(n, place[axis], window, *rest)
            if pair.key.place[axis] not in keys:
                return False
        return True

    return claim(says)


def shifted_keys(
    length: int, query: int, window: int, dilation: int, stride: int, is_causal: bool
) -> list[int]:
    """The places along an axis of `length` that the query at a place sees.

    Places as far from the query as a multiple of the dilation are its row. Each `stride` of a row
    are a group, whose leader is in the middle, or the last where causal; or the last of the row.
    """
    row = range(query % dilation, length, dilation)
    own = query // dilation
    leader = own - own % stride + (stride - 1 if is_causal else stride // 2)
    leader = min(leader, len(row) - 1)
    if is_causal:
        return [row[at] for at in range(own + 1) if leader - at < window]
    first = leader - window // 2
    while first + window > len(row):
        first -= 1
    while first < 0:
        first += 1
    return list(row[first : first + window])


def _per_axis(value: Any, place: tuple[float, ...]) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,) * len(place)


def window(size: int | tuple[int, ...], shift: int | tuple[int, ...] = 0) -> Claim:
    def cell(pair: Pair, token: Token) -> list[int]:
        place, wrap = token.place, pair.world.wrap
        sizes, shifts = _per_axis(size, place), _per_axis(shift, place)
        cells = [
            math.floor((p - move) / n) for p, n, move in zip(place, sizes, shifts, strict=True)
        ]
        if not any(wrap):
            return cells
        axes = zip(token.size, sizes, wrap, strict=True)
        count = [extent // n if wraps else extent + 9 for extent, n, wraps in axes]
        return [c % most for c, most in zip(cells, count, strict=True)]

    return claim(lambda pair: cell(pair, pair.query) == cell(pair, pair.key))


def prefix(n: int | list[int]) -> Claim:
    """The first n places, of each sample its own, and whatever comes before."""

    def says(pair: Pair) -> bool:
        first = n if isinstance(n, int) else n[pair.query.sample]
        return pair.key.place[0] < first or pair.key.place <= pair.query.place

    return claim(says)


def dilated(step: int, *axes: int) -> Claim:
    return claim(
        lambda pair: all(
            math.fmod(delta, step) == 0
            for axis, delta in enumerate(pair.offset)
            if not axes or axis in axes
        )
    )


def global_tokens(*positions: int | tuple[int, ...]) -> Claim:
    def is_global(pair: Pair, token: Token) -> bool:
        if pair.world.kind == "graph":
            return token.node in positions
        return any(token.place == _per_axis(p, token.place) for p in positions)

    return claim(lambda pair: is_global(pair, pair.query) or is_global(pair, pair.key))


def edges() -> Claim:
    return claim(lambda pair: (pair.key.node, pair.query.node) in pair.world.edges)


def may_attend(pair: Pair, mask: Claim) -> bool:
    """Padding and samples are no masks: no composition can undo them."""
    query, key = pair.query, pair.key
    if not (query.valid and key.valid) or query.sample != key.sample:
        return False
    return mask.holds(pair, True)


@lru_cache(8)  # a mask is asked about with every bias in turn
def truth(world: World, mask: Claim, heads: int) -> Tensor:
    """(B, H, Lq, Lk) bool: who may attend to whom."""
    batch, queries, keys = len(world.queries), len(world.queries[0]), len(world.keys[0])
    table = torch.zeros(batch, heads, queries, keys, dtype=torch.bool)
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                for j in range(keys):
                    table[b, h, i, j] = may_attend(Pair(world, b, h, i, j), mask)
    return table


# -- biases: the score of a pair -----------------------------------------------------------------

Scored = Callable[[Pair], Tensor | float]


#: What becomes of the score of a pair.
Modify = Callable[[Pair, Tensor], Tensor]


def nothing() -> Scored:
    return lambda pair: 0.0


def alibi_slopes(heads: int) -> list[float]:
    """2^(-8/n), 2^(-16/n), ...; between powers of two, every other slope of the next one."""
    if math.log2(heads).is_integer():
        return [2.0 ** (-8.0 * (h + 1) / heads) for h in range(heads)]
    lower = 2 ** math.floor(math.log2(heads))
    return alibi_slopes(lower) + alibi_slopes(2 * lower)[0::2][: heads - lower]


def alibi(heads: int) -> Scored:
    slopes = alibi_slopes(heads)
    return lambda pair: 0.0 if pair.special else -slopes[pair.head] * pair.distance


def t5_bucket(offset: int, buckets: int, max_distance: int, bidirectional: bool) -> int:
    """The paper's buckets: half of them for the future, half of each side exact."""
    first = 0
    if bidirectional:
        buckets //= 2
        if offset > 0:
            first = buckets
        far = abs(offset)
    else:
        far = max(-offset, 0)
    exact = buckets // 2
    if far < exact:
        return first + far
    growth = math.log(far / exact) / math.log(max_distance / exact)
    return first + min(exact + int(growth * (buckets - exact)), buckets - 1)


def by_table(table: Tensor, bucket: Callable[[Pair], int], special: Tensor | None) -> Scored:
    """A row for each bucket, a column for each head; special tokens have rows of their own."""

    def score(pair: Pair) -> Tensor | float:
        if not pair.special:
            return table[bucket(pair), pair.head]
        if special is None:
            return 0.0
        roles = {(True, False): 0, (False, True): 1, (True, True): 2}
        return special[roles[pair.query.special, pair.key.special], pair.head]

    return score


def t5_of(buckets: int, max_distance: int, bidirectional: bool) -> Callable[[Pair], int]:
    return lambda pair: t5_bucket(int(pair.offset[0]), buckets, max_distance, bidirectional)


def swin_of(sizes: tuple[int, ...]) -> Callable[[Pair], int]:
    """(Δh + W - 1)(2W - 1) + (Δw + W - 1), Δ from key to query, held at the border."""

    def bucket(pair: Pair) -> int:
        index = 0
        for delta, size in zip(pair.offset, sizes, strict=True):
            held = max(1 - size, min(size - 1, -int(delta)))
            index = index * (2 * size - 1) + held + size - 1
        return index

    return bucket


def hops_of(max_hops: int) -> Callable[[Pair], int]:
    """A row for each distance, then one for what is farther, then one for what is unreachable."""

    def bucket(pair: Pair) -> int:
        hops = pair.distance
        if math.isinf(hops):
            return max_hops + 2
        return int(hops) if hops <= max_hops else max_hops + 1

    return bucket


def continuous(first: Tensor, bias: Tensor, second: Tensor, extent: tuple[float, ...]) -> Scored:
    """16 · sigmoid(second · relu(first · log-spaced offset + bias))."""

    def score(pair: Pair) -> Tensor | float:
        if pair.special:
            return 0.0
        logs = []
        for delta, size in zip(pair.offset, extent, strict=True):
            relative = 8 * delta / size
            logs.append(math.copysign(math.log2(1 + abs(relative)) / math.log2(8), relative))
        hidden = (first @ first.new_tensor(logs) + bias).clamp(min=0)
        return 16 * torch.sigmoid(second[pair.head] @ hidden)

    return score


def edge_of(pair: Pair) -> int | None:
    """The number of the edge from key to query, None where there is none."""
    edge = (pair.key.node, pair.query.node)
    if pair.special or edge not in pair.world.edges:
        return None
    return pair.world.edges.index(edge)


def of_edge(rows: Callable[[int], Tensor]) -> Scored:
    """The score of an edge, (H,), and 0 where there is none. `rows(e)` are those of edge e."""

    def score(pair: Pair) -> Tensor | float:
        edge = edge_of(pair)
        return 0.0 if edge is None else rows(edge)[pair.head]

    return score


def written(table: Tensor) -> Scored:
    """A bias written out for each pair; also for special tokens."""
    return lambda pair: entry(table, pair)


def added(*terms: Scored) -> Scored:
    def score(pair: Pair) -> Tensor | float:
        scores = [term(pair) for term in terms]
        return (
            -math.inf if -math.inf in [s for s in scores if isinstance(s, float)] else sum(scores)
        )

    return score


# -- attention -----------------------------------------------------------------------------------

#: Scores of one query (D,), its keys (n, D) and the features of their edges (n, D) in one head.
Score = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def dot(query: Tensor, keys: Tensor, edges: Tensor, head: int) -> Tensor:
    return (keys + edges) @ query


def attention(
    world: World,
    mask: Claim,
    bias: Scored,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    score: Score = dot,
    edge_key: Tensor | None = None,
    edge_value: Tensor | None = None,
    modify: Modify | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (B, Hq, Lq, Dv), weights (B, Hq, Lq, Lk) and log-sum-exp (B, Hq, Lq)."""
    batch, heads, queries, dim = q.shape
    keys, share = k.shape[2], heads // k.shape[1]
    if scale is None:
        scale = 1 / math.sqrt(dim) if score is dot else 1.0
    outputs, weights, sums = [], [], []
    allowed = truth(world, mask, heads).tolist()
    with_edges = edge_key is not None or edge_value is not None
    key_rows, value_rows = ([one.unbind() for one in x.unbind()] for x in (k, v))
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                found: list[int] = []
                extra: list[Tensor | float] = []
                numbers: list[int | None] = []
                pairs: list[Pair] = []
                for j in range(keys):
                    if not allowed[b][h][i][j]:
                        continue
                    pair = Pair(world, b, h, i, j)
                    added = bias(pair)
                    if isinstance(added, float) and math.isinf(added):
                        continue  # a score of -inf forbids the pair
                    found.append(j)
                    extra.append(added)
                    numbers.append(edge_of(pair) if with_edges else None)
                    pairs.append(pair)
                row = q.new_zeros(keys)
                nothing = v.new_zeros(v.shape[-1]), row, q.new_tensor(-math.inf)
                if not found:
                    for results, one in zip((outputs, weights, sums), nothing, strict=True):
                        results.append(one)
                    continue
                at = torch.tensor(found)
                own, values = key_rows[b][h // share][at], value_rows[b][h // share][at]
                edges = _rows(edge_key, numbers, h // share, own)
                s = scale * score(q[b, h, i], own, edges, h)
                if softcap is not None:
                    s = softcap * torch.tanh(s / softcap)
                if modify is not None:
                    s = torch.stack([modify(pair, one) for pair, one in zip(pairs, s, strict=True)])
                if any(isinstance(added, Tensor) for added in extra):
                    s = s + torch.stack([torch.as_tensor(added).to(s) for added in extra])
                elif any(extra):
                    s = s + s.new_tensor(extra)
                if modify is not None and (s == -math.inf).all():  # it has forbidden all
                    for results, one in zip((outputs, weights, sums), nothing, strict=True):
                        results.append(one)
                    continue
                exp = torch.exp(s)
                norm = exp.sum()
                parts = exp / (norm if sink is None else norm + torch.exp(sink[h]))
                if edge_value is not None:
                    values = values + _rows(edge_value, numbers, h // share, values)
                outputs.append(parts @ values)
                weights.append(row.index_put((at,), parts))
                sums.append(torch.log(norm))

    def gathered(rows: list[Tensor], *shape: int) -> Tensor:
        if not rows:
            return q.new_zeros(batch, heads, queries, *shape)
        return torch.stack(rows).view(batch, heads, queries, *shape)

    return gathered(outputs, v.shape[-1]), gathered(weights, keys), gathered(sums)


def _rows(features: Tensor | None, edges: list[int | None], head: int, like: Tensor) -> Tensor:
    """The features (E, Hkv, D) of some edges in one head, 0 where there is none."""
    if features is None:
        return like.new_zeros(1, like.shape[-1])
    nothing = torch.zeros_like(like[0])
    return torch.stack([nothing if e is None else features[e, head] for e in edges])
