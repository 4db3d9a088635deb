"""Attention of gathered blocks, forward and backward, a few blocks at a time.

A block has all the keys of its queries, so its softmax is whole, and the backward pass computes it
again instead of keeping it: nothing larger than a chunk of scores is ever stored. On a CPU a chunk
fits into the cache, and its tensors are written to the same memory as those of the chunk before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

#: Numbers in a chunk, its scores and its tokens: fewer cost calls, more fall out of the cache.
_CHUNK = 1 << 20
_CHUNK_CUDA = 1 << 26
#: Units of a chunk come in multiples of this, so that threads share them out evenly.
_EVEN = 4
#: Chunks whose indices are computed together.
_AHEAD = 16


@dataclass
class Blocks:
    """One group of N blocks of Q queries and M keys, as the kernel wants it.

    Attributes:
        queries, keys: (N, Q / run), (N, M / run) runs of tokens of a head, among the (B · H · L)
            rows of all heads; a run of one is a token. -1 is padding.
        query_run, key_run: tokens of a run.
        pattern: (N,) or (samples · N,) which of `added` is a block's own; None: the only one.
        added: (P, H or 1, Q, M) added to the scores, -inf on what is forbidden; None: nothing.
        silent: (P, H or 1, Q) queries that may attend to nothing; None: there are none.
    """

    queries: Tensor
    keys: Tensor
    query_run: int
    key_run: int
    pattern: Tensor | None
    added: Tensor | None
    silent: Tensor | None


@dataclass(frozen=True)
class Settings:
    """What all groups have in common: there are `rows` of queries of all heads, `samples` share the
    blocks, a head has `lengths` queries and keys, and a token of a head `width` numbers."""

    rows: int
    samples: int
    width: int
    lengths: tuple[int, int]
    softcap: float | None
    dropout_p: float


class _Chunk(NamedTuple):
    """C units, each a block of one sample with one head of keys and the G of queries that share it.

    Attributes:
        queries: (C · G · Q / run,) rows of runs, padding clamped to one that exists.
        written: the same, padding sent to the row after the last; None where there is none.
        keys: (C · M / run,) rows of runs; padding reads some row, and its scores are -inf.
        pattern, head: (C,) each.
    """

    queries: Tensor
    written: Tensor
    keys: Tensor
    pattern: Tensor
    head: Tensor


class _Memory:
    """Memory that chunks use one after the other: the system clears all that is new, slowly."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self._tensors: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Uninitialised; the same memory whenever the name is the same."""
        size = math.prod(shape)
        if name not in self._tensors or len(self._tensors[name]) < size:
            self._tensors[name] = self.like.new_empty(size)
        return self._tensors[name][:size].view(shape)


class _Work:
    """The chunks of one group, and what is done to each."""

    def __init__(
        self, blocks: Blocks, heads: tuple[int, int], settings: Settings, memory: _Memory
    ) -> None:
        self.blocks, self.settings, self.memory = blocks, settings, memory
        self.kv_heads, self.groups = heads[1], heads[0] // heads[1]
        self.size = blocks.queries.shape[1] * blocks.query_run
        self.reach = blocks.keys.shape[1] * blocks.key_run
        self.rows = settings.rows // blocks.query_run

    def __iter__(self) -> Iterator[_Chunk]:
        blocks, settings, groups = self.blocks, self.settings, self.groups
        device, count = blocks.queries.device, len(blocks.queries)
        limit = _CHUNK if device.type == "cpu" else _CHUNK_CUDA
        scores, tokens = groups * self.size * self.reach, groups * self.size + self.reach
        step: int = max(limit // max(scores + tokens * self.settings.width, 1), 1)
        step = step // _EVEN * _EVEN or step
        units = settings.samples * count * self.kv_heads
        length, key_length = (
            n // run
            for n, run in zip(settings.lengths, (blocks.query_run, blocks.key_run), strict=True)
        )
        padded = bool((blocks.queries < 0).any())
        within = torch.arange(groups, device=device)[:, None] * length
        for ahead in range(0, units, step * _AHEAD):
            unit = torch.arange(ahead, min(ahead + step * _AHEAD, units), device=device)
            head = unit % self.kv_heads
            block = unit // self.kv_heads % count
            sample = unit // (self.kv_heads * count)
            row = sample * self.kv_heads + head
            queries = blocks.queries[block][:, None]
            read = (row * groups * length)[:, None, None] + within + queries.clamp(min=0)
            written = read.where(queries >= 0, self.rows) if padded else read
            keys = (row * key_length)[:, None] + blocks.keys[block].clamp(min=0)
            pattern = torch.zeros_like(block)
            if blocks.pattern is not None:
                each = len(blocks.pattern) > count  # samples differ
                pattern = blocks.pattern[sample * count + block if each else block]
            parts = (x.split(step) for x in (read, written, keys, pattern, head))
            for read, written, keys, pattern, head in zip(*parts, strict=True):
                yield _Chunk(read.flatten(), written.flatten(), keys.flatten(), pattern, head)

    def gather(self, name: str, rows: Tensor, at: Tensor, run: int) -> Tensor:
        """Rows (..., D) of all heads at the runs `at`, as (C, tokens, D)."""
        width = rows.shape[-1] * run
        found = self.memory(name, len(at), width)
        torch.index_select(rows.view(-1, width), 0, at, out=found)
        size = self.reach if name in ("key", "value") else self.groups * self.size
        return found.view(-1, size, rows.shape[-1])

    def scores(self, chunk: _Chunk, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores (C, G·Q, M) of scaled queries; and the slope of the cap, where there is one."""
        blocks, softcap = self.blocks, self.settings.softcap
        scores = self.memory("scores", len(q), self.groups * self.size, self.reach)
        by_head = scores.view(len(q), self.groups, self.size, self.reach)
        if softcap is None:
            if blocks.added is None:
                return torch.bmm(q, k.mT, out=scores), None
            by_head.copy_(self.of_pattern(chunk, blocks.added))
            return scores.baddbmm_(q, k.mT), None
        bent = torch.bmm(q, k.mT, out=scores).div_(softcap).tanh_()
        slope = 1 - bent * bent
        bent.mul_(softcap)
        if blocks.added is not None:
            by_head.add_(self.of_pattern(chunk, blocks.added))
        return scores, slope

    def softmax(self, scores: Tensor) -> Tensor:
        weights = self.memory("weights", *scores.shape)
        return torch.softmax(scores, -1, out=weights)

    def kept(self, weights: Tensor, generator: torch.Generator) -> Tensor:
        """0 where dropout drops, else 1 / (1 - p); the same in forward and backward."""
        share = 1 - self.settings.dropout_p
        kept = self.memory("kept", *weights.shape)
        return kept.bernoulli_(share, generator=generator).div_(share)

    def of_pattern(self, chunk: _Chunk, values: Tensor) -> Tensor:
        """The entries of `values`, (P, H or 1, ...), for a chunk: (C or 1, G or 1, ...)."""
        if values.shape[1] == 1:
            return values if self.blocks.pattern is None else values[chunk.pattern]
        return values.unflatten(1, (self.kv_heads, self.groups))[chunk.pattern, chunk.head]

    def add_to_pattern(self, chunk: _Chunk, total: Tensor, values: Tensor) -> None:
        """Adds `values` (C, G·Q, M) to the entries of `total` that `of_pattern` gives."""
        values = values.view(-1, self.groups, self.size, self.reach)
        if total.shape[1] == 1:
            total.index_add_(0, chunk.pattern, values.sum(1, keepdim=True))
            return
        rows = total.view(-1, *values.shape[1:])
        rows.index_add_(0, chunk.pattern * self.kv_heads + chunk.head, values)

    def silence(self, chunk: _Chunk, values: Tensor, fill: float = 0.0) -> Tensor:
        """`values` (C, G·Q, ...) with `fill` in the rows that may attend to nothing."""
        if self.blocks.silent is None:
            return values
        silent = self.of_pattern(chunk, self.blocks.silent)
        silent = silent.expand(len(values), self.groups, self.size).flatten(1)
        return values.masked_fill_(silent.view(*silent.shape, *(1,) * (values.ndim - 2)), fill)

    def left_by(self, sink: Tensor, chunk: _Chunk, lse: Tensor) -> Tensor:
        """What the sink leaves to the keys, for lse (C, G·Q)."""
        logit = sink.view(-1, self.groups)[chunk.head]
        return left_by_sink(lse, logit.repeat_interleave(self.size, dim=1))


def left_by_sink(lse: Tensor, logit: Tensor) -> Tensor:
    """The share of the weight that a sink leaves to keys with a log-sum-exp."""
    # A sink of -inf takes nothing, not even where there are no keys either
    return torch.sigmoid(lse - logit).masked_fill(logit == -torch.inf, 1.0)


def _add_rows(total: Tensor, at: Tensor, values: Tensor, run: int) -> None:
    width = total.shape[-1] * run
    total.view(-1, width).index_add_(0, at, values.view(-1, width))


def _put_rows(total: Tensor, at: Tensor, values: Tensor, run: int) -> None:
    width = values.shape[-1] * run
    total.view(-1, width).index_copy_(0, at, values.view(-1, width))


def _rows_like(q: Tensor, width: int, spare: int, written: bool) -> Tensor:
    """A row for every row of q (B, H, L, D), and some more that take what padding computes."""
    rows = math.prod(q.shape[:-1]) + spare
    # Clearing memory that will be written anyway costs a tenth of small blocks
    return q.new_empty(rows, width) if written else q.new_zeros(rows, width)


# What follows are operators of their own, so that torch.compile takes each as one and need not look
# into its loops. Operators take lists of tensors, not of groups, and no None in them: a tensor
# without elements stands for it.


@torch.library.custom_op("attention_core::block_attention", mutates_args=())
def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None,
    added: list[Tensor],
    silent: list[Tensor],
    patterns: list[Tensor],
    queries: list[Tensor],
    keys: list[Tensor],
    runs: list[int],
    seed: Tensor,
    samples: int,
    scale: float,
    softcap: float | None,
    dropout_p: float,
    lse: bool,
    covers: bool,
    parts: bool,
) -> tuple[Tensor, Tensor]:
    """Attention of groups of blocks; the lists hold one entry per group, as in `Blocks`.

    Args:
        q: (B, H, Lq, D).
        k: (B, Hkv, Lk, D).
        v: (B, Hkv, Lk, Dv).
        sink: (H,) or None.
        runs: the query run and the key run of each group, one after the other.
        seed: of the dropout, (); on the CPU.
        samples: how many samples share the blocks.
        lse: whether the log-sum-exp is asked for.
        covers: every query is in a block, so that all rows of the output are written.
        parts: every key is in exactly one block, so that there is nothing to add up.

    Returns: the output (B, H, Lq, Dv), and the log-sum-exp (B, H, Lq), all -inf if not asked for.
    """
    heads, lengths = (q.shape[1], k.shape[1]), (q.shape[2], k.shape[2])
    settings = Settings(q.shape[:3].numel(), samples, q.shape[-1], lengths, softcap, dropout_p)
    groups = _groups(queries, keys, runs, patterns, added, silent)
    spare = max((blocks.query_run for blocks in groups), default=1)
    out = _rows_like(q, v.shape[-1], spare, covers)
    all_lse = _rows_like(q, 1, spare, covers).fill_(-torch.inf)
    q_rows, k_rows, v_rows = (x.reshape(-1, x.shape[-1]) for x in (q, k, v))
    generator = torch.Generator(q.device).manual_seed(int(seed))
    memory = _Memory(q)
    for blocks in groups:
        work = _Work(blocks, heads, settings, memory)
        for chunk in work:
            own_queries = work.gather("query", q_rows, chunk.queries, blocks.query_run)
            own_keys = work.gather("key", k_rows, chunk.keys, blocks.key_run)
            values = work.gather("value", v_rows, chunk.keys, blocks.key_run)
            scores, _ = work.scores(chunk, own_queries.mul_(scale), own_keys)
            weights = work.softmax(scores)
            if dropout_p:
                weights.mul_(work.kept(weights, generator))
            shape = (len(own_queries), work.groups * work.size, v.shape[-1])
            result = torch.bmm(weights, values, out=memory("result", *shape))
            if lse or sink is not None:
                top = work.silence(chunk, torch.logsumexp(scores, -1), -torch.inf)
                _put_rows(all_lse, chunk.written, top[..., None], blocks.query_run)
                if sink is not None:
                    result.mul_(work.left_by(sink, chunk, top)[..., None])
            work.silence(chunk, result)
            _put_rows(out, chunk.written, result, blocks.query_run)
    out, all_lse = (x[: len(x) - spare].view(*q.shape[:3], x.shape[-1]) for x in (out, all_lse))
    return out, all_lse.squeeze(-1)


@block_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:3], v.shape[-1]), q.new_empty(q.shape[:3])


@torch.library.custom_op("attention_core::block_attention_backward", mutates_args=())
def block_attention_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    all_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None,
    added: list[Tensor],
    silent: list[Tensor],
    patterns: list[Tensor],
    queries: list[Tensor],
    keys: list[Tensor],
    runs: list[int],
    seed: Tensor,
    samples: int,
    scale: float,
    softcap: float | None,
    dropout_p: float,
    covers: bool,
    parts: bool,
    learned: list[bool],
) -> list[Tensor]:
    """Gradients of q, k, v, of the sink and of each of `added`; empty where there is none."""
    heads, lengths = (q.shape[1], k.shape[1]), (q.shape[2], k.shape[2])
    settings = Settings(q.shape[:3].numel(), samples, q.shape[-1], lengths, softcap, dropout_p)
    groups = _groups(queries, keys, runs, patterns, added, silent)
    spare = max((blocks.query_run for blocks in groups), default=1)
    q_rows, k_rows, v_rows, g_rows = (x.reshape(-1, x.shape[-1]) for x in (q, k, v, grad_out))
    grad_q = _rows_like(q, q.shape[-1], spare, covers)
    start = torch.empty_like if parts else torch.zeros_like
    collect = _put_rows if parts else _add_rows
    grad_k, grad_v = start(k_rows), start(v_rows)
    grad_sink = q.new_zeros(0) if sink is None else torch.zeros_like(sink)
    grads_added: list[Tensor] = []
    generator = torch.Generator(q.device).manual_seed(int(seed))
    memory = _Memory(q)
    for blocks, own, learns in zip(groups, added, learned, strict=True):
        work = _Work(blocks, heads, settings, memory)
        total = q.new_zeros(own.shape if learns else 0)
        for chunk in work:
            own_queries = work.gather("query", q_rows, chunk.queries, blocks.query_run)
            own_keys = work.gather("key", k_rows, chunk.keys, blocks.key_run)
            values = work.gather("value", v_rows, chunk.keys, blocks.key_run)
            grad = work.gather("grad", g_rows, chunk.queries, blocks.query_run)
            work.silence(chunk, grad)
            scores, slope = work.scores(chunk, own_queries.mul_(scale), own_keys)
            weights = work.softmax(scores)
            slopes = torch.bmm(grad, values.mT, out=scores)  # by the weights
            used = weights
            if dropout_p:
                kept = work.kept(weights, generator)
                used, slopes = kept * weights, slopes.mul_(kept)
            left = None
            if sink is not None:
                top = all_lse.reshape(-1)[_tokens(chunk.queries, blocks.query_run)]
                left = work.left_by(sink, chunk, top.view(len(own_queries), -1))
                used = used * left[..., None]
            to_values = torch.bmm(used.mT, grad, out=memory("result", *values.shape))
            collect(grad_v, chunk.keys, to_values, blocks.key_run)
            if left is None:
                slopes = torch._softmax_backward_data(slopes, weights, -1, slopes.dtype)
            else:
                mean = (slopes * weights).sum(-1, keepdim=True) * left[..., None]
                slopes = slopes.sub_(mean).mul_(weights).mul_(left[..., None])
                taken = ((left - 1)[..., None] * mean).view(len(mean), work.groups, -1).sum(-1)
                grad_sink.view(-1, work.groups).index_add_(0, chunk.head, taken)
            if grad_lse is not None:
                of_lse = grad_lse.reshape(-1)[_tokens(chunk.queries, blocks.query_run)]
                of_lse = work.silence(chunk, of_lse.view(len(own_queries), -1))
                slopes.addcmul_(weights, of_lse[..., None])
            if learns:
                work.add_to_pattern(chunk, total, slopes)
            if slope is not None:
                slopes.mul_(slope)
            to_queries = torch.bmm(slopes, own_keys, out=memory("result", *own_queries.shape))
            _put_rows(grad_q, chunk.written, to_queries.mul_(scale), blocks.query_run)
            to_keys = torch.bmm(slopes.mT, own_queries, out=memory("result", *own_keys.shape))
            collect(grad_k, chunk.keys, to_keys, blocks.key_run)
        grads_added.append(total)
    grad_q = grad_q[: len(grad_q) - spare].view(q.shape)
    return [grad_q, grad_k.view(k.shape), grad_v.view(v.shape), grad_sink, *grads_added]


@block_attention_backward.register_fake
def _(
    grad_out: Tensor, grad_lse: Any, all_lse: Any, q: Tensor, k: Tensor, v: Tensor,
    sink: Tensor | None, added: list[Tensor], *rest: Any,
) -> list[Tensor]:  # fmt: skip
    learned: list[bool] = rest[-1]
    of_added = [
        q.new_empty(one.shape if learns else 0) for one, learns in zip(added, learned, strict=True)
    ]
    like = [q.new_empty(x.shape) for x in (q, k, v)]
    return [*like, q.new_empty(0 if sink is None else sink.shape), *of_added]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, sink, added, silent, patterns, queries, keys, runs, seed, *numbers = inputs
    lists = (added, silent, patterns, queries, keys)
    ctx.save_for_backward(q, k, v, sink, seed, output[1], *(x for own in lists for x in own))
    ctx.counts, ctx.runs, ctx.numbers = len(queries), runs, numbers
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    q, k, v, sink, seed, lse, *rest = ctx.saved_tensors
    count = ctx.counts
    added, silent, patterns, queries, keys = (rest[n * count : (n + 1) * count] for n in range(5))
    samples, scale, softcap, dropout_p, _, covers, parts = ctx.numbers
    if grad_out is None:
        grad_out = q.new_zeros(*q.shape[:3], v.shape[-1])
    learned = [one.requires_grad for one in added]
    grad_q, grad_k, grad_v, grad_sink, *grads_added = block_attention_backward(
        grad_out, grad_lse, lse, q, k, v, sink, added, silent, patterns, queries, keys, ctx.runs,
        seed, samples, scale, softcap, dropout_p, covers, parts, learned,
    )  # fmt: skip
    nothing = [None] * count
    return (
        grad_q, grad_k, grad_v, None if sink is None else grad_sink,
        [grad if learns else None for grad, learns in zip(grads_added, learned, strict=True)],
        *[nothing] * 4, None if count else [], *[None] * 8,
    )  # fmt: skip


block_attention.register_autograd(_differentiate, setup_context=_remember)


@register_flop_formula(torch.ops.attention_core.block_attention)
def _forward_flops(q: Any, k: Any, v: Any, *rest: Any, **options: Any) -> int:
    return 2 * _pairs(q, rest) * (q[-1] + v[-1])


@register_flop_formula(torch.ops.attention_core.block_attention_backward)
def _backward_flops(
    grad_out: Any, grad_lse: Any, lse: Any, q: Any, k: Any, v: Any, *rest: Any, **options: Any
) -> int:
    return 2 * _pairs(q, rest) * (3 * q[-1] + 2 * v[-1])


def _pairs(q: Any, rest: Any) -> int:
    """Pairs of all heads in all blocks, from the shapes of an operator's arguments after v."""
    _, _, _, _, queries, keys, runs, _, samples, *_ = rest
    shapes = zip(queries, keys, runs[::2], runs[1::2], strict=True)
    pairs = sum(n * size * run * m * reach for (n, size), (_, m), run, reach in shapes)
    return int(pairs * samples * q[1])


def _groups(
    queries: list[Tensor],
    keys: list[Tensor],
    runs: list[int],
    *others: list[Tensor],
) -> list[Blocks]:
    given = [[None if one.numel() == 0 else one for one in other] for other in others]
    return [Blocks(*own) for own in zip(queries, keys, runs[::2], runs[1::2], *given, strict=True)]


def _tokens(runs: Tensor, run: int) -> Tensor:
    """The rows of single tokens in runs of them."""
    return (runs[:, None] * run + torch.arange(run, device=runs.device)).flatten()
