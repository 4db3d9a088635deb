"""From images to tokens on a grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attention_core import Grid


class PatchEmbedding(nn.Module):
    """One token for each patch of an image (Dosovitskiy et al., ViT, 2021).

    A convolution whose stride is its kernel: each patch, flattened, times one matrix.

    Args:
        patch: height and width of a patch in pixels, or one number for both.
        dim: size D of a token.
        channels: number of channels C of an image.
    """

    def __init__(self, patch: int | tuple[int, int], dim: int, *, channels: int = 3) -> None:
        super().__init__()
        self.patch = pair("patch", patch)
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        self.project = nn.Conv2d(channels, dim, kernel_size=self.patch, stride=self.patch)
        # Tokens of about the size of the pixels, whatever the patch, so that positions added to
        # them drown nothing (as torchvision does)
        nn.init.trunc_normal_(self.project.weight, std=self.project.weight[0].numel() ** -0.5)
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor | Sequence[Tensor], *, special: int = 0) -> tuple[Tensor, Grid]:
        """The tokens of the patches, row by row, and where they sit.

        Args:
            image: (B, C, H, W), H and W multiples of the patch; or a list of (C, H, W) of any
                such sizes, which are packed into one row of tokens.
            special: special tokens per image that the grid has places for, in front.

        Returns: tokens (B, N, D), N = H/h · W/w, or (T, D) packed; and the grid of N + special
        places per image.

        Raises:
            TypeError: an image is not float.
            ValueError: an image has another shape; the message names it.
        """
        if not isinstance(image, Tensor):
            if len(image) == 0:
                raise ValueError("image must hold at least one image, got an empty list")
            rows = [self._tokens(one[None], one.shape)[0] for one in image]
            sizes = [self.grid_size(one.shape[-2:]) for one in image]
            space = Grid.packed(sizes, special=special, device=rows[0].device)
            return torch.cat(rows), space
        tokens = self._tokens(image, image.shape)
        size = self.grid_size(image.shape[-2:])
        return tokens, Grid(*size, special=special, device=image.device)

    def grid_size(self, image_size: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of patches of an image of height and width `image_size`.

        Raises:
            ValueError: the patch does not divide them.
        """
        (height, width), (h, w) = image_size, self.patch
        if height % h or width % w or not height or not width:
            raise ValueError(
                f"image must have a height and width that are multiples of patch={h}×{w}, "
                f"got {height}×{width}"
            )
        return height // h, width // w

    def _tokens(self, image: Tensor, given: torch.Size) -> Tensor:
        channels = self.project.in_channels
        if image.ndim != 4 or image.shape[1] != channels:
            wanted = "(B, C, H, W)" if len(given) == image.ndim else "(C, H, W) in a list"
            raise ValueError(
                f"image must be {wanted} with C = channels={channels}, got {tuple(given)}"
            )
        if not image.is_floating_point():
            raise TypeError(f"image must be float, such as bytes / 255, got {image.dtype}")
        self.grid_size(image.shape[-2:])  # a convolution would silently cut the rest off
        tokens: Tensor = self.project(image)
        return tokens.flatten(2).transpose(1, 2)


def pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from one number or two, such as a configuration file gives them.

    Raises:
        ValueError: it is neither, or not positive.
    """
    both = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(both) != 2 or any(not isinstance(n, int) or n < 1 for n in both):
        raise ValueError(f"{name} must be a positive whole number, or (height, width); got {value}")
    return both[0], both[1]
