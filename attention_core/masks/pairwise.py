"""Tensors that hold a value for each pair: which shapes they may have, and how they are read."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_core.spaces import Pairs


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
    """Take the entries of a (Lq, Lk) or (B, H, Lq, Lk) tensor at `pairs`; sizes of 1 broadcast."""
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
