"""Attention over pairs in compressed sparse rows, in plain torch.

The recipe is that of FlashAttention (Dao et al., 2022) on a sparse pattern: forward keeps the
log-sum-exp, backward computes the weights again from it. At most four numbers per pair and head
are alive. A head at a time would be less, but starts a parallel region per operation and head, and
where anything else runs on the machine, each of those waits for its slowest thread.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attention_core.backends.edges.pairs import Pairs
from attention_core.backends.edges.scores import (
    AdditiveScores,
    AdditiveV2Scores,
    DotScores,
    NoScores,
)


class Inputs(NamedTuple):
    """The inputs of attention over pairs; see `edge_attention`.

    Attributes:
        score: "none", "dot", "additive" or "additive_v2".
        keep: (H, E) bool, the weights that dropout keeps, or None.
        grow: the factor on those that are kept.
    """

    score: str
    q: Tensor | None
    k: Tensor | None
    v: Tensor
    weight: Tensor | None
    bias: Tensor | None
    allowed: Tensor | None
    keep: Tensor | None
    sink: Tensor | None
    edge_key: Tensor | None
    edge_value: Tensor | None
    heads: int
    scale: float
    softcap: float | None
    slope: float
    grow: float


Scores = NoScores | DotScores | AdditiveScores | AdditiveV2Scores


def scores_of(x: Inputs, pairs: Pairs) -> Scores:
    if x.q is None or x.k is None:
        return NoScores(pairs, x.v, x.heads)
    if x.score == "dot":
        return DotScores(pairs, x.q, x.k, x.edge_key)
    if x.score == "additive":
        return AdditiveScores(pairs, x.q, x.k, x.edge_key, x.slope)
    assert x.weight is not None
    return AdditiveV2Scores(pairs, x.q, x.k, x.edge_key, x.weight, x.slope)


def _adjusted(x: Inputs, scores: Scores) -> tuple[Tensor, Tensor | None]:
    """Scale, softcap, bias and mask on the scores (H, E); and tanh'(score / cap), if capped."""
    s = scores.values()
    if x.scale != 1:
        s *= x.scale
    slope = None
    if x.softcap is not None:
        s.div_(x.softcap).tanh_()
        slope = 1 - s * s
        s *= x.softcap
    if x.bias is not None:
        s += x.bias
    if x.allowed is not None:
        s.masked_fill_(~x.allowed, -torch.inf)
    return s, slope


def forward(x: Inputs, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """Compute output (Lq, H, Dv), log-sum-exp (H, Lq), and that of scores and sink together."""
    if not len(pairs.row):
        lse = x.v.new_full((x.heads, pairs.rows), -torch.inf)
        return x.v.new_zeros(pairs.rows, x.heads, x.v.shape[-1]), lse, torch.zeros_like(lse)
    s, _ = _adjusted(x, scores_of(x, pairs))
    top = pairs.top(s)
    if x.sink is not None:
        top = torch.maximum(top, x.sink[:, None])
    # A row of -inf alone: exp(-inf - finite) is 0, where exp(-inf + inf) would be NaN
    top.clamp_(min=torch.finfo(s.dtype).min)
    s -= pairs.of_rows(top)
    total = pairs.total(s.exp_())
    if x.keep is not None:
        s *= x.keep
    out = pairs.sums(s, x.v.contiguous(), x.edge_value)
    lse = total.log() + top
    if x.sink is not None:
        total += torch.exp(x.sink[:, None] - top)
    empty = total == 0  # its log-sum-exp is -inf, and what its norm is no pair will ask
    total.masked_fill_(empty, 1)
    norm = (total.log() + top).masked_fill_(empty, 0)
    out /= total.T[..., None]
    return out.mul_(x.grow) if x.keep is not None else out, lse, norm


class Gradients(NamedTuple):
    """Gradients of the inputs of the same names, in their shapes; None where there is none."""

    q: Tensor | None
    k: Tensor | None
    v: Tensor
    weight: Tensor | None
    bias: Tensor | None
    sink: Tensor | None
    edge_key: Tensor | None
    edge_value: Tensor | None


def per_query(
    x: Inputs, out: Tensor, lse: Tensor, norm: Tensor, of_out: Tensor, of_lse: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Compute what a query's scores share in their gradients, (H, Lq), and the sink's gradient.

    A softmax passes on what exceeds the mean, which is the product of output and its gradient.
    """
    means = torch.linalg.vecdot(of_out, out).T.contiguous()
    sink = None
    if x.sink is not None:
        sink = -(torch.exp(x.sink[:, None] - norm) * means).sum(-1)
    if of_lse is not None:
        # The log-sum-exp leaves the sink aside: its softmax is larger than the weights
        means -= of_lse * torch.exp(norm - lse).nan_to_num_(0, 0, 0)
    return means, sink


def backward(
    x: Inputs,
    pairs: Pairs,
    out: Tensor,
    lse: Tensor,
    norm: Tensor,
    of_out: Tensor,
    of_lse: Tensor | None,
    of_bias: bool,
) -> Gradients:
    """Compute the gradients from what `forward` returned and those of output (Lq, H, Dv) and lse.

    The bias has one where `of_bias` says so.
    """
    scores, v = scores_of(x, pairs), x.v.contiguous()
    means, sink = per_query(x, out, lse, norm, of_out, of_lse)
    of_out = of_out.transpose(0, 1).contiguous()
    weights, slope = _adjusted(x, scores)
    weights -= pairs.of_rows(norm)
    weights.exp_()
    gradient = pairs.products(of_out, v, x.edge_value)
    kept = weights
    if x.keep is not None:
        factor = x.keep.to(v.dtype).mul_(x.grow)
        gradient *= factor
        kept = factor.mul_(weights)
    value = pairs.sum_by_key(kept, of_out, len(v))
    edge_value = None if x.edge_value is None else pairs.outer(kept, of_out, x.edge_value)
    gradient -= pairs.of_rows(means)
    gradient *= weights
    del weights, kept
    bias = gradient if of_bias and x.bias is not None else None
    if bias is not None:
        gradient = gradient.clone()
    if slope is not None:
        gradient *= slope
    if x.scale != 1:
        gradient *= x.scale
    q, k, weight, edge_key = scores.gradients(gradient)
    return Gradients(q, k, value.transpose(0, 1), weight, bias, sink, edge_key, edge_value)
