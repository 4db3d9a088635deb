"""The attention weights of listed pairs, where someone wants to see them."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_core.backends import reference
from attention_core.backends.edges.pair_scores import pair_scores
from attention_core.job import Options, Plan
from attention_core.weights import PairWeights


def pair_weights(plan: Plan, q: Tensor, k: Tensor, options: Options) -> PairWeights:
    """Compute the weights before dropout, from scores that are computed for them alone.

    Args:
        plan: one for this backend.
        q: (B, Hq, Lq, D).
        k: (B, Hkv, Lk, D).
    """
    prepared = plan.prepared
    csr, dtype = prepared.csr, q.dtype
    exact = torch.promote_types(dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        q, k = end_to_end(q, exact), end_to_end(k, exact)
        edge_key, _ = prepared.features(options.edge_key, None, exact)
        scores = pair_scores(q, k, csr, options.score, edge_key, prepared.edge)
        hidden = None if prepared.allowed is None else ~prepared.allowed
        scores = reference.adjust(scores, plan, prepared.pairs, options, hidden)
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        weights = softmax(scores, csr.row.long(), csr.rows, options.sink)
    return PairWeights(prepared.pairs, weights.T.to(dtype))


def end_to_end(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Lay the tokens of x (B, H, L, D) end to end, (H, B·L, D)."""
    return x.to(dtype).transpose(0, 1).flatten(1, 2)


def softmax(scores: Tensor, row: Tensor, rows: int, sink: Tensor | None) -> Tensor:
    """Compute the softmax of scores (H, E) over the pairs of each row.

    As `reference.softmax` in everything else: empty rows, -inf, and the sink.
    """
    top = scores.new_full((len(scores), rows), -torch.inf)
    top = top.scatter_reduce(-1, row.expand_as(scores), scores.detach(), "amax")
    logit = None if sink is None else sink.to(scores.dtype)[:, None]
    if logit is not None:
        top = torch.maximum(top, logit.detach())
    top = top.masked_fill(top == -torch.inf, 0)
    exp = torch.exp(scores - top.index_select(-1, row))
    total = torch.zeros_like(top).index_add(-1, row, exp)
    if logit is not None:
        total = total + torch.exp(logit - top)
    return exp / total.masked_fill(total == 0, 1).index_select(-1, row)
