"""torchvision's data sets by name, over small files in their formats. Nothing is downloaded."""

import hashlib
import pickle
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torchvision import datasets

from attention_core.training import UsageError
from vision.data import TorchvisionImages
from vision.data.torchvision_datasets import _TorchvisionSource

GENERATOR = numpy.random.default_rng(0)


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch, count: int = 20) -> None:
    """The archive's folder with `count` images a file, and torchvision told their checksums."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def save(name: str, content: dict[str, Any]) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch() -> dict[str, Any]:
        pixels = GENERATOR.integers(0, 256, (count, 3072), dtype=numpy.uint8)
        return {"data": pixels, "labels": [index % 10 for index in range(count)]}

    train = [[name, save(name, batch())] for name in ("data_batch_1", "data_batch_2")]
    names = [f"class {index}" for index in range(10)]
    meta = save("batches.meta", {"label_names": names})
    test = [["test_batch", save("test_batch", batch())]]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", train)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", test)
    monkeypatch.setitem(datasets.CIFAR10.meta, "md5", meta)


def write_fashion(root: Path, count: int = 30) -> None:
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        pixels = GENERATOR.integers(0, 256, (count, 28, 28), dtype=numpy.uint8)
        labels = (numpy.arange(count) % 10).astype(numpy.uint8)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim])
            sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(head + sizes + array.tobytes())


def write_flowers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    folder = root / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for index in range(1, 13):
        image = Image.new("RGB", (30 + index, 40), (20 * index, 0, 0))
        image.save(folder / "jpg" / f"image_{index:05}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": numpy.arange(12)[None] % 2 + 1})
    parts = {"trnid": [1, 2, 3, 4], "valid": [5, 6], "tstid": [7, 8, 9, 10, 11, 12]}
    savemat(folder / "setid.mat", {name: numpy.array([ids]) for name, ids in parts.items()})
    monkeypatch.setattr(datasets.Flowers102, "_check_integrity", lambda self: True)


def load(name: str, root: Path, **settings: Any) -> Any:
    data: Any = TorchvisionImages(name, str(root), **{"size": 32, "batch_size": 8, **settings})
    data.prepare_data()
    data.setup()
    return data


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path, monkeypatch)
    data = load("CIFAR10", tmp_path)
    assert data.classes == [f"class {index}" for index in range(10)]
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [30, 10, 20]
    assert data.val_set.targets.bincount().tolist() == [1] * 10
    theirs = datasets.CIFAR10(str(tmp_path), train=False)
    for sample, (image, target) in zip(data.test_set, theirs, strict=True):
        pixels = torch.from_numpy(numpy.array(image)).permute(2, 0, 1)
        torch.testing.assert_close(sample["image"], pixels / 255)
        assert int(sample["target"]) == target
    kept = {*data.train_set.indices} | {*data.val_set.indices}
    assert kept == set(range(40))
    with pytest.raises(UsageError, match="names 3 classes, but the labels of CIFAR10 are 0 to 9"):
        load("CIFAR10", tmp_path, classes=["a", "b", "c"])


def test_gray_images_of_mnists_kind(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    data = load("FashionMNIST", tmp_path, size=28, channels=1)
    assert data.classes[9] == "Ankle boot"
    batch = next(iter(data.test_dataloader()))
    assert batch["image"].shape == (8, 1, 28, 28)
    assert batch["target"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_a_data_set_with_a_validation_part_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_flowers(tmp_path, monkeypatch)
    data = load("Flowers102", tmp_path, val={"split": "val"}, classes=["a", "b"])
    parts = [part.targets.tolist() for part in (data.train_set, data.val_set, data.test_set)]
    assert parts == [[0, 1, 0, 1], [0, 1], [0, 1, 0, 1, 0, 1]]
    red = data.test_set[2]["image"][0].mean() * 255
    assert float(red) == pytest.approx(180, abs=3)  # the ninth image
    with pytest.raises(UsageError, match="data.val: Flowers102: .*'vol'.*split"):
        load("Flowers102", tmp_path, val={"split": "vol"})


def test_files_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="CIFAR10 is not in '.*': .* data.download=true fetches"):
        load("CIFAR10", tmp_path)

    def offline(*args: Any, **kwargs: Any) -> Any:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    for name in ("CIFAR10", "FashionMNIST"):
        message = f"{name} could not be downloaded: .*Where there is no internet, put its files"
        with pytest.raises(UsageError, match=message):
            load(name, tmp_path / name, download=True)


def test_what_is_no_data_set_of_classes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no data set 'CIFAR11'. Did you mean CIFAR10"):
        load("CIFAR11", tmp_path)
    for sample in [(torch.zeros(3, 8, 8), 1), (Image.new("L", (8, 8)), {"boxes": []})]:
        with pytest.raises(UsageError, match="X is no data set of images with one class each"):
            _TorchvisionSource([sample], "X", "train")


def test_labels_are_read_where_torchvision_does_not_keep_them() -> None:
    images = [(Image.new("L", (8, 8)), label) for label in (2, 0, 1)]
    assert _TorchvisionSource(images, "X", "train").targets == [2, 0, 1]
