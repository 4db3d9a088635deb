"""Image data sets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn import functional as F

from attention_core.training import DataModule, require
from attention_core.training.inputs import files

Sample = dict[str, Tensor]


class Digits(DataModule):
    """Handwritten digits (Alpaydin & Kaynak, UCI, 1998): 1,797 images of 8×8 in scikit-learn.

    The split is stratified and fixed: 20% test, 20% of the rest for validation. A batch holds
    `image` (B, 1, 8, 8), ink in [0, 1], and `target` (B,).

    Training images are turned, scaled and shifted a little, anew in each epoch.

    `attn predict` reads images, each of one digit, and arrays of them: one file, or those below a
    folder. An image is made what the data set is, whether its ink is dark or bright: see
    `digit_from_image`. A .npy file holds images as the model gets them, (N, 8, 8) or (8, 8), bright
    ink in [0, 1].

    Args:
        rotation: largest angle in degrees.
        scale: largest relative change of size.
        shift: largest shift in pixels.
        settings: those of `DataModule`.
    """

    def __init__(
        self, *, rotation: float = 10.0, scale: float = 0.1, shift: float = 0.5, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.rotation, self.scale, self.shift = rotation, scale, shift

    def load(self) -> None:
        require("sklearn", extra="data")
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        images = torch.from_numpy(digits.images).float()[:, None] / 16
        targets = torch.from_numpy(digits.target).long()

        def split(indices: list[int], share: float) -> tuple[list[int], list[int]]:
            first, second = train_test_split(
                indices, test_size=share, stratify=targets[indices], random_state=0
            )
            return sorted(first), sorted(second)

        rest, test = split(list(range(len(targets))), 0.2)
        train, val = split(rest, 0.2)
        self.train_set = Images(
            images[train], targets[train], self.rotation, self.scale, self.shift
        )
        self.val_set = Images(images[val], targets[val])
        self.test_set = Images(images[test], targets[test])

    def inputs(self, path: Path) -> Iterator[tuple[str, Any]]:
        for name, file in files(path, (*IMAGES, ".npy")):
            if file.suffix.lower() != ".npy":
                yield name, file
                continue
            try:
                images = _open_array(file)
            except (OSError, ValueError) as error:
                yield name, error
                continue
            for index, image in enumerate(images):
                yield f"{name}[{index}]", image

    def read(self, raw: Path | numpy.ndarray) -> Sample:
        if isinstance(raw, Path):
            return {"image": digit_from_image(raw)}
        image = torch.from_numpy(numpy.array(raw, dtype=numpy.float32))[None]  # from disk, once
        if not bool(((image >= 0) & (image <= 1)).all()):
            raise ValueError(
                f"values from 0, paper, to 1, ink, were expected, got {float(image.min()):g} to "
                f"{float(image.max()):g}"
            )
        return {"image": image}


#: The suffixes of images that are read.
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")


def _open_array(path: Path) -> numpy.ndarray:
    """The images (N, 8, 8) in a .npy file, left on disk."""
    array = numpy.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim not in (2, 3) or array.shape[-2:] != (8, 8) or array.dtype.kind not in "fiub":
        raise ValueError(
            f"an array of numbers of shape (N, 8, 8) or (8, 8) was expected, got {array.dtype} "
            f"{array.shape}"
        )
    return array.reshape(-1, 8, 8)


def digit_from_image(path: Path) -> Tensor:
    """The image of one digit, of any size and colours, as the data set has it: (1, 8, 8), bright
    ink on black.

    The border shows the paper: where it is brighter than half, the ink is dark and the image is
    inverted. The data set's digits were cut out and brought to one size before they were reduced
    to 8×8 (NIST's preprocessing), and so is this one: what is nearly as bright as its
    brightest ink is cut out, centred in a square, and averaged over 8×8 fields. An image of 8×8 is
    taken to be prepared already, and only inverted where its ink is dark.

    Of 1,000 digits of MNIST, written with thinner strokes, a model trained on this data set tells
    57% right so, and 26% where they are only made smaller.

    Raises:
        ValueError: the file is no image that Pillow reads, or shows nothing.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.has_transparency_data:  # what shows through is paper
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            depth = 65535 if image.mode.startswith("I") else 255
            gray = numpy.array(image if depth > 255 else image.convert("L"), numpy.float32) / depth
    except Exception as error:  # Pillow raises a dozen kinds for a damaged file
        raise ValueError(f"it is no image that can be read: {error}") from error
    border = numpy.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    paper = float(numpy.median(border))
    if paper > 0.5:
        gray, paper = 1 - gray, 1 - paper
    if gray.shape == (8, 8):
        return torch.from_numpy(gray)[None]
    ink = (gray - paper).clip(min=0)
    if ink.max() < 0.1:
        raise ValueError("it shows no digit: it is as bright everywhere as at its border")
    ink /= ink.max()
    rows, columns = (numpy.flatnonzero((ink > 0.5).any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = ink.shape
    side = max(height, width)
    square = numpy.zeros((side, side), numpy.float32)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = ink
    small = Image.fromarray(square).resize((8, 8), Image.Resampling.BOX)
    return torch.from_numpy(numpy.array(small))[None]


class Images(torch.utils.data.Dataset[Sample]):
    """Images in memory, each turned, scaled and shifted at random whenever it is drawn.

    Args:
        images: (N, C, H, W).
        targets: (N,).
        rotation, scale, shift: at most so many degrees, relative size and pixels; zeros leave the
            images as they are.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        rotation: float = 0.0,
        scale: float = 0.0,
        shift: float = 0.0,
    ) -> None:
        self.images, self.targets = images, targets
        self.rotation, self.scale, self.shift = rotation, scale, shift

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        # A whole batch at once: one call where there would be one for each image
        images = self.images[indices]
        if self.rotation or self.scale or self.shift:
            images = jitter(images, self.rotation, self.scale, self.shift)
        targets = self.targets[indices]
        return [{"image": i, "target": t} for i, t in zip(images, targets, strict=True)]


def jitter(images: Tensor, rotation: float, scale: float, shift: float) -> Tensor:
    """Each of the images (B, C, H, W) turned, scaled and shifted by amounts of its own.

    The amounts are uniform, up to `rotation` degrees, a relative size `scale` and `shift` pixels
    per axis, and drawn from torch's generator; what comes in from outside is 0.
    """
    count, height, width = len(images), *images.shape[-2:]
    turn, size, down, right = (2 * torch.rand(4, count) - 1) * torch.tensor(
        [[math.radians(rotation)], [scale], [2 * shift / height], [2 * shift / width]]
    )
    cos, sin = turn.cos() * (1 + size), turn.sin() * (1 + size)
    # Coordinates run from -1 to 1 along either axis, so a turn has to know the shape
    matrix = torch.stack(
        [
            torch.stack([cos, -sin * height / width, right], dim=1),
            torch.stack([sin * width / height, cos, down], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    # Bilinear would blur what is eight pixels wide; bicubic overshoots, hence the clamp
    moved = F.grid_sample(images, grid, mode="bicubic", align_corners=False)
    return moved.clamp(0, 1)
