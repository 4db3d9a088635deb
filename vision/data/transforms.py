"""From an image of a file to what a model gets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional as transforms

from attention_core.errors import did_you_mean, too_large
from attention_core.training import UsageError
from vision.data.image_io import LARGEST, in_channels
from vision.embeddings import pair

#: Mean and standard deviation of each channel that pretrained models were trained with: most of
#: torchvision's, timm's and DINO's; the ViT of Google and SigLIP; CLIP.
NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


@dataclass
class ImageTransform:
    """Makes an image a tensor (C, H, W): augmented, brought to one size, normalised.

    Args:
        size: height and width, or one number for both. An image is resized (bicubic, antialiased)
            until it covers them, and cut to them in the middle. None keeps the size of each.
        crop: the share of the covering image that is kept, along the side that is cut least: 0.875
            resizes to 256 for a size of 224. Training images that have `size` after augmentation
            are left as they are.
        multiple: without `size`, both sides are resized to the nearest multiple of so many pixels,
            such as the patch of the model.
        longest: without `size`, larger images are reduced to a longer side of so many pixels.
        channels: 1 makes every image gray, 3 red, green and blue; None leaves them as they are.
        normalize: "imagenet", "half" or "clip", see `NORMALIZATIONS`; or a mean and a standard
            deviation, each a number or one per channel. None keeps values in [0, 1].
        augment: transforms of training images by name, such as those of torchvision.transforms.v2,
            in their order; None leaves one out. They get bytes, (C, H, W).
        largest: how many pixels an image may be resized to before it is cut.

    Raises:
        UsageError: an argument is wrong; the message names it.
    """

    size: int | Sequence[int] | None
    crop: float = 1.0
    multiple: int = 1
    longest: int | None = None
    channels: int | None = 3
    normalize: str | Sequence[Any] | None = None
    augment: Mapping[str, Callable[[Tensor], Tensor] | None] = field(default_factory=dict)
    largest: int = LARGEST

    def __post_init__(self) -> None:
        if self.size is not None:
            try:
                self.size = pair("size", self.size)
            except ValueError as error:
                raise UsageError(f"data.{error}") from error
        if not 0 < self.crop <= 1:
            raise UsageError(f"data.crop must be more than 0 and at most 1, got {self.crop}.")
        if self.multiple < 1:
            raise UsageError(f"data.multiple must be at least 1, got {self.multiple}.")
        if self.longest is not None and self.longest < self.multiple:
            raise UsageError(
                f"data.longest must be at least data.multiple={self.multiple}, got {self.longest}."
            )
        if self.channels not in (1, 3, None):
            raise UsageError(f"data.channels must be 1, 3 or null, got {self.channels!r}.")
        self.mean, self.deviation = self._moments()

    def __call__(self, image: Image.Image, *, augmented: bool = False) -> Tensor:
        """The tensor (C, H, W), float32, of an image.

        Raises:
            ValueError: the image cannot be had in `channels` or in this size; the message says why.
        """
        pixels: Tensor = transforms.pil_to_tensor(in_channels(image, self.channels))
        if augmented:
            for transform in filter(None, self.augment.values()):
                pixels = transform(pixels)
        if self.size is None or not (augmented and pixels.shape[-2:] == self.size):
            pixels = self._resized(pixels)
        values: Tensor = transforms.to_dtype(pixels, torch.float32, scale=True)
        return (values - self.mean) / self.deviation

    def _resized(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        if isinstance(self.size, tuple):
            h, w = self.size
            # The side that is cut least takes the rounded size, as torchvision's Resize does
            if height * w <= width * h:
                down = round(h / self.crop)
                across = down * width // height
            else:
                across = round(w / self.crop)
                down = across * height // width
            resized = self._resize(pixels, max(down, h), max(across, w))
            cut: Tensor = transforms.center_crop(resized, [h, w])
            return cut
        share = min(1.0, self.longest / max(height, width)) if self.longest else 1.0
        most = math.inf if self.longest is None else self.longest // self.multiple
        down, across = (
            self.multiple * int(min(most, max(1, round(side * share / self.multiple))))
            for side in (height, width)
        )
        return self._resize(pixels, down, across)

    def _resize(self, pixels: Tensor, height: int, width: int) -> Tensor:
        if height * width > self.largest:
            down, across = pixels.shape[-2:]
            raise too_large(
                self.largest, f"pixels: {across:,} × {down:,}, resized to {width:,} × {height:,}"
            )
        resized: Tensor = transforms.resize(
            pixels, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True
        )
        return resized

    def _moments(self) -> tuple[Tensor, Tensor]:
        given: Any = (0.0, 1.0) if self.normalize is None else self.normalize
        if isinstance(given, str):
            if given not in NORMALIZATIONS:
                raise UsageError(
                    f"data.normalize: {given!r} is none.{did_you_mean(given, NORMALIZATIONS)} "
                    f"There are {', '.join(NORMALIZATIONS)}; or [MEAN, DEVIATION], or null."
                )
            given = NORMALIZATIONS[given]
            if self.channels == 1:
                given = [sum(moments) / 3 for moments in given]
        try:
            mean, deviation = (torch.tensor(moments).float().reshape(-1, 1, 1) for moments in given)
        except (TypeError, ValueError) as error:
            raise UsageError(
                "data.normalize must be a name, null, or a mean and a standard deviation, each a "
                f"number or one per channel; got {self.normalize!r}."
            ) from error
        if not bool((deviation > 0).all()) or any(
            len(moments) not in (1, self.channels) for moments in (mean, deviation)
        ):
            raise UsageError(
                "data.normalize: a mean and a positive standard deviation are needed for all "
                f"channels or for each of data.channels={self.channels}; got {self.normalize!r}."
            )
        return mean, deviation
