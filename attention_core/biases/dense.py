"""Scores that are given pair by pair."""

from __future__ import annotations

from torch import Tensor

from attention_core.biases.base import Bias
from attention_core.masks.pairwise import check_pairwise, take_pairwise
from attention_core.spaces import Pairs


class DenseBias(Bias):
    """Any bias, given pair by pair; it speaks for special tokens too.

    Args:
        tensor: float, (Lq, Lk), or (B, H, Lq, Lk) where any size may be 1. It may require a
            gradient; given as `nn.Parameter` it is a parameter of this module.
    """

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        if not isinstance(tensor, Tensor):
            raise TypeError(f"bias must be a float tensor, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(f"bias must be float, got {tensor.dtype}; a bool tensor is a mask")
        check_pairwise(tensor, "bias")
        self.tensor = tensor

    def tensors(self) -> list[Tensor]:
        return [self.tensor]

    @property
    def depends_on_others(self) -> bool:
        return True  # of all tokens, in their order

    def forward(self, pairs: Pairs) -> Tensor:
        return take_pairwise(self.tensor, pairs, "bias")


def as_bias(bias: Bias | Tensor | None) -> Bias | None:
    """Make a `DenseBias` of a float tensor; anything else that is no bias raises TypeError."""
    if bias is None or isinstance(bias, Bias):
        return bias
    if isinstance(bias, Tensor):
        return DenseBias(bias)
    raise TypeError(f"bias must be a Bias or a float tensor, got {type(bias).__name__}")
