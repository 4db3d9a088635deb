"""What a vision model attends to, as exact arrays: maps over an image, rollout, distances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from attention_core import AttentionPool, Grid, PairWeights
from vision.models import VisionTransformer
from vision.recording import Images, Model, Recorded, as_given, one_by_one, record, run, stack, wide
from vision.swin import SwinTransformer

Query = Literal["class", "mean"] | tuple[int, int]


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
        ValueError: there is no such layer or query; or the model is in training mode, or has blocks
            that serve several layers.
    """
    if query is None:
        query = "class" if has_class_token(model) else "mean"
    if query == "class" and not has_class_token(model):
        raise ValueError("query='class' needs a model with a class token; give 'mean' or a patch")
    found = []
    for one in one_by_one(model, image):
        (recorded,) = record(model, stack(model), one, [layer])
        found.append(recorded.on_grid(_attending(recorded, query))[0])
    return as_given(found, image)


def pooling_attention(model: Model, image: Images) -> Images:
    """How much of each patch reaches the pooled vector in the last step, per head.

    That is the last layer's attention of the class token; or that of the learned query where
    pooling is "attention" or "map"; or, where it is "mean", the last layer's attention averaged
    over the patches.

    Args, Returns, Raises: as in `attention_maps`.
    """
    if not isinstance(model, VisionTransformer):
        return attention_maps(model, image, query="mean")
    if not isinstance(model.pool, AttentionPool):
        return attention_maps(model, image, query="class" if model.pooling == "class" else "mean")
    found = []
    for one in one_by_one(model, image):
        (recorded,) = record(model, model.pool, one)
        found.append(recorded.on_grid(recorded.weights[:, :, 0])[0])
    return as_given(found, image)


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
    for one in one_by_one(model, image):
        layers = record(model, model.encoder, one)
        length, special = layers[0].queries.length, layers[0].queries.num_special
        # From the last layer back, and only for what is pooled
        share = layers[0].weights.new_zeros(length)
        if isinstance(model.pool, AttentionPool):
            (pool,) = record(model, model.pool, one)
            share[special:] = fused(pool.weights[0])[0]
        else:
            share[slice(1) if model.pooling == "class" else slice(special, None)] = 1.0
        share = _normalised(share)
        for layer in reversed(layers):
            stays = residual * torch.eye(length).to(share)
            share = share @ _normalised(stays + (1 - residual) * fused(layer.weights[0]))
        found.append(layers[0].on_grid(share))
    return as_given(found, image)


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
    for one in one_by_one(model, image):
        steps = [[step * scale for step in model.embedding.stride] for scale in _scales(model)]
        if _is_local(model):  # all pairs of a large image would be far more than those allowed
            maps = run(model, stack(model), one, pairs=True)
            rows = [_of_pairs(of_layer, step) for of_layer, step in zip(maps, steps, strict=True)]
        else:
            layers = record(model, stack(model), one)
            rows = [_of_all(layer, step) for layer, step in zip(layers, steps, strict=True)]
        most = max(map(len, rows))
        rows = [nn.functional.pad(row, (0, most - len(row)), value=math.nan) for row in rows]
        distances.append(torch.stack(rows))
    return torch.stack(distances).nanmean(0)


def _of_all(layer: Recorded, step: Sequence[int]) -> Tensor:
    """(H,): the mean distance of a layer's heads, where patches are `step` pixels apart."""
    weights = layer.on_grid(layer.weights[0, :, layer.queries.num_special :])
    far = torch.einsum("hqk,qk->h", weights.flatten(-2), _apart(layer.size, step).to(weights))
    return far / weights.sum((1, 2, 3))


def _of_pairs(layer: PairWeights, step: Sequence[int]) -> Tensor:
    """The same from the pairs that its mask allows."""
    pairs, weights = layer.pairs, wide(layer.values)
    grid = cast(Grid, pairs.spaces[0])
    size = pairs.key.new_tensor(grid.sizes[0])  # of the image; windows go beyond
    counted = (pairs.take("coordinates", "key") < size).all(-1)
    if pairs.special is not None:
        counted = counted & ~pairs.special
    weights = weights * counted[:, None]
    far = (pairs.offset * pairs.key.new_tensor(step)).to(weights.dtype).norm(dim=-1)
    return far @ weights / weights.sum(0)


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


def _attending(recorded: Recorded, query: Query) -> Tensor:
    """(1, H, Lk): the weights that `query` gives."""
    weights, special = recorded.weights, recorded.queries.num_special
    if query == "class":
        return weights[:, :, 0]
    if query == "mean":
        return weights[:, :, special:].mean(dim=2)
    rows, columns = recorded.size
    if not isinstance(query, Sequence) or isinstance(query, str) or len(query) != 2:
        raise ValueError(f"query must be 'class', 'mean' or (row, column), got {query!r}")
    row, column = query
    if not (-rows <= row < rows and -columns <= column < columns):
        raise ValueError(f"query={tuple(query)} is no patch of this layer's {rows}×{columns}")
    return weights[:, :, special + row % rows * columns + column % columns]


def _normalised(rows: Tensor) -> Tensor:
    """Rows that sum to 1; those of zeros stay."""
    return rows / rows.sum(-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)


def _is_local(model: Model) -> bool:
    """Whether masks keep patches from attending to all others."""
    return isinstance(model, SwinTransformer) or any(m is not None for m in model.encoder.masks)


def _scales(model: Model) -> list[int]:
    """How many patches wide a token is in each layer."""
    if isinstance(model, VisionTransformer):
        return [1] * len(model.encoder.masks)
    return [2**number for number, stage in enumerate(model.stages) for _ in stage.blocks]


def _apart(size: Sequence[int], step: Sequence[float]) -> Tensor:
    """(N, N): Euclidean distances on a grid of rows and columns `step` apart."""
    axes = [torch.arange(count) * by for count, by in zip(size, step, strict=True)]
    at = torch.cartesian_prod(*axes).double()
    return torch.cdist(at, at).float()
