"""Tokens in tiles, and what holds for all pairs of two tiles without looking at each.

A tile knows the range of every number that its tokens carry: coordinates, the window they are in,
whether they are global. From two ranges a mask can tell that none, some or all of the pairs
between two tiles are allowed, as interval arithmetic does, and `&`, `|` and `~` compose that. So
the blocks of any mask are found from coarse tiles to fine ones, never pair by pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from attention_core.spaces.base import PairList, Space
from attention_core.spaces.pairs import common_period, in_order, nearest_image, same_kind

_BRANCHES = 4


class TileStatus(NamedTuple):
    """Whether any, and whether all, pairs of tokens in each pair of tiles are allowed, bool (P,).

    A pair of tiles without any is skipped; one with all needs no mask (FlexAttention: empty, full
    and partial blocks). Both may err on the careful side: `any` True, `all` False.
    """

    any: Tensor
    all: Tensor


class Span(NamedTuple):
    """The least and the greatest value in each tile, (tiles, A)."""

    low: Tensor
    high: Tensor


class BlockKey(NamedTuple):
    """Numbers of each token, (L, A) or (B, L, A), that settle what a mask allows or a bias scores.

    Where the block keys of two blocks of tokens are equal, it is computed once for both.
    """

    #: What matters only as a difference, key minus query, such as whole-number coordinates.
    relative: tuple[Tensor, ...] = ()
    #: What matters by itself, such as being global; a tile holds tokens that are alike in it.
    absolute: tuple[Tensor, ...] = ()
    #: What matters by itself, and of queries alone, such as how far each one's window reaches; a
    #: tile may mix tokens that differ in it.
    of_query: tuple[Tensor, ...] = ()

    @classmethod
    def joined(cls, *keys: BlockKey | None) -> BlockKey | None:
        """Join keys into one; None where one is unknown."""
        if any(one is None for one in keys):
            return None
        known = [one for one in keys if one is not None]
        return cls(
            tuple(tensor for one in known for tensor in one.relative),
            tuple(tensor for one in known for tensor in one.absolute),
            tuple(tensor for one in known for tensor in one.of_query),
        )

    @classmethod
    def of_place(cls, space: Space) -> BlockKey | None:
        """Make the key of what depends on the offset alone; None where places do not repeat."""
        at, period = space.coordinates, space.period
        if at is None or at.is_floating_point():
            return None
        # Where samples wrap at different places, the same difference is not the same offset
        differ = period is not None and period.ndim > 1
        return cls(relative=(at,), absolute=(period,) if differ else ())  # type: ignore[arg-type]

    @classmethod
    def of_distance(cls, space: Space) -> BlockKey | None:
        """Make the key of what depends on the distance alone; None where no offset settles it."""
        return cls.of_place(space) if space.has_norm else None


class Tiles:
    """Tokens of a space in tiles.

    Args:
        space: where the tokens are.
        rows: how many rows of a batch they are of; 1 where one row serves them all.
        members: (n, size) the tokens of each tile, token i of row r being r · length + i; a tile
            of fewer repeats its last one. Or the tiles of `finer` that make up each tile.
        sizes: (n,) how many tokens each tile has.
    """

    def __init__(
        self, space: Space, rows: int, members: Tensor, sizes: Tensor, finer: Tiles | None = None
    ) -> None:
        self.space, self.rows = space, rows
        self.members, self.sizes, self.finer = members, sizes, finer
        self._spans: dict[Hashable, Span] = {}

    def __len__(self) -> int:
        return len(self.sizes)

    def coarser(self) -> Tiles:
        """Join each four neighbors to one tile."""
        groups = math.ceil(len(self) / _BRANCHES)
        members = torch.arange(groups * _BRANCHES, device=self.sizes.device)
        members = members.clamp(max=len(self) - 1).view(groups, _BRANCHES)
        padding = self.sizes.new_zeros(groups * _BRANCHES - len(self))
        sizes = torch.cat([self.sizes, padding]).view(groups, _BRANCHES).sum(-1)
        return Tiles(self.space, self.rows, members, sizes, finer=self)

    def children(self, tile: Tensor) -> tuple[Tensor, Tensor]:
        """Return the finer tiles in each of `tile` (P,): which of the P, and their own numbers."""
        assert self.finer is not None
        first = tile[:, None] * _BRANCHES + torch.arange(_BRANCHES, device=tile.device)
        inside = first < len(self.finer)
        return inside.nonzero()[:, 0], first[inside]

    def span(self, name: Hashable, values: Callable[[Space], Tensor]) -> Span:
        """Return the range of `values(space)`, (length, A) or (batch, length, A), in each tile."""
        if name not in self._spans:
            if self.finer is None:
                own = per_token(values(self.space), self.rows)[self.members]
                low, high = own.amin(1), own.amax(1)
            else:
                low, high = self.finer.span(name, values)
                low, high = low[self.members].amin(1), high[self.members].amax(1)
            self._spans[name] = Span(low, high)
        return self._spans[name]

    @cached_property
    def of_token(self) -> Tensor:
        """(rows · length,) the tile of each token, -1 where it is in none."""
        if self.finer is not None:
            tile = self.finer.of_token
            return torch.where(tile < 0, tile, tile // _BRANCHES)
        tile = self.sizes.new_full((self.rows * self.space.length,), -1)
        number = torch.arange(len(self), device=tile.device)[:, None]
        tile[self.members] = number.expand_as(self.members)
        return tile


def per_token(values: Tensor, rows: int) -> Tensor:
    """Return (L, A), the same for all rows, or (rows, L, A), as (rows · L, A)."""
    return values.expand(rows, *values.shape[-2:]).flatten(0, 1)


class TilePairs:
    """Pairs of a tile of queries and a tile of keys: what `Mask.tile_status` sees.

    Args:
        query, key: the tiles.
        at: (P,) and (P,), which of them each pair has.
    """

    def __init__(self, query: Tiles, key: Tiles, at: tuple[Tensor, Tensor]) -> None:
        self.query, self.key, self.at = query, key, at
        self.spaces = (query.space, key.space)

    def answer(self, value: bool) -> Tensor:
        return torch.full(self.at[0].shape, value, device=self.at[0].device)

    def spans(self, name: Hashable, values: Callable[[Space], Tensor]) -> tuple[Span, Span]:
        """Return the range of `values(space)` in the query tile and in the key tile of each pair.

        Args:
            name: tells `values` from others, for tiles remember their ranges.
        """
        query, key = (
            Span(span.low[at], span.high[at])
            for tiles, at in zip((self.query, self.key), self.at, strict=True)
            for span in (tiles.span(name, values),)
        )
        return query, key

    def equal(self, name: Hashable, values: Callable[[Space], Tensor]) -> TileStatus:
        """Return whether query and key have the same `values`."""
        query, key = self.spans(name, values)
        some = (query.low <= key.high) & (key.low <= query.high)
        every = (query.low == query.high) & (key.low == key.high) & (query.low == key.low)
        return TileStatus(some.all(-1), every.all(-1))

    def either(self, name: Hashable, flag: Callable[[Space], Tensor]) -> TileStatus:
        """Return whether query or key has the `flag`, a bool (length,) or (batch, length)."""
        query, key = self.spans(name, lambda space: flag(space)[..., None].long())
        some, every = query.high + key.high > 0, query.low + key.low > 0
        return TileStatus(some.squeeze(-1), every.squeeze(-1))

    @cached_property
    def _unwrapped(self) -> Span:
        """The range of key minus query along each axis, as if none wrapped."""
        same_kind(self.spaces, "offset")
        query, key = self.spans("coordinates", coordinates)
        return Span(key.low - query.high, key.high - query.low)

    @cached_property
    def _period(self) -> Span | None:
        """The least and the greatest period in each tile of queries; None: nothing wraps."""
        space = common_period(self.spaces)
        if space.period is None:
            return None

        def period(space: Space) -> Tensor:
            found = space.period
            assert found is not None
            return found.expand(space.length, -1) if found.ndim == 1 else found

        span, at = self.query.span("period", period), self.at[0]
        return Span(span.low[at], span.high[at])

    @cached_property
    def offset(self) -> Span:
        """The range of key minus query along each axis; where it wraps, of nearest images."""
        low, high = self._unwrapped
        if self._period is None:
            return Span(low, high)
        least, period = self._period
        start = nearest_image(low, period)
        end = start + high - low
        # What goes beyond half way round is on both sides, so anything is between
        half = (period - 1).clamp(min=0) // 2
        around = (period > 0) & ((end > period // 2) | (least != period))
        return Span(torch.where(around, -half, start), torch.where(around, period // 2, end))

    @cached_property
    def apart(self) -> Span:
        """The range of how far apart query and key are along each axis, whichever is first."""
        low, high = self._unwrapped
        nearest, farthest = torch.maximum(low, -high).clamp(min=0), torch.maximum(high, -low)
        if self._period is None:
            return Span(nearest, farthest)
        least, period = self._period
        n = period.clamp(min=1)
        start, end = low % n, low % n + high - low
        meet = (start == 0) | (end >= n) | (least != period)
        closest = torch.minimum(start, n - end).masked_fill(meet, 0)
        half = n // 2
        most = torch.maximum(torch.minimum(start, n - start), torch.minimum(end, (n - end).abs()))
        opposite = (start <= half) & (end >= half) | (end >= n + half) | (least != period)
        return Span(
            torch.where(period > 0, closest, nearest),
            torch.where(period > 0, torch.where(opposite, half, most), farthest),
        )

    @cached_property
    def precedes(self) -> TileStatus:
        """Whether the key is at or before the query in reading order."""
        in_order(self.spaces)
        low, high = self.offset
        some, every = low[..., -1] <= 0, high[..., -1] <= 0
        for axis in reversed(range(low.shape[-1] - 1)):
            some = (low[..., axis] < 0) | ((low[..., axis] == 0) & some)
            every = (high[..., axis] < 0) | ((high[..., axis] == 0) & every)
        return TileStatus(some, every)

    def holding(self, pairs: PairList) -> Tensor:
        """Return whether each pair of tiles holds any of these pairs of tokens."""
        tiles, rows = len(self.key), self.query.rows
        query, key, batch = pairs.query, pairs.key, pairs.batch
        if batch is None and rows > 1:
            batch = torch.arange(rows, device=query.device).repeat_interleave(len(query))
            query, key = query.repeat(rows), key.repeat(rows)
        if batch is not None:
            query = query + batch * self.query.space.length
            key = key + batch * self.key.space.length
        held = self.query.of_token[query] * tiles + self.key.of_token[key]
        held = torch.cat([held.unique(), held.new_tensor([torch.iinfo(held.dtype).max])])
        wanted = self.at[0] * tiles + self.at[1]
        return held[torch.searchsorted(held, wanted)] == wanted


def coordinates(space: Space) -> Tensor:
    if space.coordinates is None:
        raise TypeError(f"{space.describe()} has no coordinates")
    return space.coordinates
