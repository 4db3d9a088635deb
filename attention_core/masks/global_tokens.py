"""Tokens that see and are seen by all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attention_core.checks import check_whole
from attention_core.masks.algebra import Mask, Spaces
from attention_core.spaces import BlockKey, Graph, Pairs, Space, TilePairs, TileStatus


class GlobalTokens(Mask):
    """Tokens that attend everywhere and are attended by everyone (Beltagy et al., 2020)::

        GlobalTokens(1)
        · ■ · ·
        ■ ■ ■ ■
        · ■ · ·
        · ■ · ·

    Usually added to a local mask: ``Neighborhood(64) | GlobalTokens(0)``.

    Args:
        positions: places on a Sequence, nodes of a Graph, or tuples of coordinates on a Grid.
    """

    # No dataclass: those that cast what they hold, as FSDP2 does, make them anew by keywords

    def __init__(self, *positions: int | tuple[int, ...]) -> None:
        places = tuple(tuple(p) if isinstance(p, tuple | list) else p for p in positions)
        for place in places:
            for number in place if isinstance(place, tuple) else (place,):
                check_whole(0, position=number)
        self.positions: tuple[int | tuple[int, ...], ...] = places

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GlobalTokens) and self.positions == other.positions

    def __hash__(self) -> int:
        return hash((GlobalTokens, self.positions))

    def allowed(self, pairs: Pairs) -> Tensor:
        self._check(*pairs.spaces)
        query, key = (
            pairs.pick(self._are_global(space), side, dims=1)
            for space, side in zip(pairs.spaces, ("query", "key"), strict=True)
        )
        return query | key

    def _are_global(self, space: Space) -> Tensor:
        """Return whether each token sits at a position of the mask, bool (L,) or (B, L)."""
        found = torch.zeros(space.length, dtype=torch.bool, device=space.device)
        for position in self.positions:
            found = found | space.sits_at(position)
        return found

    def _check(self, query: Space, key: Space) -> None:
        """Raises ValueError where the tokens are all there, and none of the positions is."""
        # In decoding they may come or be gone
        if query is not key or not self.positions:
            return
        if isinstance(key, Graph):
            sizes: tuple[int, ...] | None = (key.num_nodes,)
        else:
            sizes = key.size if len(key.size or ()) == key.axes else None
        if sizes is None or not all(isinstance(n, int) for n in (*sizes, *key.start)):
            return
        if 0 in sizes:  # none is there, but for special ones
            return
        ends = [n + start for n, start in zip(sizes, key.start or (0,), strict=True)]
        for position in self.positions:
            place = position if isinstance(position, tuple) else (position,)
            if len(place) != len(ends) or all(n < end for n, end in zip(place, ends, strict=True)):
                return
        raise ValueError(
            f"{self} names no token of {key.describe()}: places end before {tuple(ends)}"
        )

    def count_bound(self, spaces: Spaces) -> float:
        if torch.compiler.is_compiling():  # a program cannot look
            return math.inf
        query, key = (self._are_global(space) for space in spaces)
        rows = query.sum(-1) * spaces[1].length + key.sum(-1) * spaces[0].length
        return float(rows.max()) if rows.ndim else float(rows)

    def tile_status(self, tiles: TilePairs) -> TileStatus:
        return tiles.either(self, self._are_global)

    def block_key(self, space: Space) -> BlockKey | None:
        return BlockKey(absolute=(self._are_global(space)[..., None],))

    def __repr__(self) -> str:
        return f"GlobalTokens({', '.join(map(str, self.positions))})"
