"""The forward and the backward pass over gathered blocks, a chunk at a time.

A block has all the keys of its queries, so its softmax is whole, and the backward pass computes it
again instead of keeping it: nothing larger than a chunk of scores is ever stored.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
from attention_core.backends.blocks.mods import Mods


def prepare(
    q: Tensor,
    k: Tensor,
    groups: list[Blocks],
    samples: int,
    softcap: float | None,
    dropout_p: float,
    products: torch.dtype,
    mods: Mods | None = None,
) -> tuple[list[Work], Memory, int]:
    """Return the work on each group, the memory they share, and how many spare rows they write
    to; products are of numbers as `products`."""
    heads, lengths = (q.shape[1], k.shape[1]), (q.shape[2], k.shape[2])
    settings = Settings(
        q.shape[:3].numel(), samples, q.shape[-1], lengths, softcap, dropout_p, mods is not None,
        products,
    )  # fmt: skip
    memory = Memory(q)
    spare = max((blocks.query_run for blocks in groups), default=1)
    return [Work(blocks, heads, settings, memory) for blocks in groups], memory, spare


def forward(
    works: list[Work],
    memory: Memory,
    spare: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None,
    seed: Tensor,
    scale: float,
    dropout_p: float,
    lse: bool,
    covers_all_queries: bool,
    mods: Mods | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the output (B, H, Lq, Dv) and log-sum-exp (B, H, Lq), as `block_attention` does.

    Args:
        works, memory, spare: of `prepare`.
        mods: what modifies scores before something is added to them.
    """
    out = rows_like(q, v.shape[-1], spare, covers_all_queries)
    all_lse = rows_like(q, 1, spare, covers_all_queries).fill_(-torch.inf)
    q_rows, k_rows, v_rows = (x.contiguous().view(-1, x.shape[-1]) for x in (q, k, v))
    generator = torch.Generator(q.device).manual_seed(int(seed))
    for work in works:
        blocks = work.blocks
        for chunk in work:
            own_queries, own_keys, values = work.inputs(chunk, q_rows, k_rows, v_rows, scale)
            scores, _ = work.scores(chunk, own_queries, own_keys, scale)
            empty = None
            if mods is not None:
                scores, empty = mods(work, chunk, scores, blocks.added)
            weights = work.softmax(scores)
            if dropout_p:
                weights.mul_(work.kept(weights, generator))
            shape = (len(own_queries), work.groups * work.size, v.shape[-1])
            result = work.product(weights, values, memory("result", *shape))
            if lse or sink is not None:
                top = work.silence(chunk, torch.logsumexp(scores, -1), -torch.inf, empty)
                put_rows(all_lse, chunk.written, top[..., None], blocks.query_run)
                if sink is not None:
                    result.mul_(work.left_by(sink, chunk, top)[..., None])
            work.silence(chunk, result, empty=empty)
            put_rows(out, chunk.written, result, blocks.query_run)
    out, all_lse = (x[: len(x) - spare].view(*q.shape[:3], x.shape[-1]) for x in (out, all_lse))
    return out, all_lse.squeeze(-1)


def backward(
    works: list[Work],
    memory: Memory,
    spare: int,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    all_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None,
    added: list[Tensor],
    learned: list[bool],
    seed: Tensor,
    scale: float,
    dropout_p: float,
    covers_all_queries: bool,
    keys_disjoint: bool,
    mods: Mods | None = None,
) -> list[Tensor]:
    """Compute the gradients of q, k, v, the sink and each of `added`, empty where there is none;
    then those of `mods.learned`."""
    q_rows, k_rows, v_rows, g_rows = (
        x.contiguous().view(-1, x.shape[-1]) for x in (q, k, v, grad_out)
    )
    grad_q = rows_like(q, q.shape[-1], spare, covers_all_queries)
    start = torch.empty_like if keys_disjoint else torch.zeros_like
    collect = put_rows if keys_disjoint else add_rows
    grad_k, grad_v = start(k_rows), start(v_rows)
    grad_sink = q.new_zeros(0) if sink is None else torch.zeros_like(sink)
    grads_added: list[Tensor] = []
    grads_mods = [] if mods is None else [torch.zeros_like(x) for x in mods.learned]
    generator = torch.Generator(q.device).manual_seed(int(seed))
    for work, own, learns in zip(works, added, learned, strict=True):
        blocks = work.blocks
        total = q.new_zeros(own.shape if learns else 0)
        for chunk in work:
            own_queries, own_keys, values = work.inputs(chunk, q_rows, k_rows, v_rows, scale)
            scores, slope = work.scores(chunk, own_queries, own_keys, scale)
            room, empty, taped = scores, None, None
            if mods is not None:
                taped = mods.recorded(work, chunk, scores)
                scores, empty = taped.scores.detach(), taped.empty
                room = memory("slopes", *scores.shape)
            grad = work.silence(chunk, work.of_queries("grad", g_rows, chunk), empty=empty)
            weights = work.softmax(scores)
            slopes = work.product(grad, values.mT, room)  # by the weights
            used = weights
            if dropout_p:
                kept = work.kept(weights, generator)
                used, slopes = kept * weights, slopes.mul_(kept)
            left = None
            if sink is not None:
                top = all_lse.reshape(-1)[tokens(chunk.queries, blocks.query_run)]
                left = work.left_by(sink, chunk, top.view(len(own_queries), -1))
                used = used * left[..., None]
            to_values = work.product(used.mT, grad, memory("result", *values.shape))
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
                of_lse = work.silence(chunk, of_lse.view(len(own_queries), -1), empty=empty)
                slopes.addcmul_(weights, of_lse[..., None])
            if learns:
                work.add_to_pattern(chunk, total, slopes)
            if taped is not None:
                slopes, *of_mods = taped.gradients(slopes)
                for sums, one in zip(grads_mods, of_mods, strict=True):
                    sums.add_(one)
            if slope is not None:
                slopes.mul_(slope)
            to_queries = work.product(slopes, own_keys, memory("result", *own_queries.shape))
            put_rows(grad_q, chunk.written, to_queries.mul_(scale), blocks.query_run)
            to_keys = work.product(slopes.mT, own_queries, memory("result", *own_keys.shape))
            if work.halves:
                to_keys.mul_(scale)
            collect(grad_k, chunk.keys, to_keys, blocks.key_run)
        grads_added.append(total)
    grad_q = grad_q[: len(grad_q) - spare].view(q.shape)
    return [
        grad_q,
        grad_k.view(k.shape),
        grad_v.view(v.shape),
        grad_sink,
        *grads_added,
        *grads_mods,
    ]
