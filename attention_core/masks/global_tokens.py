"""Tokens that see and are seen by all."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from attention_core.masks.algebra import Mask
from attention_core.spaces import Pairs


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
        found = torch.zeros((), dtype=torch.bool, device=pairs.query.device)
        for position, (side, space) in product(
            self.positions, zip(("query", "key"), pairs.spaces, strict=True)
        ):
            found = found | space.matches(pairs, side, position)
        return found

    def __repr__(self) -> str:
        return f"GlobalTokens({', '.join(map(str, self.positions))})"
