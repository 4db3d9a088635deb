"""The check of a mask: what it allows, and what it tells the plan about that."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from attention_core.backends.blocks.tiling import tile
from attention_core.masks import DenseMask, Mask, Neighborhood
from attention_core.spaces import Pairs, Sequence, Space, TilePairs, Tiles
from attention_core.testing.agreement import agree
from attention_core.testing.pairs import (
    Spaces,
    answers,
    batch_of,
    called,
    close,
    kept,
    ordinary,
    pair,
)
from attention_core.testing.terms import REFUSED, check_block_key, check_end, on_each_space

_HEADS = 4


def check_mask(mask: Mask, *spaces: Space) -> None:
    """Check that a mask keeps its promises, on `spaces` or on small ones of every kind.

    `allowed` is the same however pairs are laid out, and after `keep`, `append`, `pack` and `pad`;
    `tile_status`, `candidates`, `count_bound`, `allows_all`, `block_key`, `partition`, `lookback`,
    `needs_end` are true of it; and every backend gives the outputs, weights and gradients of
    `reference`, with it and with what `&`, `|` and `~` make of it. A mask may refuse a space by a
    TypeError or ValueError, as it may what is left of one; of the small ones, it has to serve one.

    Raises:
        AssertionError: naming the promise that is broken, and tokens that break it.
    """
    if not isinstance(mask, Mask):
        raise TypeError(f"mask must be a Mask, got {type(mask).__name__}")
    on_each_space(mask, spaces, mask.at, _HEADS, lambda space: _check(mask, space))


def _check(mask: Mask, space: Space) -> None:
    spaces, name = (space, space), f"{type(mask).__name__}.allowed"
    allowed = answers(name, mask.at, spaces, _HEADS)
    located = allowed & ordinary(spaces)
    _check_partition(mask, space, located)
    _check_pairs(mask, spaces, allowed)
    check_block_key(mask, "allows", space, allowed, ordinary(spaces))
    if isinstance(space, Sequence) and not math.isinf(mask.lookback):
        offset = Pairs.all(spaces, batch=batch_of(spaces)).offset.squeeze(-1)
        far = located & (-offset > mask.lookback)
        _never(far, f"{mask}.lookback is {mask.lookback}, but", "is allowed")
    check_end(mask, name, mask.at, space, allowed, _HEADS)
    # A tensor speaks of places in itself, and some masks of what else is there
    if not _has_tensor(mask) and not mask.depends_on_others:
        kept(
            name,
            mask.at,
            spaces,
            allowed,
            hint="ask `pairs` about tokens, for pairs.query and pairs.key are other ones then",
            special=True,
            refused=REFUSED,
        )
    _check_cross(mask, space, name)
    agree(f"{space.describe()}, mask {mask}", space, mask, heads=_HEADS)
    agree(f"{space.describe()}, mask ~{mask}", space, ~mask, heads=_HEADS)
    if space.axes:
        near = Neighborhood((1,) * space.axes)
        for both in (mask & near, mask | near):
            agree(f"{space.describe()}, mask {both}", space, both, heads=_HEADS)


def _has_tensor(mask: Mask) -> bool:
    """Whether a mask is a `DenseMask`, or made of one."""
    parts = [value for value in vars(mask).values() if isinstance(value, Mask)]
    return isinstance(mask, DenseMask) or any(map(_has_tensor, parts))


def _check_pairs(mask: Mask, spaces: Spaces, allowed: Tensor) -> None:
    """Check what is said of the pairs of two spaces."""
    real = ordinary(spaces, special=True)
    _check_candidates(mask, spaces, allowed & ordinary(spaces))
    _check_tiles(mask, spaces, allowed, real)
    if called("allows_all", lambda: mask.allows_all(spaces)):
        _never(real & ~allowed, f"{mask}.allows_all is True, but", "is not allowed")


def _check_cross(mask: Mask, space: Space, name: str) -> None:
    """Check the pairs of some tokens and all of them, as where they are decoded or pooled."""
    half = torch.arange(space.length) >= space.length // 2
    for spaces in ((space.keep(half), space), (space, space.keep(half))):
        if not all(one.length for one in spaces):
            return
        query, key = (one.describe() for one in spaces)
        what = f"{query}, attending to {key}, mask {mask}"
        try:
            allowed = answers(name, mask.at, spaces, _HEADS)
        except AssertionError as error:
            if isinstance(error.__cause__, REFUSED):
                continue
            raise
        try:
            _check_pairs(mask, spaces, allowed)
        except AssertionError as error:
            raise AssertionError(f"where queries and keys are not the same, {error}") from error
        agree(what, spaces, mask, heads=_HEADS)


def _never(wrong: Tensor, before: str, after: str) -> None:
    if bool(wrong.any()):
        b, _, q, k = wrong.nonzero()[0].tolist()
        raise AssertionError(f"{before} {pair(b, q, k)} {after}")


def _check_tiles(mask: Mask, spaces: Spaces, allowed: Tensor, real: Tensor) -> None:
    """Compare what is said of pairs of tiles with what is allowed between their tokens."""
    name = f"{type(mask).__name__}.tile_status"
    rows = next((space.batch for space in spaces if space.batch is not None), 1)
    real = real.expand(len(allowed), -1, -1, -1)[:, 0]
    some, every = (allowed.any(1) & real), (allowed.all(1) | ~real)
    if rows == 1:
        some, every, real = some.any(0)[None], every.all(0)[None], real[:1]
    query = called(name, partial(_small_tiles, mask, spaces[0], rows))
    key = query
    if spaces[0] is not spaces[1]:
        key = called(name, partial(_small_tiles, mask, spaces[1], rows))
    for _ in range(2):
        counts = len(query), len(key)
        total = counts[0] * counts[1]
        if not total:
            return
        at = torch.arange(total)
        pairs = TilePairs(query, key, (at // counts[1], at % counts[1]))
        status = called(name, partial(mask.tile_status_at, pairs))
        rows_of = query.of_token.view(rows, -1)[:, :, None]
        columns = key.of_token.view(rows, -1)[:, None]
        between = rows_of * counts[1] + columns
        between = between.where(real & (rows_of >= 0) & (columns >= 0), total)
        for against, denied, said, is_so in (
            (some, ~status.any, "no pair", "allowed"),
            (~every, status.all, "every pair", "not allowed"),
        ):
            wrong = against & torch.nn.functional.pad(denied, (0, 1))[between]
            if bool(wrong.any()):
                raise AssertionError(
                    f"{name} says of two tiles of tokens that {said} of theirs is allowed, but "
                    f"{pair(*wrong.nonzero()[0].tolist())} is {is_so}"
                )
        query, key = query.coarser(), key.coarser()


def _small_tiles(mask: Mask, space: Space, rows: int) -> Tiles:
    """The tiles that `blocks` makes, cut into such of at most 4 tokens."""
    made = tile(space, rows, mask, 64, local=space.axes > 1)
    cut = [
        part
        for members, size in zip(made.members, made.sizes.tolist(), strict=True)
        for part in members[:size].split(4)
    ]
    sizes = torch.tensor([len(part) for part in cut], dtype=torch.long)
    whole = [torch.cat([part, part[-1:].expand(4 - len(part))]) for part in cut]
    return Tiles(space, rows, torch.stack(whole) if whole else made.members, sizes)


def _check_candidates(mask: Mask, spaces: Spaces, allowed: Tensor) -> None:
    name, (query, key) = type(mask).__name__, spaces
    most = int(allowed.any(1).sum((-1, -2)).max())
    bound = called(f"{name}.count_bound", lambda: mask.count_bound(spaces))
    if most > bound:
        raise AssertionError(f"{name}.count_bound is {bound}, but {most} pairs are allowed")
    listed = called(f"{name}.candidates", lambda: mask.candidates(spaces))
    if listed is None:
        return
    for side, tokens, of in (("query", listed.query, query), ("key", listed.key, key)):
        if bool(((tokens < 0) | (tokens >= of.length)).any()):
            raise AssertionError(
                f"{name}.candidates list a {side} beyond the {of.length} there are"
            )
    rows = torch.arange(len(allowed))[:, None] if listed.batch is None else listed.batch
    held = torch.zeros(len(allowed), query.length, key.length, dtype=torch.bool)
    held[rows, listed.query, listed.key] = True
    _never(allowed & ~held[:, None], f"{name}.candidates leave out", "which is allowed")
    pairs = Pairs.all(spaces, batch=batch_of(spaces))
    real = ordinary(spaces).expand(len(allowed), -1, -1, -1)[:, 0]
    real = real[rows, listed.query, listed.key]
    for what in ("distance", "edge"):
        given = getattr(listed, what)
        if given is None or (what == "edge" and key.edges is not None and key.edges.repeated):
            continue
        whole = getattr(pairs, what).expand(len(allowed), 1, query.length, key.length)[:, 0]
        wrong = ~close(given, whole[rows, listed.query, listed.key]) & real
        if bool(wrong.any()):
            e = int(wrong.nonzero()[0, -1])
            b = int(wrong.nonzero()[0, 0] if listed.batch is None else listed.batch[e])
            raise AssertionError(
                f"{name}.candidates give {pair(b, int(listed.query[e]), int(listed.key[e]))} "
                f"another {what} than the space does"
            )


def _check_partition(mask: Mask, space: Space, allowed: Tensor) -> None:
    classes = called("partition", lambda: mask.partition(space))
    if classes is not None:
        rows = space.batch or 1
        if classes.shape[:-1] not in ((space.length,), (rows, space.length)):
            raise AssertionError(
                f"{type(mask).__name__}.partition must be ({space.length}, A), perhaps with a "
                f"batch in front, got {tuple(classes.shape)}"
            )
        apart = (classes[..., :, None, :] != classes[..., None, :, :]).any(-1)
        apart = apart[None, None] if apart.ndim == 2 else apart[:, None]
        name = f"{type(mask).__name__}.partition"
        _never(allowed & apart, f"{name} keeps apart", "which is allowed")
