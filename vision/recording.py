"""One image through a model, and the attention of its layers recorded: what `vision.seeing` reads.

All is exact: the model runs on its fused path, and the weights are recorded beside it. Images run
one at a time, since a layer's weights take (heads, L, L) numbers for each.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from attention_core import AttentionMaps, Grid, Space, record_attention
from vision.models import VisionTransformer
from vision.swin import SwinTransformer

Model = VisionTransformer | SwinTransformer
#: A batch gives a batch, a list of images of any sizes a list.
Images = TypeVar("Images", Tensor, list[Tensor])


class Recorded(NamedTuple):
    """What a layer did with one image: weights (1, H, Lq, Lk), and where both sides sit."""

    weights: Tensor
    queries: Space
    keys: Grid

    @property
    def size(self) -> tuple[int, ...]:
        """Rows and columns of the image; the keys of windows may go beyond."""
        return self.queries.sizes[0] if isinstance(self.queries, Grid) else self.keys.sizes[0]

    def on_grid(self, shares: Tensor) -> Tensor:
        """Shares (..., Lk) of the keys as (..., rows, columns) of the image."""
        rows, columns = self.size
        patches = shares[..., self.keys.num_special :]
        return patches.unflatten(-1, self.keys.sizes[0])[..., :rows, :columns]


def one_by_one(model: Model, image: Images) -> list[Tensor]:
    """The images, (1, C, H, W) each."""
    if not isinstance(model, Model):
        raise TypeError(
            "model must be a VisionTransformer or a SwinTransformer, such as the one inside of "
            f"another, got {type(model).__name__}"
        )
    if model.training:
        raise ValueError("model must be in eval mode, so that all it does is seen: model.eval()")
    if shares_blocks(model):
        raise ValueError(
            "model has blocks that serve several layers (num_groups=), whose weights are not told "
            "apart"
        )
    if isinstance(image, Tensor) and image.ndim != 4:
        raise ValueError(f"image must be (B, C, H, W), got {tuple(image.shape)}")
    if len(image) == 0:
        raise ValueError("image must hold at least one image, got none")
    return [one[None] for one in image]


def shares_blocks(model: Model) -> bool:
    """Whether a block serves several layers, see `Encoder`."""
    if isinstance(model, SwinTransformer):
        return any(len(stage.blocks) < len(stage.masks) for stage in model.stages)
    return len(model.encoder.blocks) < len(model.encoder.masks)


def as_given(found: list[Tensor], image: Images) -> Images:
    return torch.stack(found) if isinstance(image, Tensor) else found


def stack(model: Model) -> nn.Module:
    """The part that holds the blocks, and no pooling layer."""
    return model.encoder if isinstance(model, VisionTransformer) else cast(nn.Module, model.stages)


def record(
    model: Model, part: nn.Module, image: Tensor, layers: list[int] | None = None
) -> list[Recorded]:
    """The attention of the layers of a part, while the model runs on one image."""
    maps = run(model, part, image, layers)
    spaces = (maps.spaces(index) for index in range(len(maps)))
    return [
        Recorded(wide(weights), queries, cast(Grid, keys))
        for weights, (queries, keys) in zip(maps, spaces, strict=True)
    ]


def run(
    model: Model,
    part: nn.Module,
    image: Tensor,
    layers: list[int] | None = None,
    *,
    pairs: bool = False,
) -> AttentionMaps[Any]:
    """The same as `record_attention` gives it."""
    with record_attention(part, layers, pairs=pairs) as maps, torch.no_grad():  # type: ignore[call-overload]
        model(image)
    for index, name in enumerate(maps.names):
        for space in maps.spaces(index):
            if isinstance(space, Grid):
                _check_whole(space, name)
    return maps


def wide(weights: Tensor) -> Tensor:
    """In float32, where they are narrower."""
    return weights.to(torch.promote_types(weights.dtype, torch.float32))


def _check_whole(grid: Grid, layer: str) -> None:
    (size,) = grid.sizes
    if grid.length - grid.num_special != math.prod(size):
        raise ValueError(
            f"a map needs every patch, but in {layer} there is {grid.describe()} for an image of "
            f"{'×'.join(map(str, size))} patches"
        )
