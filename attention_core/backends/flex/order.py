"""In which order the kernel sees the tokens, and how many are in a block: fewest pairs of blocks.

A block is that many tokens on end, so what is near has to stand together: the samples of a row
apart, special tokens in front, and the places of a grid along a curve. Order and size are chosen by
finding the pairs of blocks, and counting the pairs of tokens in them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from attention_core.backends.blocks.search import Reached, reached
from attention_core.backends.blocks.tiling import morton
from attention_core.job import Job
from attention_core.spaces import Space, Tiles
from attention_core.spaces.tiles import per_token

#: Time of a pair of tokens in blocks of so many, against that in blocks of 128 (read, not measured:
#: smaller products keep fewer of a GPU's units busy).
_RATES = {128: 1.0, 64: 1.25}
#: Without a compiler, blocks may be as small as tokens are few.
_EAGER_SIZES = ((512, 64), (64, 16), (0, 4))
#: In longer rows one order is tried, as finding the blocks of each takes its time.
_MANY = 1 << 16


class Layout(NamedTuple):
    """The tokens as the kernel sees them, and which blocks of them meet.

    Attributes:
        size: tokens in a block.
        orders: of queries and keys, (rows, L) the token at each place; None where it is as it was.
        tiles: the blocks of queries and of keys.
        found: the pairs of blocks with allowed pairs, as far as the mask and segments tell.
    """

    size: int
    orders: tuple[Tensor | None, Tensor | None]
    tiles: tuple[Tiles, Tiles]
    found: Reached | None


def choose(job: Job, rows: int, *, searches: bool, compiled: bool) -> Layout:
    """Choose the layout with the fewest pairs in blocks.

    Args:
        rows: rows of tokens: the batch where its samples sit in different places, else 1.
        searches: whether the mask or segments may forbid anything.
        compiled: whether the kernel is compiled, for a GPU.
    """
    best: tuple[float, Layout] | None = None
    for size, orders in _candidates(job, rows, searches=searches, compiled=compiled):
        query, key = job.spaces
        of_query = tiles_of(query, rows, size, orders[0])
        same = query is key and orders[0] is orders[1]
        tiles = of_query, of_query if same else tiles_of(key, rows, size, orders[1])
        found = reached(job, *tiles) if searches else None
        if found is None:
            return Layout(size, orders, tiles, None)
        time = len(found.query) * size * size * _RATES.get(size, 1.0)
        if best is None or time < best[0]:
            best = time, Layout(size, orders, tiles, found)
    assert best is not None
    return best[1]


def _candidates(
    job: Job, rows: int, *, searches: bool, compiled: bool
) -> Iterator[tuple[int, tuple[Tensor | None, Tensor | None]]]:
    query, key = job.spaces
    longest = max(query.length, key.length)
    sizes = list(_RATES)
    if not compiled:
        sizes = [next(size for least, size in _EAGER_SIZES if longest >= least)]
    local = searches and job.mask is not None and job.mask_bound < math.inf
    compact: tuple[Tensor | None, Tensor | None] = (None, None)
    if local:
        first = compact_order(query, rows)
        compact = first, first if key is query else compact_order(key, rows)
    if compact[0] is None and compact[1] is None:
        yield sizes[0], compact
        return
    if longest <= _MANY:
        yield sizes[0], (None, None)
    for size in sizes:
        yield size, compact


def compact_order(space: Space, rows: int = 1) -> Tensor | None:
    """Return the tokens, (rows, L), by sample, special ones first, along a curve, padding last;
    None where they have fewer than two coordinates."""
    if space.coordinates is None or space.axes < 2 or space.length < 2:
        return None
    values: list[Tensor | None] = [morton(per_token(space.coordinates, rows))]
    values += [
        None if flags is None else per_token(flags[..., None], rows).squeeze(-1)
        for flags in (
            None if space.special is None else ~space.special,
            space.segments,
            None if space.valid is None else ~space.valid,
        )
    ]
    count = rows * space.length
    at = torch.arange(count, device=space.device)
    values.append(at // space.length)
    for value in values:
        if value is not None:
            at = at[value.long()[at].argsort(stable=True)]
    order = at.view(rows, -1) % space.length
    return None if torch.equal(order, order.sort(-1).values) else order


def tiles_of(space: Space, rows: int, size: int, order: Tensor | None) -> Tiles:
    """Cut the tokens of each row into blocks of `size`, as they stand in `order`."""
    members = padded_order(space, rows, size, order).view(rows, -1, size)
    first = torch.arange(rows, device=space.device)[:, None, None] * space.length
    count = members.shape[1]
    start = torch.arange(count, device=space.device) * size
    sizes = (space.length - start).clamp(max=size).repeat(rows)
    return Tiles(space, rows, (first + members).flatten(0, 1), sizes)


def padded_order(space: Space, rows: int, size: int, order: Tensor | None) -> Tensor:
    """Return the token at each place of whole blocks, (rows, L); the last one fills them up."""
    if order is None:
        order = torch.arange(space.length, device=space.device).expand(rows, -1)
    missing = -space.length % size
    return torch.cat([order, order[:, -1:].expand(-1, missing)], dim=1)
