"""A class for every token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassJaccardIndex

from attention_core.errors import UsageError
from attention_core.training.data import DataModule
from attention_core.training.in_one_sentence import refusals_of_classes, target_of
from attention_core.training.task import Batch, ClassificationTask


class SegmentationTask(ClassificationTask):
    """Cross-entropy over the classes of tokens, with the mean over classes of intersection over
    union (`iou`), accuracy, macro F1 and a confusion matrix.

    The model returns logits (..., C), `target` holds class indices (...): (B, L), (B, H, W), or
    (T,) packed, and -1 where nothing is asked, as of padding. Every token that is asked counts
    alike, however many a sample has. Arguments are those of `ClassificationTask`.
    """

    monitor = "val/iou"
    ignored = -1

    def class_metrics(self, count: int) -> dict[str, Metric]:
        iou = MulticlassJaccardIndex(count, ignore_index=self.ignored, validate_args=False)
        return {"iou": iou, **super().class_metrics(count)}

    def weight(self, batch: Batch) -> Tensor:
        """Count the tokens that are asked for."""
        asked: Tensor = (batch["target"] != self.ignored).sum()
        return asked

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        target = target_of(batch)
        if output.shape != (*target.shape, len(self.classes)):
            raise UsageError(
                f"model: logits of shape {(*target.shape, len(self.classes))} expected, one per "
                f"token of the target and class, got {tuple(output.shape)}."
            )
        with refusals_of_classes(target, tuple(target.shape), len(self.classes)):
            summed = F.cross_entropy(
                output.flatten(0, -2),
                target.flatten(),
                weight=self.class_weights,  # type: ignore[arg-type]
                ignore_index=self.ignored,
                label_smoothing=self.label_smoothing,
                reduction="sum",
            )
        return summed / self.weight(batch).clamp(min=1)

    def update_metrics(self, metrics: MetricCollection, output: Tensor, batch: Batch) -> None:
        flat = {"target": batch["target"].flatten()}
        super().update_metrics(metrics, output.flatten(0, -2), flat)

    def predict(self, batch: Batch, data: DataModule) -> list[dict[str, Any]]:
        """Return `prediction`, the class of each token, a row per sample: of as many tokens as the
        batch's `lengths` (B,) say, where it has them; packed tokens need them."""
        says = self(**self.model_inputs(batch)).argmax(-1)
        lengths = batch.get("lengths")
        if lengths is not None:
            counts = lengths.tolist()
            says = (
                says.split(counts)
                if says.ndim == 1
                else [row[:count] for row, count in zip(says, counts, strict=True)]
            )
        return [{"prediction": self._named(torch.as_tensor(row))} for row in says]

    def _named(self, says: Tensor) -> str:
        return " ".join(self.classes[index] for index in says.flatten().tolist())
