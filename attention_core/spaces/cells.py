"""Pairs of points that are near, found cell by cell: as many steps as there are such pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

#: Cells are of so many axes at most, those along which points spread most: of A axes, 3 ** (A - 1)
#: runs of cells are around each point.
_AXES = 3
#: Places in all cells, of which each has a number in int64.
_PLACES = 2**60
#: Pairs that are compared at once.
_CHUNK = 1 << 20


class Cells:
    """Points (N, A) in cells of at least `radius`, those of each of `samples` (N,) for themselves.

    Args:
        points: (N, A) float.
        radius: how far apart is near, finite.
        samples: (N,) integers of at least 0: points of different ones are never near.
    """

    def __init__(self, points: Tensor, radius: float, samples: Tensor | None = None) -> None:
        # A distance of few bits may be rounded to the radius from above
        self.reach = radius * (1 + max(1e-5, 8 * torch.finfo(points.dtype).eps))
        # Cells in float64: rounding must put no pair apart
        places = points.double()
        none = places.new_zeros(places.shape[-1])
        self._low = places.amin(0) if len(points) else none
        spread = places.amax(0) - self._low if len(points) else none
        self._axes = spread.argsort(descending=True)[:_AXES]
        count = 1 if samples is None or not len(samples) else int(samples.max()) + 1
        # Not so small that the cells could not be numbered
        most = (_PLACES / count) ** (1 / len(self._axes)) - 4
        self._size = max(self.reach, float(spread.max()) / min(most, 2**20), 1e-30)
        #: Places along each axis: those of cells, and one at either end that stays empty.
        self._sizes = (spread[self._axes] / self._size).long() + 3
        sizes = self._sizes.tolist()
        self._strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
        self.number, self.order = self._numbers(places, samples).sort()
        #: In the order of cells, so that what is read next is near in memory, too.
        self.points = _exact(points).index_select(0, self.order)

    def near(self, points: Tensor | None = None, samples: Tensor | None = None) -> Near:
        """Return what is near to other `points` (M, A), in these `samples` (M,), or to themselves:
        the keys near to each query."""
        if points is None:
            return Near(self, self.number, self.order, self.points, self._around())
        number, order = self._numbers(points.double(), samples).sort()
        points = _exact(points).index_select(0, order)
        return Near(self, number, order, points, self._around())

    def _numbers(self, places: Tensor, samples: Tensor | None) -> Tensor:
        """(M,) the cell of each, or an empty one at the end; also of points that are none of
        these."""
        at = (places[:, self._axes] - self._low[self._axes]) / self._size
        sizes = self._sizes.to(at)
        cell = at.floor().clamp(min=-1).minimum(sizes - 2).long() + 1
        number = (cell * cell.new_tensor(self._strides)).sum(-1)
        if samples is not None:
            number = number + samples * int(self._sizes.prod())
        return number

    def _around(self) -> Tensor:
        """(R,) from a cell to the middle of each run of three cells around it: along the last axis
        neighbors are numbered on end."""
        steps = [torch.arange(-1, 2) * stride for stride in self._strides[:-1]]
        around = torch.cartesian_prod(*steps) if steps else torch.zeros(1, dtype=torch.long)
        return (around.sum(-1) if around.ndim > 1 else around).to(self.points.device)


class Near:
    """The pairs of a query and a key in the same or in neighboring cells.

    Attributes:
        count: how many there are.
    """

    def __init__(
        self, cells: Cells, number: Tensor, order: Tensor, points: Tensor, around: Tensor
    ) -> None:
        self._cells, self._order, self._points = cells, order, points
        runs = number[:, None] + around
        self._first = torch.searchsorted(cells.number, runs - 1)
        self._ends = torch.searchsorted(cells.number, runs + 1, right=True)
        self.count = int((self._ends - self._first).sum())

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Return (E,) and (E,), query and key of the pairs at most `radius` apart, but for
        rounding."""
        found = [self._order.new_zeros(2, 0)]
        for _, query, key, squared in self._compared():
            near = (squared <= self._cells.reach**2).nonzero().squeeze(-1)
            found.append(torch.stack([side.index_select(0, near) for side in (query, key)]))
        query, key = torch.cat(found, 1)
        return self._order.index_select(0, query), self._cells.order.index_select(0, key)

    def nearest(
        self, k: int, radius: float, rank: Tensor, itself: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Find the k nearest keys of each query that has so many within `radius`.

        Args:
            radius: at most that of the cells; inf takes fewer, too, where there are no more.
            rank: (N,) of keys, the lower of which is first where distances are equal.
            itself: (M,) the key that a query may not have; None: it may have all.

        Returns: query and key (E,), by query; and whether each query (M,) has found its own.
        """
        found, done = [self._order.new_zeros(2, 0)], [self._order.new_zeros(0, dtype=torch.bool)]
        start = 0
        for stop, query, near, squared in self._compared():
            key, kept = self._cells.order[near], squared <= radius**2
            if itself is not None:
                kept &= itself[self._order[query]] != key
            at = kept.nonzero().squeeze(-1)
            query, key, squared = query[at] - start, key[at], squared[at]
            counts = torch.bincount(query, minlength=stop - start)
            enough = (counts >= k) | math.isinf(radius)
            at = enough[query] & _first(query, squared, rank[key], counts, k)
            query, key = query[at] + start, key[at]
            found.append(torch.stack([self._order[query], key]))
            done.append(enough)
            start = stop
        query, key = torch.cat(found, 1)
        of_query = torch.empty_like(self._order, dtype=torch.bool)
        of_query[self._order] = torch.cat(done)
        return query, key, of_query

    def _compared(self) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """All pairs in neighboring cells, those of all queries before `stop` but after the last
        one's: `stop`, query and key (E,), in the order of cells, and their squared distance."""
        total, axes = (self._ends - self._first).sum(-1).cumsum(0), self._points.shape[1]
        start = 0
        while start < len(total):
            before = int(total[start - 1]) if start else 0
            limit = total.new_tensor(before + 4 * _CHUNK // max(axes, 4))
            stop = max(int(torch.searchsorted(total, limit, right=True)), start + 1)
            first = self._first[start:stop].flatten()
            counts = self._ends[start:stop].flatten() - first
            run = torch.repeat_interleave(counts)
            rank = torch.arange(len(run), device=run.device) - (counts.cumsum(0) - counts)[run]
            query = torch.div(run, self._first.shape[1], rounding_mode="floor") + start
            key = first.index_select(0, run) + rank
            apart = self._points.index_select(0, query) - self._cells.points.index_select(0, key)
            yield stop, query, key, apart.square_().sum(-1)
            start = stop


def _first(query: Tensor, squared: Tensor, rank: Tensor, counts: Tensor, k: int) -> Tensor:
    """Of pairs (E,), in the order of their queries, which has `counts` each: whether it is among
    the k of its query that are nearest and, where they are equally far, first in rank."""
    start = counts.cumsum(0) - counts
    kept = torch.ones_like(query, dtype=torch.bool)
    width = int(counts.max()) if len(counts) else 0
    if width > k and len(counts) * width < 16 * len(query) + _CHUNK:
        # In a table, whose rows tell how far the last one is; of what is beyond nothing is sorted
        table = squared.new_full((len(counts), width), torch.inf)
        table[query, torch.arange(len(query), device=query.device) - start[query]] = squared
        kept = squared <= table.kthvalue(k, dim=-1).values[query]
    if int(torch.bincount(query[kept], minlength=1).max()) <= k:
        return kept
    at = kept.nonzero().squeeze(-1)
    order = rank[at].argsort()
    order = order[squared[at][order].argsort(stable=True)]
    order = order[query[at][order].argsort(stable=True)]
    at, sizes = at[order], torch.bincount(query[at], minlength=len(counts))
    nearer = torch.arange(len(at), device=at.device) - (sizes.cumsum(0) - sizes)[query[at]]
    return kept.index_fill(0, at[nearer >= k], False)


def _exact(points: Tensor) -> Tensor:
    return points.to(torch.promote_types(points.dtype, torch.float32))
