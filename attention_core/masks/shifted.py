"""Windows of one size everywhere, moved inside at a border, as NATTEN has them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attention_core.masks.algebra import Mask, Spaces
from attention_core.masks.axes import listed, per_axis
from attention_core.spaces import (
    BlockKey,
    Grid,
    PairList,
    Pairs,
    Sequence,
    Space,
    TilePairs,
    TileStatus,
)
from attention_core.spaces.tiles import coordinates
from attention_core.transfer import constant

_ENDLESS = 1 << 40  # keys of a window without a border


@dataclass(frozen=True)
class ShiftedWindow(Mask):
    """`Neighborhood(radius, border="shift", ...)`, which has the arguments and tells of them.

    Each axis is for itself. The keys that a query may see along it are those from its `first` to
    its `last` one, in steps of the dilation; both follow from where the query is.
    """

    radius: float | tuple[float, ...]
    dilation: int | tuple[int, ...] = 1
    stride: int | tuple[int, ...] = 1
    is_causal: bool | tuple[bool, ...] = False

    def __post_init__(self) -> None:
        if any(2 * r != int(2 * r) for r in listed(self.radius) if r < math.inf):
            raise ValueError(
                "radius must be (kernel size - 1) / 2 with border='shift', so a whole number or a "
                f"half, got {self.radius}"
            )
        lengths = [
            len(value)
            for value in (self.radius, self.dilation, self.stride, self.is_causal)
            if isinstance(value, tuple)
        ]
        if len(set(lengths)) > 1:
            raise ValueError(
                f"radius={self.radius}, dilation={self.dilation}, stride={self.stride} and "
                f"is_causal={self.is_causal} must be for one number of axes"
            )
        axes = (lengths or [1])[0]
        for stride, size in zip(per_axis(self.stride, axes), self._sizes(axes), strict=True):
            if stride > size:
                raise ValueError(
                    f"stride must be at most the size of a window, 2 · radius + 1; got "
                    f"stride={self.stride} and radius={self.radius}"
                )

    def _sizes(self, axes: int) -> list[int]:
        """Keys of a window along each axis."""
        radii = per_axis(self.radius, axes)
        return [_ENDLESS if math.isinf(radius) else int(2 * radius) + 1 for radius in radii]

    def _check(self, spaces: Spaces) -> None:
        """Raise unless there is one border, and all that is asked for along each axis."""
        query, key = spaces
        for space in dict.fromkeys(spaces):
            if not isinstance(space, Sequence | Grid):
                raise TypeError(f"border='shift' needs a Sequence or Grid, got {space.describe()}")
        for name in ("radius", "dilation", "stride", "is_causal"):
            per_axis(getattr(self, name), key.axes, space=key, name=name)
        for axis, wraps in enumerate(key.wrap):
            options = (per_axis(o, key.axes)[axis] for o in (self.dilation, self.stride))
            if wraps and (set(options) != {1} or per_axis(self.is_causal, key.axes)[axis]):
                raise ValueError(
                    f"dilation={self.dilation}, stride={self.stride} and is_causal="
                    f"{self.is_causal} begin at an end of an axis, but {key.describe()}"
                )
        if not self._has_border(key.axes):
            return
        ends = [_extents(space) for space in spaces]
        if ends[0] != ends[1]:
            raise ValueError(
                "border='shift' needs queries and keys of one grid, whose border it is: got "
                f"{query.describe()}, attending to {key.describe()}"
            )

    def _has_border(self, axes: int) -> bool:
        """Whether the end of an axis matters: that of a window which ends at its query does not."""
        causal, stride = per_axis(self.is_causal, axes), per_axis(self.stride, axes)
        return any(not c or s > 1 for c, s in zip(causal, stride, strict=True))

    def windows(self, space: Space) -> tuple[Tensor, Tensor]:
        """Return the first and the last place that each token sees along each axis.

        Returns: twice (L, A) or (B, L, A).
        """
        at, axes, steps = coordinates(space), space.axes, self._steps(space)
        size, stride = (
            constant(value, at.device) for value in (self._sizes(axes), per_axis(self.stride, axes))
        )
        causal = constant(per_axis(self.is_causal, axes), at.device)
        count = _extent_of(space, self._has_border(axes))
        if steps is not None:  # places of one remainder are numbered: here are the last numbers
            remainder = at % steps
            at = torch.div(at, steps, rounding_mode="floor")
            count = torch.div(count - remainder + steps - 1, steps, rounding_mode="floor")
        leader = at
        if max(listed(self.stride)) > 1:
            leader = at - at % stride + torch.where(causal, stride - 1, stride // 2)
            leader = torch.minimum(leader, count - 1)
        first = torch.minimum(leader - size // 2, count - size).clamp(min=0)
        last = torch.minimum(first + size, count) - 1
        if any(listed(self.is_causal)):
            first = torch.where(causal, leader - size + 1, first)
            last = torch.where(causal, at, last)
        if steps is not None:
            first, last = (end * steps + remainder for end in (first, last))
        if any(space.wrap):  # there is no border: around the query, no key twice
            around = constant(space.wrap, at.device)
            back = torch.where(size < count, size // 2, (count - 1) // 2)
            ahead = torch.where(size < count, (size - 1) // 2, count // 2)
            first = torch.where(around, at - back, first)
            last = torch.where(around, at + ahead, last)
        return first, last

    def allowed(self, pairs: Pairs) -> Tensor:
        self._check(pairs.spaces)
        query, offset = pairs.spaces[0], pairs.offset
        first, last = (
            pairs.pick(end - coordinates(query), "query", dims=2) for end in self.windows(query)
        )
        within, steps = (first <= offset) & (offset <= last), self._steps(query)
        return (within if steps is None else within & (offset % steps == 0)).all(-1)

    def allows_all(self, spaces: Spaces) -> bool:
        query, key = spaces
        if not (query.size and query.size == key.size and type(query) is type(key)):
            return False
        self._check(spaces)
        axes = key.axes
        single = per_axis(self.dilation, axes) == (1,) * axes
        free = not any(per_axis(self.is_causal, axes))
        return single and free and all(map(int.__ge__, self._sizes(axes), key.size))

    def count_bound(self, spaces: Spaces) -> float:
        query, key = spaces
        if not isinstance(key, Sequence | Grid):
            return math.inf
        sizes = self._sizes(len(per_axis(self.radius, key.axes, space=key, name="radius")))
        return query.length * math.prod(min(size, key.length) for size in sizes)

    def candidates(self, spaces: Spaces) -> PairList | None:
        query, key = spaces
        if query is not key or not key.size:
            return None
        self._check(spaces)
        step = per_axis(self.dilation, key.axes)
        return pairs_in_windows(key, *self.windows(key), step)

    def tile_status(self, tiles: TilePairs) -> TileStatus:
        self._check(tiles.spaces)
        tiles.offset  # noqa: B018  raises as `allowed` does
        at, key = tiles.at[0], tiles.key.span("coordinates", coordinates)
        # The ends of all windows of a tile, the first ones before the last ones
        ends = tiles.query.span(self, lambda space: torch.cat(self.windows(space), dim=-1))
        (low_first, low_last), (high_first, high_last) = (
            end[at].chunk(2, dim=-1) for end in (ends.low, ends.high)
        )
        low, high = key.low[tiles.at[1]], key.high[tiles.at[1]]
        some = (high >= low_first) & (low <= high_last)
        every = (low >= high_first) & (high <= low_last)
        wrap = tiles.spaces[1].wrap
        if any(wrap):
            nearest, farthest = tiles.apart
            around = constant(wrap, low.device)
            size = constant(self._sizes(len(wrap)), low.device)
            some = torch.where(around, nearest <= size // 2, some)
            every = torch.where(around, farthest <= (size - 1) // 2, every)
        some, every = some.all(-1), every.all(-1)
        if self._steps(tiles.spaces[1]) is None:
            return TileStatus(some, every)
        alike = tiles.equal((self, "remainder"), self._remainders)
        return TileStatus(some & alike.any, every & alike.all)

    def _steps(self, space: Space) -> Tensor | None:
        """(A,) between the keys of a window; None where they stand side by side."""
        steps = per_axis(self.dilation, space.axes)
        return constant(steps, space.device) if max(steps) > 1 else None

    def _remainders(self, space: Space) -> Tensor:
        steps = self._steps(space)
        return coordinates(space) % (1 if steps is None else steps)

    def block_key(self, space: Space) -> BlockKey | None:
        place = BlockKey.of_place(space)
        if place is None or not isinstance(space, Sequence | Grid):
            return None
        at = coordinates(space)
        return place._replace(of_query=tuple(end - at for end in self.windows(space)))

    def partition(self, space: Space) -> Tensor | None:
        return None if self._steps(space) is None else self._remainders(space)

    @property
    def lookback(self) -> float:
        """At most: a window at the end begins its whole size before the last query."""
        sizes = self._sizes(1 if not isinstance(self.radius, tuple) else len(self.radius))
        return math.inf if _ENDLESS in sizes else (max(sizes) - 1) * max(listed(self.dilation))

    @property
    def needs_end(self) -> bool:
        return not all(listed(self.is_causal)) or max(listed(self.stride)) > 1


def pairs_in_windows(space: Space, first: Tensor, last: Tensor, step: tuple[int, ...]) -> PairList:
    """List the pairs of a full sequence or grid whose key is from `first` to `last` of the query.

    Args:
        space: whole, so that the keys of each place are known.
        first, last: (L, A), places along each axis; what is beyond the border is left out, or comes
            in at the other end of an axis that wraps, of which they must not hold a place twice.
        step: between the keys of a window, along each axis.
    """
    assert space.size is not None
    size, device = space.size, space.device
    special = space.length - math.prod(size)  # they stand in front
    start = constant(space.start, device)
    extent = constant(size, device)
    around = constant(space.wrap or (False,) * len(size), device)
    first, last = first[special:] - start, last[special:] - start
    last = torch.where(around, last, torch.minimum(last, extent - 1))
    beyond = (first < 0) & ~around
    first = torch.where(beyond, first % constant(step, device), first)
    if not len(first):
        return PairList(extent.new_zeros(0), extent.new_zeros(0))
    most = ((last - first).amax(0) // constant(step, device) + 1).tolist()
    steps = [
        torch.arange(0, width * each, each, device=device)
        for width, each in zip(most, step, strict=True)
    ]
    keys = first[:, None] + torch.cartesian_prod(*steps).reshape(-1, len(size))
    inside = (keys <= last[:, None]).all(-1)
    keys = keys % extent
    strides = [math.prod(size[axis + 1 :]) for axis in range(len(size))]
    key = (keys * constant(strides, device)).sum(-1)[inside]
    return PairList(inside.nonzero()[:, 0] + special, key + special)


def _extents(space: Space) -> tuple[tuple[int, ...], ...]:
    """The extent of each sample's grid, or the one of all."""
    sizes: tuple[tuple[int, ...], ...] = ()
    if isinstance(space, Grid):
        sizes = space.sizes
    elif space.size is not None:
        sizes = ((space.start[0] + space.size[0],),)  # what came before belongs to it
    if not sizes:
        raise ValueError(
            f"border='shift' needs to know where {space.describe()} ends; a Grid that was "
            "not joined from others knows it, as Grid(length) and Grid.packed([(length,), ...]) do"
        )
    return sizes[:1] if len(set(sizes)) == 1 else sizes


def _extent_of(space: Space, needed: bool) -> Tensor:
    """The extent of the grid of each token, (A,) or what broadcasts to (L, A) or (B, L, A)."""
    if not needed:
        return torch.full((space.axes,), _ENDLESS, device=space.device)
    extent = space.extent
    return constant(_extents(space)[0], space.device) if extent is None else extent
