"""Tokens that see and are seen by all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attention_core.masks.algebra import Mask
from attention_core.spaces import Pairs, Reach, Space, TilePairs, Traits


@dataclass(frozen=True, init=False)
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

    positions: tuple[int | tuple[int, ...], ...]

    def __init__(self, *positions: int | tuple[int, ...]) -> None:
        places = (p if isinstance(p, int) else tuple(p) for p in positions)
        object.__setattr__(self, "positions", tuple(places))

    def allowed(self, pairs: Pairs) -> Tensor:
        query, key = (
            pairs.pick(self._are_global(space), side, dims=1)
            for space, side in zip(pairs.spaces, ("query", "key"), strict=True)
        )
        return query | key

    def _are_global(self, space: Space) -> Tensor:
        """Of each token, (L,) or (B, L)."""
        found = torch.zeros(space.length, dtype=torch.bool, device=space.device)
        for position in self.positions:
            found = found | space.sits_at(position)
        return found

    def reach(self, tiles: TilePairs) -> Reach:
        return tiles.either(self, self._are_global)

    def traits(self, space: Space) -> Traits | None:
        return Traits(absolute=(self._are_global(space)[..., None],))

    def __repr__(self) -> str:
        return f"GlobalTokens({', '.join(map(str, self.positions))})"
