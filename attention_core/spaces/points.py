"""Tokens anywhere in space."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from attention_core.annotated import checked
from attention_core.checks import check_whole
from attention_core.lasting import lasting
from attention_core.spaces.base import PairList, Space
from attention_core.spaces.cells import Cells
from attention_core.spaces.packing import (
    check_coordinates,
    insert_special,
    rows,
)


class Points(Space):
    """Tokens anywhere in space, as in a point cloud. Distance is Euclidean.

    Args:
        coordinates: (N, A) or (B, N, A) float.
        segments: (N,) non-decreasing integers: several clouds in one row.
        valid: (N,) or (B, N) bool, False on padding.
        special: tokens in front of each sample that sit nowhere.
    """

    @lasting
    @checked
    def __init__(
        self,
        coordinates: Tensor,
        *,
        segments: Tensor | None = None,
        valid: Tensor | None = None,
        special: int = 0,
    ) -> None:
        if coordinates.ndim not in (2, 3) or not coordinates.is_floating_point():
            raise ValueError(
                "coordinates must be float of shape (N, A) or (B, N, A), got "
                f"{coordinates.dtype} {tuple(coordinates.shape)}"
            )
        check_whole(0, special=special)
        count, axes = coordinates.shape[-2:]
        if axes < 1:
            raise ValueError(f"coordinates must have an axis, got {tuple(coordinates.shape)}")
        check_coordinates(coordinates, count)
        for name, flags in (("segments", segments), ("valid", valid)):
            if flags is not None and flags.shape[-1:] != (count,):
                raise ValueError(f"{name} must be for {count} points, got {tuple(flags.shape)}")
        token_segments, source, is_special = insert_special(
            segments, coordinates.shape[-2], special
        )
        source = source.to(coordinates.device)
        super().__init__(
            len(source),
            coordinates=rows(coordinates, source, 2, 0.0),
            segments=token_segments,
            valid=None if valid is None else rows(valid, source, 1, True),
            special=is_special if is_special is None else is_special.to(coordinates.device),
        )

    def norm(self, offset: Tensor) -> Tensor:
        return torch.linalg.vector_norm(offset, dim=-1)

    @cached_property
    def _located(self) -> Tensor:
        """(N,) the tokens that sit somewhere, in the one row that there is."""
        if self.special is None:
            return torch.arange(self.length, device=self.device)
        return (~self.special).nonzero().squeeze(-1)

    @cached_property
    def _cells(self) -> dict[float, Cells]:
        return {}

    def _in_cells(self, radius: float) -> Cells | None:
        """The points in cells of a radius, for as long as the space is; None where samples of a
        batch have points of their own."""
        if self.batch is not None or self.coordinates is None or not math.isfinite(radius):
            return None
        if radius not in self._cells:
            self._cells.clear()  # one is enough for a model, whose layers ask for one radius
            segments = None if self.segments is None else self.segments[self._located]
            self._cells[radius] = Cells(self.coordinates.detach()[self._located], radius, segments)
        return self._cells[radius]

    @lasting
    def reach(self, radius: float) -> PairList | None:
        cells = self._in_cells(radius)
        if cells is None or cells.count > self.length**2 // 4:  # a list would be no shorter
            return None
        query, key = cells.near()
        return PairList(self._located[query], self._located[key])

    @lasting
    def reach_bound(self, radius: float) -> float:
        cells = self._in_cells(radius)
        return math.inf if cells is None else cells.count

    def describe(self) -> str:
        return self._describe(f"{self.length:,} points in {self.axes} dimensions")
