"""Attention within a distance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from attention_core.checks import check_choice, check_flag, check_whole_each
from attention_core.masks.algebra import Mask, Spaces, tuples
from attention_core.masks.axes import listed, per_axis
from attention_core.masks.shifted import ShiftedWindow, pairs_in_windows
from attention_core.spaces import BlockKey, PairList, Pairs, Space, TilePairs, TileStatus
from attention_core.transfer import constant


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

    With ``border="shift"`` it is NATTEN's window on a Sequence or Grid (Hassani et al., 2023 to
    2025): near a border it is moved inside rather than cut, so that every query sees as many keys::

        Neighborhood(1, border="shift")   dilation=2    stride=3
        ■ ■ ■ · · ·                       ■ · ■ · ■ ·   ■ ■ ■ · · ·
        ■ ■ ■ · · ·                       · ■ · ■ · ■   ■ ■ ■ · · ·
        · ■ ■ ■ · ·                       ■ · ■ · ■ ·   ■ ■ ■ · · ·
        · · ■ ■ ■ ·                       · ■ · ■ · ■   · · · ■ ■ ■
        · · · ■ ■ ■                       ■ · ■ · ■ ·   · · · ■ ■ ■
        · · · ■ ■ ■                       · ■ · ■ · ■   · · · ■ ■ ■

    Args:
        radius: in the space's distance; one per axis gives a box on a Sequence, Grid or Points.
            With ``border="shift"`` a window has 2 · radius + 1 keys along an axis, so that NATTEN's
            `kernel_size` k is a radius of (k - 1) / 2: 3 for 7, and 3.5 for 8, of which one more
            stands before the query than behind it.
        border: "cut" or "shift" what sticks out. The border is that of the whole grid, also where
            tokens were dropped.
        dilation: keys are so far apart along an axis, one number or one per axis, as in NATTEN.
        stride: so many queries next to each other share the window of the middle one (of the last
            one, where causal), one number or one per axis (Hassani et al., GNA, 2025).
        is_causal: see no key behind the query along an axis, one bool or one per axis; the window
            ends at the query (before it, in its group of `stride`, where the group ends).

    Raises:
        ValueError: `dilation`, `stride` or `is_causal` with a border that is cut: there
            ``Dilated(d) & Neighborhood(radius * d)`` and ``Causal(axes=...) & ...`` say it. With
            ``border="shift"`` a stride above the size of a window, or spaces without a border.
    """

    radius: float | tuple[float, ...]
    border: Literal["cut", "shift"] = "cut"
    dilation: int | tuple[int, ...] = 1
    stride: int | tuple[int, ...] = 1
    is_causal: bool | tuple[bool, ...] = False

    # No field: FSDP2 makes masks anew of their fields, where it casts what goes into a block
    @cached_property
    def _shifted(self) -> ShiftedWindow | None:
        if self.border == "cut":
            return None
        return ShiftedWindow(self.radius, self.dilation, self.stride, self.is_causal)

    def __post_init__(self) -> None:
        tuples(self, "radius", "dilation", "stride", "is_causal")
        radii = listed(self.radius)
        if any(isinstance(r, bool) or not isinstance(r, int | float) for r in radii):
            raise TypeError(f"radius must be a number, or one per axis, got {self.radius!r}")
        if not radii or any(not r >= 0 for r in radii):
            raise ValueError(f"radius must be at least 0, got {self.radius}")
        check_choice(("cut", "shift"), border=self.border)
        check_whole_each(dilation=listed(self.dilation), stride=listed(self.stride))
        for flag in listed(self.is_causal) or (None,):
            check_flag(is_causal=flag)
        if self._shifted is None and (
            {*listed(self.dilation), *listed(self.stride)} != {1} or any(listed(self.is_causal))
        ):
            raise ValueError(
                f"dilation={self.dilation}, stride={self.stride} and is_causal={self.is_causal} "
                "need border='shift'; with a border that is cut, Dilated(d) & "
                "Neighborhood(radius * d) and Causal(axes=...) & Neighborhood(radius) say it"
            )

    def allowed(self, pairs: Pairs) -> Tensor:
        if self._shifted is not None:
            return self._shifted.allowed(pairs)
        if not isinstance(self.radius, tuple):
            return pairs.distance <= self.radius
        self._per_axis(pairs.spaces[1])
        offset = pairs.offset
        return (offset.abs() <= constant(self.radius, offset.device)).all(-1)

    def _per_axis(self, space: Space) -> tuple[float, ...] | None:
        """The radius along each axis; None where no box holds just what is near."""
        if not isinstance(self.radius, tuple) and not space.chebyshev:
            return None
        return per_axis(self.radius, space.axes, space=space, name="radius")

    def allows_all(self, spaces: Spaces) -> bool:
        if self._shifted is not None:
            return self._shifted.allows_all(spaces)
        query, key = spaces
        if not (query.size and key.size and type(query) is type(key)):
            return False
        radii = self._per_axis(key)
        if any(query.wrap) or any(key.wrap):
            # The farthest image of a place is half way round
            around = query.wrap == key.wrap and query.size == key.size
            wrapped = zip(key.size, key.wrap, strict=True)
            far = [n // 2 if wraps else n - 1 for n, wraps in wrapped] if around else None
        else:
            ends = zip(query.start, query.size, key.start, key.size, strict=True)
            far = [max(k0 + kn - 1 - q0, q0 + qn - 1 - k0) for q0, qn, k0, kn in ends]
        if radii is None or far is None:
            return False
        return all(r >= f for r, f in zip(radii, far, strict=True))

    def count_bound(self, spaces: Spaces) -> float:
        if self._shifted is not None:
            return self._shifted.count_bound(spaces)
        query, key = spaces
        radii = self._per_axis(key) if key.chebyshev else None
        if radii is not None:
            return query.length * math.prod(2 * r + 1 for r in radii)
        if isinstance(self.radius, tuple):
            return math.inf
        if query is key:
            return key.reach_bound(self.radius)
        return key.reach_bound_from(query, self.radius)

    def candidates(self, spaces: Spaces) -> PairList | None:
        if self._shifted is not None:
            return self._shifted.candidates(spaces)
        query, key = spaces
        radii = self._per_axis(key)
        if radii is not None and key.size and query is key:
            return _regular_neighbors(key, radii)
        if isinstance(self.radius, tuple):
            return None
        return key.reach(self.radius) if query is key else key.reach_from(query, self.radius)

    def tile_status(self, tiles: TilePairs) -> TileStatus:
        if self._shifted is not None:
            return self._shifted.tile_status(tiles)
        space = tiles.spaces[1]
        if not isinstance(self.radius, tuple) and not space.has_norm:
            return super().tile_status(tiles)
        nearest, farthest = tiles.apart
        if isinstance(self.radius, tuple):
            self._per_axis(space)
            radii = constant(self.radius, nearest.device)
            return TileStatus((nearest <= radii).all(-1), (farthest <= radii).all(-1))
        least, most = space.norm(nearest), space.norm(farthest)
        # Rounding may make the norm of less a little more
        rounding = torch.finfo(least.dtype).eps if least.is_floating_point() else 0.0
        slack = max(1e-5, 4 * rounding) * self.radius if rounding else 0.0
        return TileStatus(least <= self.radius + slack, most <= self.radius - slack)

    @property
    def lookback(self) -> float:
        if self._shifted is not None:
            return self._shifted.lookback
        return max(self.radius) if isinstance(self.radius, tuple) else self.radius

    @property
    def needs_end(self) -> bool:
        return self._shifted is not None and self._shifted.needs_end

    def block_key(self, space: Space) -> BlockKey | None:
        if self._shifted is not None:
            return self._shifted.block_key(space)
        by_axis = isinstance(self.radius, tuple)
        return BlockKey.of_place(space) if by_axis else BlockKey.of_distance(space)

    def partition(self, space: Space) -> Tensor | None:
        return None if self._shifted is None else self._shifted.partition(space)

    def __repr__(self) -> str:
        words = [f"{self.radius}"]
        plain = {"border": "cut", "dilation": 1, "stride": 1, "is_causal": False}
        for name, value in plain.items():
            if getattr(self, name) != value:
                words.append(f"{name}={getattr(self, name)!r}")
        return f"Neighborhood({', '.join(words)})"


def _regular_neighbors(space: Space, radii: tuple[float, ...]) -> PairList:
    """All pairs of a full sequence or grid at most `radii` apart, axis by axis."""
    assert space.coordinates is not None and space.size is not None
    wrap = space.wrap or (False,) * len(radii)
    # Around an axis that wraps, half way and no more, so that no key comes twice
    sides = zip(space.size, wrap, strict=True)
    ends = [((n - 1) // 2, n // 2) if wraps else (n, n) for n, wraps in sides]
    back, ahead = (
        constant([int(min(r, end[side])) for r, end in zip(radii, ends, strict=True)], space.device)
        for side in (0, 1)
    )
    at = space.coordinates
    windows = at - back, at + ahead
    return pairs_in_windows(space, *windows, (1,) * len(radii))
