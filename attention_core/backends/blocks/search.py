"""Which tiles of keys each tile of queries can reach, found from coarse tiles to fine ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attention_core.job import Job
from attention_core.spaces import Space, TilePairs, Tiles, TileStatus
from attention_core.spaces.pairs import in_segments

_COARSEST = 32


class Reached(NamedTuple):
    """Pairs of tiles with allowed pairs of tokens, sorted by query tile, then by key tile."""

    query: Tensor
    key: Tensor
    #: Whether every pair of their tokens is allowed.
    every: Tensor


def reached(job: Job, query: Tiles, key: Tiles) -> Reached:
    """Find all pairs of tiles in which the mask, or what is known of it, allows anything."""
    queries, keys = _levels(query), _levels(key)
    query, key = queries.pop(), keys.pop()
    device = job.device
    at = torch.cartesian_prod(
        torch.arange(len(query), device=device), torch.arange(len(key), device=device)
    ).unbind(-1)
    every = torch.zeros(len(at[0]), dtype=torch.bool, device=device)
    while True:
        # What is below a pair of tiles that is allowed altogether is allowed, too
        asked = (~every).nonzero().squeeze(-1)
        found = _tile_status(job, TilePairs(query, key, (at[0][asked], at[1][asked])))
        every = every.index_copy(0, asked, found.all)
        kept = torch.ones_like(every).index_copy(0, asked, found.any).nonzero().squeeze(-1)
        at, every = (at[0][kept], at[1][kept]), every[kept]
        if not queries and not keys:
            break
        # The longer side goes first, so that tiles stay of a size
        if len(queries) >= len(keys):
            parent, child = query.children(at[0])
            at, query = (child, at[1][parent]), queries.pop()
        else:
            parent, child = key.children(at[1])
            at, key = (at[0][parent], child), keys.pop()
        every = every[parent]
    order = (at[0] * len(key) + at[1]).argsort()
    return Reached(at[0][order], at[1][order], every[order])


def _levels(tiles: Tiles) -> list[Tiles]:
    levels = [tiles]
    while len(levels[-1]) > _COARSEST:
        levels.append(levels[-1].coarser())
    return levels


def _tile_status(job: Job, tiles: TilePairs) -> TileStatus:
    some, every = tiles.answer(True), tiles.answer(True)
    rows = tiles.query.rows
    if rows > 1:
        same = tiles.equal("row", lambda space: _rows(space, rows))
        some, every = some & same.any, every & same.all
    if in_segments(job.spaces):
        same = tiles.equal("segment", _segments)
        some, every = some & same.any, every & same.all
    if job.mask is not None:
        allowed = job.mask.tile_status_at(tiles)
        some, every = some & allowed.any, every & allowed.all
    return TileStatus(some, every)


def _rows(space: Space, rows: int) -> Tensor:
    return torch.arange(rows, device=space.device)[:, None, None].expand(rows, space.length, 1)


def _segments(space: Space) -> Tensor:
    assert space.segments is not None
    return space.segments[..., None]
