"""Images of one handwritten digit each: how they are split, varied and read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Unpack

import numpy
import torch
from PIL import Image
from torch import Tensor

from attention_core.errors import too_large
from attention_core.training import DataModule, DataModuleOptions, require
from attention_core.training.inputs import check_file, files
from vision.data.image_io import IMAGES, LARGEST, open_image
from vision.data.tensor_dataset import Images, Sample


class DigitImages(DataModule):
    """A data set of handwritten digits, ink in [0, 1]; a subclass says where they come from.

    Training images are turned, scaled and shifted a little, anew in each epoch.

    `attn predict` reads images, each of one digit, and arrays of them: one file, or those below a
    folder. An image is made what the data set is, whether its ink is dark or bright: see
    `digit_from_image`. A .npy file holds images as the model gets them, (N, side, side) or
    (side, side), bright ink in [0, 1]. `largest_input` counts pixels, also those of the square that
    a digit is centred in, and by default is 50 million.

    Args:
        rotation: largest angle in degrees.
        scale: largest relative change of size.
        shift: largest shift in pixels.
        settings: those of `DataModule`.
    """

    #: Pixels of an image along either axis, and of these of what is written at most.
    side: ClassVar[int]
    ink: ClassVar[int]
    largest_input = LARGEST

    def __init__(
        self, *, rotation: float, scale: float, shift: float, **settings: Unpack[DataModuleOptions]
    ) -> None:
        super().__init__(**settings)
        self.rotation, self.scale, self.shift = rotation, scale, shift

    def parts(self, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return indices to train, to validate and to test with, rising: 20% test, 20% of the rest
        for validation, with the same mix of classes."""
        require("sklearn", extra="vision")
        from sklearn.model_selection import train_test_split

        def split(indices: Tensor) -> tuple[Tensor, Tensor]:
            first, second = train_test_split(
                indices.numpy(), test_size=0.2, stratify=targets[indices], random_state=0
            )
            return torch.from_numpy(numpy.sort(first)), torch.from_numpy(numpy.sort(second))

        rest, test = split(torch.arange(len(targets)))
        return *split(rest), test

    def fill(self, images: Tensor, targets: Tensor, *parts: Tensor) -> None:
        """Make the sets to train, to validate and to test with of `images` and their `targets`."""
        varied = (self.rotation, self.scale, self.shift)
        train, val, test = parts
        self.train_set = Images(images[train], targets[train], *varied)
        self.val_set = Images(images[val], targets[val])
        self.test_set = Images(images[test], targets[test])

    def inputs(self, path: Path) -> Iterator[tuple[str, Any]]:
        for name, file in files(path, (*IMAGES, ".npy")):
            if file.suffix.lower() != ".npy":
                yield name, file
                continue
            try:
                images = _open_array(file, self.side)
            except (OSError, ValueError) as error:
                yield name, error
                continue
            for index, image in enumerate(images):
                yield f"{name}[{index}]", image

    def read(self, raw: Path | numpy.ndarray) -> Sample:
        if isinstance(raw, Path):
            return {"image": digit_from_image(raw, self.side, self.ink, self.largest_input)}
        image = torch.from_numpy(numpy.array(raw, dtype=numpy.float32))[None]  # from disk, once
        if not bool(((image >= 0) & (image <= 1)).all()):
            raise ValueError(
                f"values from 0, paper, to 1, ink, were expected, got {float(image.min()):g} to "
                f"{float(image.max()):g}"
            )
        return {"image": image}


def _open_array(path: Path, side: int) -> numpy.ndarray:
    """The images (N, side, side) in a .npy file, left on disk."""
    array = numpy.load(check_file(path), mmap_mode="r", allow_pickle=False)
    fits = array.ndim in (2, 3) and array.shape[-2:] == (side, side)
    if not fits or array.dtype.kind not in "fiub":
        raise ValueError(
            f"an array of numbers of shape (N, {side}, {side}) or ({side}, {side}) was expected, "
            f"got {array.dtype} {array.shape}"
        )
    return array.reshape(-1, side, side)


def digit_from_image(path: Path, side: int = 8, ink: int = 8, largest: int = LARGEST) -> Tensor:
    """Read the image of one digit, of any size and colours, as a data set has it: (1, side, side),
    bright ink on black.

    The border shows the paper: where it is brighter than half, the ink is dark and the image is
    inverted. Both data sets' digits were cut out and brought to one size (NIST's preprocessing),
    and so is this one: what is nearly as bright as its brightest ink is cut out, centred in a
    square, and averaged over `ink` × `ink` fields; where that leaves a margin, the centre of mass
    of the ink is put into the middle, as in MNIST. An image of side × side pixels is taken to be
    prepared already, and only inverted where its ink is dark.

    Of 1,000 digits of MNIST, written with thinner strokes, a model trained on those of 8×8 tells
    60% right so, and 25% where they are only made smaller.

    Args:
        path: a file that Pillow reads.
        side: pixels of the image along either axis.
        ink: of these, what the longer side of the digit takes.
        largest: how many pixels the image may have, and the square around the digit.

    Raises:
        ValueError: the file is no image that Pillow reads, is larger, or shows nothing.
    """
    image = open_image(path, largest)
    depth = 65535 if image.mode == "I;16" else 255
    gray = numpy.array(image if depth > 255 else image.convert("L"), numpy.float32) / depth
    border = numpy.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    paper = float(numpy.median(border))
    if paper > 0.5:
        gray, paper = 1 - gray, 1 - paper
    if gray.shape == (side, side):
        return torch.from_numpy(gray)[None]
    shown = (gray - paper).clip(min=0)
    if shown.max() < 0.1:
        raise ValueError("it shows no digit: it is as bright everywhere as at its border")
    shown /= shown.max()
    rows, columns = (numpy.flatnonzero((shown > 0.5).any(axis)) for axis in (1, 0))
    shown = shown[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = shown.shape
    longer = max(height, width)
    if longer**2 > largest:
        raise too_large(largest, f"pixels: a digit of {width:,} × {height:,} in a square")
    square = numpy.zeros((longer, longer), numpy.float32)
    top, left = (longer - height) // 2, (longer - width) // 2
    square[top : top + height, left : left + width] = shown
    small = numpy.array(Image.fromarray(square).resize((ink, ink), Image.Resampling.BOX))
    if ink < side:
        small = _centred(small, side)
    return torch.from_numpy(small)[None]


def _centred(digit: numpy.ndarray, side: int) -> numpy.ndarray:
    """The digit on a larger square, its centre of mass as near the middle as the border allows."""
    start = []
    for axis in (0, 1):
        mass = digit.sum(1 - axis)
        centre = float((mass * (numpy.arange(len(mass)) + 0.5)).sum() / mass.sum())
        start.append(min(max(round(side / 2 - centre), 0), side - len(mass)))
    square = numpy.zeros((side, side), numpy.float32)
    square[start[0] : start[0] + len(digit), start[1] : start[1] + len(digit)] = digit
    return square
