"""Tokens: learned ones, which a model puts beside those of its input, and the order of all."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def learned_tokens(count: int, dim: int, std: float) -> nn.Parameter | nn.Buffer:
    """Draw tokens (count, dim) with this standard deviation, to be set as a module's attribute.

    Where there are none it is a buffer: it keeps its name in a state dict, while a parameter that
    never gets a gradient stops DDP at the second step, and FSDP cannot cut an empty one.
    """
    tokens = torch.empty(count, dim)
    nn.init.normal_(tokens, std=std)
    return nn.Parameter(tokens) if count else nn.Buffer(tokens)


def taken_in(x: Tensor, order: Tensor) -> Tensor:
    """Return tokens x, (B, L, D) or (T, D), in an order (L,), or of each sample its own, (B, L)."""
    if order.ndim == 1:
        return x.index_select(-2, order)
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))
