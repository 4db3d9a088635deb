"""What is learnt from images without labels."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from attention_core.interpret.plots import bare, close_figure, put_side, put_title
from attention_core.training import Task, UsageError
from vision.mae import MaskedAutoencoder, Reconstruction, moments

HIDDEN = "#7d8fa3"  # neither ink nor paper


class MaskedImageModelling(Task):
    """Pretraining on `image` (B, C, H, W): patches that are hidden are predicted. No label is used.

    Arguments are those of `Task`; the model is a `vision.MaskedAutoencoder`. A run ends with a
    figure of test images, of what the model saw of them and of what it made of that.
    """

    model: MaskedAutoencoder

    def loss(self, output: Reconstruction, batch: dict[str, Any]) -> Tensor:
        return self.model.loss(batch["image"], output)

    def export_inputs(self, batch: dict[str, Any]) -> NoReturn:
        """Refuse: what is pretrained is the part `vit` of the weights, and no program."""
        raise UsageError(
            "export: a masked autoencoder completes images that it hides itself, which is of no "
            "use as a program. Its weights can be written, by format=safetensors."
        )

    def figures(self, batch: dict[str, Any]) -> dict[str, Figure]:
        image = batch["image"]
        if not isinstance(image, Tensor):  # of different sizes: those of the first one's
            image = torch.stack([one for one in image if one.shape == image[0].shape])
        image = image[:8]
        return {"reconstruction": reconstruction_sheet(self.model, image, self.model(image))}


def completed(
    model: MaskedAutoencoder, image: Tensor, output: Reconstruction
) -> tuple[Tensor, Tensor]:
    """Return what the model saw of images, nan where it saw nothing, and that with its predictions.

    Where it predicts normalised values, each patch gets the mean and the deviation of the true one.

    Args:
        image: (B, C, H, W).
        output: of the model for them.

    Returns: both (B, C, H, W).
    """
    true = model.patches(image)
    predicted = output.patches.to(true.dtype)
    if model.normalize:
        mean, deviation = moments(true)
        predicted = predicted * deviation + mean
    hidden = output.hidden[..., None]
    size = (image.shape[-2], image.shape[-1])
    seen = model.assemble(true.masked_fill(hidden, torch.nan), size)
    return seen, model.assemble(true.where(~hidden, predicted), size)


def reconstruction_sheet(model: MaskedAutoencoder, image: Tensor, output: Reconstruction) -> Figure:
    """Draw images, what the model saw of them and what it made of that: a column per image.

    Arguments are those of `completed`, with images of one channel or three.
    """
    seen, made = completed(model, image, output)
    count, _, height, width = image.shape
    figure = close_figure(1.3 * count + 1.4, 1.3 * 3 * height / width + 0.7)
    axes = figure.subplots(3, count, squeeze=False)
    names = ("image", "what the\nmodel sees", "completed")
    for row, pictures in zip(axes, (image, seen, made), strict=True):
        for axis, picture, original in zip(row, pictures, image, strict=True):
            _show(axis, picture, original)
    for axis, name in zip(axes[:, 0], names, strict=True):
        put_side(axis, name)
    share = 1 - float(output.hidden.float().mean())
    given = ", given the mean and the contrast of every patch" if model.normalize else ""
    put_title(figure, f"Images completed from {share:.0%} of their patches{given}")
    return figure


def _show(axis: Axes, picture: Tensor, original: Tensor) -> None:
    low, high = original.amin(), original.amax()
    shown = ((picture - low) / (high - low).clamp(min=1e-6)).clamp(0, 1).float().cpu()
    shown = (shown if len(shown) == 3 else shown[:1].expand(3, -1, -1)).permute(1, 2, 0)
    shown = shown.where(~shown.isnan(), torch.tensor(to_rgb(HIDDEN)))
    axis.imshow(shown.numpy(), interpolation="nearest")
    bare(axis)
