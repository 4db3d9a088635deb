"""The specification: every pair, explicit scores, softmax in float32 or better."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from attention_core.backends import measured, roofline
from attention_core.backends.costs import Rate, mask_cost, modify_cost
from attention_core.biases import Bias
from attention_core.edge_projection import as_tensor
from attention_core.job import Job, Options, Plan, Result
from attention_core.score_mods import modified, split
from attention_core.spaces import Pairs

#: Of a pair, and of the edge features that are gathered for it.
RATE = Rate(3.2, 0.040, 10.0, 0.11)
_FEATURES = Rate(4.0, 3.8, 16.0, 12.0)
#: Of a call, forward; and forward and backward.
_CALL = (150_000.0, 450_000.0)


class Prepared:
    """All pairs, and which of them are allowed: bool broadcastable to (B, H, Lq, Lk), or None."""

    def __init__(self, job: Job) -> None:
        self.pairs = job.pairs()
        terms = [term for term in (job.allowed(self.pairs), self.pairs.valid) if term is not None]
        self.allowed: Tensor | None = None
        if terms:
            # Memory of its own, not that of a tensor which is given as the mask
            self.allowed = terms[0] & terms[1] if len(terms) == 2 else terms[0].clone()

    def for_job(self, job: Job) -> Prepared:
        """Return what was prepared for another job of the same structure."""
        new = copy.copy(self)
        new.pairs = job.pairs()
        return new


def prepare(job: Job) -> Prepared | None:
    return None if job.moving else Prepared(job)


def prepared_of(plan: Plan) -> Prepared:
    """Return what was prepared for a plan of this backend, or is for this forward pass."""
    prepared: Prepared | None = plan.prepared
    return plan.memo("now", lambda: Prepared(plan.job)) if prepared is None else prepared


def explicit(plan: Plan) -> Prepared:
    """Return what `weigh` needs for a plan of another backend, once for layers that share it."""
    return plan.memo("explicit", lambda: Prepared(plan.job))


def unsupported(job: Job) -> str | None:
    return None


def cost(job: Job) -> float:
    if job.device.type == "cuda":
        return roofline.reference(job)
    rate = RATE.of(job) + (_FEATURES.of(job) if job.edge_features else 0.0)
    modifying = modify_cost(job, job.all_pairs)
    asking = mask_cost(job, job.row_pairs)
    time = rate * job.all_pairs + asking + modifying + _CALL[job.grad]
    return time * measured.factor(job, "reference")


def describe(job: Job, prepared: Prepared) -> str:
    return (
        "the explicit scores of all pairs, masked, softmaxed and multiplied with the values in "
        "float32 or better."
    )


def run(plan: Plan, q: Tensor, k: Tensor, v: Tensor, options: Options) -> Result:
    with torch.autocast(q.device.type, enabled=False):
        prepared = prepared_of(plan)
        weights, lse = weigh(plan, prepared, q, k, options)
        kept = torch.nn.functional.dropout(weights, options.dropout_p)
        v = v.to(weights.dtype).repeat_interleave(q.shape[1] // v.shape[1], dim=1)
        output = kept @ v
        if options.edge_value is not None:
            of_edges = at_pairs(as_tensor(options.edge_value, v.dtype), prepared.pairs)
            output = output + (kept[..., None, :] @ of_edges).squeeze(-2)
    return Result(output.to(q.dtype), weights.to(q.dtype), lse)


def weigh(
    plan: Plan, prepared: Prepared, q: Tensor, k: Tensor, options: Options
) -> tuple[Tensor, Tensor]:
    """Compute attention weights (B, H, Lq, Lk) before dropout, and the log-sum-exp (B, H, Lq)."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    q, k = q.to(dtype), k.to(dtype).repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    pairs = prepared.pairs
    edge = None
    if options.edge_key is not None:
        edge = at_pairs(as_tensor(options.edge_key, dtype), pairs)
    if options.score is None:
        scores = q @ k.mT
        if edge is not None:
            scores = scores + torch.linalg.vecdot(q[..., None, :], edge)
    else:
        tokens = q[..., :, None, :], k[..., None, :, :]
        if edge is None:
            scores = options.score(*tokens, pairs.head)
        else:
            scores = options.score.with_edge(*tokens, edge, pairs.head)
    hidden = None if prepared.allowed is None else ~prepared.allowed
    scores = adjust(scores, plan, pairs, options, hidden)
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    return softmax(scores, options.sink)


def share(plan: Plan, bias: Bias | None, kv_heads: int, dtype: torch.dtype) -> None:
    """Compute what calls by a plan share, beside what has been prepared: the bias."""
    if plan.prepared is not None:
        plan.bias(bias, plan.prepared.pairs)


def at_pairs(features: Tensor, pairs: Pairs) -> Tensor:
    """Spread features of edges (E, Hkv, D) to all pairs, (B or 1, H, Lq, Lk, D); 0 without edge."""
    with_none = torch.cat([features, features.new_zeros(1, *features.shape[1:])])
    found = with_none[pairs.edge.squeeze(1)].movedim(-2, 1)  # no edge is -1, the last row
    return found.repeat_interleave(pairs.shape[1] // features.shape[1], dim=1)


def adjust(
    scores: Tensor, plan: Plan, pairs: Pairs, options: Options, hidden: Tensor | None
) -> Tensor:
    """Scale, softcap and bias, in this order (Gemma 2 caps before the mask).

    Args:
        hidden: bool that broadcasts to the scores, True where a pair may not attend; or None.
    """
    scores = scores * options.scale
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    scores = modified(split(options.bias)[0], scores, pairs, hidden)
    bias = plan.bias(options.bias, pairs)
    return scores if bias is None else scores + bias.to(scores.dtype)


def softmax(scores: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute the softmax over the last dimension, 0 and no gradient where every score is -inf.

    The sink (H,) is a key with no value: it takes weight and gives nothing. It has no part in the
    log-sum-exp, so that a row without a key has -inf with and without it.
    """
    if scores.shape[-1] == 0:
        return scores, scores.sum(-1) - torch.inf
    top = scores.detach().amax(-1, keepdim=True)
    top = top.masked_fill(top == -torch.inf, 0)
    exp = torch.exp(scores - top)
    total = exp.sum(-1, keepdim=True)
    empty = total == 0
    total = total.masked_fill(empty, 1)
    lse = (total.log() + top).masked_fill(empty, -torch.inf).squeeze(-1)
    if sink is not None:
        # Beside it, not in `top`: next to a large sink the scores would all be 0. And the sum apart
        # from `top`, beside which it may be lost
        above = total.log() + (top - sink.to(scores.dtype)[:, None, None])
        return exp * (above.sigmoid() / total), lse
    return exp / total, lse
