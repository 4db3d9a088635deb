"""Masks of reading order: causal, and causal after a prefix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attention_core.checks import check_whole
from attention_core.masks.algebra import Mask, Spaces, tuples
from attention_core.masks.axes import along, check_axes, chosen_axes
from attention_core.spaces import BlockKey, Pairs, Space, TilePairs, TileStatus
from attention_core.spaces.tiles import coordinates
from attention_core.transfer import constant


@dataclass(frozen=True)
class Causal(Mask):
    """Attend to oneself and what comes before, in reading order; a Grid reads row by row::

        Causal()     on a Grid(2, 2): Causal(axes=0)
        ■ · · ·      ■ ■ · ·
        ■ ■ · ·      ■ ■ · ·
        ■ ■ ■ ·      ■ ■ ■ ■
        ■ ■ ■ ■      ■ ■ ■ ■

    Args:
        axes: what comes before along this axis, or along each of these, wherever it is along the
            others: on the Grid(time, height, width) of a video, 0 sees every place of this frame
            and of those before. -1 is the last axis.
    """

    axes: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        tuples(self, "axes")
        check_axes(self.axes)

    def allowed(self, pairs: Pairs) -> Tensor:
        if self.axes is None:
            return pairs.precedes
        offset = pairs.offset
        return (along(offset, self._chosen(pairs.spaces[1])) <= 0).all(-1)

    def _chosen(self, space: Space) -> list[int]:
        axes = chosen_axes(self.axes, space)
        wraps = [axis for axis in axes if space.wrap and space.wrap[axis]]
        if wraps:
            raise TypeError(f"Causal(axes={self.axes}): there is no order in {space.describe()}")
        return axes

    def allows_all(self, spaces: Spaces) -> bool:
        query, key = spaces
        if not (query.ordered and query.size and key.size and type(query) is type(key)):
            return False
        if self.axes is None and len(key.size) > 1:
            return False
        return all(
            query.start[axis] >= key.start[axis] + key.size[axis] - 1 for axis in self._chosen(key)
        )

    def count_bound(self, spaces: Spaces) -> float:
        return math.inf if self.axes is not None else _count_before(spaces)

    def tile_status(self, tiles: TilePairs) -> TileStatus:
        if self.axes is None:
            return tiles.precedes
        low, high = tiles.offset
        axes = self._chosen(tiles.spaces[1])
        return TileStatus((along(low, axes) <= 0).all(-1), (along(high, axes) <= 0).all(-1))

    def block_key(self, space: Space) -> BlockKey | None:
        return BlockKey.of_place(space)

    def __repr__(self) -> str:
        return f"Causal({'' if self.axes is None else f'axes={self.axes}'})"


@dataclass(frozen=True, eq=False)
class PrefixLM(Mask):
    """Attend to the first `n` places and to what comes before (Raffel et al., T5, 2020)::

        PrefixLM(2)
        ■ ■ · ·
        ■ ■ · ·
        ■ ■ ■ ·
        ■ ■ ■ ■

    Args:
        n: prefix length on a Sequence, or (samples,) integers, one for each sample.
    """

    n: int | Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.n, Tensor):
            check_whole(0, n=self.n)
        elif self.n.ndim != 1 or self.n.is_floating_point() or self.n.dtype == torch.bool:
            raise ValueError(
                "n must be a whole number, or integers (samples,), got "
                f"{self.n.dtype} {tuple(self.n.shape)}"
            )

    def allowed(self, pairs: Pairs) -> Tensor:
        if pairs.spaces[1].axes != 1:
            raise TypeError(f"PrefixLM needs a Sequence, got {pairs.spaces[1].describe()}")
        n = self.n
        if isinstance(n, Tensor):
            query = pairs.spaces[0]
            samples = pairs.shape[0] if query.segments is None else query.num_segments
            if n.shape != (samples,):
                raise ValueError(
                    f"n must be a number or one for each of {samples} samples, got {tuple(n.shape)}"
                )
            n = n.to(pairs.batch.device)[pairs.sample]
        return pairs.precedes | (pairs.take("coordinates", "key").squeeze(-1) < n)

    def count_bound(self, spaces: Spaces) -> float:
        if isinstance(self.n, Tensor):
            return math.inf
        return _count_before(spaces) + spaces[0].length * self.n

    def tile_status(self, tiles: TilePairs) -> TileStatus:
        # One prefix for each sample is at least the shortest and at most the longest
        device = tiles.at[0].device
        n = self.n.to(device) if isinstance(self.n, Tensor) else constant(self.n, device)
        ends = n.aminmax()
        _, key = tiles.spans("coordinates", coordinates)
        some, every = tiles.precedes
        return TileStatus(
            some | (key.low.squeeze(-1) < ends.max), every | (key.high.squeeze(-1) < ends.min)
        )

    def block_key(self, space: Space) -> BlockKey | None:
        place = BlockKey.of_place(space)
        if isinstance(self.n, Tensor) or place is None:
            return None
        return place._replace(absolute=(place.relative[0] < self.n,))

    def __repr__(self) -> str:
        return f"PrefixLM({self.n if isinstance(self.n, int) else '...'})"


def _count_before(spaces: Spaces) -> float:
    """At most how many pairs of a query and a key at its place or before it there are."""
    query, key = spaces
    if query is not key or not key.size or math.prod(key.size) != key.length - key.num_special:
        return math.inf  # many tokens may sit in one place
    return math.prod(key.size) * (math.prod(key.size) + 1) / 2
