"""Which points of a batch are near to each other: within a radius, or the nearest so many."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from attention_core.spaces.base import PairList, Space
from attention_core.spaces.cells import Cells

#: Pairs that are looked at without further ado.
_FEW = 1 << 18


class Found(NamedTuple):
    """Hold what is near: a list of pairs, None where one would be no shorter than all, and at most
    how many there are in a row; and the space of the queries, where it is another one."""

    pairs: PairList | None
    most: int
    queries: Space | None = None


class _Placed(NamedTuple):
    """The points of a batch that sit somewhere, end to end: which tokens they are, (M,) of all rows
    end to end, where they are (M, A), and the sample (M,) of each."""

    token: Tensor
    points: Tensor
    samples: Tensor


def within(keys: Space, queries: Space, radius: float) -> Found | None:
    """List the pairs of points at most `radius` apart, but for rounding; None where rows differ in
    which of their tokens are special."""
    rows = _rows(keys, queries)
    key, query = _placed(keys, rows, queries), _placed(queries, rows, keys)
    if key is None or query is None:
        return None
    cells = Cells(key.points, radius, key.samples)
    near = cells.near() if queries is keys else cells.near(query.points, query.samples)
    if near.count > (rows or 1) * queries.length * keys.length // 4:
        return Found(None, near.count)
    first, second = near.pairs()
    pairs = _listed(query.token[first], key.token[second], rows, (queries.length, keys.length))
    row = first[:0] if rows is None else query.token[first] // queries.length
    most = len(first) if rows is None else int(torch.bincount(row, minlength=1).max())
    return Found(pairs, most)


def nearest(keys: Space, queries: Space, k: int, loop: bool) -> PairList | None:
    """List the k nearest keys of each query, of equally far ones the first; None where rows differ
    in which of their tokens are special.

    Cells grow until they hold k of each query, or a good part of its sample.
    """
    rows, own = _rows(keys, queries), queries is keys
    key, query = _placed(keys, rows, queries), _placed(queries, rows, keys)
    if key is None or query is None:
        return None
    if not len(key.token) or not len(query.token):
        return _listed(query.token[:0], key.token[:0], rows, (queries.length, keys.length))
    points, others = key.points.double(), query.points.double()
    every = torch.arange(len(query.token), device=query.token.device)
    sizes = torch.bincount(key.samples, minlength=int(query.samples.max()) + 1)
    left, radius, found = every, _guess(points, key.samples, k), []
    while len(left):
        of = query.samples[left]
        most = int(sizes[of].sum())
        radius = math.inf if most <= _FEW else radius
        near = Cells(points, radius, key.samples).near(others[left], of)
        itself = left if own and not loop else None
        first, second, done = near.nearest(k, radius, key.token, itself)
        found.append(torch.stack([left[first], second]))
        # Where cells hold most of a sample, a greater radius is not worth a try
        left, radius = left[~done], math.inf if 2 * near.count > most else 2 * radius
    first, second = torch.cat(found, 1)
    order = (query.token[first] * len(key.token) + second).argsort()
    first, second = query.token[first[order]], key.token[second[order]]
    return _listed(first, second, rows, (queries.length, keys.length))


def _guess(points: Tensor, samples: Tensor, k: int) -> float:
    """A radius within which about 2k points are, were they spread evenly in a box."""
    spread = points.amax(0) - points.amin(0)
    spread = spread[spread > 0]
    each = len(points) / max(len(samples.unique()), 1)
    if not len(spread) or 2 * k >= each:
        return math.inf
    axes = len(spread)
    side = float(spread.log().mean().exp()) * (2 * k / each) ** (1 / axes)
    ball = math.pi ** (axes / 2) / math.gamma(axes / 2 + 1)
    return side / ball ** (1 / axes)


def _rows(*spaces: Space) -> int | None:
    """How many rows have points, samples or padding of their own, None where one serves all."""
    for space in spaces:
        for tensor, dims in ((space.coordinates, 2), (space.segments, 1), (space.valid, 1)):
            if tensor is not None and tensor.ndim > dims:
                return tensor.shape[0]
    return None


def _placed(space: Space, rows: int | None, other: Space) -> _Placed | None:
    """The points of a space, whose samples are numbered as those of the other one."""
    special, valid, segments, at = space.special, space.valid, space.segments, space.coordinates
    if at is None or (special is not None and special.ndim > 1):
        return None
    located = torch.ones(rows or 1, space.length, dtype=torch.bool, device=space.device)
    if special is not None:
        located &= ~special
    if valid is not None:
        located &= valid
    token = located.flatten().nonzero().squeeze(-1)
    each = max(space.num_segments, other.num_segments)
    samples = torch.arange(rows or 1, device=space.device)[:, None] * each
    samples = (samples + (0 if segments is None else segments)).expand_as(located)
    at = at.detach().expand(rows or 1, -1, -1).flatten(0, 1)
    return _Placed(token, at.index_select(0, token), samples.flatten()[token])


def _listed(query: Tensor, key: Tensor, rows: int | None, lengths: tuple[int, int]) -> PairList:
    """Pairs of tokens of all rows end to end, row by row."""
    if rows is None:
        return PairList(query, key)
    return PairList(query % lengths[0], key % lengths[1], batch=query // lengths[0])
