"""FlexAttention: blocks of pairs in a compiled kernel, the mask and the bias as generated code.

The plan puts tokens into a compact order (`order`), finds which blocks of keys each block of
queries sees (`lists`) and asks the mask and the bias about one pair, whose indices are no numbers
(`tracing`). What they compute of one token, one head or one sample is computed outside, for all,
with its gradient (`lanes`); a learned bias of place becomes a table of offsets (`tables`); the rest
is written as a mask_mod and a score_mod (`writing`, `program`). Equal structure gives equal code,
which is compiled once (`compiled`) and then compared with `blocks` (`proof`). On a CPU, where
FlexAttention has no backward pass, the same lists and code run in torch's own operations (`eager`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.compiler import is_exporting

from attention_core.backends import dense, edges, reference, roofline
from attention_core.backends.derivatives import once_only, refuse_transforms
from attention_core.backends.flex import compiled, proof
from attention_core.backends.flex.eager import attend_blocks
from attention_core.backends.flex.lanes import Lanes
from attention_core.backends.flex.lists import make_lists
from attention_core.backends.flex.order import choose, padded_order
from attention_core.backends.flex.program import Program, Score, write_mask, write_score
from attention_core.backends.flex.tables import has_table, offsets_of
from attention_core.backends.flex.tracing import Links, Tracer, Unmappable
from attention_core.biases import Bias
from attention_core.job import Job, Options, Plan, Result
from attention_core.lasting import lasting
from attention_core.spaces import Pairs
from attention_core.transfer import is_there, moved

#: So many times the time of another backend, by an estimate that knows no blocks, are too many.
_HOPELESS = 4
#: Where FlexAttention computes in torch's own operations, for tests.
_EAGER = {"cpu"}


class Prepared:
    """The blocks of a job, in the order in which the kernel sees its tokens, and its mask_mod.

    Attributes:
        rows: rows of tokens: the batch where its samples sit in different places, else 1.
        compiled: whether a kernel is compiled, or torch's own operations are used.
        size: tokens in a block.
        orders: of queries and keys, (rows, L) the token at each place; None where it is as it was.
        pairs_of_blocks: how many see each other, and how many of these need no mask; and of how
            many.
        lists: the blocks that see each other.
        order_on_host: `order`, as planning may look at it.
        lanes: samples, heads and tokens as the kernel sees them.
        mask: the mask_mod; None where every pair may attend.
        links: the edges between tokens, sorted.
        offsets: all offsets, numbered, where the bias has a table of them.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        query, key = job.spaces
        self.rows = job.batch if query.batch is not None or key.batch is not None else 1
        self.compiled = job.device.type not in _EAGER
        self.pairs_of_blocks = 0, 0, 0
        self.orders: tuple[Tensor | None, Tensor | None] = (None, None)
        self.order_on_host: Tensor | None = None
        if not job.all_pairs:
            return
        host = job.host
        here = host.spaces[0].device  # not that of a job on a GPU that is only named
        links = Links.of(host)
        tracer = Tracer(host.spaces, _shape(job), self.rows, here, links)
        # First, as what a mask cannot serve it refuses in its own words
        found = tracer.trace(allowed_in(host))
        layout = choose(host, self.rows, searches=not host.allows_all, compiled=self.compiled)
        lists = make_lists(layout, self.rows)
        some, every = (
            int(count.sum()) for count in (lists.kv_num_blocks, lists.full_kv_num_blocks)
        )
        of_query, of_key = (len(tiles) // self.rows for tiles in layout.tiles)
        self.pairs_of_blocks = some + every, every, self.rows * of_query * of_key
        self.size = layout.size
        places = [
            padded_order(space, self.rows, self.size, order)
            for space, order in zip(host.spaces, layout.orders, strict=True)
        ]
        self.lengths = places[0].shape[1], places[1].shape[1]
        lanes = Lanes(job.batch, job.heads, places[0], places[1], self.compiled)
        real = None
        # In every mask, as other lengths are to have the same code
        if found is not None or self.lengths[1] > key.length:
            real = torch.arange(self.lengths[1], device=here) < key.length
        mask = write_mask(lanes, found, real)
        offsets = offsets_of(host.spaces, job.heads) if _has_tables(job) else None
        back = None if layout.orders[0] is None else layout.orders[0].argsort(-1)
        if query is key and layout.orders[0] is not None:
            order = layout.orders[0]
            self.order_on_host = order[0] if len(order) == 1 else order
        # Without what was computed of them
        lanes = Lanes(job.batch, job.heads, places[0], places[1], self.compiled)
        everything = lists, lanes, mask, offsets, links, layout.orders, back
        everything = moved(everything, job.device if is_there(job.device) else "cpu")
        self.lists, self.lanes, self.mask, self.offsets = everything[:4]
        self.links, self.orders, self._back = everything[4:]
        if job.bias is not None:
            self.write(job.bias, None, torch.float32)

    def for_job(self, job: Job) -> Prepared:
        """Return what was prepared for another job of the same structure."""
        new = copy.copy(self)
        new.job = job
        return new

    @property
    def order(self) -> Tensor | None:
        """The order (L,), or (B, L), of the tokens, where queries and keys are the same."""
        order = self.orders[0] if self.order_on_host is not None else None
        return order[0] if order is not None and len(order) == 1 else order

    def in_order(self) -> Prepared:
        """Return the same for tokens that are in `order` already."""
        new = copy.copy(self)
        new.orders, new.order_on_host, new._back = (None, None), None, None
        return new

    @lasting  # operators of inference mode are others
    def write(self, bias: Bias | None, softcap: float | None, dtype: torch.dtype) -> Score:
        """Write what becomes of scores, with the gradients of what the bias learns.

        Raises:
            Unmappable: the bias cannot be a score_mod.
        """
        job = self.job
        tracer = Tracer(job.spaces, _shape(job), self.rows, job.spaces[0].device, self.links)
        return write_score(tracer, self.lanes, self.offsets, bias, softcap, dtype, allowed_in(job))

    def score(self, plan: Plan, options: Options, dtype: torch.dtype) -> Score:
        """Return what becomes of scores in a call; computed once for layers that share a bias."""

        def write() -> Score:
            score = self.write(options.bias, options.softcap, dtype)
            refuse_transforms("flex", score.captured)
            return score._replace(captured=[once_only("flex", x) for x in score.captured])

        return plan.memo(("flex", options.bias, options.softcap, dtype), write)

    def arranged(self, x: Tensor, side: int) -> Tensor:
        """Return queries (0), or keys or values (1), (B, H, L, D), as the kernel sees them."""
        order = self.orders[side]
        x = x if order is None else _taken(x, order)
        missing = self.lengths[side] - x.shape[2]
        return torch.nn.functional.pad(x, (0, 0, 0, missing)) if missing else x

    def restored(self, x: Tensor) -> Tensor:
        """Return what was computed for queries, (B, H, L, ...), in their own order."""
        x = x[:, :, : self.job.spaces[0].length]
        return x if self._back is None else _taken(x, self._back)


def _shape(job: Job) -> tuple[int, int, int, int]:
    return job.batch, job.heads, job.spaces[0].length, job.spaces[1].length


def allowed_in(job: Job) -> Callable[[Pairs], Tensor | None]:
    """Return what tells which pairs of a job may attend, padding included; None: all."""

    def allowed(pairs: Pairs) -> Tensor | None:
        terms = [term for term in (job.allowed(pairs), pairs.valid) if term is not None]
        return terms[0] & terms[1] if len(terms) == 2 else terms[0] if terms else None

    return allowed


def _has_tables(job: Job) -> bool:
    return job.bias is not None and any(has_table(leaf, job.spaces) for leaf in job.bias.leaves())


def _taken(x: Tensor, order: Tensor) -> Tensor:
    """Take tokens of x (B, H, L, ...) in an order (1, L) for all, or (B, L) for each sample."""
    if len(order) == 1:
        return x.index_select(2, order[0])
    at = order[:, None].expand(-1, x.shape[1], -1)
    at = at if x.ndim == 3 else at[..., None].expand(-1, -1, -1, x.shape[3])
    return x.gather(2, at)


def prepare(job: Job) -> Prepared:
    """Return the blocks of a job.

    Raises:
        Unmappable: its mask or bias cannot be generated; the message says what and why.
    """
    if torch.compiler.is_compiling():  # not as a decorator, which takes a second to import
        return torch.compiler.disable(_prepare)(job)
    return _prepare(job)


@lasting
@torch.no_grad()
def _prepare(job: Job) -> Prepared:
    known: Prepared | Unmappable | None = job.notes.get("flex")
    if known is None:
        try:
            with torch.autocast(job.device.type, enabled=False):
                known = Prepared(job)
        except Unmappable as error:
            known = error
        job.notes["flex"] = known
    if isinstance(known, Unmappable):
        names = [] if job.mask is None else [str(job.mask)]
        names += [type(leaf).__name__ for leaf in (job.bias.leaves() if job.bias else ())]
        raise Unmappable(
            f"backend='flex' cannot generate code of {' or '.join(names)}: {known}"
        ) from known
    return known


def unsupported(job: Job) -> str | None:
    if job.score is not None:
        return f"FlexAttention scores by dot products, it has no {type(job.score).__name__} score"
    if job.edge_features:
        return "FlexAttention takes keys and values of tokens, no edge features"
    if is_exporting():
        return "an exported program cannot look at the structure that its blocks are made of"
    if job.device.type in _EAGER or torch.compiler.is_compiling():
        return None  # `prepare` says what else there is: nobody plans for it here unasked
    if job.dtype == torch.float64:
        return "FlexAttention's kernels compute in float32, not in float64"
    known = job.notes.get("flex")
    return str(known) if isinstance(known, Unmappable) else None


def cost(job: Job) -> float:
    if job.device.type in _EAGER or torch.compiler.is_compiling():
        return math.inf  # it is there for tests
    likely, least = roofline.flex(job), roofline.flex(job, job.count_bound / 2)
    others = (other.cost(job) for other in (dense, edges) if not other.unsupported(job))
    best = min(others, default=math.inf)
    if least > best or likely > _HOPELESS * best:
        return likely  # finding the blocks would take longer than it could ever save
    try:
        prepared = prepare(job)
    except Unmappable:
        return math.inf
    return estimate(job, prepared)


def estimate(job: Job, prepared: Prepared) -> float:
    """Return the nanoseconds on a GPU."""
    blocks = prepared.pairs_of_blocks[0] * (job.batch if prepared.rows == 1 else 1)
    return roofline.flex(job, blocks * prepared.size**2 if blocks else 0)


def describe(job: Job, prepared: Prepared) -> str:
    some, every, all_pairs = prepared.pairs_of_blocks
    if not all_pairs:
        return "nothing, as there are no pairs."
    order = ", tokens in compact order" if any(x is not None for x in prepared.orders) else ""
    how = "FlexAttention" if prepared.compiled else "FlexAttention's blocks in plain torch"
    return (
        f"{how}: {some:,} of {all_pairs:,} pairs of blocks of {prepared.size}, {every:,} of them "
        f"without a mask{order}."
    )


def share(plan: Plan, bias: Bias | None, kv_heads: int, dtype: torch.dtype) -> None:
    """Compute what calls by a plan share in programs that are compiled: nothing, as it is no part
    of them."""


def run(plan: Plan, q: Tensor, k: Tensor, v: Tensor, options: Options) -> Result:
    if torch.compiler.is_compiling():
        return torch.compiler.disable(_run)(plan, q, k, v, options)
    return _run(plan, q, k, v, options)


def _run(plan: Plan, q: Tensor, k: Tensor, v: Tensor, options: Options) -> Result:
    prepared: Prepared = plan.prepared
    refuse_transforms("flex", (q, k, v, *(() if options.sink is None else (options.sink,))))
    weights = None
    with torch.autocast(q.device.type, enabled=False):
        if not plan.job.all_pairs:
            return _nothing(q, k, v, options)
        if prepared.compiled and not proof.holds(attended, plan, q, k, v, options):
            return proof.by_blocks(plan, q, k, v, options)
        try:
            output, lse = attended(plan, q, k, v, options)
        except compiled.NotCompiled as error:
            proof.distrust(plan, q, k, v, options, str(error))
            return proof.by_blocks(plan, q, k, v, options)
        if options.weights:
            explicit = reference.explicit(plan)
            weights = reference.weigh(plan, explicit, q, k, options)[0].to(q.dtype)
    return Result(output, weights, lse)


def _nothing(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Result:
    """The result where there are no pairs."""
    shape = q.shape[:3]
    lse = q.new_full(shape, -torch.inf, dtype=torch.promote_types(q.dtype, torch.float32))
    weights = q.new_zeros(*shape, k.shape[2]) if options.weights else None
    return Result(q.new_zeros(*shape, v.shape[-1]), weights, lse)


def attended(
    plan: Plan, q: Tensor, k: Tensor, v: Tensor, options: Options
) -> tuple[Tensor, Tensor | None]:
    """Return the output and, where it is needed, the log-sum-exp."""
    prepared: Prepared = plan.prepared
    score = prepared.score(plan, options, torch.promote_types(q.dtype, torch.float32))
    q, k, v = (
        once_only("flex", prepared.arranged(x, side)) for x, side in ((q, 0), (k, 1), (v, 1))
    )
    needs_lse = options.lse or options.sink is not None or options.dropout_p > 0
    output, lse = _kernel(prepared, q, k, v, score.program(), options.scale, needs_lse)
    if options.dropout_p:
        # Weights are dropped from the softmax over all keys. A pass without the dropped pairs is
        # divided by the sum over those that are left, which the two sums set right
        assert lse is not None
        seed = torch.randint(2**31, (1,), device=q.device)
        dropping = score.dropping(seed, options.dropout_p)
        output, kept = _kernel(prepared, q, k, v, dropping, options.scale, True)
        assert kept is not None
        share = (kept - lse.masked_fill(lse == -torch.inf, 0)).exp() / (1 - options.dropout_p)
        output = output * share[..., None].to(output.dtype)
    if options.sink is not None:
        assert lse is not None
        # In a row without keys the output is 0 already, and the log-sum-exp is no number to use
        left = lse.masked_fill(lse == -torch.inf, 0) - options.sink.to(lse.dtype)[:, None]
        output = output * left.sigmoid()[..., None].to(output.dtype)
    return prepared.restored(output), None if lse is None else prepared.restored(lse)


def _kernel(
    prepared: Prepared,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    score: Program | None,
    scale: float,
    needs_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    mask, lists, size = prepared.mask, prepared.lists, prepared.size
    if prepared.compiled:
        return compiled.attend(q, k, v, lists, size, mask, score, scale, needs_lse)
    mask_mod, score_mod = (None if one is None else one.mod for one in (mask, score))
    return attend_blocks(q, k, v, lists, size, mask_mod, score_mod, scale)
