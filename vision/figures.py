"""What a vision transformer attends to, as maps and drawn over the images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from attention_core import record_attention
from vision.models import VisionTransformer

INK, RIGHT, WRONG = "#222222", "#1a7f4b", "#c0392b"
HEAT = colormaps["inferno"]


def pooling_attention(model: VisionTransformer, image: Tensor) -> Tensor:
    """How much of each patch reaches the last layer's pooled vector, per head.

    That is the last layer's attention of the class token; or of the learned query where pooling is
    "attention"; or, where it is "mean", the attention averaged over all patches that give it.

    Args:
        model: in eval mode.
        image: (B, C, H, W).

    Returns: (B, heads, rows, columns), sums at most 1: the rest goes to the class token itself.
    """
    with record_attention(model, layers=[-1]) as recorded, torch.no_grad():
        model(image)
    special = len(model.class_token)
    weights = recorded[0][..., special:]
    weights = weights[:, :, 0] if model.pooling != "mean" else weights.mean(dim=2)
    return weights.unflatten(-1, model.embedding.grid_size(image.shape[-2:]))


def attention_sheet(
    images: Tensor, maps: Tensor, labels: Sequence[tuple[str, str, float]]
) -> Figure:
    """Attention maps over images: a column per image; the image, the mean of the heads, each head.

    Args:
        images: (N, C, H, W), of one channel or three; the values are stretched to what is visible.
        maps: (N, heads, rows, columns), shares of attention.
        labels: for each image its true class, its predicted class and the probability of that.

    Raises:
        ValueError: there are not as many of each.
    """
    count, heads = maps.shape[:2]
    if not len(images) == len(labels) == count:
        raise ValueError(
            f"images, maps and labels must be as many, got {len(images)}, {count}, {len(labels)}"
        )
    # In multiples of an even spread, so that sheets of other grids read alike
    relative = (maps * maps[0, 0].numel()).float().cpu()
    rows = torch.cat([relative.mean(dim=1, keepdim=True), relative], dim=1)
    # A few extreme patches must not make all others look alike
    norm = Normalize(0.0, max(2.0, float(torch.quantile(relative.flatten(), 0.98))))
    aspect = images.shape[-2] / images.shape[-1]
    figure = Figure(figsize=(1.06 * count + 2.2, 1.06 * aspect * (heads + 2) + 1.1))
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    axes = figure.subplots(heads + 2, count, squeeze=False)
    for column, (image, label) in enumerate(zip(images, labels, strict=True)):
        picture = _picture(image)
        axes[0, column].imshow(picture, cmap="gray", vmin=0, vmax=1)
        for row in range(heads + 1):
            axes[row + 1, column].imshow(_glow(picture, rows[column, row], norm))
        true, predicted, probability = label
        axes[0, column].set_title(
            f"{_short(predicted)} ({probability:.0%})"
            + (f"\nis {_short(true)}" if true != predicted else "\n"),
            fontsize=10,
            fontweight="bold",
            color=RIGHT if true == predicted else WRONG,
        )
    names = ["image", "mean of\nthe heads", *(f"head {head + 1}" for head in range(heads))]
    for axis, name in zip(axes[:, 0], names, strict=True):
        axis.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8, color=INK)
    for axis in axes.flatten():
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    bar = figure.colorbar(
        ScalarMappable(norm, HEAT), ax=axes[1:], fraction=0.02, pad=0.015, extend="max", aspect=40
    )
    bar.set_label("attention to a patch (1: as if spread evenly)", color=INK)
    bar.outline.set_visible(False)
    wrong = sum(true != predicted for true, predicted, _ in labels)
    figure.suptitle(
        f"Where the prediction looks: attention of the last layer over {count} images, "
        f"{wrong or 'none'} of them misread",
        x=0.01,
        ha="left",
        fontsize=13,
        fontweight="bold",
        color=INK,
    )
    return figure


def _picture(image: Tensor) -> numpy.ndarray:
    """(H, W) or (H, W, 3), between 0 and 1."""
    shown = image.float().cpu()
    low, high = shown.amin(), shown.amax()
    shown = (shown - low) / (high - low).clamp(min=1e-6)
    return numpy.asarray(shown.permute(1, 2, 0) if len(shown) == 3 else shown[0])


def _glow(picture: numpy.ndarray, heat: Tensor, norm: Normalize, size: int = 128) -> numpy.ndarray:
    """The picture in gray, lit by the heat (rows, columns), both about `size` pixels large."""
    gray = picture if picture.ndim == 2 else picture @ numpy.array([0.299, 0.587, 0.114])
    enlarge = size / max(gray.shape)
    shape = [round(extent * enlarge) for extent in gray.shape]
    gray_tensor = torch.from_numpy(gray).float()[None, None]
    dim = 0.5 * F.interpolate(gray_tensor, shape, mode="nearest")[0, 0].numpy()
    smooth = F.interpolate(heat[None, None], shape, mode="bicubic", align_corners=False)[0, 0]
    light = HEAT(norm(smooth.clamp(min=0).numpy()))[..., :3]
    # Both brighten: what is lit stays visible on ink and on paper ("screen" of image editors)
    glow: numpy.ndarray = 1 - (1 - dim[..., None]) * (1 - light)
    return glow


def _short(name: str, length: int = 12) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
