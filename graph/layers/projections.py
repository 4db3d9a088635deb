"""Linear layers of attention, whose input size may be left to the first input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from attention_core.checks import check_whole


class _LazyProjection(nn.LazyLinear):
    """A linear layer from its first input on, which begins as the others do."""

    def reset_parameters(self) -> None:
        start(self)


def projection(size: int, out: int, bias: bool = True) -> nn.Linear:
    """Make a linear layer of `size` numbers to `out`, to `start`; -1 is the first input's size."""
    return _LazyProjection(out, bias) if size == -1 else nn.Linear(size, out, bias)


def check_size(name: str, size: Any) -> None:
    """Raise TypeError or ValueError where a size, or one of a pair or mapping, is no whole number
    of at least 1, and not the -1 that leaves it to the first input."""
    several = isinstance(size, Mapping | tuple | list)
    if isinstance(size, tuple | list) and len(size) != 2:
        raise ValueError(f"{name} must be one size, or (of a source, of a target), got {size}")
    for one in (size.values() if isinstance(size, Mapping) else size) if several else [size]:
        check_whole(-1, **{name: one})
        if one < 1 and one != -1:
            raise ValueError(
                f"{name} must be at least 1, or -1 for that of the first input, got {size}"
            )


def size_in(linear: nn.Linear) -> int:
    """Return how many numbers it takes; -1 while no input has told."""
    # Not `is_lazy`, which a program that is compiled takes for an operation
    lazy = isinstance(linear.weight, nn.UninitializedParameter)
    return -1 if lazy else linear.weight.shape[1]


def start(linear: nn.Linear) -> None:
    """Draw Xavier's uniform weights, without a bias; later, where there are none yet."""
    if is_lazy(linear.weight) or not linear.weight.numel():
        return
    nn.init.xavier_uniform_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def reset(module: nn.Module) -> None:
    """Draw all that is learned anew. Inner parts come first, for what contains them may have a
    beginning of its own for them."""
    for part in reversed(list(module.modules())):
        begin = getattr(part, "reset_parameters", None)
        if callable(begin):
            begin()
