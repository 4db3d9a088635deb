"""Tokens on an n-dimensional grid: whole or packed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor

from attention_core.spaces.base import Space
from attention_core.spaces.packing import (
    first_special,
    packed,
    unravel,
)


class Grid(Space):
    """Tokens on an n-dimensional grid, row-major (the last axis runs fastest).

    Distance is the Chebyshev distance: a radius is a square, cut at the border.

    Args:
        size: extent of each axis, as `Grid(height, width)` or `Grid(depth, height, width)`.
        special: tokens in front that sit nowhere.
    """

    ordered = True

    def __init__(self, *size: int, special: int = 0, device: torch.device | str = "cpu") -> None:
        if not size or any(not isinstance(n, int) or n < 0 for n in size):
            raise ValueError(f"Grid takes the extent of each axis as whole numbers, got {size}")
        length = math.prod(size) + special
        at = torch.arange(-special, math.prod(size), device=device)
        super().__init__(
            length,
            coordinates=unravel(at, [size], None),
            special=first_special(special, length, device),
        )
        self.size, self.start = size, (0,) * len(size)

    @classmethod
    def packed(
        cls,
        sizes: Iterable[tuple[int, ...]],
        *,
        special: int = 0,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Grids of different sizes in one row of tokens, each with its own special tokens."""
        sizes = [tuple(size) for size in sizes]
        if len({len(size) for size in sizes}) != 1:
            raise ValueError(f"packed grids need one number of axes, got sizes {sizes}")
        counts = torch.tensor([math.prod(size) for size in sizes], device=device)
        segments, within = packed(counts, special)
        new = cls(*(0,) * len(sizes[0]), device=device)
        Space.__init__(
            new,
            len(within),
            coordinates=unravel(within, sizes, segments),
            segments=segments,
            special=within < 0 if special else None,
        )
        new.num_segments = len(sizes)
        return new

    def norm(self, offset: Tensor) -> Tensor:
        return offset.abs().amax(-1)

    def describe(self) -> str:
        extent = f"a {'×'.join(map(str, self.size))} grid, " if self.size else "grids, "
        return self._describe(f"{extent}{self.length:,} tokens")
