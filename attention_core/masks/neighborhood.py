"""Attention within a distance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attention_core.masks.algebra import Mask, Spaces, tuples
from attention_core.spaces import BlockKey, PairList, Pairs, Space, TilePairs, TileStatus


@dataclass(frozen=True)
class Neighborhood(Mask):
    """Attend within `radius`, both ends included::

        Neighborhood(1) on a Sequence   on a Grid(3, 3), its centre   on a Graph a–b–c–d, from b
        ■ ■ · ·                         ■ ■ ■                         a b c ·
        ■ ■ ■ ·                         ■ ■ ■
        · ■ ■ ■                         ■ ■ ■
        · · ■ ■

    A sliding window (Beltagy et al., Longformer, 2020) on a Sequence, neighborhood attention
    (Hassani et al., 2023) cut at the border on a Grid, k-hop attention on a Graph (the node itself
    is at distance 0), a ball around Points.

    Args:
        radius: in the space's distance; one per axis gives a box on a Sequence, Grid or Points.
    """

    radius: float | tuple[float, ...]

    def __post_init__(self) -> None:
        tuples(self, "radius")
        radii = self.radius if isinstance(self.radius, tuple) else (self.radius,)
        if any(isinstance(r, bool) or not isinstance(r, int | float) for r in radii):
            raise TypeError(f"radius must be a number, or one per axis, got {self.radius!r}")
        if not radii or any(not r >= 0 for r in radii):
            raise ValueError(f"radius must be at least 0, got {self.radius}")

    def allowed(self, pairs: Pairs) -> Tensor:
        if not isinstance(self.radius, tuple):
            return pairs.distance <= self.radius
        self._per_axis(pairs.spaces[1])
        offset = pairs.offset
        return (offset.abs() <= torch.tensor(self.radius, device=offset.device)).all(-1)

    def _per_axis(self, space: Space) -> tuple[float, ...] | None:
        """The radius along each axis; None where no box holds just what is near."""
        if not isinstance(self.radius, tuple):
            return (self.radius,) * space.axes if space.chebyshev else None
        if len(self.radius) != space.axes:
            raise ValueError(
                f"radius {self.radius} has {len(self.radius)} axes, {space.describe()} has "
                f"{space.axes}"
            )
        return self.radius

    def allows_all(self, spaces: Spaces) -> bool:
        query, key = spaces
        if not (query.size and key.size and type(query) is type(key)):
            return False
        radii = self._per_axis(key)
        return radii is not None and all(
            radius >= max(k0 + kn - 1 - q0, q0 + qn - 1 - k0)
            for radius, q0, qn, k0, kn in zip(
                radii, query.start, query.size, key.start, key.size, strict=True
            )
        )

    def count_bound(self, spaces: Spaces) -> float:
        query, key = spaces
        radii = self._per_axis(key) if key.chebyshev else None
        if radii is not None:
            return query.length * math.prod(2 * r + 1 for r in radii)
        return math.inf if isinstance(self.radius, tuple) else key.reach_bound(self.radius)

    def candidates(self, spaces: Spaces) -> PairList | None:
        query, key = spaces
        if query is not key:
            return None
        radii = self._per_axis(key)
        if radii is not None and key.size:
            return _regular_neighbors(key, radii)
        return None if isinstance(self.radius, tuple) else key.reach(self.radius)

    def tile_status(self, tiles: TilePairs) -> TileStatus:
        space = tiles.spaces[1]
        if not isinstance(self.radius, tuple) and not space.has_norm:
            return super().tile_status(tiles)
        low, high = tiles.offset
        nearest, farthest = torch.maximum(low, -high).clamp(min=0), torch.maximum(high, -low)
        if isinstance(self.radius, tuple):
            radii = torch.tensor(self._per_axis(space), device=low.device)
            return TileStatus((nearest <= radii).all(-1), (farthest <= radii).all(-1))
        least, most = space.norm(nearest), space.norm(farthest)
        # Rounding may make the norm of less a little more
        slack = 1e-5 * self.radius if least.is_floating_point() else 0.0
        return TileStatus(least <= self.radius + slack, most <= self.radius - slack)

    @property
    def lookback(self) -> float:
        return max(self.radius) if isinstance(self.radius, tuple) else self.radius

    def block_key(self, space: Space) -> BlockKey | None:
        by_axis = isinstance(self.radius, tuple)
        return BlockKey.of_place(space) if by_axis else BlockKey.of_distance(space)

    def __repr__(self) -> str:
        return f"Neighborhood({self.radius})"


def _regular_neighbors(space: Space, radii: tuple[float, ...]) -> PairList:
    """All pairs of a full sequence or grid at most `radii` apart, axis by axis."""
    assert space.coordinates is not None and space.size is not None
    size, device = space.size, space.device
    first = space.length - math.prod(size)  # special tokens stand in front
    places = space.coordinates[first:] - torch.tensor(space.start, device=device)
    reach = [min(r, n) for r, n in zip(radii, size, strict=True)]
    steps = [torch.arange(-int(r), int(r) + 1, device=device) for r in reach]
    offsets = torch.cartesian_prod(*steps).reshape(-1, len(size))
    neighbors = places[:, None] + offsets
    inside = ((neighbors >= 0) & (neighbors < torch.tensor(size, device=device))).all(-1)
    strides = [math.prod(size[axis + 1 :]) for axis in range(len(size))]
    key = (neighbors * torch.tensor(strides, device=device)).sum(-1)[inside]
    return PairList(inside.nonzero()[:, 0] + first, key + first)
