"""Attention of gathered blocks by torch's own operations, for second derivatives.

It keeps the scores of all blocks, which the operators do not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attention_core.backends.blocks.chunks import Chunk, Work
from attention_core.backends.blocks.mods import Mods

Kept = Callable[[Work, Chunk, Tensor], Tensor]


def drawn(seed: Tensor, like: Tensor) -> Kept:
    """Return what `passes` multiplies weights with in dropout, chunk by chunk."""
    generator = torch.Generator(like.device).manual_seed(int(seed))
    return lambda work, chunk, weights: work.kept(weights, generator).clone()


def forward(
    works: list[Work],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None,
    added: list[Tensor | None],
    kept: Kept,
    scale: float,
    spare: int,
    mods: Mods | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the output (B, H, Lq, Dv) and log-sum-exp (B, H, Lq), as `block_attention` does.

    Args:
        works: what is done to each group of blocks.
        added: what is added to the scores of each group, as in `Blocks`.
        kept: what dropout multiplies the weights (C, G·Q, M) of a chunk with, asked in turn.
        scale: factor on the scores.
        spare: rows that padding writes to.
        mods: what modifies scores before something is added to them.
    """
    rows = q.shape[:3].numel() + spare
    out, all_lse = q.new_zeros(rows, v.shape[-1]), q.new_full((rows, 1), -torch.inf)
    for work, own in zip(works, added, strict=True):
        at, results, tops = [], [], []
        for chunk in work:
            result, top = _chunk(work, chunk, q, k, v, sink, own, kept, scale, mods)
            at.append(chunk.written)
            results.append(result.flatten(0, 1))
            tops.append(top.flatten()[:, None])
        if at:
            run = work.blocks.query_run
            out, all_lse = (
                total.view(-1, total.shape[-1] * run)
                .index_copy(0, torch.cat(at), torch.cat(new).view(-1, total.shape[-1] * run))
                .view(total.shape)
                for total, new in ((out, results), (all_lse, tops))
            )
    out, all_lse = (x[: rows - spare].view(*q.shape[:3], x.shape[-1]) for x in (out, all_lse))
    return out, all_lse.squeeze(-1)


def _chunk(
    work: Work,
    chunk: Chunk,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None,
    added: Tensor | None,
    kept: Kept,
    scale: float,
    mods: Mods | None,
) -> tuple[Tensor, Tensor]:
    """The output (C, G·Q, Dv) and log-sum-exp (C, G·Q) of some blocks."""
    settings, blocks = work.settings, work.blocks
    queries = _rows(q, chunk.queries, blocks.query_run, work.groups * work.size)
    keys, values = (_rows(x, chunk.keys, blocks.key_run, work.reach) for x in (k, v))
    scores = torch.bmm(queries * scale, keys.mT)
    if settings.softcap is not None:
        scores = settings.softcap * torch.tanh(scores / settings.softcap)
    empty = None
    if mods is not None:
        scores, empty = mods(work, chunk, scores, added)
    elif added is not None:
        by_head = scores.unflatten(1, (work.groups, work.size))
        scores = (by_head + work.of_pattern(chunk, added)).flatten(1, 2)
    weights = torch.softmax(scores, -1)
    if settings.dropout_p:
        weights = weights * kept(work, chunk, weights)
    result, top = torch.bmm(weights, values), torch.logsumexp(scores, -1)
    if sink is not None:
        result = result * work.left_by(sink, chunk, top)[..., None]
    result = work.silence(chunk, result, empty=empty)
    return result, work.silence(chunk, top.clone(), -torch.inf, empty)


def _rows(x: Tensor, at: Tensor, run: int, count: int) -> Tensor:
    """The tokens of x (B, H, L, D) in runs, (C, count, D)."""
    width = x.shape[-1] * run
    return x.reshape(-1, width).index_select(0, at).view(-1, count, x.shape[-1])
