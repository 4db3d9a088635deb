"""Image data sets."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attention_core.training import DataModule, require

Sample = dict[str, Tensor]


class Digits(DataModule):
    """Handwritten digits (Alpaydin & Kaynak, UCI, 1998): 1,797 images of 8×8 in scikit-learn.

    The split is stratified and fixed: 20% test, 20% of the rest for validation. A batch holds
    `image` (B, 1, 8, 8), ink in [0, 1], and `target` (B,).

    Training images are turned, scaled and shifted a little, anew in each epoch.

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
