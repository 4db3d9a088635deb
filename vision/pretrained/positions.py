"""Learned positions, tokens and heads of images: as ours are, and at a model's image size."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from attention_core.errors import UsageError
from attention_core.pretrained import Checkpoint
from attention_core.pretrained.renaming import Weights
from vision.positions import ResampledPosition

CLASS = "class_token"
REGISTERS = "registers"
POSITIONS = "positions.table"

#: Rows of size `dim`, which others keep with a batch dimension in front.
TABLES = (CLASS, REGISTERS, POSITIONS, "pool.queries")

Size = tuple[int, int]


def finish(weights: Weights) -> Weights:
    """Return `weights` with tokens as rows of a table, and a head with a bias, if of zeros."""
    ours = dict(weights)
    for name in TABLES:
        if name in ours:
            ours[name] = ours[name].reshape(-1, ours[name].shape[-1])
    if "classifier.weight" in ours:
        head = ours["classifier.weight"]
        ours.setdefault("classifier.bias", head.new_zeros(len(head)))
    return ours


def fit(model: nn.Module, checkpoint: Checkpoint) -> Weights:
    """Return the weights with learned positions at the model's size.

    A row for a special token is added to the token itself where the model has none for it, and is
    zero where only the model has one; neither changes what the encoder gets.
    """
    ours, positions = checkpoint.ours, getattr(model, "positions", None)
    if POSITIONS not in ours or not isinstance(positions, ResampledPosition):
        return ours
    height, width = positions.size
    size, special = table_size(checkpoint, (height, width))
    rows, patches = ours[POSITIONS][:special], ours[POSITIONS][special:]
    fitted = dict(ours)
    count = checkpoint.length(CLASS)
    if special > count:
        fitted[REGISTERS] = ours[REGISTERS] + rows[count:]
        rows = rows[:count]
    if size != positions.size:
        source = ResampledPosition(size, patches.shape[1])
        source.table.data = patches
        patches = source.resampled(positions.size).detach()
    if len(rows) and not positions.special:
        fitted[CLASS], rows = ours[CLASS] + rows, rows[:0]
    elif positions.special and not len(rows):
        rows = patches.new_zeros(positions.special, patches.shape[1])
    fitted[POSITIONS] = torch.cat([rows, patches])
    return fitted


def table_size(checkpoint: Checkpoint, wanted: Size | None) -> tuple[Size, int]:
    """Return the grid that the table of positions is for, and how many rows before it are no
    patch's.

    Published models are square, so a number of places that is a square is taken for one.

    Args:
        wanted: the grid of the model, which the table may be for.

    Raises:
        UsageError: the table is of no square, nor of the grid that is wanted or configured.
    """
    rows, class_token = checkpoint.length(POSITIONS), checkpoint.length(CLASS)
    theirs, project = checkpoint.theirs, checkpoint.ours["embedding.project.weight"]
    config = checkpoint.config.get("vision_config") or checkpoint.config
    known = grid(config.get("image_size"), (project.shape[2], project.shape[3]))
    extras = [class_token]
    if "pos_embed" in theirs:  # timm's may have none for the class token, or one for each register
        every = class_token + checkpoint.length(REGISTERS)
        extras = [0, every] if {"reg_token", "dist_token"} & theirs.keys() else [class_token, 0]
    for extra in extras:
        side = math.isqrt(max(rows - extra, 0))
        square = (side, side) if 0 < side * side == rows - extra else None
        for size in (known, square, wanted):
            if size is not None and size[0] * size[1] == rows - extra:
                return size, extra
    raise UsageError(
        f"weights: {rows} positions are those of no square image. Give image_size=(height, width) "
        "of the image that they are for."
    )


def grid(image_size: Any, patch_size: Size) -> Size | None:
    """Return rows and columns of patches in an image of (height, width), or one number for both."""
    if image_size is None:
        return None
    both = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    return both[0] // patch_size[0], both[1] // patch_size[1]
