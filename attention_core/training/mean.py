"""A mean that is added up a step at a time, for which no GPU is waited."""

from __future__ import annotations

from torch import Tensor
from torchmetrics import MeanMetric


class Mean(MeanMetric):
    """The mean of values (...), each with its weight; of NaN comes NaN.

    torchmetrics' own looks for NaN at every step, or, with `nan_strategy="disable"`, forgets the
    weights (1.9). The states are the same.
    """

    def update(self, value: float | Tensor, weight: float | Tensor | None = None) -> None:
        weight = 1.0 if weight is None else weight
        if not isinstance(value, Tensor):
            value = self.mean_value.new_full((), value)
        self.mean_value += (value.to(self.mean_value.dtype) * weight).sum()
        if isinstance(weight, Tensor):
            self.weight += weight.expand(value.shape).sum()
        else:
            self.weight += weight * value.numel()
