"""Weights in our names, made to fit a model of another image size or another head."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from attention_core.training.weights import Weights
from vision.positions import ResampledPosition
from vision.pretrained import names
from vision.pretrained.settings import table_size


def fit_positions(
    model: nn.Module,
    theirs: Mapping[str, Tensor],
    ours: Weights,
    known: tuple[int, int] | None = None,
) -> Weights:
    """`ours` with learned positions at the model's size.

    A row for a special token is added to the token itself where the model has none for it, and is
    zero where only the model has one; neither changes what the encoder gets.
    """
    positions = getattr(model, "positions", None)
    if names.POSITIONS not in ours or not isinstance(positions, ResampledPosition):
        return ours
    height, width = positions.size
    size, special = table_size(theirs, ours, wanted=(height, width), known=known)
    rows, patches = ours[names.POSITIONS][:special], ours[names.POSITIONS][special:]
    fitted = dict(ours)
    count = len(ours.get(names.CLASS, ()))
    if special > count:
        fitted[names.REGISTERS] = ours[names.REGISTERS] + rows[count:]
        rows = rows[:count]
    if size != positions.size:
        source = ResampledPosition(size, patches.shape[1])
        source.table.data = patches
        patches = source.resampled(positions.size).detach()
    if len(rows) and not positions.special:
        fitted[names.CLASS], rows = ours[names.CLASS] + rows, rows[:0]
    elif positions.special and not len(rows):
        rows = patches.new_zeros(positions.special, patches.shape[1])
    fitted[names.POSITIONS] = torch.cat([rows, patches])
    return fitted


def without_head(model: nn.Module, ours: Weights) -> tuple[Weights, dict[str, str], list[str]]:
    """`ours` without a head, what was dropped, and the names of the model's own head."""
    dropped = {name: "the model keeps its own head" for name in ours if _of_head(name)}
    rest = {name: value for name, value in ours.items() if name not in dropped}
    return rest, dropped, [name for name in model.state_dict() if _of_head(name)]


def _of_head(name: str) -> bool:
    return name.startswith(f"{names.HEAD}.")
