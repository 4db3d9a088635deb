"""Which tokens make a tile: those that sit together and are allowed much the same."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attention_core.masks import Mask
from attention_core.spaces import Space, Tiles
from attention_core.spaces.tiles import per_token

#: Cost of a pair in a block of so many queries against that in one of 64 (forward and backward,
#: heads of 64, float32): small matrix products are slow, and keys are gathered for fewer queries.
QUERY_COST = {32: 1.15, 64: 1.0}

_MORTON_BITS = 20
_SMALL = 64


@dataclass(frozen=True)
class Sizes:
    """Most tokens in a tile of queries and in a tile of keys."""

    query: int
    key: int


def choose_sizes(axes: int, reach: float | None) -> Sizes:
    """Tile sizes for a mask that allows `reach` keys to a query; inf where that is not known, None
    where there is no mask."""
    if reach is None:
        return Sizes(256, 64)
    if not axes or math.isinf(reach):
        return Sizes(64, 16)
    width = reach ** (1 / axes) - 1  # a box of keys around each query

    def cost(size: int) -> float:
        return (size ** (1 / axes) + width) ** axes * QUERY_COST[size]

    # A row of tokens is cut into runs; in more dimensions the keys near a tile are no whole tiles
    return Sizes(min(QUERY_COST, key=cost), 16 if axes == 1 else 1)


def tile(space: Space, rows: int, mask: Mask | None, size: int, *, local: bool) -> Tiles:
    """Cut the tokens of `space` that are no padding into tiles of at most `size`.

    A tile holds tokens of one sample and one class of the mask, special tokens and those that
    the mask singles out apart from the others.

    Args:
        rows: rows of a batch, where they differ in their tokens; else 1.
        local: the mask allows what is near: put tokens together that are.
    """
    device = space.device
    columns = _cells(space, mask, rows)
    order = torch.arange(rows * space.length, device=device)
    if space.valid is not None:
        order = per_token(space.valid[..., None], rows).squeeze(-1).nonzero().squeeze(-1)
        columns = [column[order] for column in columns]
    if local and space.axes > 1:
        assert space.coordinates is not None
        along_curve = morton(per_token(space.coordinates, rows)[order])
        order, columns = _sorted(order, [*columns, along_curve])
        columns = columns[:-1]
    else:
        order, columns = _sorted(order, columns)
    if not len(order):
        empty = order.new_zeros(0)
        return Tiles(space, rows, order.new_zeros(0, 1), empty)
    changes = torch.zeros(len(order), dtype=torch.bool, device=device)
    for column in columns:
        changes[1:] |= column[1:] != column[:-1]
    starts = torch.cat([order.new_zeros(1), changes.nonzero().squeeze(-1)])
    counts = torch.diff(starts, append=starts.new_tensor([len(order)]))
    # A small cell is one tile, a larger one is cut evenly: of 100 tokens twice 50, not 64 and 36
    tiles_of_cell = torch.where(counts <= _SMALL, 1, -(-counts // size))
    cell = torch.repeat_interleave(tiles_of_cell)
    number = (
        torch.arange(len(cell), device=device) - (tiles_of_cell.cumsum(0) - tiles_of_cell)[cell]
    )
    first = starts[cell] + number * counts[cell] // tiles_of_cell[cell]
    last = starts[cell] + (number + 1) * counts[cell] // tiles_of_cell[cell] - 1
    sizes = last - first + 1
    steps = torch.arange(int(sizes.max()), device=device)
    return Tiles(space, rows, order[torch.minimum(first[:, None] + steps, last[:, None])], sizes)


def _cells(space: Space, mask: Mask | None, rows: int) -> list[Tensor]:
    """Integers of each token of all rows; a tile holds tokens that agree in all of them."""
    columns = []
    if rows > 1:
        columns.append(torch.arange(rows, device=space.device).repeat_interleave(space.length))
    values: list[Tensor | None] = []
    if space.segments is not None:
        values.append(space.segments[..., None])
    if space.special is not None:
        values.append(~space.special[..., None])  # they come first already
    block_key = None if mask is None else mask.block_key(space)
    if block_key is not None:
        values += block_key.absolute
    if mask is not None:
        values.append(mask.partition(space))
    for value in values:
        if value is not None:
            columns += per_token(value, rows).long().unbind(-1)
    return columns


def _sorted(order: Tensor, columns: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Both in the order of the columns, the first one first; a stable sort, where one is needed."""
    for column in reversed(columns):
        if bool((column[1:] < column[:-1]).any()):
            break
    else:
        return order, columns
    at = torch.arange(len(order), device=order.device)
    for column in reversed(columns):
        at = at[column[at].argsort(stable=True)]
    return order[at], [column[at] for column in columns]


def morton(coordinates: Tensor) -> Tensor:
    """Return the rank of each place (T, A) along a curve that keeps neighbors together.

    It is that of Morton (1966).

    64 consecutive places of a grid are 8 × 8 of it, or 4 × 4 × 4.
    """
    axes = coordinates.shape[-1]
    bits = min(_MORTON_BITS, 62 // axes)
    if len(coordinates) and coordinates.is_floating_point():
        coordinates = coordinates.to(torch.promote_types(coordinates.dtype, torch.float32))
        low, high = coordinates.amin(0), coordinates.amax(0)
        scale = (2**bits - 1) / (high - low).clamp(min=1e-12)
        coordinates = (coordinates - low) * scale
    at = coordinates.long().clamp(min=0, max=2**bits - 1)
    code = torch.zeros_like(at[:, 0])
    for bit in range(bits):
        for axis in range(axes):
            code |= (at[:, axis] >> bit & 1) << (bit * axes + axes - 1 - axis)
    return code
