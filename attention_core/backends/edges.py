"""One score per allowed pair, softmax over the pairs of each query: for sparse masks and graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attention_core.backends import reference
from attention_core.masks.algebra import PairList
from attention_core.spaces import Pairs

if TYPE_CHECKING:
    from attention_core.planning import Job, Options, Plan, Result

#: Pairs looked at at once where the structure of a mask does not list its candidates.
_CHUNK = 1 << 22


class Prepared:
    """The E allowed pairs of the whole batch, sorted by query.

    Attributes:
        pairs: batch, query and key (E,), head (H, 1).
        row, column: (E,) query and key of each pair among the tokens of the batch, end to end.
        allowed: (H, E) where heads differ in what they allow, else None.
    """

    def __init__(self, job: Job) -> None:
        listed = _listed(job)
        parts = [_filter(job, listed)] if listed else [_filter(job, c) for c in _chunks(job)]
        pairs = [pairs for pairs, _ in parts]
        joined = {
            name: torch.cat([getattr(p, name) for p in pairs]) for name in ("batch", "query", "key")
        }
        queries, keys = (space.length for space in job.spaces)
        order = (joined["batch"] * queries + joined["query"]).argsort(stable=True)
        known = pairs[0].known if listed else {}
        joined = {name: index[order] for name, index in (joined | known).items()}
        self.pairs = _pairs(job, **joined)
        self.row = self.pairs.batch * queries + self.pairs.query
        self.column = self.pairs.batch * keys + self.pairs.key
        by_head = [allowed for _, allowed in parts if allowed is not None]
        self.allowed = torch.cat(by_head, dim=-1)[:, order] if by_head else None


prepare = Prepared


def _pairs(job: Job, **indices: Tensor) -> Pairs:
    shape = (job.batch, job.heads, job.spaces[0].length, job.spaces[1].length)
    head = torch.arange(job.heads, device=job.device)[:, None]
    return Pairs(job.spaces, shape=shape, head=head, **indices)


def _listed(job: Job) -> Pairs | None:
    """Pairs that hold all allowed ones, from the structure of the mask; None if it has none."""
    found = None if job.mask is None else job.mask.candidates(job.spaces)
    if found is None:
        return None
    query, key = job.spaces
    if query.special is not None:  # candidates come only where queries and keys are one space
        one, all_others = query.special.nonzero(), (~query.special).nonzero().squeeze(-1)
        everyone = torch.arange(key.length, device=job.device)
        found = _cat(found, *torch.broadcast_tensors(one, everyone))
        found = _cat(found, *torch.broadcast_tensors(all_others[:, None], one.squeeze(-1)))
    repeated = {
        name: values.repeat(job.batch)
        for name, values in found._asdict().items()
        if values is not None
    }
    batch = torch.arange(job.batch, device=job.device).repeat_interleave(len(found.query))
    return _pairs(job, batch=batch, **repeated)


def _cat(found: PairList, query: Tensor, key: Tensor) -> PairList:
    """`found` and more pairs, which have no edge and whose distance no one may ask for."""
    query, key = query.flatten(), key.flatten()
    edge, distance = (
        None if known is None else torch.cat([known, known.new_full(query.shape, nothing)])
        for known, nothing in ((found.edge, -1), (found.distance, 0))
    )
    return PairList(torch.cat([found.query, query]), torch.cat([found.key, key]), edge, distance)


def _chunks(job: Job) -> list[Pairs]:
    """All pairs, some rows of queries at a time."""
    queries = torch.arange(job.spaces[0].length, device=job.device)
    rows: int = max(_CHUNK // max(job.batch * job.spaces[1].length, 1), 1)
    chunks = []
    for chunk in queries.split(rows):
        pairs = job.pairs()
        pairs.query, pairs.whole = chunk[:, None].expand(1, 1, -1, 1), False
        chunks.append(pairs)
    return chunks


def _filter(job: Job, pairs: Pairs) -> tuple[Pairs, Tensor | None]:
    """The allowed ones of `pairs`, (E,); and what each head allows, (H, E), where heads differ."""
    terms = [term for term in (job.allowed(pairs), pairs.valid) if term is not None]
    dense = pairs.query.ndim > 1
    full = (
        (job.batch, 1, pairs.query.shape[-2], job.spaces[1].length) if dense else pairs.query.shape
    )
    allowed = torch.ones((), dtype=torch.bool, device=job.device)
    for term in terms:
        allowed = allowed & term
    allowed = allowed.expand(torch.broadcast_shapes(allowed.shape, full))
    by_head = allowed.movedim(1, 0) if dense else allowed if allowed.ndim > 1 else allowed[None]
    at = by_head.any(0).nonzero(as_tuple=True)
    heads = torch.stack([head[at] for head in by_head]) if len(by_head) > 1 else None
    if dense:
        batch, query, key = at
        return _pairs(job, batch=batch, query=pairs.query.flatten()[query], key=key), heads
    indices = {"batch": pairs.batch, "query": pairs.query, "key": pairs.key} | pairs.known
    return _pairs(job, **{name: index[at] for name, index in indices.items()}), heads


def lacks(job: Job) -> str | None:
    return None


def cost(job: Job) -> float:
    # Listing the pairs of a mask of unknown structure looks at all of them once
    structured = job.mask is not None and job.mask.count_bound(job.spaces) < job.all_pairs
    return 100.0 * job.count_bound + (0.0 if structured else 1.0) * job.all_pairs + 15_000.0


def describe(job: Job, prepared: Prepared) -> str:
    return (
        f"one score for each of the {len(prepared.row):,} allowed pairs, with a softmax over those "
        "of each query."
    )


def run(plan: Plan, q: Tensor, k: Tensor, v: Tensor, options: Options) -> Result:
    from attention_core.planning import Result

    with torch.autocast(q.device.type, enabled=False):
        prepared: Prepared = plan.prepared
        batch, heads, length, _ = q.shape
        groups, dtype = heads // k.shape[1], q.dtype
        # Tokens of the batch end to end, (H, B·L, D), so that a pair is a row and a column
        q, k, v = (
            x.to(torch.promote_types(dtype, torch.float32)).transpose(0, 1).flatten(1, 2)
            for x in (q, k, v)
        )
        queries, keys, values = (
            x.index_select(1, at)
            for x, at in ((q, prepared.row), (k, prepared.column), (v, prepared.column))
        )
        keys, values = (x.repeat_interleave(groups, dim=0) for x in (keys, values))
        if options.score is None:
            scores = (queries * keys).sum(-1)
        else:
            scores = options.score(queries, keys, prepared.pairs.head)
        bias = plan.bias(options.bias, prepared.pairs)
        scores = reference.adjust(scores, bias, options)
        if prepared.allowed is not None:
            scores = scores.masked_fill(~prepared.allowed, -torch.inf)
        weights, lse = softmax(scores, prepared.row, batch * length, options.sink)
        kept = torch.nn.functional.dropout(weights, options.dropout_p)
        output = values.new_zeros(heads, batch * length, values.shape[-1])
        output = output.index_add(1, prepared.row, kept[..., None] * values)
        output, lse = (x.unflatten(1, (batch, length)).transpose(0, 1) for x in (output, lse))
        dense = _scatter(weights, prepared.pairs).to(dtype) if options.weights else None
    return Result(output.to(dtype), dense, lse)


def softmax(scores: Tensor, row: Tensor, rows: int, sink: Tensor | None) -> tuple[Tensor, Tensor]:
    """Softmax of scores (H, E) over the pairs of each row, and the log-sum-exp (H, rows).

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
    empty = total == 0
    lse = (total.masked_fill(empty, 1).log() + top).masked_fill(empty, -torch.inf)
    if logit is not None:
        total = total + torch.exp(logit - top)
    return exp / total.masked_fill(empty, 1).index_select(-1, row), lse


def _scatter(weights: Tensor, pairs: Pairs) -> Tensor:
    """Weights (H, E) as (B, H, Lq, Lk); an edge that is listed twice has the sum of both."""
    batch, heads, queries, keys = pairs.shape
    at = (pairs.batch * queries + pairs.query) * keys + pairs.key
    dense = weights.new_zeros(heads, batch * queries * keys).index_add(1, at, weights)
    return dense.view(heads, batch, queries, keys).transpose(0, 1)
