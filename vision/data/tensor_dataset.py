"""Images that are kept in memory, as tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

Sample = dict[str, Tensor]


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
    """Turn, scale and shift each of the images (B, C, H, W) by amounts of its own.

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
