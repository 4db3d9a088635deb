"""Metrics that add up a step at a time, for which no GPU is waited: torchmetrics' own of the same
names and states look at values, or count by `bincount`, in every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassJaccardIndex,
)


class Mean(MeanMetric):
    """The mean of values (...), each with its weight; of NaN comes NaN."""

    def update(self, value: float | Tensor, weight: float | Tensor | None = None) -> None:
        weight = 1.0 if weight is None else weight
        if not isinstance(value, Tensor):
            value = self.mean_value.new_full((), value)
        weighed = value.to(self.mean_value.dtype) * weight
        self.mean_value += weighed.sum()
        if isinstance(weight, Tensor):
            self.weight += weight.expand(value.shape).sum()
        else:
            self.weight += weight * value.numel()


class Accuracy(MulticlassAccuracy):
    """The share of targets (N,) that are right (`average="micro"`), from logits (N, C) or classes
    (N,)."""

    num_classes: int

    def update(self, preds: Tensor, target: Tensor) -> None:
        found, target, asked = _asked(preds, target, self.ignore_index)
        total, right = asked.sum(), (asked * (found == target)).sum()
        wrong = total - right
        self._update_state(right, wrong, self.num_classes * total - right - 2 * wrong, wrong)


class F1Score(MulticlassF1Score):
    """The F1 score of classes, from logits (N, C) or classes (N,), and targets (N,)."""

    num_classes: int

    def update(self, preds: Tensor, target: Tensor) -> None:
        found, target, asked = _asked(preds, target, self.ignore_index)
        none = asked.new_zeros(self.num_classes)
        right = none.index_add(0, target, asked * (found == target))
        wrong = none.index_add(0, found, asked) - right
        missed = none.index_add(0, target, asked) - right
        self._update_state(right, wrong, asked.sum() - right - wrong - missed, missed)


class JaccardIndex(MulticlassJaccardIndex):
    """Intersection over union of classes, from logits (N, C) or classes (N,), and targets (N,)."""

    confmat: Any

    def update(self, preds: Tensor, target: Tensor) -> None:
        found, target, asked = _asked(preds, target, self.ignore_index)
        pair = target * self.num_classes + found
        counts = asked.new_zeros(self.num_classes**2).index_add(0, pair, asked)
        self.confmat += counts.view(self.num_classes, -1)


def _asked(preds: Tensor, target: Tensor, ignored: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Classes that are found and wanted, (N,), and 1 for each that is asked for, else 0."""
    found = preds.argmax(1) if preds.ndim > target.ndim else preds
    asked = torch.ones_like(target) if ignored is None else (target != ignored).to(target.dtype)
    return found * asked, target * asked, asked
