"""What a vision model attends to, drawn over the images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vision.drawing import (
    INK,
    Label,
    captions,
    glow,
    is_missed,
    picture,
    put_bar,
    put_caption,
    put_side,
    put_title,
    strip,
)
from vision.models import VisionTransformer
from vision.seeing import (
    Model,
    attention_maps,
    attention_rollout,
    has_class_token,
    mean_attention_distance,
    num_layers,
    patch_distances,
    pooling_attention,
)

DOT, LINE = "#1f6fb4", "#8a8a8a"
EVENLY = "attention to a patch\n(1: as if spread evenly)"


def attention_figures(model: Model, images: Tensor, labels: Sequence[Label]) -> dict[str, Figure]:
    """All that shows what `model` attends to, by file name.

    "attention" is the `attention_sheet` of `pooling_attention`, "attention_layers" the
    `layer_sheet` of the first image, "attention_distance" the `distance_figure` of all images; and
    of a `VisionTransformer` "attention_rollout" is the `rollout_sheet`.

    Args:
        model: in eval mode.
        images: (N, C, H, W), of one channel or three.
        labels: for each image its true class, or None where it is not known, its predicted class
            and the probability of that.
    """
    layers = [attention_maps(model, images[:1], layer)[0] for layer in range(num_layers(model))]
    query = "the class token" if has_class_token(model) else "an average patch"
    even = float(patch_distances(model, (images.shape[-2], images.shape[-1])).mean())
    figures = {
        "attention": attention_sheet(images, pooling_attention(model, images), labels),
        "attention_layers": layer_sheet(images[0], layers, labels[0], query=query),
        "attention_distance": distance_figure(mean_attention_distance(model, images), even=even),
    }
    if isinstance(model, VisionTransformer):
        rollout = attention_rollout(model, images)
        figures["attention_rollout"] = rollout_sheet(images, rollout, labels)
    return figures


def attention_sheet(images: Tensor, maps: Tensor, labels: Sequence[Label]) -> Figure:
    """Attention maps over images: a column per image; the image, the mean of the heads, each head.

    Args:
        images: (N, C, H, W), of one channel or three; the values are stretched to what is visible.
        maps: (N, heads, rows, columns), shares of attention.
        labels: of each image, see `attention_figures`.

    Raises:
        ValueError: there are not as many of each.
    """
    relative = _relative(maps)
    names = ["mean of\nthe heads", *(f"head {head + 1}" for head in range(maps.shape[1]))]
    rows = torch.cat([relative.mean(dim=1, keepdim=True), relative], dim=1)
    norm = _from_zero(relative)
    figure = _sheet(images, rows, labels, names, norm)
    put_bar(figure, norm, EVENLY)
    put_title(figure, f"Where the last layer looks: attention over {_images(labels)}")
    return figure


def rollout_sheet(images: Tensor, maps: Tensor, labels: Sequence[Label]) -> Figure:
    """Attention rollout over images: a column per image; the image, and its map below.

    Args:
        images: (N, C, H, W), of one channel or three.
        maps: (N, rows, columns), shares of what is pooled, as `attention_rollout` gives them.
        labels: of each image, see `attention_figures`.

    Raises:
        ValueError: there are not as many of each.
    """
    relative = _relative(maps[:, None])
    # Layers mix: the more there are, the closer to 1 lies all that differs
    low, high = torch.quantile(relative.flatten(), torch.tensor([0.02, 0.98])).tolist()
    norm = Normalize(min(low, 0.99), max(high, 1.01))
    figure = _sheet(images, relative, labels, ["rollout"], norm, width=1.35)
    put_bar(figure, norm, "share of a patch\n(1: all alike)", extend="both")
    put_title(figure, f"Where all layers look: attention rolled out over {_images(labels)}")
    return figure


def layer_sheet(image: Tensor, maps: Sequence[Tensor], label: Label, *, query: str) -> Figure:
    """Every head of every layer over one image: a row per layer, a column per head.

    Args:
        image: (C, H, W), of one channel or three.
        maps: of each layer (heads, rows, columns), shares of attention.
        label: of the image, see `attention_figures`.
        query: what attends, such as "the class token".
    """
    relative = [_relative(layer) for layer in maps]
    norm = _from_zero(torch.cat([layer.flatten() for layer in relative]))
    depth, heads = len(maps), max(len(layer) for layer in maps)
    aspect = image.shape[-2] / image.shape[-1]
    tile = 0.95 if heads < 8 else 0.75
    figure = Figure(figsize=(tile * (heads + 2.1) + 2.2, max(2.2, tile * aspect * depth) + 1.0))
    figure.set_layout_engine("constrained", w_pad=0.015, h_pad=0.015, wspace=0.01, hspace=0.01)
    grid = figure.add_gridspec(depth, heads + 3, width_ratios=[1, 1, 0.1] + [1] * heads)
    shown = picture(image)
    whole = figure.add_subplot(grid[: min(2, depth), :2])
    whole.imshow(shown, cmap="gray", vmin=0, vmax=1)
    put_caption(whole, captions([label], 2 * tile)[0], label)
    strip(whole)
    for layer, of_heads in enumerate(relative):
        for head, heat in enumerate(of_heads):
            axis = figure.add_subplot(grid[layer, head + 3])
            axis.imshow(glow(shown, heat, norm))
            if layer == 0 or head >= len(relative[layer - 1]):
                axis.set_title(f"head {head + 1}", fontsize=9, color=INK)
            if head == 0:
                put_side(axis, f"layer {layer + 1}")
            strip(axis)
    put_bar(figure, norm, EVENLY)
    put_title(figure, f"What {query} attends to, by layer and head")
    return figure


def distance_figure(distances: Tensor, *, even: float | None = None) -> Figure:
    """How far each head looks, by layer (Dosovitskiy et al., ViT, 2021, figure 7).

    Args:
        distances: (layers, heads) in pixels, as `mean_attention_distance` gives them.
        even: the distance of evenly spread attention, drawn as a line.
    """
    depth, heads = distances.shape
    figure = Figure(figsize=(max(4.8, 2.6 + 0.32 * depth), 4.0), layout="constrained")
    axis = figure.subplots()
    layers = torch.arange(1, depth + 1)
    axis.plot(
        layers.repeat_interleave(heads),
        distances.flatten().cpu(),
        "o",
        color=DOT,
        markeredgecolor="white",
        markersize=7,
        alpha=0.85,
        label="one head",
    )
    mean = distances.nanmean(1).cpu()
    axis.plot(layers, mean, color=DOT, linewidth=1.5, alpha=0.6, label="mean of the heads")
    if even is not None:
        axis.axhline(
            even,
            color=LINE,
            linestyle=(0, (4, 1.5)),
            linewidth=1.3,
            zorder=0.5,
            label="attention spread evenly",
        )
    axis.set_xlabel("layer")
    axis.set_ylabel("mean attention distance (pixels)")
    axis.set_xlim(0.5, depth + 0.5)
    axis.set_ylim(0, 1.08 * axis.get_ylim()[1])
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9, columnspacing=1.2)
    put_title(figure, "How far each head looks")
    return figure


def _sheet(
    images: Tensor,
    maps: Tensor,
    labels: Sequence[Label],
    names: Sequence[str],
    norm: Normalize,
    width: float = 1.06,
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
    figure = Figure(figsize=(width * count + 2.2, height))
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    axes = figure.subplots(rows + 1, count, squeeze=False)
    for column, (image, label) in enumerate(zip(images, labels, strict=True)):
        shown = picture(image)
        axes[0, column].imshow(shown, cmap="gray", vmin=0, vmax=1)
        put_caption(axes[0, column], above[column], label)
        for row in range(rows):
            axes[row + 1, column].imshow(glow(shown, maps[column, row], norm))
    for axis, name in zip(axes[:, 0], ["image", *names], strict=True):
        put_side(axis, name)
    for axis in axes.flatten():
        strip(axis)
    return figure


def _relative(maps: Tensor) -> Tensor:
    """In multiples of an even spread, so that maps of other grids read alike."""
    return (maps * maps.shape[-2] * maps.shape[-1]).float().cpu()


def _from_zero(relative: Tensor) -> Normalize:
    # A few extreme patches must not make all others look alike
    return Normalize(0.0, max(2.0, float(torch.quantile(relative.flatten(), 0.98))))


def _images(labels: Sequence[Label]) -> str:
    words = "one image" if len(labels) == 1 else f"{len(labels)} images"
    if any(true is None for true, _, _ in labels):
        return words
    return f"{words}, {sum(map(is_missed, labels)) or 'none'} of them misread"
