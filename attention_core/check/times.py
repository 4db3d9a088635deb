"""Times of our backends and of what else computes the same, and factors on our estimates."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attention_core.attention import attend
from attention_core.backends import measured
from attention_core.check.works import Work
from attention_core.job import Plan
from attention_core.layers import MultiheadAttention
from attention_core.masks import Edges
from attention_core.plan_cache import PLANS
from attention_core.planning import BACKENDS, kernel_of, plan
from attention_core.precision import HALVES
from attention_core.spaces import Pairs

#: Layers that share a plan on a CPU, whose constants are of one of so many.
_LAYERS = 4
#: What takes more is left out: times the quickest as estimated, and bytes of scores of all pairs.
_LONGEST = 10
_MOST_BYTES = {"cuda": 8e9, "cpu": 1.5e8}
#: So often, or for so many seconds.
_ROUNDS, _SECONDS = 10, 0.3
#: From fewer works no factor is told.
FEWEST = 3


class Time(NamedTuple):
    """Milliseconds of one contestant: forward, and forward and backward; of ours beside what was
    estimated, and by which kernel of the cost model.

    Attributes:
        chosen: whether it is the backend that `plan` takes.
    """

    work: str
    dtype: str
    contestant: str
    forward: float
    both: float
    kernel: str = ""
    estimated_forward: float = 0.0
    estimated_both: float = 0.0
    chosen: bool = False


def times(work: Work, dtype: torch.dtype, device: torch.device, until: float) -> Iterator[Time]:
    """Yield the times of every contestant, until the clock (`time.monotonic`) says so."""
    bias = None if work.bias is None else copy.deepcopy(work.bias).to(device)
    q, k, v = work.tensors(dtype, device)
    said = str(dtype).removeprefix("torch.")
    jobs = {grad: _job(work, bias, dtype, device, grad) for grad in (False, True)}
    chosen = plan(work.space, work.mask, bias, **_options(work, dtype, device, True)).backend
    for name in _able(work, jobs[True], chosen):
        if time.monotonic() > until:
            return
        found = _timed(_ours(work, bias, name, dtype, device, q, k, v), [q, k, v], device, until)
        layers = _LAYERS if device.type == "cpu" else 1
        guessed = [BACKENDS[name].cost(jobs[grad]) / 1e6 for grad in (False, True)]
        yield Time(
            work.name, said, name, found[0] / layers, found[1] / layers,
            kernel_of(name, jobs[True]), guessed[0], guessed[1], name == chosen,
        )  # fmt: skip
    for name, forward in _others(work, bias, dtype, device, q, k, v):
        if time.monotonic() > until:
            return
        try:
            found = _timed(forward, [q, k, v], device, until)
        except (RuntimeError, ImportError, NotImplementedError):
            continue  # a kernel that there is not for this dtype or device
        yield Time(work.name, said, name, *found)


def _options(work: Work, dtype: torch.dtype, device: torch.device, grad: bool) -> dict[str, Any]:
    return {
        "heads": work.heads, "head_dim": work.dim, "batch": work.batch, "device": device,
        "grad": grad, "dtype": dtype,
    }  # fmt: skip


def _job(work: Work, bias: Any, dtype: torch.dtype, device: torch.device, grad: bool) -> Any:
    options = _options(work, dtype, device, grad)
    return plan(work.space, work.mask, bias, backend="reference", **options).job


def _able(work: Work, job: Any, chosen: str) -> list[str]:
    """The backends that can do it, and soon enough; that which plan takes first."""
    kind = "cuda" if job.device.type == "cuda" else "cpu"
    names = [name for name in BACKENDS if not BACKENDS[name].unsupported(job)]
    of_scores = 4.0 * job.heads * job.all_pairs
    costs = {name: BACKENDS[name].cost(job) for name in names}
    quick = [
        name
        for name, cost in costs.items()
        if cost < _LONGEST * min(costs.values())
        and (name not in ("reference", "dense") or of_scores < _MOST_BYTES[kind])
    ]
    return [chosen, *(name for name in quick if name != chosen)]


def _ours(
    work: Work, bias: Any, name: str, dtype: torch.dtype, device: torch.device,
    q: Tensor, k: Tensor, v: Tensor,
) -> Callable[[], Tensor]:  # fmt: skip
    def make() -> Plan:
        PLANS.clear()
        options = _options(work, dtype, device, torch.is_grad_enabled())
        return plan(work.space, work.mask, bias, backend=name, **options)

    made: dict[bool, Plan] = {}

    def forward() -> Tensor:
        x, grad = q, torch.is_grad_enabled()
        if device.type == "cpu":  # as its constants are: a plan is found anew for four layers
            own = make()
            for _ in range(_LAYERS):
                x = attend(x, k, v, bias=bias, plan=own)
            return x
        if grad not in made:
            made[grad] = make()
        return attend(x, k, v, bias=bias, plan=made[grad].renewed())

    return forward


def _others(
    work: Work, bias: Any, dtype: torch.dtype, device: torch.device, q: Tensor, k: Tensor, v: Tensor
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """What else there is for the same tokens: SDPA as fast as it gets, and with a mask; samples in
    one kernel; PyG's layer beside ours, both with their projections."""
    pairs = float(work.batch * work.heads * work.space.length**2)
    if 4 * pairs < _MOST_BYTES[device.type]:
        yield "SDPA, all pairs", lambda: scaled_dot_product_attention(q, k, v)
        if work.mask is not None or bias is not None or work.space.segments is not None:
            job = _job(work, bias, dtype, device, False)
            with torch.no_grad():
                mask = _mask(job, bias, dtype)
            yield "SDPA, mask", lambda: scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if work.lengths and device.type == "cuda" and dtype in HALVES:
        yield "varlen_attn", _varlen(work, device, q, k, v)
    if work.mask == Edges() and isinstance(work.mask, Edges):
        yield from _layers(work, dtype, device)


def _mask(job: Any, bias: Any, dtype: torch.dtype) -> Tensor:
    """All pairs, as a mask of SDPA."""
    job_pairs: Pairs = job.pairs()
    allowed = job.allowed(job_pairs)
    if bias is None:
        return allowed
    scores = bias(job_pairs)
    return (scores if allowed is None else scores.masked_fill(~allowed, -torch.inf)).to(dtype)


def _varlen(
    work: Work, device: torch.device, q: Tensor, k: Tensor, v: Tensor
) -> Callable[[], Tensor]:
    from torch.nn.attention.varlen import varlen_attn

    starts = torch.tensor([0, *work.lengths]).cumsum(0).to(device, torch.int32)
    longest = max(work.lengths)

    def forward() -> Tensor:
        rows = [x[0].transpose(0, 1) for x in (q, k, v)]
        found = varlen_attn(rows[0], rows[1], rows[2], starts, starts, longest, longest)
        assert isinstance(found, Tensor)
        return found

    return forward


def _layers(
    work: Work, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    with warnings.catch_warnings():  # what its own imports warn of is no news here
        warnings.simplefilter("ignore")
        from torch_geometric.nn import TransformerConv

    assert work.space.edges is not None
    size = work.heads * work.dim
    index = torch.stack([work.space.edges.source, work.space.edges.target]).to(device)
    x = torch.randn(work.space.length, size, device=device, dtype=dtype, requires_grad=True)
    theirs = TransformerConv(size, work.dim, work.heads).to(device, dtype)
    ours = MultiheadAttention(size, work.heads).to(device, dtype)
    space = work.space.to(device)
    yield "PyG TransformerConv", lambda: theirs(x, index)
    yield "MultiheadAttention", lambda: ours(x, space=space, mask=work.mask)


def _timed(
    forward: Callable[[], Tensor], inputs: list[Tensor], device: torch.device, until: float
) -> tuple[float, float]:
    """Median milliseconds of a forward pass, and of one with its backward pass."""

    def once(backward: bool) -> float:
        _wait(device)
        since = time.perf_counter()
        if backward:
            out = forward()
            torch.autograd.backward(out, torch.ones_like(out))
        else:
            with torch.no_grad():
                forward()
        _wait(device)
        return 1e3 * (time.perf_counter() - since)

    found = []
    for backward in (False, True):
        once(backward)  # compiles, allocates
        taken: list[float] = []
        stop = min(until, time.monotonic() + _SECONDS)
        while not taken or (len(taken) < _ROUNDS and time.monotonic() < stop):
            taken.append(once(backward))
        found.append(median(taken))
        for x in inputs:
            x.grad = None
    return found[0], found[1]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def factors(found: Iterable[Time]) -> dict[str, dict[str, tuple[float, float]]]:
    """Return measured ÷ estimated by kernel and dtype, forward and with backward: the median of all
    works. Under `measured.OTHERS` is that of all kernels, for those of which none was timed, so
    that they are compared with the others as before. A dtype with too few works has none."""
    ours = [one for one in found if one.kernel and one.estimated_forward > 0]
    result: dict[str, dict[str, tuple[float, float]]] = {}
    for dtype in sorted({one.dtype for one in ours}):
        alike = [one for one in ours if one.dtype == dtype]
        if len({one.work for one in alike}) < FEWEST:
            continue
        for kernel in sorted({one.kernel for one in alike}):
            of_kernel = [one for one in alike if one.kernel == kernel]
            result.setdefault(kernel, {})[dtype] = _ratios(of_kernel)
        result.setdefault(measured.OTHERS, {})[dtype] = _ratios(alike)
    return result


def _ratios(found: list[Time]) -> tuple[float, float]:
    forward = median(one.forward / one.estimated_forward for one in found)
    both = median(one.both / one.estimated_both for one in found)
    return tuple(min(max(one, measured.LEAST), measured.MOST) for one in (forward, both))  # type: ignore[return-value]
