"""Attention of gathered blocks as operators, forward and backward.

What they do is in `passes`; second derivatives are those of the same attention in torch's own
operations, `composite`. They are operators of `torch.library` so that torch.compile takes each as
one and need not look into loops. Operators take lists of tensors, not of groups, and no None in
them: a tensor without elements stands for it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from attention_core.backends.blocks import composite, fast, passes
from attention_core.backends.blocks.chunks import Blocks
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
    index: list[Tensor],
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
    products: torch.dtype,
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
        products: what numbers are multiplied as.

    Returns: the output (B, H, Lq, Dv), and the log-sum-exp (B, H, Lq), all -inf if not asked for.
    """
    groups = _groups(queries, keys, runs, patterns, added, empty_rows, index)
    if fast.serves(q, k, v, groups, samples):
        call = fast.Call(q, k, v, sink, groups, seed, samples, scale, softcap, dropout_p)
        return fast.forward(call, q, v, covers_all_queries)
    groups = [_expanded(one) for one in groups]
    works, memory, spare = passes.prepare(q, k, groups, samples, softcap, dropout_p, products)
    return passes.forward(
        works, memory, spare, q, k, v, sink, seed, scale, dropout_p, lse, covers_all_queries
    )


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
    index: list[Tensor],
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
    products: torch.dtype,
    learned: list[bool],
) -> list[Tensor]:
    """Compute the gradients of q, k, v, the sink and each of `added`; empty where there is none."""
    groups = _groups(queries, keys, runs, patterns, added, empty_rows, index)
    if fast.serves(q, k, v, groups, samples):
        call = fast.Call(q, k, v, sink, groups, seed, samples, scale, softcap, dropout_p)
        return fast.backward(
            call, grad_out, grad_lse, all_lse, q, k, v, sink, groups, learned, covers_all_queries
        )
    expanded = [_expanded(one) for one in groups]
    works, memory, spare = passes.prepare(q, k, expanded, samples, softcap, dropout_p, products)
    grad_q, grad_k, grad_v, grad_sink, *grads = passes.backward(
        works, memory, spare, grad_out, grad_lse, all_lse, q, k, v, sink,
        [own if one.added is None else one.added for one, own in zip(expanded, added, strict=True)],
        learned, seed, scale, dropout_p, covers_all_queries, keys_disjoint,
    )  # fmt: skip
    pairs = zip(groups, grads, learned, strict=True)
    grads = [_of_table(one, grad) if learns else grad for one, grad, learns in pairs]
    return [grad_q, grad_k, grad_v, grad_sink, *grads]


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
    q, k, v, sink, *lists, runs, seed = inputs[:12]
    numbers, queries = inputs[12:], lists[-2]
    ctx.save_for_backward(q, k, v, sink, seed, output[1], *(x for own in lists for x in own))
    ctx.counts, ctx.runs, ctx.numbers = len(queries), runs, numbers
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    q, k, v, sink, seed, lse, *rest = ctx.saved_tensors
    count = ctx.counts
    added, empty_rows, patterns, index, queries, keys = (
        rest[n * count : (n + 1) * count] for n in range(6)
    )
    samples, scale, softcap, dropout_p, _, *rest_of_numbers = ctx.numbers
    refuse_batched("blocks", grad_out, grad_lse)
    if grad_out is None:
        grad_out = q.new_zeros(*q.shape[:3], v.shape[-1])
    learned = [one.requires_grad for one in added]
    grad_q, grad_k, grad_v, grad_sink, *grads_added = block_attention_backward(
        grad_out, grad_lse, lse, q, k, v, sink, added, empty_rows, patterns, index,
        queries, keys, ctx.runs, seed, samples, scale, softcap, dropout_p, *rest_of_numbers,
        learned,
    )  # fmt: skip
    nothing = [None] * count
    return (
        grad_q, grad_k, grad_v, None if sink is None else grad_sink,
        [grad if learns else None for grad, learns in zip(grads_added, learned, strict=True)],
        *[nothing] * 5, None if count else [], *[None] * 9,
    )  # fmt: skip


block_attention.register_autograd(_differentiate, setup_context=_remember)


def _remember_all(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    grad_out, grad_lse, _, q, k, v, sink, *lists, ctx.runs, seed = inputs[:15]
    ctx.save_for_backward(
        grad_out, grad_lse, q, k, v, sink, seed, *(x for own in lists for x in own)
    )
    ctx.numbers, ctx.learned, ctx.count = inputs[15:-1], inputs[-1], len(lists[0])
    ctx.set_materialize_grads(False)


def _differentiate_twice(ctx: Any, of_gradients: list[Tensor | None]) -> tuple[Any, ...]:
    grad_out, grad_lse, q, k, v, sink, seed, *rest = ctx.saved_tensors
    count, learned = ctx.count, ctx.learned
    added, empty_rows, patterns, index, queries, keys = (
        rest[n * count : (n + 1) * count] for n in range(6)
    )
    samples, scale, softcap, dropout_p, *_ = ctx.numbers
    groups = _groups(queries, keys, ctx.runs, patterns, added, empty_rows, index)
    expanded = [_expanded(one) for one in groups]
    works, _, spare = passes.prepare(q, k, expanded, samples, softcap, dropout_p, q.dtype)
    hashed = fast.serves(q, k, v, groups, samples)
    of_outputs = [grad_out] if grad_lse is None else [grad_out, grad_lse]
    of_q, of_k, of_v, of_sink, *of_added = of_gradients

    def forward(q: Tensor, k: Tensor, v: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        given = iter(others)
        own_sink = None if sink is None else next(given)
        own = [
            _expanded(replace(one, added=next(given)) if learns else one).added
            for one, learns in zip(groups, learned, strict=True)
        ]
        kept = partial(fast.kept, seed=seed) if hashed else composite.drawn(seed, q)
        return composite.forward(works, q, k, v, own_sink, own, kept, scale, spare)[
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
        grad_sink, grads_added, *[nothing] * 5, numbers, *[None] * 8, numbers,
    )  # fmt: skip


block_attention_backward.register_autograd(_differentiate_twice, setup_context=_remember_all)


def _expanded(blocks: Blocks) -> Blocks:
    """The blocks with what is added for each pair, where it is looked up in a table."""
    table, index, empty = blocks.added, blocks.index, blocks.empty_rows
    if table is None or index is None:
        return blocks
    added = embedding(index.clamp(min=0), table).movedim(-1, 1)
    added = added.masked_fill((index < 0)[:, None], -torch.inf)
    if empty is not None:
        added = added.masked_fill(empty[..., None], 0)
    return replace(blocks, added=added.contiguous(), index=None)


def _of_table(blocks: Blocks, grad: Tensor) -> Tensor:
    """The gradient of what is added, or of the table (rows, H) that it is looked up in."""
    table, index = blocks.added, blocks.index
    if table is None or index is None:
        return grad
    rows = index.clamp(min=0).flatten()  # there is no gradient of what is forbidden
    return torch.zeros_like(table).index_add(0, rows, grad.movedim(1, -1).flatten(0, 2))


def _groups(
    queries: list[Tensor],
    keys: list[Tensor],
    runs: list[int],
    *others: list[Tensor],
) -> list[Blocks]:
    given = [[None if one.numel() == 0 else one for one in other] for other in others]
    return [Blocks(*own) for own in zip(queries, keys, runs[::2], runs[1::2], *given, strict=True)]
