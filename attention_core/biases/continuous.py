"""A network of the offset."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.compiler import is_exporting

from attention_core.annotated import checked
from attention_core.biases.base import Bias
from attention_core.checks import check_whole
from attention_core.spaces import BlockKey, Pairs, Space
from attention_core.tables import by_head
from attention_core.transfer import constant


class ContinuousBias(Bias):
    """A small network of the log-spaced offset (Liu et al., Swin v2, 2022).

    ``16 · sigmoid(MLP(sign(Δ) · log2(1 + 8 |Δ| / extent) / 3))``, one output per head.

    It extends to offsets that training did not see, and works wherever there are offsets: grids,
    sequences and point clouds. On whole-number coordinates the network runs once per distinct
    offset, not once per pair.

    Args:
        heads: number of query heads.
        extent: the largest offset along each axis, such as window size - 1; sets the axes.
        hidden: width of the hidden layer.
    """

    @checked
    def __init__(self, heads: int, extent: tuple[float, ...], hidden: int = 512) -> None:
        super().__init__()
        check_whole(heads=heads, hidden=hidden)
        if not extent or any(not 0 <= e < math.inf for e in extent):
            raise ValueError(f"extent must be a number per axis, at least 0, got {extent}")
        # a window of one token has extent 0 and the only offset 0, which must not become 0/0
        self.heads, self.extent = heads, tuple(max(float(e), 1.0) for e in extent)
        self.mlp = nn.Sequential(
            nn.Linear(len(extent), hidden), nn.ReLU(), nn.Linear(hidden, heads, bias=False)
        )

    def score(self, pairs: Pairs) -> Tensor:
        offset = pairs.offset
        if offset.shape[-1] != len(self.extent):
            raise ValueError(
                f"ContinuousBias has {len(self.extent)} axes, {pairs.spaces[1].describe()} has "
                f"{offset.shape[-1]}"
            )
        flat = offset.reshape(-1, offset.shape[-1])
        # How many offsets are distinct depends on values, which an exported program cannot look at
        if flat.is_floating_point() or is_exporting() or not len(flat):
            row = torch.arange(len(flat), device=flat.device)
        elif flat.device.type != "cpu":
            flat, row = _in_box(flat, pairs.spaces)
        else:
            flat, row = _distinct(flat)
        dtype = next(self.mlp.parameters()).dtype
        scaled = 8 * flat.to(dtype) / constant(self.extent, flat.device, dtype)
        table = 16 * torch.sigmoid(self.mlp(scaled.sign() * torch.log2(1 + scaled.abs()) / 3))
        return by_head(table, row.view(offset.shape[:-1]), pairs.head)

    def block_key(self, space: Space) -> BlockKey | None:
        return BlockKey.of_place(space)


def _distinct(offset: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets (M, A) that hold each of `offset` (N, A) once, and the row of each in them."""
    ends = offset.amin(0), offset.amax(0)
    low, sizes = ends[0].tolist(), (ends[1] - ends[0] + 1).tolist()
    if math.prod(sizes) > len(offset):
        distinct, row = offset.unique(dim=0, return_inverse=True)
        return distinct, row
    return _of_box(offset, low, sizes)


def _of_box(offset: Tensor, low: list[int], sizes: list[int]) -> tuple[Tensor, Tensor]:
    """All offsets of a box, which needs no sorting, and the row of each of `offset` in them.

    It differs from batch to batch, so its numbers are not tensors, which a device would be sent.
    """
    row = offset[..., 0] - low[0]
    for axis in range(1, len(sizes)):
        row = row * sizes[axis] + (offset[..., axis] - low[axis])
    steps = [
        torch.arange(first, first + size, device=offset.device)
        for first, size in zip(low, sizes, strict=True)
    ]
    return torch.cartesian_prod(*steps).reshape(-1, len(sizes)), row


def _in_box(offset: Tensor, spaces: tuple[Space, Space]) -> tuple[Tensor, Tensor]:
    """What `_distinct` gives, of a box that the spaces are known to keep to, without looking at the
    offsets, which are on another device; where the box is larger, all of them."""
    query, key = (space.host.coordinates for space in spaces)
    assert query is not None and key is not None
    ends = [(x.flatten(0, -2).amin(0), x.flatten(0, -2).amax(0)) for x in (query, key)]
    low, high = ends[1][0] - ends[0][1], ends[1][1] - ends[0][0]
    # Where axes wrap, the nearest image may be on the other side
    reach = torch.maximum(-low, high).clamp(min=0)
    low, high = (-reach, reach) if any(spaces[1].wrap) else (low, high)
    sizes = (high - low + 1).tolist()
    if math.prod(sizes) > len(offset):
        return offset, torch.arange(len(offset), device=offset.device)
    return _of_box(offset, low.tolist(), sizes)
