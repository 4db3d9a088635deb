"""Tokens on an n-dimensional grid: whole, padded or packed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from attention_core.annotated import checked
from attention_core.checks import check_dense, check_whole, check_whole_each, is_whole
from attention_core.errors import counted
from attention_core.lasting import can_last, lasting
from attention_core.spaces.base import Space
from attention_core.spaces.origin import made_elsewhere
from attention_core.spaces.packing import (
    first_special,
    packed,
    unravel,
)
from attention_core.transfer import constant, indexed

#: Grids of fewer tokens, whose coordinates are remembered.
_FEW = 1 << 14


class Grid(Space):
    """Tokens on an n-dimensional grid, row-major (the last axis runs fastest).

    Distance is the Chebyshev distance: a radius is a square, cut at the border.

    An axis may wrap, as longitudes do on a map of the globe, and all axes of a crystal's cell.
    There `pairs.offset` is that of the nearest image of the key (half way round it is positive),
    and distances, masks and biases follow. Such an axis has no order, and positions that are not
    of pairs, such as `Sinusoidal`, have a seam along it.

    Args:
        size: extent of each axis, as `Grid(height, width)` or `Grid(depth, height, width)`.
        wrap: whether the axes wrap, one bool or one per axis.
        special: tokens in front that sit nowhere.
    """

    ordered = True
    chebyshev = True
    _DIFFERS = Space._DIFFERS | {"sizes", "ordered"}

    @lasting
    def __init__(
        self,
        *size: int,
        wrap: bool | Iterable[bool] = False,
        special: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if not size or any(isinstance(n, bool) or not is_whole(n) or n < 0 for n in size):
            raise ValueError(f"size must be the extent of each axis as whole numbers, got {size}")
        check_whole(0, special=special)
        #: The size of each sample's grid, or the one of all; it stays when tokens are dropped.
        self.sizes: tuple[tuple[int, ...], ...] = (size,)
        length = math.prod(size) + special
        super().__init__(
            length,
            coordinates=_places(tuple(map(int, size)), special, indexed(device))
            if can_last() and length < _FEW
            else _new_places(size, special, device),
            special=first_special(special, length, device),
        )
        self.size, self.start = size, (0,) * len(size)
        self.wrap = _wrap(wrap, len(size))
        self.ordered = not any(self.wrap)
        if made_elsewhere(device) and type(self) is Grid:
            wraps = self.wrap
            self.keep_host(lambda: Grid(*size, wrap=wraps, special=special))

    @classmethod
    @lasting
    @checked
    def packed(
        cls,
        sizes: Iterable[tuple[int, ...]],
        *,
        wrap: bool | Iterable[bool] = False,
        special: int = 0,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Make one row of tokens of grids of different sizes, each with its own special tokens."""
        check_whole(0, special=special)
        sizes = _sizes(sizes)
        if made_elsewhere(device):
            return cls.packed(sizes, wrap=wrap, special=special).to(device)
        counts = torch.tensor([math.prod(size) for size in sizes], device=device)
        segments, within = packed(counts, special)
        new = cls(*(0,) * len(sizes[0]), wrap=wrap, device=device)
        new.sizes = sizes
        Space.__init__(
            new,
            len(within),
            coordinates=unravel(within, _extents(sizes, device)[segments]),
            segments=segments,
            special=within < 0 if special else None,
        )
        new.num_segments = len(sizes)
        return new

    @classmethod
    @lasting
    @checked
    def padded(
        cls,
        sizes: Iterable[tuple[int, ...]],
        *,
        wrap: bool | Iterable[bool] = False,
        special: int = 0,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Make a batch (B, L) of grids of different sizes, each a row with padding behind."""
        check_whole(0, special=special)
        sizes = _sizes(sizes)
        if made_elsewhere(device):
            return cls.padded(sizes, wrap=wrap, special=special).to(device)
        counts = torch.tensor([math.prod(size) for size in sizes], device=device)
        length = max(math.prod(size) for size in sizes)
        new = cls(*(0,) * len(sizes[0]), wrap=wrap, device=device)
        new.sizes = sizes
        at = torch.arange(-special, length, device=device).expand(len(sizes), -1)
        valid = at < counts[:, None]
        Space.__init__(
            new,
            length + special,
            coordinates=unravel(at.where(valid, 0), _extents(sizes, device)[:, None]),
            valid=valid,
            special=first_special(special, length + special, device),
        )
        return new

    @property
    def extent(self) -> Tensor | None:
        return self.of_sample(_extents(self.sizes, self.device)) if self.sizes else None

    @property
    def period(self) -> Tensor | None:
        if not any(self.wrap):
            return None
        extents = _extents(self.sizes, self.device)
        period = self.of_sample(extents * constant(self.wrap, self.device))
        if period.ndim < 3:
            return period
        return period.expand(-1, self.length, -1)

    def of_sample(self, values: Tensor) -> Tensor:
        """Return for each token the row of its sample in `values` (samples, ...), one for each of
        `sizes`: (L, ...), (B, L, ...) or what broadcasts to them."""
        if len(self.sizes) == 1:
            return values[0]
        return values[:, None] if self.segments is None else values[self.segments]

    def _appended(self, other: Self) -> Self:
        new = super()._appended(other)
        if self.sizes != other.sizes:
            new.sizes = new._unknown_sizes("append")
        return new

    def _unknown_sizes(self, what: str) -> tuple[tuple[int, ...], ...]:
        if any(self.wrap):
            raise TypeError(f"cannot {what} grids that wrap at different places: {self.describe()}")
        return ()

    def _hold_packed(self, spaces: list[Self]) -> None:
        super()._hold_packed(spaces)
        if not all(len(space.sizes) in (1, space.num_segments) for space in spaces):
            self.sizes = self._unknown_sizes("pack")
            return
        self.sizes = ()
        for space in spaces:
            self.sizes += space.sizes * (space.num_segments // max(len(space.sizes), 1))

    def norm(self, offset: Tensor) -> Tensor:
        return offset.abs().amax(-1)

    def describe(self) -> str:
        extent = f"a {'×'.join(map(str, self.size))} grid" if self.size else "grids"
        if any(self.wrap):
            axes = [str(axis) for axis, wraps in enumerate(self.wrap) if wraps]
            verb = "wraps" if self.size else "wrap"
            extent += f" that {verb} along {'axis' if len(axes) == 1 else 'axes'} {', '.join(axes)}"
        return self._describe(f"{extent}, {counted(self.length, 'token')}")


def _sizes(sizes: Iterable[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    if isinstance(sizes, Tensor):
        check_dense(sizes=sizes)
        if sizes.ndim != 2:
            raise ValueError(f"sizes must be those of each grid, (B, A), got {tuple(sizes.shape)}")
        sizes = sizes.tolist()
    given, sizes = sizes, ()
    for size in given:
        if not isinstance(size, Iterable) or isinstance(size, Tensor):
            raise TypeError(f"sizes must be a list of the extents of each grid, got {size!r:.80}")
        sizes += (tuple(size),)
        check_whole_each(0, sizes=sizes[-1])
    if len({len(size) for size in sizes}) != 1:
        raise ValueError(
            f"sizes of grids in one row or batch need one number of axes, got {list(sizes)}"
        )
    return sizes


def _wrap(wrap: bool | Iterable[bool], axes: int) -> tuple[bool, ...]:
    given = tuple(wrap) if isinstance(wrap, Iterable) else (wrap,) * axes
    if any(not isinstance(one, bool) for one in given):
        raise TypeError(f"wrap must be True or False, or one of them per axis, got {wrap!r:.80}")
    if len(given) != axes:
        raise ValueError(f"wrap={given} is for {len(given)} axes, the grid has {axes}")
    return given


def _new_places(size: tuple[int, ...], special: int, device: torch.device | str) -> Tensor:
    """(L, A): the coordinates of all places in order, and 0 for special tokens in front."""
    at = torch.arange(-special, math.prod(size), device=device)
    return unravel(at, _extents((size,), device)[0])


@lru_cache(maxsize=64)
def _kept_places(size: tuple[int, ...], special: int, device: torch.device) -> Tensor:
    return _new_places(size, special, device)


def _places(size: tuple[int, ...], special: int, device: torch.device) -> Tensor:
    """`_new_places`, computed once: models make a grid of one size anew in each forward pass."""
    return _kept_places(size, special, device).clone()


def _extents(sizes: tuple[tuple[int, ...], ...], device: torch.device | str) -> Tensor:
    """(samples, A); at least 1, so that nothing is divided by zero."""
    return constant(sizes, torch.device(device)).clamp(min=1)
