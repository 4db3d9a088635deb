"""Attention of gathered blocks as operators, forward and backward.

A block has all the keys of its queries, so its softmax is whole, and the backward pass computes it
again instead of keeping it: nothing larger than a chunk of scores is ever stored. Second
derivatives are those of the same attention in torch's own operations, `composite`.

They are operators of `torch.library` so that torch.compile takes each as one and need not look into
its loops. Operators take lists of tensors, not of groups, and no None in them: a tensor without
elements stands for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attention_core.backends.blocks import composite
from attention_core.backends.blocks.chunks import (
    Blocks,
    Memory,
    Settings,
    Work,
    add_rows,
    put_rows,
    rows_like,
    tokens,
)
from attention_core.backends.derivatives import of_backward, refuse_batched


@torch.library.custom_op("attention_core::block_attention", mutates_args=())
def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None,
    added: list[Tensor],
    empty_rows: list[Tensor],
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
    covers_all_queries: bool,
    keys_disjoint: bool,
) -> tuple[Tensor, Tensor]:
    """Compute attention of groups of blocks; lists hold one entry per group, as in `Blocks`.

    Args:
        q: (B, H, Lq, D).
        k: (B, Hkv, Lk, D).
        v: (B, Hkv, Lk, Dv).
        sink: (H,) or None.
        runs: the query run and the key run of each group, one after the other.
        seed: of the dropout, (); on the CPU.
        samples: how many samples share the blocks.
        lse: whether the log-sum-exp is asked for.
        covers_all_queries: every query is in a block, so that all rows of the output are written.
        keys_disjoint: every key is in exactly one block, so that there is nothing to add up.

    Returns: the output (B, H, Lq, Dv), and the log-sum-exp (B, H, Lq), all -inf if not asked for.
    """
    groups = _groups(queries, keys, runs, patterns, added, empty_rows)
    works, memory, spare = _prepare(q, k, groups, samples, softcap, dropout_p)
    out = rows_like(q, v.shape[-1], spare, covers_all_queries)
    all_lse = rows_like(q, 1, spare, covers_all_queries).fill_(-torch.inf)
    q_rows, k_rows, v_rows = (x.reshape(-1, x.shape[-1]) for x in (q, k, v))
    generator = torch.Generator(q.device).manual_seed(int(seed))
    for work in works:
        blocks = work.blocks
        for chunk in work:
            own_queries, own_keys, values = work.inputs(chunk, q_rows, k_rows, v_rows, scale)
            scores, _ = work.scores(chunk, own_queries, own_keys)
            weights = work.softmax(scores)
            if dropout_p:
                weights.mul_(work.kept(weights, generator))
            shape = (len(own_queries), work.groups * work.size, v.shape[-1])
            result = torch.bmm(weights, values, out=memory("result", *shape))
            if lse or sink is not None:
                top = work.silence(chunk, torch.logsumexp(scores, -1), -torch.inf)
                put_rows(all_lse, chunk.written, top[..., None], blocks.query_run)
                if sink is not None:
                    result.mul_(work.left_by(sink, chunk, top)[..., None])
            work.silence(chunk, result)
            put_rows(out, chunk.written, result, blocks.query_run)
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
    empty_rows: list[Tensor],
    patterns: list[Tensor],
    queries: list[Tensor],
    keys: list[Tensor],
    runs: list[int],
    seed: Tensor,
    samples: int,
    scale: float,
    softcap: float | None,
    dropout_p: float,
    covers_all_queries: bool,
    keys_disjoint: bool,
    learned: list[bool],
) -> list[Tensor]:
    """Compute the gradients of q, k, v, the sink and each of `added`; empty where there is none."""
    groups = _groups(queries, keys, runs, patterns, added, empty_rows)
    works, memory, spare = _prepare(q, k, groups, samples, softcap, dropout_p)
    q_rows, k_rows, v_rows, g_rows = (x.reshape(-1, x.shape[-1]) for x in (q, k, v, grad_out))
    grad_q = rows_like(q, q.shape[-1], spare, covers_all_queries)
    start = torch.empty_like if keys_disjoint else torch.zeros_like
    collect = put_rows if keys_disjoint else add_rows
    grad_k, grad_v = start(k_rows), start(v_rows)
    grad_sink = q.new_zeros(0) if sink is None else torch.zeros_like(sink)
    grads_added: list[Tensor] = []
    generator = torch.Generator(q.device).manual_seed(int(seed))
    for work, own, learns in zip(works, added, learned, strict=True):
        blocks = work.blocks
        total = q.new_zeros(own.shape if learns else 0)
        for chunk in work:
            own_queries, own_keys, values = work.inputs(chunk, q_rows, k_rows, v_rows, scale)
            grad = work.of_queries("grad", g_rows, chunk)
            work.silence(chunk, grad)
            scores, slope = work.scores(chunk, own_queries, own_keys)
            weights = work.softmax(scores)
            slopes = torch.bmm(grad, values.mT, out=scores)  # by the weights
            used = weights
            if dropout_p:
                kept = work.kept(weights, generator)
                used, slopes = kept * weights, slopes.mul_(kept)
            left = None
            if sink is not None:
                top = all_lse.reshape(-1)[tokens(chunk.queries, blocks.query_run)]
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
                of_lse = grad_lse.reshape(-1)[tokens(chunk.queries, blocks.query_run)]
                of_lse = work.silence(chunk, of_lse.view(len(own_queries), -1))
                slopes.addcmul_(weights, of_lse[..., None])
            if learns:
                work.add_to_pattern(chunk, total, slopes)
            if slope is not None:
                slopes.mul_(slope)
            to_queries = torch.bmm(slopes, own_keys, out=memory("result", *own_queries.shape))
            put_rows(grad_q, chunk.written, to_queries.mul_(scale), blocks.query_run)
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
    q, k, v, sink, added, empty_rows, patterns, queries, keys, runs, seed, *numbers = inputs
    lists = (added, empty_rows, patterns, queries, keys)
    ctx.save_for_backward(q, k, v, sink, seed, output[1], *(x for own in lists for x in own))
    ctx.counts, ctx.runs, ctx.numbers = len(queries), runs, numbers
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    q, k, v, sink, seed, lse, *rest = ctx.saved_tensors
    count = ctx.counts
    added, empty_rows, patterns, queries, keys = (
        rest[n * count : (n + 1) * count] for n in range(5)
    )
    samples, scale, softcap, dropout_p, _, covers_all_queries, keys_disjoint = ctx.numbers
    refuse_batched("blocks", grad_out, grad_lse)
    if grad_out is None:
        grad_out = q.new_zeros(*q.shape[:3], v.shape[-1])
    learned = [one.requires_grad for one in added]
    grad_q, grad_k, grad_v, grad_sink, *grads_added = block_attention_backward(
        grad_out, grad_lse, lse, q, k, v, sink, added, empty_rows, patterns, queries, keys,
        ctx.runs, seed, samples, scale, softcap, dropout_p, covers_all_queries, keys_disjoint,
        learned,
    )  # fmt: skip
    nothing = [None] * count
    return (
        grad_q, grad_k, grad_v, None if sink is None else grad_sink,
        [grad if learns else None for grad, learns in zip(grads_added, learned, strict=True)],
        *[nothing] * 4, None if count else [], *[None] * 8,
    )  # fmt: skip


block_attention.register_autograd(_differentiate, setup_context=_remember)


def _remember_all(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    grad_out, grad_lse, _, q, k, v, sink, *lists, ctx.runs, seed = inputs[:14]
    ctx.save_for_backward(
        grad_out, grad_lse, q, k, v, sink, seed, *(x for own in lists for x in own)
    )
    ctx.numbers, ctx.learned, ctx.count = inputs[14:-1], inputs[-1], len(lists[0])
    ctx.set_materialize_grads(False)


def _differentiate_twice(ctx: Any, of_gradients: list[Tensor | None]) -> tuple[Any, ...]:
    grad_out, grad_lse, q, k, v, sink, seed, *rest = ctx.saved_tensors
    count, learned = ctx.count, ctx.learned
    added, empty_rows, patterns, queries, keys = (
        rest[n * count : (n + 1) * count] for n in range(5)
    )
    samples, scale, softcap, dropout_p, *_ = ctx.numbers
    groups = _groups(queries, keys, ctx.runs, patterns, added, empty_rows)
    works, _, spare = _prepare(q, k, groups, samples, softcap, dropout_p)
    of_outputs = [grad_out] if grad_lse is None else [grad_out, grad_lse]
    of_q, of_k, of_v, of_sink, *of_added = of_gradients

    def forward(q: Tensor, k: Tensor, v: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        given = iter(others)
        own_sink = None if sink is None else next(given)
        own = [
            next(given) if learns else blocks.added
            for blocks, learns in zip(groups, learned, strict=True)
        ]
        generator = torch.Generator(q.device).manual_seed(int(seed))
        return composite.forward(works, q, k, v, own_sink, own, generator, scale, spare)[
            : len(of_outputs)
        ]

    which = [n for n, learns in enumerate(learned) if learns]
    inputs = [q, k, v, *([] if sink is None else [sink]), *(added[n] for n in which)]
    wanted = [of_q, of_k, of_v, *([] if sink is None else [of_sink]), *(of_added[n] for n in which)]
    found, of_given = of_backward(forward, inputs, of_outputs, wanted)
    grad_q, grad_k, grad_v, *others = found
    grad_sink = None if sink is None else others.pop(0)
    grads_added: list[Tensor | None] = [None] * count
    for n, gradient in zip(which, others, strict=True):
        grads_added[n] = gradient
    nothing = [None] * count
    numbers: list[Any] | None = None if count else []
    return (
        of_given[0], None if grad_lse is None else of_given[1], None, grad_q, grad_k, grad_v,
        grad_sink, grads_added, *[nothing] * 4, numbers, *[None] * 7, numbers,
    )  # fmt: skip


block_attention_backward.register_autograd(_differentiate_twice, setup_context=_remember_all)


def _prepare(
    q: Tensor,
    k: Tensor,
    groups: list[Blocks],
    samples: int,
    softcap: float | None,
    dropout_p: float,
) -> tuple[list[Work], Memory, int]:
    """The work on each group, the memory they share, and how many spare rows they write to."""
    heads, lengths = (q.shape[1], k.shape[1]), (q.shape[2], k.shape[2])
    settings = Settings(q.shape[:3].numel(), samples, q.shape[-1], lengths, softcap, dropout_p)
    memory = Memory(q)
    spare = max((blocks.query_run for blocks in groups), default=1)
    return [Work(blocks, heads, settings, memory) for blocks in groups], memory, spare


def _groups(
    queries: list[Tensor],
    keys: list[Tensor],
    runs: list[int],
    *others: list[Tensor],
) -> list[Blocks]:
    given = [[None if one.numel() == 0 else one for one in other] for other in others]
    return [Blocks(*own) for own in zip(queries, keys, runs[::2], runs[1::2], *given, strict=True)]
