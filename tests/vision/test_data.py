"""Digits: a fixed, stratified split without leaks, and augmentation that can be repeated."""

import hashlib
from typing import Any

import pytest
import torch

from vision.data import Digits, Images
from vision.data.tensor_dataset import jitter

pytest.importorskip("sklearn")
PARTS = ("train_set", "val_set", "test_set")


def digits(**settings: Any) -> Digits:
    data = Digits(**{"batch_size": 64, **settings})
    data.setup()
    return data


def rows(images: Images) -> list[bytes]:
    return [image.numpy().tobytes() for image in images.images]


def test_the_split_is_stratified_and_holds_everything_once() -> None:
    from sklearn.datasets import load_digits

    data = digits()
    parts = [getattr(data, part) for part in PARTS]
    assert [len(part) for part in parts] == [1149, 288, 360]
    everything = [row for part in parts for row in rows(part)]
    expected = torch.from_numpy(load_digits().images).float() / 16
    assert sorted(everything) == sorted(image.numpy().tobytes() for image in expected)
    assert len(set(everything)) == len(everything)  # so no part can hold an image of another
    whole = torch.bincount(torch.cat([part.targets for part in parts])).float()
    for part in parts:
        assert bool((torch.bincount(part.targets) / len(part) - whole / 1797).abs().max() < 0.01)


def test_the_test_images_never_change() -> None:
    """Neither with the seed nor with the version of a library: results stay comparable."""
    digest = hashlib.sha256(b"".join(rows(digits(seed=7).test_set))).hexdigest()  # type: ignore[arg-type]
    assert digest[:16] == "7ccd56919e300165"
    assert rows(digits(seed=1).val_set) == rows(digits(seed=2).val_set)  # type: ignore[arg-type]


def test_a_batch_is_images_of_ink_and_their_classes() -> None:
    batch = next(iter(digits().test_dataloader()))
    assert batch["image"].shape == (64, 1, 8, 8) and batch["image"].dtype == torch.float32
    assert batch["image"].min() >= 0 and batch["image"].max() == 1
    assert batch["target"].shape == (64,) and batch["target"].dtype == torch.int64


def test_only_training_images_are_jittered_and_anew_each_epoch() -> None:
    data = digits()
    loader = data.train_dataloader()
    first = torch.cat([batch["image"] for batch in loader])
    again = torch.cat([batch["image"] for batch in data.train_dataloader()])
    loader.set_epoch(1)
    second = torch.cat([batch["image"] for batch in loader])
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert first.min() >= 0 and first.max() <= 1
    tested = torch.cat([batch["image"] for batch in data.test_dataloader()])
    assert torch.equal(tested, data.test_set.images)  # type: ignore[union-attr]


def test_workers_draw_the_same_images() -> None:
    alone = next(iter(digits(workers=0).train_dataloader()))
    beside = next(iter(digits(workers=1).train_dataloader()))
    assert torch.equal(alone["image"], beside["image"])


def test_jitter_by_nothing_changes_nothing() -> None:
    images = torch.rand(5, 2, 6, 9)
    torch.testing.assert_close(jitter(images, 0.0, 0.0, 0.0), images, atol=1e-5, rtol=0)


def test_jitter_stays_within_its_bounds() -> None:
    """Seen at a dot in the middle, also of rectangles, where a turn must not become a shear."""
    y, x = torch.meshgrid(torch.arange(33.0), torch.arange(65.0), indexing="ij")
    dot = torch.exp(-((y - 16) ** 2 + (x - 52) ** 2) / 8)
    torch.manual_seed(0)
    moved = jitter(dot.expand(200, 1, -1, -1), rotation=20.0, scale=0.0, shift=0.0)[:, 0]
    total = moved.sum((1, 2))
    rise, run = ((moved * y).sum((1, 2)) / total - 16, (moved * x).sum((1, 2)) / total - 32)
    assert (torch.hypot(rise, run) - 20).abs().max() < 0.2
    angle = torch.rad2deg(torch.atan2(rise, run))
    assert -20.2 < angle.min() < -18 and 18 < angle.max() < 20.2
    shifted = jitter(dot.roll(-20, 1).expand(200, 1, -1, -1), 0.0, 0.0, shift=3.0)[:, 0]
    down = (shifted * y).sum((1, 2)) / shifted.sum((1, 2)) - 16
    assert -3.1 < down.min() < -2.8 and 2.8 < down.max() < 3.1
