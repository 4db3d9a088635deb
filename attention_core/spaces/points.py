"""Tokens anywhere in space."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from attention_core.annotated import checked
from attention_core.checks import check_whole
from attention_core.errors import counted
from attention_core.lasting import lasting
from attention_core.spaces.base import PairList, Space
from attention_core.spaces.near import Found, nearest, within
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

    def reach(self, radius: float) -> PairList | None:
        return self.reach_from(self, radius)

    @lasting
    def reach_from(self, queries: Space, radius: float) -> PairList | None:
        found = self._near(queries, radius)
        return None if found is None else found.pairs

    def reach_bound(self, radius: float) -> float:
        return self.reach_bound_from(self, radius)

    @lasting
    def reach_bound_from(self, queries: Space, radius: float) -> float:
        found = self._near(queries, radius)
        return math.inf if found is None else found.most

    @lasting
    def nearest_from(self, queries: Space, k: int, loop: bool) -> PairList | None:
        if not isinstance(queries, Points):
            return None
        return nearest(self, queries, k, loop)

    @cached_property
    def _found(self) -> dict[float, Found]:
        return {}

    def _near(self, queries: Space, radius: float) -> Found | None:
        """The near pairs of a radius, kept for as long as this space is; None: unknown."""
        if not isinstance(queries, Points) or not math.isfinite(radius):
            return None
        other = None if queries is self else queries  # or it would hold itself
        known = self._found.get(radius)
        if known is None or known.queries is not other:
            known = within(self, queries, radius)
            if known is None:
                return None
            self._found.clear()  # one is enough for a model, whose layers ask for one radius
            self._found[radius] = known._replace(queries=other)
        return known

    def describe(self) -> str:
        return self._describe(
            f"{counted(self.length, 'point')} in {counted(self.axes, 'dimension')}"
        )
