"""The type that the products of an attention are computed in: what fast kernels depend on."""

from __future__ import annotations

import torch
from torch import Tensor

#: Types of half the bits: what is summed of their products is float32.
HALVES = (torch.bfloat16, torch.float16)


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of queries made of x by a linear layer, or of x as they are: that of x, or
    autocast's, which leaves float64 alone."""
    if x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
