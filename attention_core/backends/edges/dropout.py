"""Which weights dropout keeps, drawn from a seed: what the Triton kernels draw, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = (1 << 32) - 1
#: Of Philox4x32 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011).
_KEYS, _FACTORS, _ROUNDS = (0x9E3779B9, 0xBB67AE85), (0xD2511F53, 0xCD9E8D57), 10


def limit(grow: float) -> int:
    """Return below which of the numbers up to 2³² a weight is kept, where 1 / grow of them are."""
    return min(round(2**32 / grow), 2**32)


def kept(seed: Tensor, heads: int, pairs: int, grow: float) -> Tensor:
    """Draw the weights that are kept, (H, E) bool, with a chance of 1 / grow.

    Args:
        seed: (1,) int64.
    """
    pair = torch.arange(pairs, device=seed.device).expand(heads, -1)
    head = torch.arange(heads, device=seed.device)[:, None].expand(-1, pairs)
    return philox(seed, (pair & _MASK, pair >> 32, head, torch.zeros_like(pair))) < limit(grow)


def philox(seed: Tensor, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Compute the first of the four 32-bit numbers of Philox4x32-10, as int64.

    Args:
        seed: int64, of which each half is a key.
        counter: four int64 tensors of 32-bit numbers.
    """
    a, b, c, d = counter
    keys = [seed & _MASK, (seed >> 32) & _MASK]
    for _ in range(_ROUNDS):
        (high_a, low_a), (high_c, low_c) = _product(a, _FACTORS[0]), _product(c, _FACTORS[1])
        a, b, c, d = high_c ^ b ^ keys[0], low_c, high_a ^ d ^ keys[1], low_a
        keys = [(key + step) & _MASK for key, step in zip(keys, _KEYS, strict=True)]
    return a


def _product(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """The upper and the lower 32 bits of a product of 32-bit numbers, in int64 of 63 bits."""
    by_high, by_low = (x >> 16) * factor, (x & 0xFFFF) * factor
    return (by_high + (by_low >> 16)) >> 16, ((by_high << 16) + by_low) & _MASK
