"""Pairs of points that are near, found cell by cell: as many steps as there are such pairs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Cells are of so many axes at most, those along which points spread most: of A axes, 3 ** (A - 1)
#: runs of cells are around each point.
_AXES = 3
#: Places in all cells, of which each has a number in int64.
_PLACES = 2**60
#: Pairs that are compared at once.
_CHUNK = 1 << 22


class Cells:
    """Points (N, A) in cells of at least `radius`, of each of `segments` (N,) for itself.

    Attributes:
        count: how many pairs lie in the same or in neighboring cells.
    """

    def __init__(self, points: Tensor, radius: float, segments: Tensor | None) -> None:
        # A distance of few bits may be rounded to the radius from above
        self._reach = radius * (1 + max(1e-5, 8 * torch.finfo(points.dtype).eps))
        points = points.to(torch.promote_types(points.dtype, torch.float32))
        spread = points.amax(0) - points.amin(0) if len(points) else points.new_zeros(1)
        axes = spread.argsort(descending=True)[:_AXES]
        samples = 1 if segments is None or not len(segments) else int(segments.max()) + 1
        # Not so small that the cells could not be numbered; rounding must put no pair apart
        most = (_PLACES / samples) ** (1 / len(axes)) - 4
        size = max(self._reach, float(spread.max()) / min(most, 2**20), 1e-30)
        self.points = points
        cell = ((points - points.amin(0) if len(points) else points)[:, axes] / size).long()
        sizes = [int(n) + 3 for n in cell.amax(0)] if len(points) else [3] * len(axes)
        strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
        number = ((cell + 1) * torch.tensor(strides, device=cell.device)).sum(-1)
        if segments is not None:
            number = number + segments * math.prod(sizes)
        self._number, self._order = number.sort()
        # Along the last axis three neighbors are one run
        steps = [torch.arange(-1, 2) * stride for stride in strides[:-1]]
        around = torch.cartesian_prod(*steps) if steps else torch.zeros(1, dtype=torch.long)
        if around.ndim > 1:
            around = around.sum(-1)
        runs = self._number[:, None] + around.to(cell.device)
        self._first = torch.searchsorted(self._number, runs - 1)
        self._ends = torch.searchsorted(self._number, runs + 1, right=True)
        self.count = int((self._ends - self._first).sum())

    def near(self) -> tuple[Tensor, Tensor]:
        """Return (E,) and (E,), the pairs at most `radius` apart, but for rounding."""
        counts = self._ends - self._first
        found = []
        total = counts.sum(-1).cumsum(0)
        start = 0
        while start < len(counts):
            before = int(total[start - 1]) if start else 0
            limit = total.new_tensor(before + _CHUNK)
            stop = max(int(torch.searchsorted(total, limit, right=True)), start + 1)
            found.append(self._compare(start, stop))
            start = stop
        none = self._order.new_zeros(0)
        query, key = zip(*found, strict=True) if found else ((none,), (none,))
        return torch.cat(query), torch.cat(key)

    def _compare(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        first = self._first[start:stop].flatten()
        counts = self._ends[start:stop].flatten() - first
        run = torch.repeat_interleave(counts)
        rank = torch.arange(len(run), device=run.device) - (counts.cumsum(0) - counts)[run]
        query = self._order[start + run // self._first.shape[1]]
        key = self._order[first[run] + rank]
        apart = (self.points[query] - self.points[key]).square().sum(-1)
        near = apart <= self._reach**2
        return query[near], key[near]
