"""One score per allowed pair, softmax over the pairs of each query: for sparse masks and graphs."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor

from attention_core.backends import measured, roofline
from attention_core.backends.costs import Rate, modify_cost
from attention_core.backends.derivatives import refuse_transforms
from attention_core.backends.edges import fast as compiled
from attention_core.backends.edges.operator import edge_attention
from attention_core.backends.edges.ways import in_triton, reads
from attention_core.backends.edges.weights import end_to_end, pair_weights
from attention_core.biases import Bias
from attention_core.checks import may_look
from attention_core.edge_projection import EdgeFeatures, changed
from attention_core.job import NO_JOB, Job, Options, Plan, Result
from attention_core.lasting import computed
from attention_core.masks import Edges
from attention_core.score_mods import modified, split
from attention_core.scores import AdditiveV2
from attention_core.spaces import PairList, Pairs
from attention_core.spaces.csr import CSR
from attention_core.spaces.edge_list import EdgeList
from attention_core.transfer import moved

#: Pairs looked at at once where the structure of a mask does not list its candidates.
_CHUNK = 1 << 22

#: Of a pair, with products or sums as scores and with `AdditiveV2`, and of features of its edge; in
#: plain torch and with kernels.
_PAIR, _FAST_PAIR = Rate(8.0, 1.0, 25.0, 3.1), Rate(1.5, 0.57, 5.0, 1.96)
_ADDITIVE_V2, _FAST_ADDITIVE_V2 = Rate(5.0, 1.5, 18.0, 7.2), Rate(3.5, 0.62, 5.0, 2.4)
_FEATURES, _FAST_FEATURES = Rate(20.0, 0.0, 52.0, 0.0), Rate(7.0, 0.0, 18.0, 0.0)
#: Of what a bias adds, forward; and forward and backward.
_FIXED_BIAS, _LEARNED_BIAS = (3.0, 7.0), (6.0, 18.0)
#: To list a pair that the structure names, to look at one that it does not, and to sort the list
#: and call the operators at all.
_LIST, _LOOK, _CALL = 17.0, 8.0, (900_000.0, 2_500_000.0)
#: The numbers of keys and values that a cache of 32 MiB holds, and what is left then of the time
#: that numbers of a head take: of plain torch, with `AdditiveV2`, and of kernels.
_CACHE, _CACHED, _CACHED_V2, _FAST_CACHED = 8_000_000, 0.12, 0.5, 0.28


class Prepared:
    """The E allowed pairs of the whole batch, sorted by query.

    Attributes:
        csr: query (row) and key (column) of each pair among the tokens of the batch, end to end.
        allowed: (H, E) where heads differ in what they allow, else None.
        edge: (E,) where the features of a pair's edge are among those of all edges, and behind the
            last where it has no edge; None where that is `csr.item`, or no one asks for features.
        unlinked: whether some pair has no edge.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.allowed: Tensor | None = None
        self.edge: Tensor | None = None
        self.unlinked = False
        edges = _whole_graph(job)
        if edges is not None:
            self.csr = edges.csr
            if edges.dropped is not None:
                kept = ~edges.dropped.index_select(0, self.csr.item)
                self.allowed = kept.expand(job.heads, -1)
            return
        alone = _edges_alone(job)
        if alone is not None:
            self.csr = alone
            return
        listed = _listed(job)
        parts = [_filter(job, listed)] if listed else [_filter(job, c) for c in _chunks(job)]
        pairs = [pairs for pairs, _ in parts]
        joined = {
            name: torch.cat([getattr(p, name) for p in pairs]) for name in ("batch", "query", "key")
        }
        queries, keys = (space.length for space in job.spaces)
        row, column = (
            joined["batch"] * length + joined[name]
            for name, length in (("query", queries), ("key", keys))
        )
        self.csr = CSR(row, column, job.batch * queries, job.batch * keys)
        order = self.csr.item
        known = pairs[0].known if listed else {}
        self.pairs = _pairs(job, **{name: at[order] for name, at in (joined | known).items()})
        by_head = [allowed for _, allowed in parts if allowed is not None]
        if by_head:
            self.allowed = torch.cat(by_head, dim=-1)[:, order]
        key_space = job.spaces[1]
        if job.edge_features and key_space.edges is not None:
            edge = self.pairs.edge
            self.unlinked = bool((edge < 0).any())
            self.edge = torch.where(edge < 0, key_space.edges.num_edges, edge).to(order.dtype)

    @computed
    def pairs(self) -> Pairs:
        """Batch, query and key (E,), head (H, 1): for biases. Where pairs are listed, they are."""
        csr, space = self.csr, self.job.spaces[1]
        row, column, edge = (index.long() for index in (csr.row, csr.column, csr.item))
        known = {"batch": torch.zeros_like(row), "query": row, "key": column, "edge": edge}
        along = space.distance_along(edge)
        return _pairs(self.job, **known, **({} if along is None else {"distance": along}))

    def for_job(self, job: Job) -> Prepared:
        """Return what was prepared for another job of the same structure."""
        new = copy.copy(self)
        new.job = job
        if "pairs" in vars(self):
            new.pairs = self.pairs.in_spaces(job.spaces)
        return new

    @property
    def row(self) -> Tensor:
        """(E,) the query of each pair."""
        return self.csr.row

    def features(
        self, key: EdgeFeatures | None, value: EdgeFeatures | None, dtype: torch.dtype
    ) -> tuple[EdgeFeatures | None, EdgeFeatures | None]:
        """Return keys and values of all edges, with zeros behind them if `edge` asks for it."""

        def of_edges(x: Tensor) -> Tensor:
            last = (0, 0) * (x.ndim - 1) + (0, 1)
            return torch.nn.functional.pad(x.to(dtype), last) if self.unlinked else x.to(dtype)

        return changed(key, value, of_edges, lambda weight: weight.to(dtype))


def stands(job: Job) -> bool:
    """Return whether the pairs are known, as all edges of a graph between all its nodes, where the
    other backends would have to look at values that are not at hand."""
    edges = _whole_graph(job)
    return edges is not None and not may_look(edges.source)


def _whole_graph(job: Job) -> EdgeList | None:
    """The edges, where they are the allowed pairs as they stand; then their order is shared."""
    query, key = job.spaces
    if not (
        key.edges is not None
        and query.edges is key.edges
        and job.mask == Edges()
        and job.batch == 1
    ):
        return None
    return key.edges if query.whole and (key is query or key.whole) else None


def _edges_alone(job: Job) -> CSR | None:
    """The edges between the tokens of both spaces, `item` the number of each, where they are the
    allowed pairs as they stand: no token is special, padding or one of a batch."""
    plain = all(s.special is None and s.valid is None and s.batch is None for s in job.spaces)
    if job.mask != Edges() or job.batch != 1 or not plain:
        return None
    found = job.mask.candidates(job.spaces)
    if found is None or found.edge is None:
        return None
    queries, keys = (space.length for space in job.spaces)
    csr = CSR(found.query, found.key, queries, keys)
    csr.item = found.edge[csr.item].to(csr.item.dtype)
    return csr


def prepare(job: Job) -> Prepared:
    """List the pairs; where it takes a look at numbers, on the host, to move them at once."""
    if _whole_graph(job) is not None or job.host is job:
        return Prepared(job)
    return moved(Prepared(job.host).for_job(NO_JOB), job.device).for_job(job)


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
    if found.batch is None:  # all rows have these
        rows = torch.arange(job.batch, device=job.device).repeat_interleave(len(found.query))
        repeated = {
            name: of.repeat(job.batch) for name, of in found._asdict().items() if of is not None
        }
        found = PairList(**repeated, batch=rows)
    special = [
        None if space.special is None else space.special.expand(job.batch, -1)
        for space in (query, key)
    ]
    of_query, of_key = special
    if of_query is not None:  # it attends to all
        row, token = (at[:, None] for at in of_query.nonzero().T)
        everyone = torch.arange(key.length, device=job.device)
        found = _cat(found, row, token, everyone)
    if of_key is not None:  # all others attend to it
        row, token = (at[:, None] for at in of_key.nonzero().T)
        everyone = torch.arange(query.length, device=job.device)
        others = None if of_query is None else ~of_query[row, everyone]
        found = _cat(found, row, everyone, token, others)
    return _pairs(job, **{name: of for name, of in found._asdict().items() if of is not None})


def _cat(
    found: PairList, batch: Tensor, query: Tensor, key: Tensor, which: Tensor | None = None
) -> PairList:
    """`found` and more pairs, of all that the indices broadcast to or `which` of them, that have no
    edge and whose distance no one may ask for."""
    more = torch.broadcast_tensors(batch, query, key)
    batch, query, key = (index.flatten() if which is None else index[which] for index in more)
    edge, distance = (
        None if known is None else torch.cat([known, known.new_full(query.shape, nothing)])
        for known, nothing in ((found.edge, -1), (found.distance, 0))
    )
    assert found.batch is not None
    return PairList(
        torch.cat([found.query, query]),
        torch.cat([found.key, key]),
        edge,
        distance,
        torch.cat([found.batch, batch]),
    )


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


def unsupported(job: Job) -> str | None:
    return None


def cost(job: Job) -> float:
    """Estimate the nanoseconds, for all heads."""
    if job.device.type == "cuda":
        return roofline.edges(job) + (0.0 if _lists(job) else _LOOK * job.all_pairs)
    v2, compiled = isinstance(job.score, AdditiveV2), _in_kernels(job, job.count_bound)
    if compiled:
        pair, features, left = _FAST_PAIR, _FAST_FEATURES, _FAST_CACHED
        pair = _FAST_ADDITIVE_V2 if v2 else pair
    else:
        pair, features, left = _PAIR, _FEATURES, _CACHED
        pair, left = (_ADDITIVE_V2, _CACHED_V2) if v2 else (pair, left)
    if 2 * job.batch * job.heads * job.spaces[1].length * job.head_dim < _CACHE:
        pair = Rate(pair[0], left * pair[1], pair[2], left * pair[3])
    per_pair = pair.of(job)
    added = split(job.bias)[1]
    if added is not None:
        per_pair += job.heads * (_LEARNED_BIAS if added.learned else _FIXED_BIAS)[job.grad]
    if job.edge_features:
        per_pair += features.of(job)
    # Listing the pairs of a mask of unknown structure looks at all of them once
    looking = 0.0 if _lists(job) else _LOOK * job.all_pairs
    modifying = modify_cost(job, job.count_bound)
    time = (per_pair + _LIST) * job.count_bound + looking + modifying + _CALL[job.grad]
    return time * measured.factor(job, "edges")


def _lists(job: Job) -> bool:
    """Whether the mask names the pairs that it allows, so that not all have to be looked at."""
    mask = job.mask
    return mask is not None and mask.lists_candidates and job.mask_bound < job.all_pairs


def _in_kernels(job: Job, pairs: int) -> bool:
    """Whether kernels for a CPU do so many pairs, in float32 or float64."""
    if job.device.type != "cpu" or not compiled.installed():
        return False
    v2 = isinstance(job.score, AdditiveV2)
    return compiled.pays(pairs, job.heads, job.head_dim, v2=v2)


def describe(job: Job, prepared: Prepared) -> str:
    pairs = len(prepared.row)
    how = ", in kernels compiled by numba" if _in_kernels(job, pairs) else ""
    if in_triton(job.device):
        how = ", in Triton kernels"
    return (
        f"one score for each of the {pairs:,} allowed pairs, with a softmax over those of each "
        f"query{how}."
    )


def share(plan: Plan, bias: Bias | None, kv_heads: int, dtype: torch.dtype) -> None:
    """Compute what calls by a plan share, beside what has been prepared: the bias."""
    plan.bias(bias, plan.prepared.pairs)


def run(plan: Plan, q: Tensor, k: Tensor, v: Tensor, options: Options) -> Result:
    refuse_transforms("edges", (q, k, v))
    with torch.autocast(q.device.type, enabled=False):
        prepared: Prepared = plan.prepared
        csr, batch, heads, dtype = prepared.csr, len(q), q.shape[1], q.dtype
        length = q.shape[2]
        # Tokens of the batch end to end, (H, B·L, D), so that a pair is a row and a column
        mods, modify = split(options.bias)[0], None
        exact = torch.promote_types(dtype, torch.float32)
        if reads(q, options.score, bool(mods)):
            exact = dtype
        given = q, k
        q, k, v = (end_to_end(x, exact) for x in (q, k, v))
        edge_key, edge_value = prepared.features(options.edge_key, options.edge_value, exact)
        bias = None if options.bias is None else plan.bias(options.bias, prepared.pairs)
        if mods:
            hidden = None if prepared.allowed is None else ~prepared.allowed
            modify = partial(modified, mods, pairs=prepared.pairs, hidden=hidden)
        keep = seed = None
        if options.dropout_p and in_triton(q.device):
            seed = torch.randint(2**62, (1,), device=q.device)
        elif options.dropout_p:
            keep = torch.empty(heads, len(csr), dtype=torch.bool, device=q.device)
            keep.bernoulli_(1 - options.dropout_p)
        output, lse = edge_attention(
            q,
            k,
            v,
            csr,
            score=options.score,
            modify=modify,
            bias=bias,
            edge_key=edge_key,
            edge_value=edge_value,
            edge=prepared.edge,
            allowed=prepared.allowed,
            keep=keep,
            seed=seed,
            sink=options.sink,
            scale=options.scale,
            softcap=options.softcap,
            dropout_p=options.dropout_p,
        )
        output, lse = (x.unflatten(1, (batch, length)).transpose(0, 1) for x in (output, lse))
    weights = pair_weights(plan, *given, options).dense() if options.weights else None
    return Result(output.to(dtype), weights, lse)
