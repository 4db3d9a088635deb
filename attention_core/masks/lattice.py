"""Masks that repeat over a space: windows and dilations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attention_core.checks import check_whole_each
from attention_core.masks.algebra import Mask, Spaces, tuples
from attention_core.masks.axes import along, check_axes, check_fits, chosen_axes, listed
from attention_core.spaces import BlockKey, Pairs, Space, TilePairs, TileStatus
from attention_core.spaces.tiles import coordinates
from attention_core.transfer import constant


@dataclass(frozen=True)
class Window(Mask):
    """Attend within one's window; windows tile the space (Liu et al., Swin, 2021)::

        Window(2)      Window(2, shift=1)
        ■ ■ · ·        ■ · · ·
        ■ ■ · ·        · ■ ■ ·
        · · ■ ■        · ■ ■ ·
        · · ■ ■        · · · ■

    A shift moves the tiling towards the end; what it cuts off at the border stays a window of its
    own, which is what rolling, partitioning and masking the seam does in the paper. Along an axis
    that wraps, which windows have to fit, it is one window with what comes in at the other end.

    Args:
        size: window size, one number or one per axis.
        shift: how far the tiling is moved, one number or one per axis.
    """

    size: int | tuple[int, ...]
    shift: int | tuple[int, ...] = 0

    def __post_init__(self) -> None:
        tuples(self, "size", "shift")
        check_whole_each(size=self.size if isinstance(self.size, tuple) else (self.size,))
        shifts = self.shift if isinstance(self.shift, tuple) else (self.shift,)
        check_whole_each(None, shift=shifts)

    def allowed(self, pairs: Pairs) -> Tensor:
        pairs.offset  # noqa: B018  raises where query and key have no common axes
        query, key = (
            pairs.pick(self._windows(space), side, dims=2)
            for space, side in zip(pairs.spaces, ("query", "key"), strict=True)
        )
        return (query == key).all(-1)

    def _windows(self, space: Space) -> Tensor:
        """The number of each token's window along each axis, (L, A) or (B, L, A)."""
        _check_axes(space, size=self.size, shift=self.shift)
        at, period = coordinates(space), space.period
        size, shift = (constant(n, at.device) for n in (self.size, self.shift))
        windows = torch.div(at - shift, size, rounding_mode="floor")
        if period is None:
            return windows
        check_fits(space, "size", self.size)
        around = torch.div(period, size, rounding_mode="floor").clamp(min=1)
        return torch.where(period > 0, windows % around, windows)

    def tile_status(self, tiles: TilePairs) -> TileStatus:
        tiles.offset  # noqa: B018  raises as `allowed` does
        return tiles.equal(self, self._windows)

    def block_key(self, space: Space) -> BlockKey | None:
        return BlockKey(relative=(self._windows(space).long(),))

    def partition(self, space: Space) -> Tensor | None:
        return self._windows(space).long()

    @property
    def lookback(self) -> float:
        return (max(self.size) if isinstance(self.size, tuple) else self.size) - 1

    def count_bound(self, spaces: Spaces) -> float:
        if not (spaces[1].ordered or any(spaces[1].wrap)):
            return math.inf
        sizes = self.size if isinstance(self.size, tuple) else (self.size,) * spaces[1].axes
        return spaces[0].length * math.prod(sizes)

    def __repr__(self) -> str:
        return f"Window({self.size}{f', shift={self.shift}' if self.shift else ''})"


@dataclass(frozen=True)
class Dilated(Mask):
    """Attend at offsets that are multiples of `step` along each axis (Child et al., 2019)::

        Dilated(2)
        ■ · ■ ·
        · ■ · ■
        ■ · ■ ·
        · ■ · ■

    With a reach: ``Dilated(2) & Neighborhood(6)``.

    Args:
        step: one number, or one per axis (of `axes`, where they are given).
        axes: only along this axis, or these; wherever it is along the others. -1 is the last.
    """

    step: int | tuple[int, ...]
    axes: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        tuples(self, "step", "axes")
        check_whole_each(step=listed(self.step))
        check_axes(self.axes)

    def allowed(self, pairs: Pairs) -> Tensor:
        offset = pairs.offset
        axes, steps = self._steps(pairs.spaces[1])
        return (along(offset, axes) % steps == 0).all(-1)

    def _steps(self, space: Space) -> tuple[list[int], Tensor]:
        """The axes that have a step, and the (A,) steps."""
        axes = chosen_axes(self.axes, space)
        if isinstance(self.step, tuple) and len(self.step) != len(axes):
            of = space.describe() if self.axes is None else f"axes={self.axes}"
            raise ValueError(f"step={self.step} needs one number per axis of {of}")
        check_fits(space, "step", self.step, axes)
        return axes, constant(self.step, space.device)

    def _remainders(self, space: Space) -> Tensor:
        axes, steps = self._steps(space)
        return along(coordinates(space), axes) % steps

    def count_bound(self, spaces: Spaces) -> float:
        query, key = spaces
        size = key.size
        if size is None or len(size) != key.axes or math.prod(size) != key.length - key.num_special:
            return math.inf  # many tokens may sit in one place
        axes, steps = self._steps(key)
        seen = dict(zip(axes, steps.expand(len(axes)).tolist(), strict=True))
        return query.length * math.prod(-(-n // seen.get(axis, 1)) for axis, n in enumerate(size))

    def tile_status(self, tiles: TilePairs) -> TileStatus:
        tiles.offset  # noqa: B018  raises as `allowed` does
        if tiles.offset.low.is_floating_point():  # remainders are rounded, too
            return super().tile_status(tiles)
        return tiles.equal(self, self._remainders)

    def block_key(self, space: Space) -> BlockKey | None:
        return BlockKey.of_place(space)

    def partition(self, space: Space) -> Tensor | None:
        remainders = self._remainders(space)
        return None if remainders.is_floating_point() else remainders

    def __repr__(self) -> str:
        return f"Dilated({self.step}{'' if self.axes is None else f', axes={self.axes}'})"


def _check_axes(space: Space, **values: int | tuple[int, ...]) -> None:
    for name, value in values.items():
        if isinstance(value, tuple) and len(value) != space.axes:
            raise ValueError(f"{name}={value} needs one number per axis of {space.describe()}")
