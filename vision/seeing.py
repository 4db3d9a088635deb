"""What a vision model attends to, as arrays: maps over an image, rollout, and how far heads look.

All are exact: the model runs on its fused path, and the weights are recorded beside it. Images run
one at a time, since a layer's weights take (heads, L, L) numbers for each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from attention_core import Grid, Space, record_attention
from vision.models import VisionTransformer
from vision.swin import SwinTransformer

Query = Literal["class", "mean"] | tuple[int, int]
Model = VisionTransformer | SwinTransformer
#: A batch gives a batch, a list of images of any sizes a list.
Images = TypeVar("Images", Tensor, list[Tensor])


def attention_maps(
    model: Model, image: Images, layer: int = -1, query: Query | None = None
) -> Images:
    """How much a layer attends to each patch, per head.

    Args:
        model: in eval mode.
        image: (B, C, H, W), or a list of (C, H, W) of any sizes.
        layer: which block; negative numbers count from the last. In a `SwinTransformer` blocks are
            counted through all stages.
        query: what attends: "class", the class token; "mean", all patches, averaged; or one patch
            as (row, column) of the layer's grid, negative numbers counting from the end. By default
            the class token where there is one, else "mean".

    Returns: (B, heads, rows, columns); of a list of images a list of (heads, rows, columns). Their
    sums are at most 1: the rest goes to special tokens, to a sink, or to what completes the windows
    of a `SwinTransformer`.

    Raises:
        TypeError: another kind of model.
        ValueError: there is no such layer or query, or the model is in training mode.
    """
    if query is None:
        query = "class" if has_class_token(model) else "mean"
    if query == "class" and not has_class_token(model):
        raise ValueError("query='class' needs a model with a class token; give 'mean' or a patch")
    found = []
    for one in _each(model, image):
        (recorded,) = _record(model, _stack(model), one, [layer])
        found.append(recorded.on_grid(_attending(recorded, query))[0])
    return _as_given(found, image)


def pooling_attention(model: Model, image: Images) -> Images:
    """How much of each patch reaches the pooled vector in the last step, per head.

    That is the last layer's attention of the class token; or that of the learned query where
    pooling is "attention" or "map"; or, where it is "mean", the last layer's attention averaged
    over the patches.

    Args, Returns, Raises: as in `attention_maps`.
    """
    if not isinstance(model, VisionTransformer):
        return attention_maps(model, image, query="mean")
    if model.pool is None:
        return attention_maps(model, image, query="class" if model.pooling == "class" else "mean")
    found = []
    for one in _each(model, image):
        (recorded,) = _record(model, model.pool, one)
        found.append(recorded.on_grid(recorded.weights[:, :, 0])[0])
    return _as_given(found, image)


def attention_rollout(
    model: VisionTransformer,
    image: Images,
    residual: float = 0.5,
    heads: Literal["mean", "max", "min"] = "mean",
    discard: float = 0.0,
) -> Images:
    """How much of each patch is in the pooled vector, going back through all layers (Abnar &
    Zuidema, Quantifying Attention Flow, 2020).

    A layer mixes tokens as residual · I + (1 − residual) · W, with the rows of W made to sum to 1;
    the mixings of all layers are multiplied. Values, projections and feed-forward networks have no
    part in it, so it says where information may have come from.

    Args:
        model: in eval mode.
        image: (B, C, H, W), or a list of (C, H, W) of any sizes.
        residual: share of a token that stays where it is in a layer, between 0 and 1.
        heads: what W is of the weights of the heads.
        discard: share of each token's smallest weights in W that are taken for noise, in [0, 1).

    Returns: (B, rows, columns); of a list of images a list of (rows, columns). The sum is 1, less
    what is left of the special tokens themselves.

    Raises:
        TypeError: a model whose layers do not share their tokens.
        ValueError: a number out of range, or the model is in training mode.
    """
    if not isinstance(model, VisionTransformer):
        raise TypeError(
            "model must be a VisionTransformer, whose layers share their tokens, got "
            f"{type(model).__name__}"
        )
    if heads not in ("mean", "max", "min"):
        raise ValueError(f"heads must be 'mean', 'max' or 'min', got {heads!r}")
    if not 0 <= residual <= 1:
        raise ValueError(f"residual must be between 0 and 1, got {residual}")
    if not 0 <= discard < 1:
        raise ValueError(f"discard must be in [0, 1), got {discard}")

    def fused(weights: Tensor) -> Tensor:
        """(H, Lq, Lk) of the heads to (Lq, Lk)."""
        one = weights.mean(0) if heads == "mean" else getattr(weights, f"a{heads}")(0)
        noise = one.topk(int(one.shape[-1] * discard), largest=False).indices
        return _normalised(one.scatter(-1, noise, 0.0))

    found = []
    for one in _each(model, image):
        layers = _record(model, model.encoder, one)
        length, special = layers[0].queries.length, layers[0].queries.num_special
        # From the last layer back, and only for what is pooled
        share = layers[0].weights.new_zeros(length)
        if model.pool is not None:
            (pool,) = _record(model, model.pool, one)
            share[special:] = fused(pool.weights[0])[0]
        else:
            share[slice(1) if model.pooling == "class" else slice(special, None)] = 1.0
        share = _normalised(share)
        for layer in reversed(layers):
            stays = residual * torch.eye(length).to(share)
            share = share @ _normalised(stays + (1 - residual) * fused(layer.weights[0]))
        found.append(layers[0].on_grid(share))
    return _as_given(found, image)


def mean_attention_distance(model: Model, image: Images) -> Tensor:
    """How far heads look: the mean distance between patches, weighted by attention (Dosovitskiy et
    al., ViT, 2021, figure 7).

    It is Euclidean, between the centres of the patches. Attention from and to special tokens, which
    sit nowhere, has no part in it.

    Args:
        model: in eval mode.
        image: (B, C, H, W), or a list of (C, H, W) of any sizes.

    Returns: (layers, heads) in pixels, the mean over the images; NaN where a layer has fewer heads
    than another (`SwinTransformer`) or attends to special tokens only.

    Raises:
        TypeError: another kind of model.
        ValueError: the model is in training mode.
    """
    distances = []
    for one in _each(model, image):
        layers = _record(model, _stack(model), one)
        most = max(layer.weights.shape[1] for layer in layers)
        rows = []
        for layer, scale in zip(layers, _scales(model), strict=True):
            weights = layer.on_grid(layer.weights[0, :, layer.queries.num_special :])
            apart = _apart(layer.size, [step * scale for step in model.embedding.stride])
            far = torch.einsum("hqk,qk->h", weights.flatten(-2), apart.to(weights))
            mean = far / weights.sum((1, 2, 3))
            rows.append(nn.functional.pad(mean, (0, most - len(mean)), value=math.nan))
        distances.append(torch.stack(rows))
    return torch.stack(distances).nanmean(0)


def patch_distances(model: Model, image_size: tuple[int, int]) -> Tensor:
    """The Euclidean distance between the centres of any two patches of an image of height and width
    `image_size`, in pixels: (N, N). Its mean is how far evenly spread attention looks."""
    return _apart(model.embedding.grid_size(image_size), model.embedding.stride)


def num_layers(model: Model) -> int:
    """How many blocks attend: the layers that `attention_maps` can show."""
    return len(_scales(model))


def has_class_token(model: Model) -> bool:
    """Whether there is a class token to ask for by query="class"."""
    return isinstance(model, VisionTransformer) and len(model.class_token) > 0


class _Recorded(NamedTuple):
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


def _record(
    model: Model, part: nn.Module, image: Tensor, layers: list[int] | None = None
) -> list[_Recorded]:
    with record_attention(part, layers) as maps, torch.no_grad():
        model(image)
    recorded = []
    for index, weights in enumerate(maps):
        queries, keys = maps.spaces(index)
        for space in (queries, keys):
            if isinstance(space, Grid):
                _check_whole(space, maps.names[index])
        wide = weights.to(torch.promote_types(weights.dtype, torch.float32))
        recorded.append(_Recorded(wide, queries, cast(Grid, keys)))
    return recorded


def _check_whole(grid: Grid, layer: str) -> None:
    (size,) = grid.sizes
    if grid.length - grid.num_special != math.prod(size):
        raise ValueError(
            f"a map needs every patch, but in {layer} there is {grid.describe()} for an image of "
            f"{'×'.join(map(str, size))} patches"
        )


def _attending(recorded: _Recorded, query: Query) -> Tensor:
    """(1, H, Lk): the weights that `query` gives."""
    weights, special = recorded.weights, recorded.queries.num_special
    if query == "class":
        return weights[:, :, 0]
    if query == "mean":
        return weights[:, :, special:].mean(dim=2)
    rows, columns = recorded.size
    if isinstance(query, str) or len(query) != 2:
        raise ValueError(f"query must be 'class', 'mean' or (row, column), got {query!r}")
    row, column = query
    if not (-rows <= row < rows and -columns <= column < columns):
        raise ValueError(f"query={tuple(query)} is no patch of this layer's {rows}×{columns}")
    return weights[:, :, special + row % rows * columns + column % columns]


def _each(model: Model, image: Images) -> list[Tensor]:
    """The images, (1, C, H, W) each."""
    if not isinstance(model, Model):
        raise TypeError(
            "model must be a VisionTransformer or a SwinTransformer, such as the one inside of "
            f"another, got {type(model).__name__}"
        )
    if model.training:
        raise ValueError("model must be in eval mode, so that all it does is seen: model.eval()")
    if isinstance(image, Tensor) and image.ndim != 4:
        raise ValueError(f"image must be (B, C, H, W), got {tuple(image.shape)}")
    if len(image) == 0:
        raise ValueError("image must hold at least one image, got none")
    return [one[None] for one in image]


def _as_given(found: list[Tensor], image: Images) -> Images:
    return torch.stack(found) if isinstance(image, Tensor) else found


def _normalised(rows: Tensor) -> Tensor:
    """Rows that sum to 1; those of zeros stay."""
    return rows / rows.sum(-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)


def _stack(model: Model) -> nn.Module:
    """The part that holds the blocks, and no pooling layer."""
    return model.encoder if isinstance(model, VisionTransformer) else cast(nn.Module, model.stages)


def _scales(model: Model) -> list[int]:
    """How many patches wide a token is in each layer."""
    if isinstance(model, VisionTransformer):
        return [1] * len(model.encoder.blocks)
    return [2**number for number, stage in enumerate(model.stages) for _ in stage.blocks]


def _apart(size: Sequence[int], step: Sequence[float]) -> Tensor:
    """(N, N): Euclidean distances on a grid of rows and columns `step` apart."""
    axes = [torch.arange(count) * by for count, by in zip(size, step, strict=True)]
    at = torch.cartesian_prod(*axes).double()
    return torch.cdist(at, at).float()
