"""What is trained on images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attention_core.training import ClassificationTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ImageClassification(ClassificationTask):
    """Classification of `image` (B, C, H, W), with what the model attends to drawn over images.

    Arguments are those of `ClassificationTask`; the model is a `vision.VisionTransformer`.
    """

    # A few hundred validation images tie in accuracy; their loss still tells epochs apart.
    monitor = "val/loss"
    mode = "min"

    def attention_figure(self, batch: dict[str, Any]) -> Figure:
        """Attention over up to ten images of `batch`, as many classes as it has, errors first."""
        from vision.figures import attention_sheet, pooling_attention

        image, target = batch["image"], batch["target"]
        probability, predicted = self.probabilities(batch).max(dim=-1)
        shown = _one_of_each(target, predicted != target)[:10]
        names = self.classes
        labels = [
            (names[target[i]], names[predicted[i]], float(probability[i])) for i in shown.tolist()
        ]
        maps = pooling_attention(self.model, image[shown])  # type: ignore[arg-type]
        return attention_sheet(image[shown], maps, labels)


def _one_of_each(target: Tensor, wrong: Tensor) -> Tensor:
    """Indices of one image of each class, in the order of classes; a wrong one where there is."""
    chosen = []
    for label in target.unique():
        members = (target == label).nonzero().squeeze(-1)
        chosen.append(members[int(wrong[members].int().argmax())])
    return torch.stack(chosen)
