"""What the figures of `vision.figures` are put together from."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from attention_core.escape import on_one_line, plot_label

INK, RIGHT, WRONG = "#222222", "#1a7f4b", "#c0392b"
HEAT = colormaps["inferno"]

#: The true class of an image or None where it is not known, its predicted class, the probability.
Label = tuple[str | None, str, float]


def is_missed(label: Label) -> bool:
    true, predicted, _ = label
    return true is not None and true != predicted


def picture(image: Tensor) -> numpy.ndarray:
    """An image (C, H, W), of one channel or three, as (H, W) or (H, W, 3) between 0 and 1."""
    shown = image.float().cpu()
    low, high = shown.amin(), shown.amax()
    shown = (shown - low) / (high - low).clamp(min=1e-6)
    return numpy.asarray(shown.permute(1, 2, 0) if len(shown) == 3 else shown[0])


def glow(image: numpy.ndarray, heat: Tensor, norm: Normalize, size: int = 128) -> numpy.ndarray:
    """The picture in gray, lit by the heat (rows, columns), both about `size` pixels large."""
    gray = image if image.ndim == 2 else image @ numpy.array([0.299, 0.587, 0.114])
    enlarge = size / max(gray.shape)
    shape = [round(extent * enlarge) for extent in gray.shape]
    gray_tensor = torch.from_numpy(gray).float()[None, None]
    mode = "nearest" if enlarge >= 1 else "area"
    # A photograph, which is bright all over, would else outshine the heat
    dim = (0.5 if image.ndim == 2 else 0.35) * F.interpolate(gray_tensor, shape, mode=mode)
    smooth = F.interpolate(heat[None, None], shape, mode="bicubic", align_corners=False)[0, 0]
    light = HEAT(norm(smooth.clamp(min=0).numpy()))[..., :3]
    # Both brighten: what is lit stays visible on ink and on paper ("screen" of image editors)
    lit: numpy.ndarray = 1 - (1 - dim[0, 0].numpy()[..., None]) * (1 - light)
    return lit


def captions(labels: Sequence[Label], width: float) -> list[str]:
    """What stands above images that are `width` inches wide, in as many lines for each: the
    prediction, and below the truth where it differs."""
    room = int(10 * width)  # letters
    labels = [
        (None if true is None else on_one_line(true), on_one_line(predicted), probability)
        for true, predicted, probability in labels
    ]
    apart = " " if all(len(predicted) + 7 <= room for _, predicted, _ in labels) else "\n"
    texts = [
        f"{_short(label[1], room)}{apart}({label[2]:.0%})"
        + (f"\nis {_short(str(label[0]), room - 3)}" if is_missed(label) else "")
        for label in labels
    ]
    most = max(text.count("\n") for text in texts)
    return [text + "\n" * (most - text.count("\n")) for text in texts]


def put_caption(axis: Axes, caption: str, label: Label) -> None:
    color = INK if label[0] is None else WRONG if is_missed(label) else RIGHT
    axis.set_title(plot_label(caption), fontsize=10, fontweight="bold", color=color)


def put_side(axis: Axes, name: str) -> None:
    """A name to the left of a row."""
    axis.set_ylabel(plot_label(name), rotation=0, ha="right", va="center", labelpad=8, color=INK)


def strip(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def put_bar(figure: Figure, norm: Normalize, name: str, *, extend: str = "max") -> None:
    """The scale of the heat, beside all axes."""
    bar = figure.colorbar(
        ScalarMappable(norm, HEAT),
        ax=figure.axes,
        fraction=0.02,
        pad=0.015,
        extend=extend,
        aspect=40,
        shrink=min(1.0, 8 / figure.get_figheight()),
    )
    bar.set_label(plot_label(name), color=INK)
    bar.outline.set_visible(False)


def put_title(figure: Figure, title: str) -> None:
    lines = textwrap.fill(title, max(24, int(9 * figure.get_figwidth())))
    figure.suptitle(plot_label(lines), x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
