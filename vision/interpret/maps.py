"""What a vision model attends to, as exact arrays: maps over an image, rollout, distances.

Images run one at a time, since a layer's weights take (heads, L, L) numbers for each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, TypeVar, Unpack, cast

import torch
from torch import Tensor, nn

import attention_core.interpret.maps as core
from attention_core import Encoder, Grid
from attention_core.interpret.maps import LayerAttention
from attention_core.spaces import Pairs
from vision.models import VisionTransformer
from vision.swin import SwinTransformer

Model = VisionTransformer | SwinTransformer
#: A batch gives a batch, a list of images of any sizes a list.
Images = TypeVar("Images", Tensor, list[Tensor])
Query = Literal["class", "mean"] | tuple[int, int]


def attention_maps(
    model: Model,
    inputs: Images,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    query: Query | None = None,
) -> list[Images]:
    """Return how much layers attend to each patch, per head.

    Args:
        model: in eval mode.
        inputs: images (B, C, H, W), or a list of (C, H, W) of any sizes.
        layers: which blocks, in the order wanted; negative numbers count from the last, and in a
            `SwinTransformer` they are counted through all stages. All by default; where blocks
            serve several layers, the last of each block, as the others are not told apart.
        heads: which ones, likewise. All by default.
        query: what attends: "class", the class token; "mean", all patches, averaged; or one patch
            as (row, column) of the layer's grid, negative numbers counting from the end. By default
            the class token where there is one, else "mean".

    Returns: of each layer (B, heads, rows, columns); of a list of images, of each layer a list of
    (heads, rows, columns). Their sums are at most 1: the rest goes to special tokens, to a sink, or
    to what completes the windows of a `SwinTransformer`.

    Raises:
        TypeError: another kind of model.
        ValueError: there is no such layer, head or query; or the model is in training mode.
    """
    images = _one_by_one(model, inputs)
    if query is None:
        query = "class" if has_class_token(model) else "mean"
    if query == "class" and not has_class_token(model):
        raise ValueError("query='class' needs a model with a class token; give 'mean' or a patch")
    chosen = core.attention_layers(*stacks(model), wanted=layers)
    found = []
    for image in images:
        recorded = _whole(chosen, core.record(model, partial(model, image), chosen, heads=heads))
        found.append([_on_grid(layer, _attending(layer, query)) for layer in recorded])
    return [_as_given(list(maps), inputs) for maps in zip(*found, strict=True)]


def pooling_attention(model: Model, inputs: Images) -> Images:
    """Return how much of each patch reaches the pooled vector in the last step, per head.

    That is the last layer's attention of the class token; or that of the learned query where
    pooling is "attention" or "map"; or the last layer's attention averaged over the tokens that are
    pooled.

    Raises: as `attention_maps`.

    Returns: (B, heads, rows, columns); of a list of images a list of (heads, rows, columns).
    """
    images = _one_by_one(model, inputs)
    last = core.attention_layers(*stacks(model), wanted=[-1])
    found = []
    for image in images:
        layers, pooled = core.record_to_pool(model, partial(model, image), last)
        shares, layer = core.reaching(_whole(last, layers), pooled)
        found.append(_on_grid(layer, shares))
    return _as_given(found, inputs)


def attention_rollout(
    model: VisionTransformer, inputs: Images, **options: Unpack[core.RolloutOptions]
) -> Images:
    """Return how much of each patch is in the pooled vector, going back through all layers: see
    `attention_core.interpret.maps.rollout`, whose `options` these are.

    Returns: (B, rows, columns); of a list of images a list of (rows, columns). The sum is 1, less
    what is left of the special tokens themselves.

    Raises:
        TypeError: a model whose layers do not share their tokens.
        ValueError: as `attention_maps`; a number out of range, or blocks that serve several layers.
    """
    if not isinstance(model, VisionTransformer):
        raise TypeError(
            "model must be a VisionTransformer, whose layers share their tokens, got "
            f"{type(model).__name__}"
        )
    found = []
    for image in _one_by_one(model, inputs):
        every = core.all_layers(model.encoder)
        layers, pooled = core.record_to_pool(model, partial(model, image), every)
        shares = core.rollout(_whole(every, layers), pooled, **options)
        found.append(_on_grid(layers[0], shares))
    return _as_given(found, inputs)


def mean_attention_distance(model: Model, inputs: Images) -> Tensor:
    """Return how far heads look: the mean distance between patches in pixels, weighted by attention
    (Dosovitskiy et al., ViT, 2021, figure 7).

    It is Euclidean, between the centres of the patches. Attention from and to special tokens, which
    sit nowhere, has no part in it.

    Returns: (layers, heads), the mean over the images; NaN where a layer has fewer heads than
    another (`SwinTransformer`) or attends to special tokens only.

    Raises: as `attention_maps`; also where blocks serve several layers.
    """
    images = _one_by_one(model, inputs)
    layers = core.all_layers(*stacks(model))
    # Where masks keep patches apart, all pairs would be far more than those allowed
    local = any(mask is not None for stack in stacks(model) for mask in stack.masks)
    # How many patches wide a token is in each layer
    scales = [2**number for number, stack in enumerate(stacks(model)) for _ in stack.masks]
    distances = []
    for image in images:
        recorded = _whole(layers, core.record(model, partial(model, image), layers, pairs=local))
        rows = [
            core.mean_distance(layer, partial(_pixels, model, scale, _size(layer)))
            for layer, scale in zip(recorded, scales, strict=True)
        ]
        distances.append(nn.utils.rnn.pad_sequence(rows, True, padding_value=math.nan))
    return torch.stack(distances).nanmean(0)


def patch_distances(model: Model, image_size: tuple[int, int]) -> Tensor:
    """Return the Euclidean distances between the centres of any two patches of an image of height
    and width `image_size`, in pixels: (N, N). Their mean is how far evenly spread attention
    looks."""
    size, step = model.embedding.grid_size(image_size), model.embedding.stride
    axes = [torch.arange(count) * by for count, by in zip(size, step, strict=True)]
    at = torch.cartesian_prod(*axes).double()
    return torch.cdist(at, at).float()


def has_class_token(model: Model) -> bool:
    """Return whether there is a class token to ask for by query="class"."""
    return isinstance(model, VisionTransformer) and len(model.class_token) > 0


def _one_by_one(model: Model, inputs: Images) -> list[Tensor]:
    """The images, (1, C, H, W) each."""
    if not isinstance(model, Model):
        raise TypeError(
            "model must be a VisionTransformer or a SwinTransformer, such as the one inside of "
            f"another, got {type(model).__name__}"
        )
    core.check_eval(model)
    if isinstance(inputs, Tensor) and inputs.ndim != 4:
        raise ValueError(f"inputs must be images (B, C, H, W), got {tuple(inputs.shape)}")
    if len(inputs) == 0:
        raise ValueError("inputs must hold at least one image, got none")
    return [one[None] for one in inputs]


def _as_given(found: list[Tensor], inputs: Images) -> Images:
    return torch.stack(found) if isinstance(inputs, Tensor) else found


def stacks(model: Model) -> Sequence[Encoder]:
    """Return what holds the layers, from the first on."""
    return [model.encoder] if isinstance(model, VisionTransformer) else model.stages


def _whole(layers: dict[int, nn.Module], found: list[LayerAttention]) -> list[LayerAttention]:
    """The attention found in these layers, of which no patch may be gone."""
    for number, layer in zip(layers, found, strict=True):
        for grid in (layer.queries, layer.keys):
            assert isinstance(grid, Grid)
            if grid.length - grid.num_special != math.prod(grid.sizes[0]):
                raise ValueError(
                    f"a map needs every patch, but in layer {number} there is {grid.describe()} "
                    f"for an image of {'×'.join(map(str, grid.sizes[0]))} patches"
                )
    return found


def _size(layer: LayerAttention) -> tuple[int, ...]:
    """Rows and columns of the image; the keys of windows may go beyond."""
    return cast(Grid, layer.queries if isinstance(layer.queries, Grid) else layer.keys).sizes[0]


def _on_grid(layer: LayerAttention, shares: Tensor) -> Tensor:
    """Shares (..., Lk) of the keys as (..., rows, columns) of the image."""
    rows, columns = _size(layer)
    keys = cast(Grid, layer.keys)
    return shares[..., keys.num_special :].unflatten(-1, keys.sizes[0])[..., :rows, :columns]


def _attending(layer: LayerAttention, query: Query) -> Tensor:
    """(H, Lk): the weights that `query` gives."""
    if query in ("class", "mean"):
        return core.received(layer, core.pooled_shares(cast(str, query), layer.queries))
    rows, columns = _size(layer)
    if not isinstance(query, Sequence) or isinstance(query, str) or len(query) != 2:
        raise ValueError(f"query must be 'class', 'mean' or (row, column), got {query!r}")
    row, column = query
    if not (-rows <= row < rows and -columns <= column < columns):
        raise ValueError(f"query={tuple(query)} is no patch of this layer's {rows}×{columns}")
    place = layer.queries.num_special + row % rows * columns + column % columns
    return layer.table[:, place]


def _pixels(model: Model, scale: int, size: Sequence[int], pairs: Pairs) -> Tensor:
    """How far apart patches are whose tokens are `scale` patches wide; infinite beyond the image,
    where windows reach."""
    step = pairs.key.new_tensor(model.embedding.stride) * scale
    inside = (pairs.take("coordinates", "key") < pairs.key.new_tensor(size)).all(-1)
    return (pairs.offset * step).float().norm(dim=-1).masked_fill(~inside, math.inf)
