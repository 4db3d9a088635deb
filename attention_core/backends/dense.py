"""All pairs on `scaled_dot_product_attention`; no tensor of pairs where none is needed.

Packed samples whose pairs nothing else restricts are attended one after the other; on a GPU, in
half precision, all at once by `varlen`, which also knows windows and leaves padding out.

A GPU has no kernel that adds float32 to scores of halves. So what has a bias or a sink there is
computed in float32: rounded to 8 bits, ALiBi at distance 300 would be off by one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attention_core.backends import measured, packed, reference, roofline, varlen
from attention_core.backends.costs import Rate, mask_cost
from attention_core.backends.samples import CAUSAL, WHOLE, Samples, Window, each, find
from attention_core.backends.sdpa import attended, refuse_second, with_sink
from attention_core.biases import Bias
from attention_core.errors import counted
from attention_core.finite import can_look
from attention_core.job import Job, Options, Plan, Result
from attention_core.lasting import computed
from attention_core.masks import Causal
from attention_core.precision import HALVES
from attention_core.score_mods import split
from attention_core.spaces import Pairs, Space

#: Of a pair; of the share of it that is_causal leaves; of a mask or bias that is added to it, and
#: of the gradient of that.
RATE = Rate(0.57, 0.046, 2.9, 0.155)
_CAUSAL = 0.8
_TENSOR = Rate(0.9, 0.0, 1.2, 0.0)
_LEARNED = Rate(0.0, 0.0, 3.0, 0.0)
#: Of a call, and of that for one packed sample: forward; and forward and backward.
_CALL, _SAMPLE = (100_000.0, 300_000.0), (60_000.0, 150_000.0)


class Prepared:
    """The arguments of SDPA: `is_causal`, or a bool mask, and the queries whose output is 0.

    Attributes:
        samples: the packed samples that are attended each by itself.
        rows: the same, where one kernel does them all.
        causal: leave the mask to SDPA's `is_causal`.
        allowed: bool broadcastable to (B, H, Lq, Lk), all True on empty rows, or None.
        empty: bool broadcastable to (B, H, Lq, 1), True where a query may attend to no key.
    """

    def __init__(self, job: Job, samples: Samples | None = None) -> None:
        self.job, self.samples = job, samples
        self.allowed: Tensor | None = None
        self.empty: Tensor | None = None
        self.rows: varlen.Rows | None = None
        if samples is not None:
            self.causal = samples.window == CAUSAL
            if varlen.is_for(job):
                self.rows = varlen.Rows.of(samples, job)
            return
        self.causal = _is_plain_causal(job)
        if self.causal:
            return
        query, key = job.spaces
        if job.bias is not None:
            self.pairs  # noqa: B018  known before a program of the attention is compiled
        if job.mask is None and not self._narrows(query) and not self._narrows(key):
            return
        terms = [job.allowed(self.pairs)]
        # The validity of keys alone has one row for all queries; that of queries needs no pairs
        if key.valid is not None:
            terms.append(self.pairs.take("valid", "key"))
        for term in terms:
            if term is not None:
                self.allowed = term if self.allowed is None else self.allowed & term
        if self.allowed is not None:
            self.empty = ~self.allowed.any(-1, keepdim=True)
            # A row of -inf is NaN in some kernels: let it see everything, and zero its output
            self.allowed = self.allowed | self.empty
        if query.valid is not None:
            padding = ~self.pairs.take("valid", "query")
            self.empty = padding if self.empty is None else self.empty | padding

    @staticmethod
    def _narrows(space: Space) -> bool:
        return space.segments is not None or space.valid is not None

    @computed
    def pairs(self) -> Pairs:
        """Every pair of query and key."""
        return self.job.pairs()

    def for_job(self, job: Job) -> Prepared:
        """Return what was prepared for another job of the same structure."""
        new = Prepared.__new__(Prepared)
        new.__dict__ = {**self.__dict__, "job": job}
        new.__dict__.pop("pairs", None)
        if job.bias is not None:
            new.pairs  # noqa: B018
        return new


def prepare(job: Job) -> Prepared | None:
    return None if job.moving else Prepared(job, _samples(job))


def _is_plain_causal(job: Job) -> bool:
    query, key = job.spaces
    if not key.ordered or key.special is not None:
        return False
    return job.mask == Causal() and query is key and key.size is not None


def _samples(job: Job) -> Samples | None:
    """Samples that need no mask, or that of `is_causal`, or what `varlen` knows."""
    if torch.compiler.is_compiling():  # which cannot look at where they begin
        return None
    if "samples" not in job.notes:
        by_kernel = varlen.is_for(job)

        def takes(window: Window, padded: bool) -> bool:
            if by_kernel and varlen.takes(window):
                return True
            # As what `each` does, a sample after the other
            one_row = job.spaces[1].batch is None
            return window in (WHOLE, CAUSAL) and not padded and one_row

        job.notes["samples"] = find(job, takes)
    samples: Samples | None = job.notes["samples"]
    return samples


def unsupported(job: Job) -> str | None:
    if job.softcap is not None:
        return f"scaled_dot_product_attention cannot cap scores (softcap={job.softcap})"
    if job.score is not None:
        return f"scaled_dot_product_attention has no {type(job.score).__name__} score"
    if job.modifies:
        names = ", ".join(type(one).__name__ for one in split(job.bias)[0])
        return f"scaled_dot_product_attention adds to scores, no score mod ({names}) acts on them"
    if job.edge_features:
        return "scaled_dot_product_attention takes keys and values of tokens, no edge features"
    return None


def cost(job: Job) -> float:
    samples = _samples(job)
    if job.device.type == "cuda":
        return _cost_on_gpu(job, samples)
    pairs = job.all_pairs if samples is None else job.sample_pairs
    if samples is not None and samples.window not in (WHOLE, CAUSAL):
        pairs = min(pairs, job.count_bound)
    time = RATE.of(job) * pairs + _CALL[job.grad]
    if samples is not None:
        time *= _CAUSAL if samples.window == CAUSAL else 1.0
        time += _SAMPLE[job.grad] * len(samples)
    elif _is_plain_causal(job) and job.bias is None:
        time *= _CAUSAL
    elif _needs_tensor(job):
        time += _TENSOR.of(job) * job.all_pairs + mask_cost(job, job.row_pairs)
        if job.bias is not None and job.bias.learned:
            time += _LEARNED.of(job) * job.all_pairs
    time *= measured.factor(job, "dense")
    return time + (reference.cost(job) if job.weights else 0.0)


def kernel_of(job: Job) -> str:
    """Return which kernel a GPU runs for a job, by its name in `roofline`."""
    samples = _samples(job)
    if samples is not None and varlen.is_for(job):
        return "varlen"
    exact = job.dtype not in HALVES or (samples is None and _needs_tensor(job))
    return "efficient" if exact else "flash"


def _needs_tensor(job: Job) -> bool:
    """Whether SDPA is given a mask or biases of all pairs."""
    if _is_plain_causal(job) and job.bias is None:
        return False
    return job.bias is not None or not job.allows_all or job.spaces[1].valid is not None


def _cost_on_gpu(job: Job, samples: Samples | None) -> float:
    kernel = kernel_of(job)
    if samples is None:
        pairs = job.all_pairs / (2 if _is_plain_causal(job) and job.bias is None else 1)
        return roofline.dense(job, kernel, pairs, masked=_needs_tensor(job))
    pairs = job.sample_pairs / (2 if samples.window == CAUSAL else 1)
    if samples.window not in (WHOLE, CAUSAL):
        pairs = min(pairs, roofline.around(job, roofline.TILE, roofline.TILE))
    return roofline.dense(job, kernel, pairs, calls=1 if kernel == "varlen" else len(samples))


def describe(job: Job, prepared: Prepared | None) -> str:
    if prepared is None:
        return "scaled_dot_product_attention with a bool mask, made with each forward pass."
    if job.bias is not None:
        how = (
            f"with a tensor of {job.heads} × {job.spaces[0].length} × {job.spaces[1].length} biases"
        )
    elif prepared.samples is not None and varlen.is_for(job):
        rows = prepared.rows  # none of a GPU that is only named
        count = len(prepared.samples) if rows is None else len(rows.starts) - 1
        how = f"varlen_attn: {counted(count, 'sample')} in one kernel"
        narrow = prepared.samples.window != WHOLE
        return f"{how}, which masks by itself." if narrow else f"{how}."
    elif prepared.samples is not None:
        how = f"for each of {len(prepared.samples):,} samples"
        how += ", with is_causal" if prepared.causal else ", with no mask"
    elif prepared.causal:
        how = "with is_causal, so no mask is stored"
    elif prepared.allowed is not None:
        how = f"with a bool mask of {' × '.join(map(str, prepared.allowed.squeeze().shape))}"
    else:
        how = "with no mask"
    return f"scaled_dot_product_attention {how}."


def run(plan: Plan, q: Tensor, k: Tensor, v: Tensor, options: Options) -> Result:
    prepared: Prepared = plan.prepared
    if prepared is None:  # it moves
        prepared = plan.memo("now", lambda: Prepared(plan.job))
    rows = prepared.rows
    if rows is not None and varlen.serves(q, v, options):
        output = varlen.attend(rows, q, k, v, options.scale)
        refuse_second(output)
    else:
        if rows is not None and (rows.tokens is not None or rows.window not in (WHOLE, CAUSAL)):
            # The kernel was expected to compute what needs a mask otherwise
            prepared = plan.memo("with a mask", lambda: Prepared(plan.job))
        output = _computed(plan, prepared, q, k, v, options)
    if not (options.weights or options.lse):
        return Result(output)
    with torch.autocast(q.device.type, enabled=False):
        weights, lse = reference.weigh(plan, reference.explicit(plan), q, k, options)
    return Result(output, weights.to(q.dtype), lse)


def _computed(
    plan: Plan, prepared: Prepared, q: Tensor, k: Tensor, v: Tensor, options: Options
) -> Tensor:
    """The output (B, H, Lq, Dv) of SDPA."""
    mask, empty, causal = prepared.allowed, prepared.empty, prepared.causal
    wrong, far = None, False
    given, exact = q.dtype, torch.promote_types(q.dtype, torch.float32)
    if options.bias is not None or options.sink is not None:
        if q.device.type != "cpu":  # where kernels want mask and scores of one type
            q, k, v = (x.to(exact) for x in (q, k, v))
        if causal and prepared.samples is None:
            # SDPA takes is_causal or a tensor, and a bias or sink needs the tensor
            causal, mask = False, _triangle(plan, prepared)
    if options.bias is not None:
        mask, empty, wrong, far = _with_bias(plan, prepared, options.bias, mask, exact)

    def attention(
        q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, mask: Tensor | None, causal: bool
    ) -> Tensor:
        if sink is not None:
            mask, k, v = with_sink(mask, q, k, v, sink)
        return attended(q, k, v, mask, causal, options.dropout_p, options.scale, unfused=far)

    def of_sample(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None) -> Tensor:
        mask, causal = _own_mask(prepared, q, options)
        return attention(q, k, v, sink, mask, causal)

    if prepared.samples is None:
        output = attention(q, k, v, options.sink, mask, causal)
    elif torch.compiler.is_compiling():
        output = packed.attend(
            q, k, v, options.sink, prepared.samples.starts, causal, options.dropout_p, options.scale
        )
    else:
        output = each(q, k, v, options.sink, prepared.samples, of_sample)
    if q.device.type == "cpu" and torch.compiler.is_compiling():
        # What `attend` does elsewhere, and a compiled program cannot: the kernel drops short rows
        # of NaN scores
        output = output.masked_fill(~q.detach().isfinite().all(-1, keepdim=True), torch.nan)
    if wrong is not None:
        output = output.masked_fill(wrong, torch.nan)
    if empty is not None:
        output = output.masked_fill(empty, 0)
    return output.to(given)


def share(plan: Plan, bias: Bias | None, kv_heads: int, dtype: torch.dtype) -> None:
    """Compute what calls by a plan share, beside what has been prepared."""
    prepared: Prepared | None = plan.prepared
    if prepared is not None and bias is not None:
        mask = _triangle(plan, prepared) if prepared.causal else prepared.allowed
        exact = torch.promote_types(dtype, torch.float32)
        _with_bias(plan, prepared, bias, mask, exact)


def _triangle(plan: Plan, prepared: Prepared) -> Tensor | None:
    return plan.memo("causal mask", lambda: plan.job.allowed(prepared.pairs))


class _Biased(NamedTuple):
    """What a bias makes of a mask.

    Attributes:
        mask: what SDPA adds to scores (b, H, Lq, Lk).
        empty: the rows that it leaves empty.
        wrong: those where it has NaN or +inf, which some kernels take for empty; None: none has.
        far: whether it lies so far from 0 in a row that a fused kernel's backward pass, which
            knows a row's log-sum-exp alone, loses the sum of exponentials in it.
    """

    mask: Tensor | None
    empty: Tensor | None
    wrong: Tensor | None
    far: bool


#: From here on float32 rounds a log-sum-exp so that weights are off by 1e-4.
_FAR = 1024.0


def _with_bias(
    plan: Plan, prepared: Prepared, bias: Bias, mask: Tensor | None, dtype: torch.dtype
) -> _Biased:
    scores = plan.bias(bias, prepared.pairs)
    if scores is None:
        return _Biased(mask, prepared.empty, None, far=False)
    key = ("attn_mask", bias, dtype)  # SDPA on a CPU adds float32 to the scores of halves
    return plan.memo(key, lambda: _biased(plan, prepared, scores, mask, dtype))


def _own_mask(prepared: Prepared, q: Tensor, options: Options) -> tuple[Tensor | None, bool]:
    """The mask of one packed sample, and whether it is left to `is_causal`."""
    if not prepared.causal or options.sink is None:
        return None, prepared.causal
    length = q.shape[2]
    return torch.ones(length, length, dtype=torch.bool, device=q.device).tril(), False


def _biased(
    plan: Plan, prepared: Prepared, scores: Tensor, allowed: Tensor | None, dtype: torch.dtype
) -> _Biased:
    length = plan.job.spaces[1].length
    scores = scores.expand(torch.broadcast_shapes(scores.shape, (1, 1, 1, length)))
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    # A bias may forbid by -inf, so rows may be empty that the mask does not know of
    top = scores.detach().amax(-1, keepdim=True) if length else scores.new_full((), -torch.inf)
    empty, wrong = top == -torch.inf, ~(top < torch.inf)
    scores = scores.masked_fill(empty, 0).to(dtype)
    looks = can_look(top)
    return _Biased(
        scores,
        empty if prepared.empty is None else empty | prepared.empty,
        wrong if looks and bool(wrong.any()) else None,
        far=looks and bool((top.abs() > _FAR)[~empty].any()),
    )
