"""Masks given pair by pair, and what such tensors may look like."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attention_core.masks.algebra import Mask
from attention_core.spaces import Pairs, Reach, TilePairs


def as_mask(mask: Mask | Tensor | None) -> Mask | None:
    """A bool tensor becomes a `DenseMask`; anything else that is no mask raises TypeError."""
    if mask is None or isinstance(mask, Mask):
        return mask
    if isinstance(mask, Tensor):
        return DenseMask(mask)
    raise TypeError(f"mask must be a Mask or a bool tensor, got {type(mask).__name__}")


@dataclass(frozen=True, eq=False)
class DenseMask(Mask):
    """Any mask, given pair by pair. It speaks for special tokens too, which exempts no one.

    Args:
        tensor: bool, (Lq, Lk), or (B, H, Lq, Lk) where any size may be 1. (B, Lk) and
            three dimensions are ambiguous and refused; padding is `Sequence.padded(lengths)`.
    """

    tensor: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.tensor, Tensor):
            raise TypeError(f"mask must be a bool tensor, got {type(self.tensor).__name__}")
        check_bool(self.tensor, "mask")
        check_pairwise(self.tensor, "mask")

    def at(self, pairs: Pairs, exempt: bool = True) -> Tensor:
        return self.allowed(pairs)

    def reach_at(self, tiles: TilePairs, exempt: bool = True) -> Reach:
        return self.reach(tiles)

    def allowed(self, pairs: Pairs) -> Tensor:
        return take_pairwise(self.tensor, pairs, "mask")

    def __repr__(self) -> str:
        return f"DenseMask({'×'.join(map(str, self.tensor.shape))})"


def check_bool(mask: Tensor, name: str) -> None:
    if mask.dtype != torch.bool:
        raise TypeError(
            f"{name} must be bool (True: may attend), got {mask.dtype}; scores to add belong in "
            "bias=DenseBias(...)"
        )


def check_pairwise(tensor: Tensor, name: str) -> None:
    """Refuse shapes that do not say which dimension is which."""
    if tensor.ndim not in (2, 4):
        raise ValueError(
            f"{name} must have shape (Lq, Lk) or (B, H, Lq, Lk), got {tuple(tensor.shape)}, which "
            "is ambiguous: put a 1 where the batch or the heads are missing"
        )


def take_pairwise(tensor: Tensor, pairs: Pairs, name: str) -> Tensor:
    """The entries of a (Lq, Lk) or (B, H, Lq, Lk) tensor at `pairs`; sizes of 1 broadcast."""
    have, want = tuple(tensor.shape), pairs.shape
    if have != want[2:]:
        if tensor.ndim == 2 or any(n not in (1, size) for n, size in zip(have, want, strict=True)):
            raise ValueError(
                f"{name} has shape {have}, but attention has (B, H, Lq, Lk) = {want}; what depends "
                "on the key alone is padding: see Sequence.padded(lengths)"
            )
    else:
        tensor = tensor[None, None]
    if pairs.whole:
        return tensor.to(pairs.key.device)
    indices = (pairs.batch, pairs.head, pairs.query, pairs.key)
    at = [torch.zeros_like(i) if n == 1 else i for i, n in zip(indices, tensor.shape, strict=True)]
    return tensor.to(pairs.key.device)[tuple(at)]
