"""Attention of gathered blocks, forward and backward, a few blocks at a time.

A block has all the keys of its queries, so its softmax is whole, and the backward pass computes it
again instead of keeping it: nothing larger than a chunk of scores is ever stored. All matrices of
a chunk fit into a core's cache, which is worth a factor of two on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Scores computed at once.
_CHUNK = {"cpu": 1 << 18}
_CHUNK_ELSEWHERE = 1 << 26


@dataclass
class Blocks:
    """One group of blocks, as the kernel wants it.

    Attributes:
        queries, keys: (N, Q), (N, M) rows of a head's tokens in (B · H · L) rows; -1 is padding.
        pattern: (N,) or (samples · N,) which of `added` is a block's own; None: the only one.
        added: (P, H or 1, Q, M) added to the scores, -inf on what is forbidden; None: nothing.
        silent: (P, H or 1, Q) queries that may attend to nothing; None: there are none.
    """

    queries: Tensor
    keys: Tensor
    pattern: Tensor | None
    added: Tensor | None
    silent: Tensor | None


@dataclass(frozen=True)
class Settings:
    """Everything else: `samples` share the blocks, and a head has `lengths` rows of tokens."""

    samples: int
    lengths: tuple[int, int]
    scale: float
    softcap: float | None
    dropout_p: float
    seed: int


class _Chunk:
    """Some blocks with one head of keys each: `units` (C,) count (sample, block, head of keys)."""

    def __init__(
        self, blocks: Blocks, units: Tensor, heads: tuple[int, int], settings: Settings
    ) -> None:
        count, (query_heads, kv_heads) = len(blocks.queries), heads
        groups = query_heads // kv_heads
        head = units % kv_heads
        block = units // kv_heads % count
        sample = units // (kv_heads * count)
        length, key_length = settings.lengths
        first = ((sample * query_heads + head * groups) * length)[:, None, None]
        first = first + torch.arange(groups, device=units.device)[:, None] * length
        queries, keys = blocks.queries[block][:, None], blocks.keys[block]
        self.padded = queries < 0
        #: (C, G, Q) and (C, M) rows; padding reads some row, whose scores are all forbidden
        self.queries = first + queries.clamp(min=0)
        self.keys = ((sample * kv_heads + head) * key_length)[:, None] + keys.clamp(min=0)
        #: which pattern, and which head of it
        self.pattern: Tensor | None = None
        if blocks.pattern is not None:
            at = block if len(blocks.pattern) == count else sample * count + block
            self.pattern = blocks.pattern[at]
        self.head, self.groups = head, groups

    def of_pattern(self, values: Tensor) -> Tensor:
        """The entries of `values`, (P, H or 1, ...), for this chunk: (C or 1, G or 1, ...)."""
        single = values.shape[1] == 1
        if self.pattern is None and single:
            return values
        by_head = values.unflatten(1, (-1, 1 if single else self.groups))
        pattern = self.pattern if self.pattern is not None else torch.zeros_like(self.head)
        return by_head[pattern, torch.zeros_like(self.head) if single else self.head]

    def add_to_pattern(self, total: Tensor, values: Tensor) -> None:
        """Adds `values` (C, G, ...) to the entries of `total` that `of_pattern` gives."""
        single = total.shape[1] == 1
        pattern = self.pattern if self.pattern is not None else torch.zeros_like(self.head)
        if single:
            total.index_add_(0, pattern, values.sum(1, keepdim=True))
            return
        rows = total.view(-1, self.groups, *total.shape[2:])
        rows.index_add_(0, pattern * (total.shape[1] // self.groups) + self.head, values)


def _chunks(blocks: Blocks, heads: tuple[int, int], settings: Settings) -> Iterator[_Chunk]:
    device = blocks.queries.device
    units = settings.samples * len(blocks.queries) * heads[1]
    scores = heads[0] // heads[1] * blocks.queries.shape[1] * blocks.keys.shape[1]
    step: int = max(_CHUNK.get(device.type, _CHUNK_ELSEWHERE) // max(scores, 1), 1)
    for first in range(0, units, step):
        at = torch.arange(first, min(first + step, units), device=device)
        yield _Chunk(blocks, at, heads, settings)


def _softmax(
    chunk: _Chunk, blocks: Blocks, q: Tensor, k: Tensor, settings: Settings
) -> tuple[Tensor, Tensor | None]:
    """Weights (C, G·Q, M) of queries (C, G·Q, D) over keys (C, M, D); how the cap bent them."""
    count, (size, keys) = len(q), (blocks.queries.shape[1], k.shape[1])
    added = None if blocks.added is None else chunk.of_pattern(blocks.added)
    bend = None
    if added is None or settings.softcap is not None:
        scores = torch.bmm(q, k.mT).mul_(settings.scale)
        if settings.softcap is not None:
            capped = torch.tanh(scores / settings.softcap)
            scores, bend = settings.softcap * capped, 1 - capped * capped
            if added is not None:
                scores.view(count, -1, size, keys).add_(added)
    else:
        scores = q.new_empty(count, chunk.groups, size, keys).copy_(added).flatten(1, 2)
        scores.baddbmm_(q, k.mT, alpha=settings.scale)
    return scores, bend


class BlockAttention(torch.autograd.Function):
    """Inputs: q (B, H, Lq, D), k and v (B, Hkv, Lk, D), sink (H,) or None, groups of blocks with
    their `added` besides, for its gradient. Outputs: the attention and the log-sum-exp."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sink: Tensor | None,
        settings: Settings,
        groups: list[Blocks],
        *added: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        heads = q.shape[1], k.shape[1]
        rows = q.shape[0] * heads[0] * q.shape[2]
        # One row more takes what padding computes
        out = q.new_zeros(rows + 1, v.shape[-1])
        lse = q.new_full((rows + 1,), -torch.inf)
        flat = [x.reshape(-1, x.shape[-1]) for x in (q, k, v)]
        generator = torch.Generator(q.device).manual_seed(settings.seed)
        for blocks in groups:
            for chunk in _chunks(blocks, heads, settings):
                queries, keys, values = _gathered(chunk, *flat)
                scores, _ = _softmax(chunk, blocks, queries, keys, settings)
                top = torch.logsumexp(scores, -1)
                weights = torch.softmax(scores, -1)
                if settings.dropout_p:
                    weights = weights * _kept(weights, settings, generator)
                result = torch.bmm(weights, values).view(*chunk.queries.shape, -1)
                top = top.view(chunk.queries.shape)
                if sink is not None:
                    result = result * _share(top, chunk, sink)[..., None]
                if blocks.silent is not None:
                    silent = chunk.of_pattern(blocks.silent)
                    result = result.masked_fill(silent[..., None], 0)
                    top = top.masked_fill(silent, -torch.inf)
                at = chunk.queries.masked_fill(chunk.padded, rows).flatten()
                out.index_copy_(0, at, result.flatten(0, -2))
                lse.index_copy_(0, at, top.flatten())
        out, lse = out[:rows].view(*q.shape[:3], v.shape[-1]), lse[:rows].view(q.shape[:3])
        ctx.save_for_backward(q, k, v, sink, out, lse)
        ctx.settings, ctx.groups = settings, groups
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
        q, k, v, sink, out, lse = ctx.saved_tensors
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        settings: Settings = ctx.settings
        heads = q.shape[1], k.shape[1]
        rows = q.shape[0] * heads[0] * q.shape[2]
        flat = [x.reshape(-1, x.shape[-1]) for x in (q, k, v)]
        flat_grad, flat_lse = grad_out.reshape(rows, v.shape[-1]), lse.reshape(rows)
        flat_grad_lse = None if grad_lse is None else grad_lse.reshape(rows)
        delta = (grad_out * out).sum(-1).view(rows)
        grad_q = q.new_zeros(rows + 1, q.shape[-1])
        grad_k, grad_v = (torch.zeros_like(x) for x in flat[1:])
        grad_sink = None
        grads_added: list[Tensor | None] = []
        generator = torch.Generator(q.device).manual_seed(settings.seed)
        for number, blocks in enumerate(ctx.groups):
            wants = ctx.needs_input_grad[6 + number]
            total = torch.zeros_like(blocks.added) if wants and blocks.added is not None else None
            for chunk in _chunks(blocks, heads, settings):
                queries, keys, values = _gathered(chunk, *flat)
                grad = flat_grad.index_select(0, chunk.queries.flatten()).view(
                    *chunk.queries.shape, -1
                )
                if blocks.silent is not None:
                    grad = grad.masked_fill(chunk.of_pattern(blocks.silent)[..., None], 0)
                grad = grad.flatten(1, 2)
                scores, bend = _softmax(chunk, blocks, queries, keys, settings)
                weights = torch.softmax(scores, -1)
                whole = weights
                if sink is not None:
                    share = _share(flat_lse[chunk.queries], chunk, sink)
                    weights = weights * share.flatten(1)[..., None]
                grad_weights = torch.bmm(grad, values.mT)
                used = weights
                if settings.dropout_p:
                    kept = _kept(weights, settings, generator)
                    grad_weights, used = grad_weights * kept, weights * kept
                grad_v.index_add_(0, chunk.keys.flatten(), torch.bmm(used.mT, grad).flatten(0, 1))
                of_row = delta[chunk.queries]
                if blocks.silent is not None:
                    of_row = of_row.masked_fill(chunk.of_pattern(blocks.silent), 0)
                grad_scores = grad_weights.sub_(of_row.flatten(1)[..., None]).mul_(weights)
                if flat_grad_lse is not None:
                    of_lse = flat_grad_lse[chunk.queries]
                    if blocks.silent is not None:
                        of_lse = of_lse.masked_fill(chunk.of_pattern(blocks.silent), 0)
                    grad_scores += whole * of_lse.flatten(1)[..., None]
                if total is not None:
                    chunk.add_to_pattern(total, grad_scores.view(*chunk.queries.shape, -1))
                if bend is not None:
                    grad_scores = grad_scores * bend
                grad_scores = grad_scores.mul_(settings.scale)
                at = chunk.queries.masked_fill(chunk.padded, rows).flatten()
                grad_q.index_copy_(0, at, torch.bmm(grad_scores, keys).flatten(0, 1))
                own = torch.bmm(grad_scores.mT, queries).flatten(0, 1)
                grad_k.index_add_(0, chunk.keys.flatten(), own)
            grads_added.append(total)
        if sink is not None:
            taken = 1 - _left(lse, sink[:, None])
            grad_sink = -(taken * delta.view(q.shape[:3])).sum((0, 2))
        return (
            grad_q[:rows].view_as(q),
            grad_k.view_as(k),
            grad_v.view_as(v),
            grad_sink,
            None,
            None,
            *grads_added,
        )


def _gathered(chunk: _Chunk, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (C, G·Q, D), keys (C, M, D) and values of a chunk."""
    count = len(chunk.keys)
    return (
        q.index_select(0, chunk.queries.flatten()).view(count, -1, q.shape[-1]),
        k.index_select(0, chunk.keys.flatten()).view(count, -1, k.shape[-1]),
        v.index_select(0, chunk.keys.flatten()).view(count, -1, v.shape[-1]),
    )


def _share(lse: Tensor, chunk: _Chunk, sink: Tensor) -> Tensor:
    """What the sink leaves to the keys, (C, G, Q)."""
    return _left(lse, sink.view(-1, chunk.groups)[chunk.head][..., None])


def _left(lse: Tensor, logit: Tensor) -> Tensor:
    # A sink of -inf takes nothing, not even where there are no keys either
    return torch.sigmoid(lse - logit).masked_fill(logit == -torch.inf, 1.0)


def _kept(weights: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    """0 where dropout drops, else 1 / (1 - p); the same in forward and backward."""
    kept = torch.empty_like(weights).bernoulli_(1 - settings.dropout_p, generator=generator)
    return kept.div_(1 - settings.dropout_p)
