"""A penalty for distance, with nothing to learn."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attention_core.annotated import checked
from attention_core.biases.base import Bias
from attention_core.checks import check_whole
from attention_core.spaces import BlockKey, Pairs, Space
from attention_core.transfer import constant


class ALiBi(Bias):
    """A penalty proportional to distance (Press et al., ALiBi, 2022): ``-slope[head] · distance``.

    Slopes are 2^(-8/H), 2^(-16/H), ...; for H not a power of two, those of the next lower power
    and then every other one of its double, as published. Unconnected nodes of a graph are
    infinitely far, so it forbids them.
    """

    @checked
    def __init__(self, heads: int) -> None:
        super().__init__()
        check_whole(heads=heads)
        self.heads = heads

        def geometric(n: int) -> list[float]:
            return [2 ** (-8 * (i + 1) / n) for i in range(n)]

        power = 2 ** int(math.log2(heads))
        slopes = geometric(power) + geometric(2 * power)[0::2][: heads - power]
        # Numbers rather than a buffer, which `model.bfloat16()` would round
        self._slopes = slopes

    @property
    def slopes(self) -> Tensor:
        """(H,) in float32."""
        return torch.tensor(self._slopes)

    def score(self, pairs: Pairs) -> Tensor:
        slopes = constant(self._slopes, pairs.head.device)
        return -slopes[pairs.head] * pairs.distance

    def block_key(self, space: Space) -> BlockKey | None:
        return BlockKey.of_distance(space)

    def extra_repr(self) -> str:
        return f"heads={self.heads}"
