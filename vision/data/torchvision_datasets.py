"""The data sets that torchvision can fetch and read, by their names there."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from PIL import Image
from torchvision import datasets

from attention_core.errors import did_you_mean
from attention_core.training import UsageError
from attention_core.training.unpickling import plain_pickles
from vision.data.image_dataset import ImageData, ImageDataOptions

#: The data sets of torchvision that can be read: images with one class each, from files that are no
#: programs, without functions to call.
READABLE = frozenset(
    {
        *("CIFAR10", "CIFAR100", "CLEVRClassification", "Caltech101", "Caltech256", "Country211"),
        *("DTD", "EMNIST", "EuroSAT", "FER2013", "FGVCAircraft", "FakeData", "FashionMNIST"),
        *("Flowers102", "Food101", "GTSRB", "INaturalist", "ImageNet", "Imagenette", "KMNIST"),
        *("LFWPeople", "MNIST", "Omniglot", "OxfordIIITPet", "PCAM", "Places365", "QMNIST"),
        *("RenderedSST2", "SEMEION", "STL10", "SUN397", "SVHN", "StanfordCars", "USPS"),
    }
)


class TorchvisionImages(ImageData):
    """A data set of `torchvision.datasets` for classification: CIFAR10, Flowers102, FashionMNIST...

    A part that the data set does not have is taken off the training part, stratified and fixed:
    20% of it for the test, 20% of the rest for validation.

    Args:
        name: of the class in torchvision, one of `READABLE`.
        root: the folder of its files.
        download: fetch them where they are not there yet.
        train, val, test: the arguments of the class that select each part, such as
            ``train={"split": "trainval"}``; None where there is no such part. By default what
            torchvision's parameters `train` or `split` call training and test.
        settings: those of `ImageData`.

    Raises:
        UsageError: the name is none; or when it loads: files are missing, or are no images with
            one class each.
    """

    def __init__(
        self,
        name: str,
        root: str,
        *,
        download: bool = False,
        train: Mapping[str, Any] | None = None,
        val: Mapping[str, Any] | None = None,
        test: Mapping[str, Any] | None = None,
        **settings: Unpack[ImageDataOptions],
    ) -> None:
        super().__init__(**settings)
        if name not in READABLE:
            if name in datasets.__all__:
                raise UsageError(
                    f"data.name: {name!r} is refused: it is not among those of torchvision's data "
                    "sets that are known to be images with one class each, read without running "
                    "code."
                )
            raise UsageError(
                f"data.name: torchvision has no data set {name!r}.{did_you_mean(name, READABLE)}"
            )
        self.dataset, self.root, self.download = name, Path(root).expanduser(), download
        known = inspect.signature(getattr(datasets, name)).parameters
        if train is None and "train" in known:
            train, test = {"train": True}, test or {"train": False}
        elif train is None and "split" in known:
            train, test = {"split": "train"}, test or {"split": "test"}
        self.parts = {"train": train or {}, "val": val, "test": test}

    def prepare_data(self) -> None:
        """Download: Lightning's hook, called in one process of a machine before any other."""
        if self.download:
            for part, arguments in self.parts.items():
                if arguments is not None:
                    self._open(part, arguments, download=True)

    def load(self) -> None:
        train, val, test = (
            None
            if arguments is None
            else _TorchvisionSource(self._open(part, arguments), self.dataset, part)
            for part, arguments in self.parts.items()
        )
        assert train is not None
        if not self.classes:
            names = getattr(train.dataset, "classes", range(max(train.targets) + 1))
            self.classes = [str(name) for name in names]
        labels = [label for part in (train, val, test) if part for label in part.targets]
        if not 0 <= min(labels) <= max(labels) < len(self.classes):
            raise UsageError(
                f"data.classes names {len(self.classes)} classes, but the labels of {self.dataset} "
                f"are {min(labels)} to {max(labels)}."
            )
        self.fill(train, val, test, name=self.dataset)

    def _open(self, part: str, arguments: Mapping[str, Any], *, download: bool = False) -> Any:
        make: Any = getattr(datasets, self.dataset)
        more = {"download": True} if download else {}
        if download and "download" not in inspect.signature(make).parameters:
            return None  # such as ImageNet, whose files one has to ask for
        try:
            with plain_pickles(f"data: {self.dataset} in {str(self.root)!r}"):
                return make(root=str(self.root), **arguments, **more)
        except UsageError:
            raise
        except (TypeError, ValueError) as error:
            raise UsageError(f"data.{part}: {self.dataset}: {error}") from error
        except (OSError, RuntimeError) as error:
            place, reason = str(self.root.absolute()), " ".join(str(error).split())
            if download:
                raise UsageError(
                    f"data: {self.dataset} could not be downloaded: {reason}. Where there is no "
                    f"internet, put its files into {place!r} as torchvision lays them out."
                ) from error
            raise UsageError(
                f"data: {self.dataset} is not in {place!r}: {reason}. data.download=true fetches "
                "what torchvision can."
            ) from error


class _TorchvisionSource:
    """A data set of torchvision as a source of images."""

    def __init__(self, dataset: Any, name: str, part: str) -> None:
        self.dataset, self._name, self._part = dataset, name, part
        image, target = dataset[0]
        if not isinstance(image, Image.Image) or not _is_label(target):
            raise UsageError(
                f"data.name: {name} is no data set of images with one class each; a sample of it "
                f"is {type(image).__name__} and {type(target).__name__}."
            )
        self.targets = _labels(dataset)

    def open(self, index: int) -> Image.Image:
        try:
            image: Image.Image = self.dataset[index][0]
        except (OSError, SyntaxError) as error:  # as Pillow finds a damaged file
            raise ValueError(str(error)) from error
        return image

    def name(self, index: int) -> str:
        return f"{self._name}/{self._part}/{index}"


def _is_label(target: Any) -> bool:
    try:
        return not isinstance(target, bool) and int(target) == target
    except (TypeError, ValueError):
        return False


def _labels(dataset: Any) -> list[int]:
    """The label of each sample, without reading the images where torchvision keeps it apart."""
    for attribute in ("targets", "labels", "_labels"):
        labels: Sequence[Any] | None = getattr(dataset, attribute, None)
        if labels is not None and len(labels) == len(dataset):
            return [int(label) for label in labels]
    pairs = getattr(dataset, "_samples", None)
    if pairs is not None and len(pairs) == len(dataset):
        return [int(label) for _, label in pairs]
    return [int(dataset[index][1]) for index in range(len(dataset))]
