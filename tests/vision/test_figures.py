"""The attention sheet, and the maps that it shows."""

from typing import Any

import pytest
import torch
from torch.optim import AdamW

from attention_core.training.figures import save_figure
from vision import VisionTransformer
from vision.figures import attention_sheet, pooling_attention
from vision.tasks import ImageClassification, _one_of_each


def vit(pooling: Any, channels: int = 1, depth: int = 2) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        dim=16,
        depth=depth,
        heads=2,
        patch=(2, 4),
        classes=3,
        channels=channels,
        positions="rotary",
        pooling=pooling,
    ).eval()


@pytest.mark.parametrize("pooling", ["class", "mean", "attention"])
def test_maps_are_the_shares_of_the_patches(pooling: str) -> None:
    model = vit(pooling)
    maps = pooling_attention(model, torch.randn(4, 1, 8, 12))
    assert maps.shape == (4, 2, 4, 3)
    total = maps.sum((2, 3))
    if pooling == "class":  # the rest goes to the class token
        assert bool(((total > 0) & (total < 1)).all())
    else:
        torch.testing.assert_close(total, torch.ones(4, 2))


def test_maps_are_laid_out_as_the_image() -> None:
    """In one layer a lit patch has another key than before, and what it gains all others lose."""
    model = vit("class", depth=1)
    image = torch.zeros(1, 1, 8, 12)
    image[..., 2:4, 8:12] = 50.0
    flat = pooling_attention(model, torch.zeros(1, 1, 8, 12))
    changed = (pooling_attention(model, image) - flat).abs().mean((0, 1))
    assert changed.argmax() == 1 * 3 + 2


@pytest.mark.parametrize("channels", [1, 3])
def test_the_sheet_is_drawn(channels: int, tmp_path: Any) -> None:
    images = torch.randn(3, channels, 8, 12)
    maps = pooling_attention(vit("class", channels), images)
    labels = [("cat", "cat", 0.9), ("dog", "cat", 0.5), ("a very long name", "dog", 1.0)]
    figure = attention_sheet(images, maps, labels)
    assert len(figure.axes) == 3 * (2 + 2) + 1
    assert "2 of them misread" in figure.get_suptitle()
    assert figure.axes[1].get_title() == "cat (50%)\nis dog"
    save_figure(figure, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="as many, got 3, 3, 2"):
        attention_sheet(images, maps, labels[:2])


def test_the_sheet_shows_each_class_and_errors_first() -> None:
    target = torch.tensor([2, 0, 0, 2, 0])
    wrong = torch.tensor([False, False, False, True, False])
    assert _one_of_each(target, wrong).tolist() == [1, 3]


def test_the_task_draws_a_batch() -> None:
    task = ImageClassification(vit("class"), classes=["a", "b", "c"], optimizer=AdamW)
    batch = {"image": torch.randn(8, 1, 8, 12), "target": torch.arange(8) % 3}
    assert len(task.attention_figure(batch).axes) == 3 * 4 + 1
