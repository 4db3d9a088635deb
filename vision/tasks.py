"""What is trained on images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from attention_core.training import ClassificationTask, UsageError
from attention_core.training.task import ClassificationOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ImageClassification(ClassificationTask):
    """Classification of `image` (B, C, H, W), with what the model attends to drawn over images.

    The model is a `vision.VisionTransformer` or a `vision.SwinTransformer`, or any other for which
    nothing is drawn. One that takes images of different sizes gets them as a list of (C, H, W).

    Args:
        model: any that takes `image` and returns logits (B, num_classes).
        mixup: the alpha of mixup (Zhang et al., 2018): each training image is blended with another
            by a share from Beta(alpha, alpha), and so is its label. 0 for none.
        cutmix: the alpha of CutMix (Yun et al., 2019): a rectangle of another image is pasted in,
            and the label is blended by its area. 0 for none. With both, each training batch is
            dealt one of the two, by even odds.
        settings: those of `ClassificationTask`.

    Training accuracy under either counts a mixed image as right where the model names the class
    with the larger share of it; its loss is that of the blended labels.

    Raises:
        UsageError: an alpha is negative.
    """

    # A few hundred validation images tie in accuracy; their loss still tells epochs apart.
    monitor = "val/loss"
    mode = "min"

    def __init__(
        self,
        model: nn.Module,
        *,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        **settings: Unpack[ClassificationOptions],
    ) -> None:
        super().__init__(model, **settings)
        from torchvision.transforms import v2

        ways: list[Any] = []
        for name, alpha, mix in (("mixup", mixup, v2.MixUp), ("cutmix", cutmix, v2.CutMix)):
            if alpha < 0:
                raise UsageError(f"task.{name} must be at least 0, got {alpha}.")
            if alpha > 0:
                ways.append(mix(alpha=alpha, num_classes=len(self.classes)))
        self.mix = v2.RandomChoice(ways) if ways else None

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        if self.mix is not None:
            if not isinstance(batch["image"], Tensor):
                raise UsageError(
                    "task.mixup, task.cutmix: images of different sizes cannot be mixed. Give all "
                    "one size (data.size), or set both to 0."
                )
            image, target = self.mix(batch["image"], batch["target"])
            batch = {**batch, "image": image, "target": target}
        return super().training_step(batch, batch_idx)

    def update_metrics(
        self, metrics: MetricCollection, output: Tensor, batch: dict[str, Any]
    ) -> None:
        target = batch["target"]
        if target.ndim == 2:  # shares of the classes (B, C)
            batch = {**batch, "target": target.argmax(dim=-1)}
        super().update_metrics(metrics, output, batch)

    def figures(self, batch: dict[str, Any]) -> dict[str, Figure]:
        """Draw the confusion matrix, and `attention_figures` of up to ten images of `batch`, all of
        the size of the first: one of each class, errors first."""
        from vision.interpret import attention_figures
        from vision.interpret.maps import Model

        figures = super().figures(batch)
        if not isinstance(self.model, Model):
            return figures
        image, target = batch["image"], batch["target"]
        probability, predicted = self.probabilities(batch).max(dim=-1)
        if not isinstance(image, Tensor):
            alike = [i for i, one in enumerate(image) if one.shape == image[0].shape]
            image = torch.stack([image[i] for i in alike])
            target, predicted, probability = (x[alike] for x in (target, predicted, probability))
        shown = _one_of_each(target, predicted != target)[:10]
        names = self.classes
        labels = [
            (names[target[i]], names[predicted[i]], float(probability[i])) for i in shown.tolist()
        ]
        return {**figures, **attention_figures(self.model, image[shown], labels)}


def _one_of_each(target: Tensor, wrong: Tensor) -> Tensor:
    """Indices of one image of each class, in the order of classes; a wrong one where there is."""
    chosen = []
    for label in target.unique():
        members = (target == label).nonzero().squeeze(-1)
        chosen.append(members[int(wrong[members].int().argmax())])
    return torch.stack(chosen)
