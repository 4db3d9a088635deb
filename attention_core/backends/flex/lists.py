"""Lists of blocks, as FlexAttention takes them: as wide as the longest, and no table of all."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attention_core.backends.flex.order import Layout
from attention_core.spaces import Space, Tiles
from attention_core.spaces.tiles import per_token


class Lists(NamedTuple):
    """The blocks of keys of each block of queries, and the other way round.

    Each a count (rows, 1, blocks) and indices (rows, 1, blocks, width), int32. `full` are pairs of
    blocks in which every pair of tokens is allowed, so that the mask is not asked.
    """

    kv_num_blocks: Tensor
    kv_indices: Tensor
    full_kv_num_blocks: Tensor
    full_kv_indices: Tensor
    q_num_blocks: Tensor
    q_indices: Tensor
    full_q_num_blocks: Tensor
    full_q_indices: Tensor


def make_lists(layout: Layout, rows: int) -> Lists:
    """Make the lists of the pairs of blocks that were found, of which those of padding are not."""
    query, key = layout.tiles
    queries, keys = len(query) // rows, len(key) // rows
    if layout.found is None:
        row = torch.arange(rows, device=query.sizes.device)
        at_query = torch.arange(queries, device=row.device).repeat_interleave(keys)
        at_key = torch.arange(keys, device=row.device).repeat(queries)
        of_query = (row[:, None] * queries + at_query).flatten()
        of_key = (row[:, None] * keys + at_key).flatten()
        every = torch.ones_like(of_query, dtype=torch.bool)
    else:
        of_query, of_key, every = layout.found
    for tiles, at in ((query, of_query), (key, of_key)):
        every = every & _whole(tiles, rows, layout.size, counts=tiles is key)[at]
    some = _any_valid(query, rows)[of_query] & _any_valid(key, rows)[of_key]
    of_query, of_key, every = of_query[some], of_key[some], every[some]
    lists: list[Tensor] = []
    for by_query in (True, False):
        own, other = (of_query, of_key) if by_query else (of_key, of_query)
        count, others = (queries, keys) if by_query else (keys, queries)
        for chosen in (~every, every):
            lists += _list(own[chosen], other[chosen] % max(others, 1), rows, count)
    return Lists(*lists)


def _whole(tiles: Tiles, rows: int, size: int, *, counts: bool) -> Tensor:
    """Whether no token of a block is padding; nor, if it `counts`, a place behind the last one."""
    whole = tiles.sizes == size if counts else torch.ones_like(tiles.sizes, dtype=torch.bool)
    valid = _valid(tiles.space, rows)
    return whole if valid is None else whole & valid[tiles.members].all(-1)


def _any_valid(tiles: Tiles, rows: int) -> Tensor:
    valid = _valid(tiles.space, rows)
    if valid is None:
        return torch.ones_like(tiles.sizes, dtype=torch.bool)
    return valid[tiles.members].any(-1)


def _valid(space: Space, rows: int) -> Tensor | None:
    if space.valid is None:
        return None
    return per_token(space.valid[..., None], rows).squeeze(-1)


def _list(own: Tensor, other: Tensor, rows: int, count: int) -> list[Tensor]:
    """How many blocks each one has, (rows, 1, count), and which, (rows, 1, count, width)."""
    order = (own * (int(other.max()) + 1 if len(other) else 1) + other).argsort()
    own, other = own[order], other[order]
    number = torch.bincount(own, minlength=rows * count)
    width = max(int(number.max()) if len(number) else 0, 1)
    rank = torch.arange(len(own), device=own.device) - (number.cumsum(0) - number)[own]
    index = torch.zeros(rows * count, width, dtype=torch.int32, device=own.device)
    index[own, rank] = other.int()
    return [number.int().view(rows, 1, count), index.view(rows, 1, count, width)]
