"""What a vision model attends to, drawn over the images."""

from __future__ import annotations

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
from attention_core.interpret import plots as kit
from vision.interpret import maps as seen
from vision.interpret.maps import Model
from vision.models import VisionTransformer

#: Light on a dim picture, where Blues would be ink.
GLOW = colormaps["inferno"]
EVENLY = "attention to a patch\n(1: as if spread evenly)"

#: The true class of an image or None where it is not known, its predicted class, the probability.
Label = tuple[str | None, str, float]


def attention_figures(model: Model, inputs: Tensor, shown: Sequence[Label]) -> dict[str, Figure]:
    """Return all that shows what `model` attends to, by file name.

    "attention" is the `attention_sheet` of `pooling_attention`, "attention_layers" the
    `layer_sheet` of the first image. Where each layer has a block of its own, "attention_distance"
    is the `distance_figure` of all images, and of a `VisionTransformer` "attention_rollout" the
    `rollout_sheet`.

    Args:
        inputs: images (N, C, H, W), of one channel or three.
        shown: the `Label` of each image.
    """
    layers = [layer[0] for layer in seen.attention_maps(model, inputs[:1])]
    query = "the class token" if seen.has_class_token(model) else "an average patch"
    figures = {
        "attention": attention_sheet(inputs, seen.pooling_attention(model, inputs), shown),
        "attention_layers": layer_sheet(inputs[0], layers, shown[0], query=query),
    }
    if len(layers) == sum(len(stack.masks) for stack in seen.stacks(model)):
        even = float(seen.patch_distances(model, (inputs.shape[-2], inputs.shape[-1])).mean())
        distances = seen.mean_attention_distance(model, inputs)
        figures["attention_distance"] = kit.distance_figure(distances, unit="pixels", even=even)
        if isinstance(model, VisionTransformer):
            rollout = seen.attention_rollout(model, inputs)
            figures["attention_rollout"] = rollout_sheet(inputs, rollout, shown)
    return figures


def attention_sheet(images: Tensor, maps: Tensor, labels: Sequence[Label]) -> Figure:
    """Return attention maps over images: a column per image; the image, the mean of the heads, each
    head.

    Args:
        images: (N, C, H, W), of one channel or three; the values are stretched to what is visible.
        maps: (N, heads, rows, columns), shares of attention.

    Raises:
        ValueError: there are not as many of each.
    """
    relative = _relative(maps)
    names = ["mean of\nthe heads", *(f"head {head + 1}" for head in range(maps.shape[1]))]
    rows = torch.cat([relative.mean(dim=1, keepdim=True), relative], dim=1)
    scale = _from_zero(relative)
    title = f"Where the last layer looks: attention over {_images(labels)}"
    return _sheet(images, rows, labels, names, scale, name=EVENLY, title=title)


def rollout_sheet(images: Tensor, maps: Tensor, labels: Sequence[Label]) -> Figure:
    """Return attention rollout over images, as `attention_sheet`: the image, and its map below.

    Args:
        maps: (N, rows, columns), shares of what is pooled, as `attention_rollout` gives them.
    """
    relative = _relative(maps[:, None])
    # Layers mix: the more there are, the closer to 1 lies all that differs
    low, high = torch.quantile(relative.flatten(), torch.tensor([0.02, 0.98])).tolist()
    scale = ScalarMappable(Normalize(min(low, 0.99), max(high, 1.01)), GLOW)
    title = f"Where all layers look: attention rolled out over {_images(labels)}"
    named = {"name": "share of a patch\n(1: all alike)", "title": title}
    return _sheet(images, relative, labels, ["rollout"], scale, width=1.35, extend="both", **named)


def layer_sheet(image: Tensor, maps: Sequence[Tensor], label: Label, *, query: str) -> Figure:
    """Return every head of every layer over one image: a row per layer, a column per head.

    Args:
        image: (C, H, W), of one channel or three.
        maps: of each layer (heads, rows, columns), shares of attention.
        query: what attends, such as "the class token".
    """
    relative = [_relative(layer) for layer in maps]
    scale = _from_zero(torch.cat([layer.flatten() for layer in relative]))
    shown = picture(image)

    def draw(axis: Axes, layer: int, head: int, *, left: bool, below: bool) -> None:
        _show(axis, overlay(shown, relative[layer][head], scale))

    width = 0.95 if max(map(len, maps)) < 8 else 0.75
    said = captions([label], 10)[0].replace("\n", ", ")
    return kit.head_sheet(
        [f"layer {layer + 1}" for layer in range(len(maps))],
        [range(len(layer)) for layer in maps],
        draw,
        scale,
        EVENLY,
        tile=(width, width * image.shape[-2] / image.shape[-1]),
        title=f"What {query} attends to, by layer and head, in an image read as {said}",
    )


def is_missed(label: Label) -> bool:
    """Return whether an image is known to be of another class than predicted."""
    true, predicted, _ = label
    return true is not None and true != predicted


def picture(image: Tensor) -> numpy.ndarray:
    """Return an image (C, H, W), of one channel or three, as (H, W) or (H, W, 3) between 0 and
    1."""
    shown = image.float().cpu()
    low, high = shown.amin(), shown.amax()
    shown = (shown - low) / (high - low).clamp(min=1e-6)
    return numpy.asarray(shown.permute(1, 2, 0) if len(shown) == 3 else shown[0])


def overlay(
    image: numpy.ndarray, heat: Tensor, scale: ScalarMappable, size: int = 160
) -> numpy.ndarray:
    """Return the picture in gray, lit by the heat (rows, columns), about `size` pixels large or
    larger: all of a patch is lit alike, as one number is known of it."""
    gray = image if image.ndim == 2 else image @ numpy.array([0.299, 0.587, 0.114])
    # Whole pixels for each patch, or its edges would not be where they are
    shape = [
        count * max(1, round(size * extent / max(gray.shape) / count))
        for count, extent in zip(heat.shape, gray.shape, strict=True)
    ]
    gray_tensor = torch.from_numpy(gray).float()[None, None]
    mode = "nearest" if shape[0] >= gray.shape[0] else "area"
    # A photograph, which is bright all over, would else outshine the heat
    dim = (0.5 if image.ndim == 2 else 0.35) * F.interpolate(gray_tensor, shape, mode=mode)
    light = scale.to_rgba(heat.clamp(min=0).numpy())[..., :3]
    for axis in (0, 1):
        light = light.repeat(shape[axis] // heat.shape[axis], axis=axis)
    # Both brighten: what is lit stays visible on ink and on paper ("screen" of image editors)
    lit: numpy.ndarray = 1 - (1 - dim[0, 0].numpy()[..., None]) * (1 - light)
    return lit


def captions(labels: Sequence[Label], width: float) -> list[str]:
    """Return what stands above images that are `width` inches wide, in as many lines for each: the
    prediction, and below the truth where it differs."""
    room = int(10 * width)  # letters
    labels = [
        (None if true is None else on_one_line(true), on_one_line(predicted), probability)
        for true, predicted, probability in labels
    ]
    apart = " " if all(len(predicted) + 7 <= room for _, predicted, _ in labels) else "\n"
    texts = [
        f"{kit.shorten(label[1], room)}{apart}({label[2]:.0%})"
        + (f"\nis {kit.shorten(str(label[0]), room - 3)}" if is_missed(label) else "")
        for label in labels
    ]
    most = max(text.count("\n") for text in texts)
    return [text + "\n" * (most - text.count("\n")) for text in texts]


def _sheet(
    images: Tensor,
    maps: Tensor,
    labels: Sequence[Label],
    names: Sequence[str],
    scale: ScalarMappable,
    *,
    name: str,
    title: str,
    width: float = 1.06,
    extend: str = "max",
) -> Figure:
    """A column per image: the image, and its maps (N, len(names), rows, columns) below."""
    count, rows = maps.shape[:2]
    if not len(images) == len(labels) == count:
        raise ValueError(
            f"images, maps and labels must be as many, got {len(images)}, {count}, {len(labels)}"
        )
    aspect = images.shape[-2] / images.shape[-1]
    above = captions(labels, width)
    height = width * aspect * (rows + 1) + 0.7 + 0.17 * above[0].count("\n")
    figure = kit.close_figure(width * count + 2.2, height)
    axes = figure.subplots(rows + 1, count, squeeze=False)
    for column, (image, label) in enumerate(zip(images, labels, strict=True)):
        shown = picture(image)
        _show(axes[0, column], shown)
        color = kit.verdict_color(None if label[0] is None else not is_missed(label))
        caption = plot_label(above[column])
        axes[0, column].set_title(caption, fontsize=10, fontweight="bold", color=color)
        for row in range(rows):
            _show(axes[row + 1, column], overlay(shown, maps[column, row], scale))
    for axis, side in zip(axes[:, 0], ["image", *names], strict=True):
        kit.put_side(axis, side)
    where = {"extend": extend, "fraction": 0.02, "pad": 0.015, "aspect": 40}
    kit.put_bar(figure, scale, name, shrink=min(1.0, 8 / height), **where)
    kit.put_title(figure, title)
    return figure


def _show(axis: Axes, pixels: numpy.ndarray) -> None:
    axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    kit.bare(axis)


def _relative(maps: Tensor) -> Tensor:
    """In multiples of an even spread, so that maps of other grids read alike."""
    return (maps * maps.shape[-2] * maps.shape[-1]).float().cpu()


def _from_zero(relative: Tensor) -> ScalarMappable:
    # A few extreme patches must not make all others look alike
    most = max(2.0, float(torch.quantile(relative.flatten(), 0.98)))
    return ScalarMappable(Normalize(0.0, most), GLOW)


def _images(labels: Sequence[Label]) -> str:
    words = "one image" if len(labels) == 1 else f"{len(labels)} images"
    if any(true is None for true, _, _ in labels):
        return words
    return f"{words}, {sum(map(is_missed, labels)) or 'none'} of them misread"
