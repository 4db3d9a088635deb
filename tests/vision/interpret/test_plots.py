"""The figures of what a vision model attends to."""

import itertools
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import nn
from torch.optim import AdamW

from attention_core.interpret.plots import INK, RIGHT, WRONG, distance_figure, save_figure
from vision import SwinTransformer, VisionTransformer
from vision.interpret import attention_figures, pooling_attention
from vision.interpret.plots import GLOW, Label, attention_sheet, layer_sheet, overlay, rollout_sheet
from vision.tasks import ImageClassification, _one_of_each

LABELS: list[Label] = [("cat", "cat", 0.9), ("dog", "cat", 0.5), ("a very long name", "dog", 1.0)]


def vit(pooling: Any = "class", channels: int = 1) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        dim=16,
        depth=2,
        heads=2,
        patch_size=(2, 4),
        num_classes=3,
        channels=channels,
        positions="rotary",
        pooling=pooling,
    ).eval()


def swin(channels: int = 1) -> SwinTransformer:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "window": 2,
        "patch_size": (2, 4),
        "num_classes": 3,
        "channels": channels,
    }
    return SwinTransformer(8, (1, 1), (1, 2), **options).eval()


def drawn(figure: Figure) -> list[str]:
    """Titles and names of its axes, as they are drawn."""
    texts = [figure.get_suptitle()]
    for axis in figure.axes:
        texts += [axis.get_title(), axis.get_ylabel()]
    return [text.strip() for text in texts if text.strip()]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_sheet_is_drawn(channels: int, tmp_path: Path) -> None:
    images = torch.randn(3, channels, 8, 12)
    maps = pooling_attention(vit(channels=channels), images)
    figure = attention_sheet(images, maps, LABELS)
    assert len(figure.axes) == 3 * (2 + 2) + 1
    assert "2 of them misread" in " ".join(figure.get_suptitle().split())
    assert figure.axes[1].get_title() == "cat (50%)\nis dog"
    save_figure(figure, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    for sheet, shape in ((attention_sheet, maps), (rollout_sheet, maps[:, 0])):
        with pytest.raises(ValueError, match="as many, got 3, 3, 2"):
            sheet(images, shape, LABELS[:2])


@pytest.mark.parametrize("length", [3, 8, 20])
def test_names_do_not_run_into_each_other(length: int) -> None:
    name = "Gordon setter, black"[:length]
    labels: list[Label] = [(name, name, 1.0), ("other", name, 0.5), (None, name, 0.25)]
    figure = attention_sheet(torch.randn(3, 1, 8, 8), torch.rand(3, 2, 4, 4), labels)
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    boxes = [axis.title.get_window_extent() for axis in figure.axes[:3]]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert len({axis.get_title().count("\n") for axis in figure.axes[:3]}) == 1
    assert "misread" not in figure.get_suptitle()  # of one the truth is not known


def test_a_column_per_head_and_a_row_per_layer() -> None:
    maps = [torch.rand(1, 4, 4), torch.rand(2, 2, 2)]
    figure = layer_sheet(torch.randn(3, 8, 8), maps, LABELS[1], query="an average patch")
    title, *others = drawn(figure)
    assert " ".join(title.split()) == (
        "What an average patch attends to, by layer and head, in an image read as cat (50%), is dog"
    )
    evenly = "attention to a patch\n(1: as if spread evenly)"
    assert others == ["head 1", "layer 1", "layer 2", "head 2", evenly]
    assert len([axis for axis in figure.axes if axis.images]) == 3  # and none is blank


def test_the_brightest_patch_is_the_one_attended_to() -> None:
    maps = torch.full((1, 1, 4, 3), 0.01)
    maps[0, 0, 1, 2] = 0.89
    figure = attention_sheet(torch.zeros(1, 1, 8, 6), maps, [("cat", "cat", 0.9)])
    shown = torch.tensor(figure.axes[2].images[0].get_array()).sum(-1)
    row, column = divmod(int(shown.argmax()), shown.shape[1])
    assert (row * 4 // shown.shape[0], column * 3 // shown.shape[1]) == (1, 2)


@pytest.mark.parametrize("shape", [(2, 2), (7, 3), (14, 14)])
@pytest.mark.parametrize("size", [(8, 12), (224, 224), (28, 28)])
def test_a_patch_is_lit_alike_all_over(shape: tuple[int, int], size: tuple[int, int]) -> None:
    """A map of 2×2 is four sharp patches, and no blob: one number is known of each."""
    torch.manual_seed(0)
    heat = torch.rand(shape)
    scale = ScalarMappable(Normalize(0, 1), GLOW)
    lit = overlay(numpy.zeros(size), heat, scale)
    rows, columns = (extent // count for extent, count in zip(lit.shape, shape, strict=False))
    assert lit.shape == (rows * shape[0], columns * shape[1], 3) and max(lit.shape) >= 140
    for row, column in itertools.product(*map(range, shape)):
        patch = lit[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]
        expected = numpy.broadcast_to(GLOW(float(heat[row, column]))[:3], patch.shape)
        numpy.testing.assert_allclose(patch, expected, atol=1e-6)


def test_patches_are_as_sharp_on_paper() -> None:
    """Of the pixels that are drawn of a map of 2×2, all have one of four colours."""
    maps = torch.tensor([[[[0.1, 0.2], [0.3, 0.4]]]])
    figure = attention_sheet(torch.zeros(1, 1, 8, 8), maps, [(None, "cat", 0.9)])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = numpy.asarray(canvas.buffer_rgba())
    box = figure.axes[2].get_window_extent()
    left, right = (round(x) + 2 * step for x, step in ((box.x0, 1), (box.x1, -1)))
    top, below = (round(len(pixels) - y) + 2 * step for y, step in ((box.y1, 1), (box.y0, -1)))
    inside = pixels[top:below, left:right]
    assert min(inside.shape[:2]) > 50
    colors, counts = numpy.unique(inside.reshape(-1, 4), axis=0, return_counts=True)
    assert len(colors) == 4
    assert counts.max() < 1.2 * counts.min()  # each a quarter


def test_what_is_right_and_wrong_is_told_by_colour() -> None:
    labels: list[Label] = [("cat", "cat", 0.9), ("dog", "cat", 0.5), (None, "cat", 0.5)]
    figure = attention_sheet(torch.randn(3, 1, 8, 8), torch.rand(3, 1, 4, 4), labels)
    colors = [axis.title.get_color() for axis in figure.axes[:3]]
    assert colors == [RIGHT, WRONG, INK]


def test_distances_have_a_dot_per_head_and_a_line_for_their_mean() -> None:
    distances = torch.tensor([[1.0, 3.0, torch.nan], [2.0, 4.0, 6.0]])
    figure = distance_figure(distances, unit="pixels", even=5.0)
    dots, mean, even = figure.axes[0].lines
    assert list(dots.get_xdata()) == [1, 1, 1, 2, 2, 2]
    assert list(mean.get_ydata()) == [2.0, 4.0]
    assert set(even.get_ydata()) == {5.0}
    assert figure.axes[0].get_ylim()[1] > 6.2 and figure.axes[0].get_ylim()[0] == 0
    assert len(distance_figure(distances, unit="hops").axes[0].lines) == 2


@pytest.mark.parametrize("build", [vit, swin])
def test_all_figures_of_a_model(build: Any, tmp_path: Path) -> None:
    images = torch.randn(3, 3, 8, 12)
    model = build(channels=3)
    figures = attention_figures(model, images, LABELS)
    names = {"attention", "attention_layers", "attention_distance"}
    assert set(figures) == names | ({"attention_rollout"} if build is vit else set())
    for name, figure in figures.items():
        save_figure(figure, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000
    who = "the class token" if build is vit else "an average patch"
    assert who in " ".join(figures["attention_layers"].get_suptitle().split())


# ----------------------------------------------------------------------------------------- the task


def test_the_sheet_shows_each_class_and_errors_first() -> None:
    target = torch.tensor([2, 0, 0, 2, 0])
    wrong = torch.tensor([False, False, False, True, False])
    assert _one_of_each(target, wrong).tolist() == [1, 3]


def test_the_task_draws_a_batch() -> None:
    batch = {"image": torch.randn(8, 1, 8, 12), "target": torch.arange(8) % 3}
    for model, drawn in (
        (vit(), 5),
        (swin(), 4),
        (nn.Sequential(nn.Flatten(), nn.Linear(96, 3)), 1),
    ):
        task = ImageClassification(model, classes=["a", "b", "c"], optimizer=AdamW).eval()
        task.counts = torch.eye(3)
        figures = task.figures(batch)
        assert len(figures) == drawn and "confusion" in figures
        if drawn > 1:
            assert len(figures["attention"].axes) == 3 * (2 + len(model.head.weight) - 1) + 1
