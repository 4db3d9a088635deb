"""From images to tokens on a grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attention_core import Grid
from attention_core.annotated import checked
from attention_core.checks import (
    check_chance,
    check_dense,
    check_dtype,
    check_whole,
    is_whole,
)
from attention_core.transfer import moved, on_host, remember_original


class PatchEmbedding(nn.Module):
    """One token for each patch of an image (Dosovitskiy et al., ViT, 2021).

    Each patch, flattened, times one matrix: a convolution whose stride is its kernel. A list of
    images is cut into patches first, which one matrix product then embeds, whatever their sizes.

    Args:
        patch_size: height and width of a patch in pixels, or one number for both.
        dim: size D of a token.
        channels: number of channels C of an image.
        stride: rows and columns of pixels from a patch to the next, or one number for both; that
            of the patch by default, less for patches that overlap.
        stem: channels of 3×3 convolutions before, each of which halves the image and is followed
            by batch normalisation and ReLU (Xiao et al., Early Convolutions, 2021); the patch is
            then cut from their output. In training, images are normalised with those of their size.
        projection_bias: whether a vector is added to each token.

    Raises:
        ValueError: arguments that do not fit each other; the message names them.
    """

    @checked
    def __init__(
        self,
        patch_size: int | tuple[int, int],
        dim: int,
        *,
        channels: int = 3,
        stride: int | tuple[int, int] | None = None,
        stem: Sequence[int] = (),
        projection_bias: bool = True,
    ) -> None:
        super().__init__()
        self.patch_size = pair("patch_size", patch_size)
        self.stride = self.patch_size if stride is None else pair("stride", stride)
        if any(step > size for step, size in zip(self.stride, self.patch_size, strict=True)):
            raise ValueError(
                f"stride={self.stride} leaves out pixels between patches of "
                f"patch_size={self.patch_size}"
            )
        check_whole(dim=dim, channels=channels)
        for width in stem:
            check_whole(stem=width)
        self.channels = channels
        shrink = 2 ** len(stem)
        if any(n % shrink for n in (*self.patch_size, *self.stride)):
            raise ValueError(
                f"a stem of {len(stem)} convolutions makes {shrink}×{shrink} pixels one, so "
                f"patch_size={self.patch_size} and stride={self.stride} must be multiples of "
                f"{shrink}"
            )
        self.stem = _stem(channels, stem) if stem else None
        self.project = nn.Conv2d(
            stem[-1] if stem else channels,
            dim,
            kernel_size=[n // shrink for n in self.patch_size],  # type: ignore[arg-type]
            stride=[n // shrink for n in self.stride],  # type: ignore[arg-type]
            bias=projection_bias,
        )
        # Tokens of about the size of the pixels, whatever the patch, so that positions added to
        # them drown nothing (as torchvision does)
        nn.init.trunc_normal_(self.project.weight, std=self.project.weight[0].numel() ** -0.5)
        if self.project.bias is not None:
            nn.init.zeros_(self.project.bias)

    def forward(self, image: Tensor | Sequence[Tensor], *, special: int = 0) -> tuple[Tensor, Grid]:
        """Embed the patches, row by row; return their tokens and where they sit.

        Args:
            image: (B, C, H, W), H and W multiples of the patch; or a list of (C, H, W) of any
                such sizes, which are packed into one row of tokens. Where patches overlap, the
                last one must end where the image does.
            special: special tokens per image that the grid has places for, in front.

        Returns: tokens (B, N, D), N = H/h · W/w where patches do not overlap, or (T, D) packed;
        and the grid of N + special places per image.

        Raises:
            TypeError: an image is no tensor, or not float.
            ValueError: an image has another shape; the message names it.
        """
        self.check(image)
        if not isinstance(image, Tensor):
            sizes = [self.check_size(*one.shape[-2:]) for one in image]
            space = Grid.packed(sizes, special=special, device=image[0].device)
            whole = self.stem is None and self.stride == self.patch_size
            return self._product(image) if whole else self._by_size(image), space
        size = self.check_size(*image.shape[-2:])  # a convolution would silently cut the rest off
        return self._convolve(image), Grid(*size, special=special, device=image.device)

    def grid_size(self, image_size: Sequence[int]) -> tuple[int, int]:
        """Return rows and columns of patches of an image of height and width `image_size`.

        Raises:
            ValueError: patches do not cover it.
        """
        return self.check_size(*pair("image_size", image_size))

    def check_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the `grid_size` of an image that is there: its sizes are no arguments."""
        (h, w), (down, right) = self.patch_size, self.stride
        over = height < h or width < w or (height - h) % down or (width - w) % right
        if over:
            wanted = f"that are multiples of patch_size={h}×{w}"
            if self.stride != self.patch_size:
                wanted = f"of patch_size={h}×{w} and multiples of stride={down}×{right} more"
            raise ValueError(
                f"image must have a height and width {wanted}, got {height}×{width} for image_size"
            )
        return (height - h) // down + 1, (width - w) // right + 1

    def check(self, image: Tensor | Sequence[Tensor]) -> None:
        """Raise TypeError or ValueError where it is no images (B, C, H, W), nor a list of some."""
        if isinstance(image, Tensor):
            self._check(image, f"(B, C, H, W) with C = channels={self.channels}", 4)
            return
        if not isinstance(image, Sequence) or isinstance(image, str):
            raise TypeError(
                "image must be a tensor (B, C, H, W) or a list of tensors (C, H, W), got "
                f"{type(image).__name__}"
            )
        if len(image) == 0:
            raise ValueError("image must hold at least one image, got an empty list")
        for one in image:
            self._check(one, f"(C, H, W) in a list with C = channels={self.channels}", 3)

    def _check(self, image: Tensor, wanted: str, dims: int) -> None:
        if not isinstance(image, Tensor):
            raise TypeError(f"image must be a tensor {wanted}, got {type(image).__name__}")
        if image.ndim != dims or image.shape[-3] != self.channels:
            raise ValueError(f"image must be {wanted}, got {tuple(image.shape)}")
        if not image.is_floating_point():
            raise TypeError(f"image must be float, such as bytes / 255, got {image.dtype}")
        check_dense(or_meta=True, image=image)
        check_dtype(self.project, image=image)

    def _convolve(self, image: Tensor) -> Tensor:
        if self.stem is not None:
            image = self.stem(image)
        tokens: Tensor = self.project(image)
        return tokens.flatten(2).transpose(1, 2)

    def _product(self, images: Sequence[Tensor]) -> Tensor:
        """The patches of all images, (T, C·h·w), times one matrix."""
        h, w = self.patch_size
        rows = [
            image.unflatten(1, (-1, h)).unflatten(3, (-1, w)).permute(1, 3, 0, 2, 4).flatten(0, 1)
            for image in images
        ]
        return F.linear(
            torch.cat(rows).flatten(1), self.project.weight.flatten(1), self.project.bias
        )

    def _by_size(self, images: Sequence[Tensor]) -> Tensor:
        """One convolution for all images of a size."""
        groups: dict[torch.Size, list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(image.shape, []).append(index)
        tokens: dict[int, Tensor] = {}
        for members in groups.values():
            batch = self._convolve(torch.stack([images[index] for index in members]))
            tokens.update(zip(members, batch, strict=True))
        return torch.cat([tokens[index] for index in range(len(images))])


def _stem(channels: int, widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inner, outer in zip((channels, *widths), widths, strict=False):
        layers.append(nn.Conv2d(inner, outer, kernel_size=3, stride=2, padding=1, bias=False))
        layers += [nn.BatchNorm2d(outer), nn.ReLU()]
    return nn.Sequential(*layers)


@checked
def drop_patches(tokens: Tensor, space: Grid, share: float) -> tuple[Tensor, Grid]:
    """Drop a share of each image's patches at random; what stays keeps its order and its place.

    As in masked autoencoders and FLIP (Li et al., 2023), each image loses others. Special tokens
    stay, and of each image at least one patch.

    Args:
        tokens: (B, L, D), or (T, D) packed, with positions added already.
        space: where they sit.
        share: of the patches, in [0, 1); of N of them max(1, ⌊N · (1 − share)⌋) stay.

    Returns: the tokens that stay, and where they sit; special tokens in front.

    Raises:
        ValueError: share is another number, or the grids are padded.
    """
    index = choose_patches(tokens, space, share)
    return tokens[index], space.keep(index[-1])


def choose_patches(
    tokens: Tensor, space: Grid, share: float, *, lots: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Choose the tokens that `drop_patches` keeps, by index: ((B, 1), (B, K)), or ((K,),) packed.

    Args:
        tokens, space, share: as there.
        lots: (B, N), or (T,) packed: a number for each patch; those of an image with the largest
            go. Random by default.

    Raises:
        ValueError: as there; or the lots are not as many as the patches.
    """
    check_chance(share=share)
    check_dense(tokens=tokens)
    if tokens.ndim not in (2, 3) or tokens.shape[-2] != space.length:
        raise ValueError(
            f"tokens must be (B, L, D), or (T, D) packed, of {space.describe()}; got "
            f"{tuple(tokens.shape)}, another length than that of the space"
        )
    if space.batch is not None:
        raise ValueError(f"patches are dropped of whole or packed grids, not of {space.describe()}")
    special, device = space.num_special, tokens.device
    shape = (*tokens.shape[:-2], space.length - special)
    if lots is None:
        lots = torch.rand(shape, device=device if tokens.ndim == 3 else space.host.device)
    elif lots.shape != shape:
        raise ValueError(
            f"noise must be {shape}, a number for each patch of image, got {tuple(lots.shape)}"
        )

    def count(patches: int) -> int:
        # Rounded first: 10 · (1 − 0.8) is 1.9999999999999996
        return max(1, math.floor(round(patches * (1 - share), 6)))

    if tokens.ndim == 3:
        lots = moved(lots, device)
        chosen = lots.argsort(-1)[:, : count(shape[-1])].sort(-1).values + special
        first = torch.arange(special, device=device).expand(len(chosen), -1)
        row = torch.arange(len(chosen), device=device)[:, None]
        return row, torch.cat([first, chosen], dim=-1)
    index = _of_packed(space.host, on_host(lots), count)
    there = moved(index, device)
    if there is not index:
        remember_original(there, index)
    return (there,)


def _of_packed(space: Grid, lots: Tensor, count: Callable[[int], int]) -> Tensor:
    """(K,) the tokens that stay of packed images, by lots (T,), where `count` of N patches do."""
    device = lots.device
    kept = torch.zeros(space.length, dtype=torch.bool, device=device)
    kept = kept if space.special is None else space.special.clone()
    patch = (~kept).nonzero().squeeze(-1)
    image = torch.zeros_like(patch) if space.segments is None else space.segments[patch]
    order = lots.argsort()
    order = order[image[order].argsort(stable=True)]  # image by image, and there by lot
    total = torch.bincount(image, minlength=space.num_segments)
    rank = torch.arange(len(order), device=device) - (total.cumsum(0) - total)[image[order]]
    counts = torch.tensor([count(patches) for patches in total.tolist()], device=device)
    kept[patch[order[rank < counts[image[order]]]]] = True
    return kept.nonzero().squeeze(-1)


def pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width) from one number or two, such as a configuration file gives them.

    Raises:
        ValueError: it is neither, or not positive.
    """
    both = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(both) != 2 or any(isinstance(n, bool) or not is_whole(n) or n < 1 for n in both):
        raise ValueError(f"{name} must be a positive whole number, or (height, width); got {value}")
    return both[0], both[1]
