"""Whether numbers are finite, as far as that can be looked at."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from attention_core.backends.derivatives import transformed
from attention_core.checks import may_look


def can_look(x: Tensor) -> bool:
    """Return whether numbers can be looked at, at no cost but that of reading them."""
    return may_look(x) and not transformed()


#: An attribute of tensors whose numbers have been looked at before.
_KNOWN = "_attention_core_finite"


def mark_finite(*tensors: Tensor) -> None:
    """Have `all_finite` not look at these tensors, of which it is known."""
    for x in tensors:
        setattr(x, _KNOWN, True)


def all_finite(*tensors: Tensor) -> bool:
    """Return False where a number may be NaN or infinite, as far as that can be looked at.

    Only a CPU is looked at, as another device would have to be waited for, and not in a program
    that is compiled, exported or transformed.
    """
    if not can_look(tensors[0]):
        return True
    # A sum is not finite if a number is not, and reads as fast as memory; one that overflows is
    # looked at more closely by `isolated`
    for x in tensors:
        kind = type(x)
        if (kind is not Tensor and kind is not nn.Parameter) or getattr(x, _KNOWN, False):
            continue
        if x.requires_grad:
            x = x.detach()
        if not math.isfinite(x.sum(dtype=torch.float32) if x.dtype.itemsize < 4 else x.sum()):
            return False
    return True
