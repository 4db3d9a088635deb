"""What image data sets that are read from disk have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, Required, Unpack

import torch
from PIL import Image
from torch import Tensor

from attention_core.training import DataModule, DataModuleOptions, UsageError
from attention_core.training.console import tell
from attention_core.training.inputs import files
from attention_core.training.splits import stratified_split
from vision.data.image_io import IMAGES, LARGEST, open_image
from vision.data.tensor_dataset import Sample
from vision.data.transforms import ImageTransform

#: A part that a data set does not have is taken off its training part: so much of it for the test,
#: and so much of the rest for validation.
SHARE = 0.2


class Source(Protocol):
    """Images with labels that are read one at a time."""

    targets: list[int]

    def open(self, index: int) -> Image.Image:
        """Read the image; raise ValueError where it cannot be read."""

    def name(self, index: int) -> str:
        """Return what the image is known by."""


class ImageDataOptions(DataModuleOptions, total=False):
    """Options of every `ImageData`, which subclasses pass on."""

    size: Required[int | Sequence[int] | None]
    crop: float
    multiple: int
    longest: int | None
    channels: int | None
    normalize: str | Sequence[Any] | None
    augment: dict[str, Any] | None
    corrupted: Literal["raise", "skip"]


class ImageData(DataModule):
    """Images that are read, decoded and augmented whenever they are drawn.

    A subclass fills the data sets from its `Source`s by `fill`. A batch holds `image`
    (B, C, H, W), float32, and `target` (B,). Without `size`, `image` is a list of B tensors
    (C, H, W), which a `VisionTransformer` packs into one row of tokens.

    `attn predict` reads image files: one, or those below a folder. `largest_input` counts pixels,
    those of a file and those that it is resized to before it is cut, and by default is 50 million.
    It holds for training as well.

    Args:
        size, crop, multiple, longest, channels, normalize, augment: see `ImageTransform`. `augment`
            is for training images alone.
        corrupted: what to do about a file that is no image, or one cut short, when it is drawn:
            "raise" an error that names it; or "skip" it, so that its batch has an image less, and
            name it on the terminal.
        settings: those of `DataModule`.
    """

    largest_input = LARGEST

    def __init__(
        self,
        *,
        size: int | Sequence[int] | None,
        crop: float = 1.0,
        multiple: int = 1,
        longest: int | None = None,
        channels: int | None = 3,
        normalize: str | Sequence[Any] | None = None,
        augment: dict[str, Any] | None = None,
        corrupted: Literal["raise", "skip"] = "raise",
        **settings: Unpack[DataModuleOptions],
    ) -> None:
        super().__init__(**settings)
        self.prepare = ImageTransform(
            size,
            crop,
            multiple,
            longest,
            channels,
            normalize,
            augment or {},
            self.largest_input,
        )
        if corrupted not in ("raise", "skip"):
            raise UsageError(f"data.corrupted must be 'raise' or 'skip', got {corrupted!r}.")
        self.corrupted = corrupted

    def fill(self, train: Source, val: Source | None, test: Source | None, *, name: str) -> None:
        """Fill the three data sets; a part that is None is taken off `train`, see `SHARE`.

        The split is stratified and depends on the names of the images and `name` alone.
        """
        of_test = 0.0 if test else SHARE
        of_val = 0.0 if val else SHARE * (1 - of_test)
        keys = [train.name(index) for index in range(len(train.targets))]
        shares = (1 - of_val - of_test, of_val, of_test)
        kept, first, second = stratified_split(train.targets, shares, name, keys=keys)
        self.train_set = self._set(train, kept, augmented=True)
        self.val_set = self._set(val or train, None if val else first)
        self.test_set = self._set(test or train, None if test else second)

    def _set(
        self, source: Source, indices: list[int] | None, *, augmented: bool = False
    ) -> ImageDataset:
        if indices is None:
            indices = list(range(len(source.targets)))
        skip = self.corrupted == "skip"
        return ImageDataset(source, indices, self.prepare, augmented=augmented, skip=skip)

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        images = [sample["image"] for sample in samples]
        shapes = {tuple(image.shape) for image in images}
        batch: dict[str, Any] = {"image": images}
        if self.prepare.size is not None:
            if len(shapes) > 1:
                raise ValueError(
                    "image: those of a batch must have one shape, got "
                    f"{' and '.join(map(str, sorted(shapes)))}. data.channels=3 makes all of them "
                    "coloured, data.channels=1 gray."
                )
            batch["image"] = torch.stack(images)
        if "target" in samples[0]:
            batch["target"] = torch.stack([sample["target"] for sample in samples])
        return batch

    def inputs(self, path: Path) -> Iterator[tuple[str, Any]]:
        yield from files(path, IMAGES)

    def read(self, raw: Path) -> Sample:
        return {"image": self.prepare(open_image(raw, self.largest_input))}


class ImageDataset(torch.utils.data.Dataset[Sample]):
    """Some of the images of a source, made tensors when they are drawn.

    Args:
        source: where they are read.
        indices: which of them.
        prepare: makes an image a tensor.
        augmented: at random.
        skip: leave out of a batch what cannot be read, instead of an error.

    Attributes:
        targets: (N,), the class of each.
    """

    def __init__(
        self,
        source: Source,
        indices: Sequence[int],
        prepare: ImageTransform,
        *,
        augmented: bool = False,
        skip: bool = False,
    ) -> None:
        self.source, self.indices, self.prepare = source, list(indices), prepare
        self.augmented, self.skip = augmented, skip
        self.targets = torch.tensor([source.targets[index] for index in indices])
        self._named: set[int] = set()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        place = self.indices[index]
        try:
            image: Tensor = self.prepare(self.source.open(place), augmented=self.augmented)
        except ValueError as error:
            raise UsageError(
                f"data: {self.source.name(place)!r} cannot be read: {error}. data.corrupted=skip "
                "leaves such images out."
            ) from error
        return {"image": image, "target": self.targets[index]}

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        if not self.skip:
            return [self[index] for index in indices]
        samples = []
        for index in indices:
            try:
                samples.append(self[index])
            except UsageError as error:
                self._name(index, error)
        if not samples:
            raise UsageError(f"data: none of the {len(indices)} images of a batch can be read.")
        return samples

    def _name(self, index: int, error: UsageError) -> None:
        # Once in each process: the same image comes again in every epoch
        if index not in self._named:
            self._named.add(index)
            name = self.source.name(self.indices[index])
            tell("data", f"left out: {name}: {error.__cause__}")
