"""Tokens anywhere in space."""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

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

    @cached_property
    def _found(self) -> dict[float, _Found]:
        return {}

    def _near(self, queries: Space, radius: float) -> _Found | None:
        """The near pairs of a radius, kept for as long as this space is; None: unknown."""
        own = queries is self
        if not isinstance(queries, Points) or not math.isfinite(radius):
            return None
        known = self._found.get(radius)
        if known is None or known.queries is not (None if own else queries):
            rows = next((n for n in (_rows(self), _rows(queries)) if n is not None), None)
            keys = _placed(self, rows)
            others = keys if own else _placed(queries, rows)
            if keys is None or others is None:
                return None
            self._found.clear()  # one is enough for a model, whose layers ask for one radius
            known = _find(keys, others, radius, rows, (queries.length, self.length))
            known = known._replace(queries=None if own else queries)
            self._found[radius] = known
        return known

    def describe(self) -> str:
        return self._describe(f"{self.length:,} points in {self.axes} dimensions")


class _Placed(NamedTuple):
    """The points of a batch that sit somewhere, end to end: which tokens they are, (M,) of all rows
    end to end, where they are (M, A), and the sample (M,) of each, None for one."""

    token: Tensor
    points: Tensor
    samples: Tensor | None


class _Found(NamedTuple):
    """What is near: a list of pairs, None where one would be no shorter than all, and at most how
    many there are in a row; of queries in another space, if they are."""

    pairs: PairList | None
    most: int
    queries: Points | None = None


def _rows(space: Points) -> int | None:
    """How many rows have points or samples of their own, None where one row serves all."""
    own = [
        x
        for x, dims in ((space.coordinates, 2), (space.segments, 1))
        if x is not None and x.ndim > dims
    ]
    return own[0].shape[0] if own else None


def _placed(space: Points, rows: int | None) -> _Placed | None:
    special, valid, segments, at = space.special, space.valid, space.segments, space.coordinates
    if at is None or (special is not None and special.ndim > 1):
        return None
    located = torch.ones(rows or 1, space.length, dtype=torch.bool, device=space.device)
    if special is not None:
        located &= ~special
    if valid is not None and (rows is not None or valid.ndim == 1):
        located &= valid
    token = located.flatten().nonzero().squeeze(-1)
    samples: Tensor | None = None
    if rows is not None or segments is not None:
        samples = torch.arange(rows or 1, device=space.device)[:, None] * space.num_segments
        samples = (samples + (0 if segments is None else segments)).expand_as(located)
        samples = samples.flatten()[token]
    at = at.detach().expand(rows or 1, -1, -1).flatten(0, 1)
    return _Placed(token, at.index_select(0, token), samples)


def _find(
    keys: _Placed, queries: _Placed, radius: float, rows: int | None, lengths: tuple[int, int]
) -> _Found:
    """List the near pairs, unless cells already show that a list would be no shorter than all."""
    cells = Cells(keys.points, radius, keys.samples)
    near = cells.near() if queries is keys else cells.near(queries.points, queries.samples)
    if near.count > (rows or 1) * lengths[0] * lengths[1] // 4:
        return _Found(None, near.count)
    query, key = near.pairs()
    query, key = queries.token[query], keys.token[key]
    if rows is None:
        return _Found(PairList(query, key), len(query))
    row = query // lengths[0]
    most = int(torch.bincount(row).max()) if len(row) else 0
    return _Found(PairList(query % lengths[0], key % lengths[1], batch=row), most)
