"""Folders of images: both layouts, what is not there, what is damaged, and images of any size."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torchvision import datasets

from attention_core.training import UsageError
from vision import VisionTransformer
from vision.data import ImageFolder


def write(folder: Path, classes: Sequence[str] = ("cat", "dog", "owl"), count: int = 10) -> Path:
    """Images of noise, each of a shape of its own, whose red tells the class."""
    generator = numpy.random.default_rng(0)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            shape = (20 + index, 30 - index, 3)
            pixels = generator.integers(0, 256, shape, dtype=numpy.uint8)
            pixels[..., 0] = 100 * label
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def folder(root: Path, **settings: Any) -> Any:
    data: Any = ImageFolder(str(root), **{"size": 16, "batch_size": 4, **settings})
    data.setup()
    return data


def names(part: Any) -> list[str]:
    return [part.source.name(index) for index in part.indices]


def test_one_folder_is_split_by_the_names_of_its_files(tmp_path: Path) -> None:
    data = folder(write(tmp_path))
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    again = folder(tmp_path, seed=2, batch_size=1)
    everything: list[str] = []
    for part, count in (("train_set", 6), ("val_set", 2), ("test_set", 2)):
        kept = getattr(data, part)
        assert kept.targets.bincount().tolist() == [count] * 3
        assert names(kept) == names(getattr(again, part))
        everything += names(kept)
    theirs = datasets.ImageFolder(str(tmp_path), allow_empty=True)
    assert sorted(everything) == sorted(
        Path(path).relative_to(tmp_path).as_posix() for path, _ in theirs.samples
    )
    assert data.classes == ["cat", "dog", "owl"]
    for sample, target in zip(data.test_set, data.test_set.targets, strict=True):
        assert int(sample["target"]) == int(target)
        assert round(float(sample["image"][0].mean() * 255)) == 100 * int(target)


def test_parts_that_are_there_are_taken_as_they_are(tmp_path: Path) -> None:
    write(tmp_path / "train")
    write(tmp_path / "test", ["cat", "owl"], 3)
    data = folder(tmp_path)
    assert data.test_set.targets.tolist() == [0] * 3 + [2] * 3
    assert [len(data.train_set), len(data.val_set)] == [24, 6]
    assert all(name.startswith("train/") for name in names(data.train_set) + names(data.val_set))
    write(tmp_path / "val", ["dog"], 2)
    data = folder(tmp_path)
    assert [len(data.train_set), len(data.val_set)] == [30, 2]
    assert data.val_set.targets.tolist() == [1, 1]


def test_classes_may_be_chosen(tmp_path: Path) -> None:
    data = folder(write(tmp_path), classes=["owl", "cat"])
    assert data.train_set.targets.bincount().tolist() == [6, 6]
    for name, target in zip(names(data.test_set), data.test_set.targets, strict=True):
        assert name.startswith(("owl/", "cat/")[int(target)])


def test_a_batch_is_the_same_for_every_number_of_workers(tmp_path: Path) -> None:
    from torchvision.transforms import v2

    augment = {"crop": v2.RandomResizedCrop(16, antialias=True), "policy": v2.RandAugment()}
    data = folder(write(tmp_path), augment=augment)
    other = folder(tmp_path, augment=augment, workers=1)
    loader = data.train_dataloader()
    first, beside = next(iter(loader)), next(iter(other.train_dataloader()))
    assert first["image"].shape == (4, 3, 16, 16) and first["image"].dtype == torch.float32
    assert first["target"].dtype == torch.int64
    assert torch.equal(first["image"], beside["image"])
    loader.set_epoch(1)
    assert not torch.equal(first["image"], next(iter(loader))["image"])
    other.teardown()


def test_images_of_different_sizes_are_a_list_that_the_model_packs(tmp_path: Path) -> None:
    data = folder(write(tmp_path), size=None, multiple=8, longest=24)
    batch = next(iter(data.test_dataloader()))
    shapes = {tuple(image.shape) for image in batch["image"]}
    assert len(batch["image"]) == len(batch["target"]) == 4
    assert len(shapes) > 1 and all(h % 8 == w % 8 == 0 and max(h, w) <= 24 for _, h, w in shapes)
    model = VisionTransformer(16, 1, 2, patch_size=8, num_classes=3, positions="rotary").eval()
    with torch.no_grad():
        together = model(batch["image"])
        alone = torch.cat([model(image[None]) for image in batch["image"]])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def damage(root: Path) -> list[str]:
    """A file that is no image, an empty one, and one that is cut short."""
    (root / "cat" / "0.png").write_bytes(b"no image")
    (root / "dog" / "1.png").write_bytes(b"")
    whole = (root / "owl" / "2.png").read_bytes()
    (root / "owl" / "2.png").write_bytes(whole[: len(whole) // 2])
    return ["cat/0.png", "dog/1.png", "owl/2.png"]


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    data = folder(write(tmp_path / "images"), batch_size=30)
    for name in damage(tmp_path / "images"):
        part = next(p for p in (data.train_set, data.val_set, data.test_set) if name in names(p))
        with pytest.raises(UsageError, match=f"data: '{name}' cannot be read: .*corrupted=skip"):
            part[names(part).index(name)]
    for workers in (0, 1):
        loader = folder(tmp_path / "images", workers=workers)
        with pytest.raises(UsageError, match="^data: '.*' cannot be read: it is no image"):
            for part in ("train", "val", "test"):
                list(getattr(loader, f"{part}_dataloader")())
        loader.teardown()


def test_a_damaged_image_is_left_out_and_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write(tmp_path / "images")
    damaged = damage(root)
    data = folder(root, corrupted="skip")
    counts = [0, 0]
    for epoch in (0, 1):
        for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
            loader.set_epoch(epoch)
            for batch in loader:
                assert len(batch["image"]) == len(batch["target"])
                counts[epoch] += len(batch["target"])
    assert counts == [27, 27]
    said = capsys.readouterr().err
    assert all(said.count(f"left out: {name}: it is no image") == 1 for name in damaged)
    for path in root.rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(UsageError, match="none of the 4 images of a batch can be read"):
        next(iter(folder(root, corrupted="skip").train_dataloader()))


def test_gray_and_coloured_images_do_not_go_together_unless_converted(tmp_path: Path) -> None:
    write(tmp_path, ["cat", "dog"])
    for path in (tmp_path / "cat").iterdir():
        Image.open(path).convert("L").save(path)
    loader = folder(tmp_path, channels=None, batch_size=12).train_dataloader()
    with pytest.raises(ValueError, match=r"\(1, 16, 16\) and \(3, 16, 16\). data.channels=3"):
        next(iter(loader))
    for channels in (1, 3):
        batch = next(iter(folder(tmp_path, channels=channels).train_dataloader()))
        assert batch["image"].shape == (4, channels, 16, 16)


def test_folders_that_hold_nothing_to_train_with(tmp_path: Path) -> None:
    def refused(message: str, root: Path, **settings: Any) -> None:
        with pytest.raises(UsageError, match=message):
            folder(root, **settings)

    refused("data.root: there is no folder '.*missing'", tmp_path / "missing")
    refused("has no folders; one for each class was expected", tmp_path)
    write(tmp_path / "a")
    (tmp_path / "a" / "rat").mkdir()
    refused("the class 'rat' has no image: .* ends in one of .png, ", tmp_path / "a")
    refused(
        "there is no folder 'cow' in .*; there are cat, dog, owl", tmp_path / "a", classes=["cow"]
    )
    write(tmp_path / "b" / "train")
    write(tmp_path / "b" / "val", ["cow"])
    refused("val' has a class 'cow', which training does not have", tmp_path / "b")
    refused("data.corrupted must be 'raise' or 'skip', got 'drop'", tmp_path, corrupted="drop")
