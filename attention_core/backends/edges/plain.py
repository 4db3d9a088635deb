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

from attention_core.backends.edges import features
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
        seed: (1,) int64, from which kernels on a GPU draw them instead; see `dropout`.
        edge_key, edge_value: (M, Hkv, D), added to the key and to the value of each pair, one row
            (`pairs.item`) of them; for "additive" (M, H, 1), inside the LeakyReLU.
        edge_attr: (M, F) features that are not projected to heads, one row for each pair. What is
            made of them is said by the next three.
        edge_query: (H, Lq, F), for "dot": its product with the features is added to the score.
        edge_weight: (Hkv, D, F), for "additive_v2": weight · features is added to the key.
        edge_sums: whether the sums of the features, each times the weight of its pair, are asked
            for: `Outputs.edge_sum`.
        edge_attr_grad: whether `edge_attr` needs a gradient.
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
    seed: Tensor | None
    sink: Tensor | None
    edge_key: Tensor | None
    edge_value: Tensor | None
    edge_attr: Tensor | None
    edge_query: Tensor | None
    edge_weight: Tensor | None
    edge_sums: bool
    edge_attr_grad: bool
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
        return DotScores(pairs, x.q, x.k, x.edge_key, x.edge_attr, x.edge_query)
    if x.score == "additive":
        return AdditiveScores(pairs, x.q, x.k, x.edge_key, x.slope)
    assert x.weight is not None
    return AdditiveV2Scores(
        pairs, x.q, x.k, x.edge_key, x.weight, x.slope, x.edge_attr, x.edge_weight
    )


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


class Outputs(NamedTuple):
    """Hold what attention over pairs gives, and keeps for its backward pass.

    Attributes:
        out: (Lq, H, Dv).
        lse: (H, Lq) log-sum-exp of the scores, sink aside.
        top, total: (H, Lq) the largest score, and the sum of exp(score - top); 1 where there is
            none. Apart, as their log-sum-exp loses the sum where scores are large: a bias of -1e9
            leaves multiples of 64 in float32.
        edge_sum: (Lq, H, F) sums of `edge_attr` by the weights, after dropout; None where
            `edge_sums` does not ask for them.
    """

    out: Tensor
    lse: Tensor
    top: Tensor
    total: Tensor
    edge_sum: Tensor | None


def forward(x: Inputs, pairs: Pairs) -> Outputs:
    """Compute output, log-sum-exps and sums of features from scores that are not kept."""
    attr = x.edge_attr if x.edge_sums else None
    if not len(pairs.row):
        lse = x.v.new_full((x.heads, pairs.rows), -torch.inf)
        out, edge_sum = (
            None if rows is None else x.v.new_zeros(pairs.rows, x.heads, rows.shape[-1])
            for rows in (x.v, attr)
        )
        assert out is not None
        return Outputs(out, lse, torch.zeros_like(lse), torch.ones_like(lse), edge_sum)
    s, _ = _adjusted(x, scores_of(x, pairs))
    top = pairs.top(s)
    # A row of -inf alone: exp(-inf - finite) is 0, where exp(-inf + inf) would be NaN
    top.clamp_(min=torch.finfo(s.dtype).min)
    s -= pairs.of_rows(top)
    total = pairs.total(s.exp_())
    if x.keep is not None:
        s *= x.keep
    out = pairs.sums(s, x.v.contiguous(), x.edge_value)
    edge_sum = None if attr is None else features.sums(pairs, s, attr)
    lse = total.log() + top
    total.masked_fill_(total == 0, 1)
    share = x.grow / total
    if x.sink is not None:
        share *= beside_sink(x.sink, top, total)
    for sums in (out, edge_sum):
        if sums is not None:
            sums *= share.T[..., None]
    return Outputs(out, lse, top, total, edge_sum)


def beside_sink(sink: Tensor, top: Tensor, total: Tensor) -> Tensor:
    """Compute what a sink (H,) leaves of the weights of each query, (H, Lq)."""
    return torch.sigmoid(total.log() + (top - sink[:, None]))


class Gradients(NamedTuple):
    """Gradients of the inputs of the same names, in their shapes; None where there is none."""

    q: Tensor | None
    k: Tensor | None
    v: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    sink: Tensor | None = None
    edge_key: Tensor | None = None
    edge_value: Tensor | None = None
    edge_attr: Tensor | None = None
    edge_query: Tensor | None = None
    edge_weight: Tensor | None = None


def per_query(
    x: Inputs, found: Outputs, of_out: Tensor, of_lse: Tensor | None, of_edge_sum: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute what the gradients of a query's pairs share, (H, Lq) each, and the sink's gradient.

    A softmax passes on what exceeds the mean, which is the product of output and its gradient. So
    the gradient of a score is exp(score - top) · (share · of_weight - mean).

    Returns: share, mean, and the gradient of the sink (H,).
    """
    means = torch.linalg.vecdot(of_out, found.out).T.contiguous()
    if of_edge_sum is not None and found.edge_sum is not None:
        means += torch.linalg.vecdot(of_edge_sum, found.edge_sum).T
    share, sink = 1 / found.total, None
    if x.sink is not None:
        left = beside_sink(x.sink, found.top, found.total)
        sink = ((left - 1) * means).sum(-1)
        share *= left
        means *= left
    if of_lse is not None:  # it leaves the sink aside
        means -= of_lse
    return share, means.div_(found.total), sink


def backward(
    x: Inputs,
    pairs: Pairs,
    found: Outputs,
    of_out: Tensor,
    of_lse: Tensor | None,
    of_edge_sum: Tensor | None,
    of_bias: bool,
) -> Gradients:
    """Compute the gradients from what `forward` returned, and those of its outputs.

    The bias has one where `of_bias` says so.
    """
    scores, v = scores_of(x, pairs), x.v.contiguous()
    share, means, sink = per_query(x, found, of_out, of_lse, of_edge_sum)
    # By query, where it costs less than a factor on all pairs
    of_out = (of_out.transpose(0, 1) * share[..., None]).contiguous()
    if of_edge_sum is not None:
        of_edge_sum = of_edge_sum * share.T[..., None]
    weights, slope = _adjusted(x, scores)
    weights -= pairs.of_rows(found.top)
    weights.exp_()
    gradient = pairs.products(of_out, v, x.edge_value)
    if of_edge_sum is not None and x.edge_attr is not None:
        features.add_products(gradient, pairs, of_edge_sum.transpose(0, 1), x.edge_attr)
    kept = weights
    if x.keep is not None:
        factor = x.keep.to(v.dtype).mul_(x.grow)
        gradient *= factor
        kept = factor.mul_(weights)
    value = pairs.sum_by_key(kept, of_out, len(v))
    edge_value = None if x.edge_value is None else pairs.outer(kept, of_out, x.edge_value)
    edge_attr = None
    if x.edge_attr_grad and x.edge_attr is not None:
        edge_attr = torch.zeros_like(x.edge_attr)
        if of_edge_sum is not None:
            features.add_outer(edge_attr, pairs, kept, of_edge_sum)
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
    of_score = scores.gradients(gradient, edge_attr)
    return Gradients(
        v=value.transpose(0, 1), bias=bias, sink=sink, edge_value=edge_value, edge_attr=edge_attr,
        **of_score._asdict(),
    )  # fmt: skip
