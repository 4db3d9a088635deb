"""Which backend computes an attention, and why; decided once per forward, shared by its layers."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_exporting

from attention_core.annotated import checked
from attention_core.backends import (
    blocks,
    dense,
    edges,
    flex,
    measured,
    reference,
    roofline,
)
from attention_core.biases import Bias, as_bias
from attention_core.checks import check_kind, check_number, check_whole
from attention_core.errors import BackendError, counted
from attention_core.job import NO_JOB, Job, Plan
from attention_core.lasting import lasting
from attention_core.masks import Mask
from attention_core.masks.algebra import as_mask
from attention_core.plan_cache import PLANS, contents
from attention_core.score_mods import has_score_mod
from attention_core.scores import Score
from attention_core.spaces import Space
from attention_core.transfer import indexed, is_there, moved

BACKENDS: dict[str, ModuleType] = {
    "reference": reference,
    "dense": dense,
    "blocks": blocks,
    "flex": flex,
    "edges": edges,
}


@checked
def plan(
    space: Space | tuple[Space, Space],
    mask: Mask | Tensor | None = None,
    bias: Bias | Tensor | None = None,
    *,
    score: Score | None = None,
    heads: int | None = None,
    head_dim: int = 64,
    batch: int | None = None,
    device: torch.device | str = "cpu",
    grad: bool = False,
    weights: bool = False,
    softcap: float | None = None,
    edge_features: bool = False,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> Plan:
    """Choose how to compute an attention, and prepare what its layers and heads share.

    Args:
        space: where the tokens sit, or (space of the queries, space of the keys).
        mask, bias, score, softcap: as in `attend`.
        heads: number of query heads; those of the bias where it has a number, else 1.
        head_dim: size of a head.
        batch: batch size; the space's own where it has one, else 1.
        device: where the attention will run. A GPU that this machine does not have is only named:
            the plan says what would be chosen there.
        grad: whether a gradient is needed.
        weights: whether the attention weights are asked for.
        edge_features: whether `edge_key` or `edge_value` will be given.
        dtype: what products are computed in: that of the queries, or autocast's. On a GPU it
            decides which kernels there are, and how fast.
        backend: a name to override the choice.

    Raises:
        TypeError: edge features without a Graph; a dtype that is no floating point.
        ValueError: a device that torch does not know, or another than a GPU that is not there.
        BackendError: `backend` cannot do this job.
    """
    spaces = space if isinstance(space, tuple) else (space, space)
    if len(spaces) != 2 or not all(isinstance(s, Space) for s in spaces):
        raise TypeError(
            "space must be a Space such as Sequence(length), or (space of queries, space of keys); "
            f"got {space!r}"
        )
    if edge_features and any(s.edges is None for s in spaces):
        got = " attending to ".join(s.describe() for s in dict.fromkeys(spaces))
        raise TypeError(
            "edge features (edge_features=, edge_key=, edge_value=, edge_dim=) need edges: a "
            f"Graph's nodes, or with_edges(edge_index); got {got}"
        )
    if type(heads) is not int or type(batch) is not int or type(head_dim) is not int:
        check_whole(1, heads=heads, or_none=True)
        check_whole(0, batch=batch, or_none=True)
        check_whole(0, head_dim=head_dim)
    elif heads < 1 or batch < 0 or head_dim < 0:
        check_whole(1, heads=heads)
        check_whole(0, batch=batch, head_dim=head_dim)
    if score is not None:
        check_kind(Score, score=score)
    if softcap is not None:
        check_number(above=0, softcap=softcap)
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating point, such as torch.bfloat16, got {dtype}")
    bias = None if bias is None else as_bias(bias)
    if heads is None:
        heads = (None if bias is None else bias.heads) or 1
    device = _known(device, backend)
    here = is_there(device)
    if here and (spaces[0].device != device or spaces[1].device != device):
        spaces = _moved(spaces, device)
    query, key = spaces
    batches = (query.batch,) if query is key else (query.batch, key.batch)
    sizes = [size for size in batches if size is not None]  # no set: they may be symbols
    if any(size != (sizes[0] if batch is None else batch) for size in sizes):
        got = " and ".join(str(s.batch) for s in spaces)
        raise ValueError(
            f"batch size {batch or ''} does not fit the spaces, which hold {got} samples"
        )
    job = Job(
        spaces=spaces,
        mask=as_mask(mask),
        bias=bias,
        score=score,
        heads=heads,
        head_dim=head_dim,
        batch=(sizes or [1])[0] if batch is None else batch,
        device=device,
        grad=grad,
        weights=weights,
        softcap=softcap,
        edge_features=edge_features,
        dtype=dtype,
    )
    if backend is not None and (not isinstance(backend, str) or backend not in BACKENDS):
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    depends = contents(job, backend) if here else None
    choice: Choice | None = None if depends is None else PLANS.find(depends)
    if choice is not None:
        prepared = choice.prepared.for_job(job)
    else:
        choice, prepared = _choose(job, backend)
        if depends is not None:
            choice = choice._replace(prepared=prepared.for_job(NO_JOB))
            PLANS.keep(depends, choice)
    return Plan(job, choice.backend, prepared, partial(_summary, job, choice, prepared))


def _known(device: torch.device | str, backend: str | None) -> torch.device:
    """The device with its index, if it is one to plan for."""
    try:
        found = indexed(device)
    except RuntimeError:
        raise ValueError(f"device must be cpu, cuda, cuda:N or so, got {device!r:.80}") from None
    if found.type == "meta" and backend is None:
        raise ValueError(
            "device must be one that holds numbers, such as cpu or cuda, for a backend to be "
            f"chosen, got {str(found)!r}"
        )
    if found.type != "cuda" and not is_there(found):
        raise ValueError(
            f"device must be cpu, cuda or another that this machine has, got {str(found)!r}"
        )
    return found


class Choice(NamedTuple):
    """The backend of a job, and what of the others says why: their costs, with the factors that are
    in these; of one that is kept, what it prepared, for no job."""

    backend: str
    costs: dict[str, float]
    unsupported: dict[str, str | None]
    because: str
    factors: measured.Measured | None
    prepared: Any = None


@lasting
def _choose(job: Job, backend: str | None) -> tuple[Choice, Any]:
    # Costs depend on sizes that stay open in an exported program, and lists of pairs on values
    exporting = is_exporting()
    asked = ("reference", "dense") if exporting and backend is None else tuple(BACKENDS)
    unsupported = {name: BACKENDS[name].unsupported(job) for name in asked}
    costs: dict[str, float] = {}
    found = None
    if backend is not None:
        if unsupported[backend]:
            raise BackendError(f"backend={backend!r} cannot do this: {unsupported[backend]}")
        chosen, because = backend, "You asked for this backend."
    elif not exporting and edges.stands(job):
        chosen, because = "edges", "Its pairs are the edges as they stand: no value is looked at."
    elif exporting:
        chosen = "dense" if not unsupported["dense"] else "reference"
        because = "An exported program computes all pairs, whatever its sizes."
    else:
        # A program that is compiled has the factors alone, and nobody to tell of them
        found = None if torch.compiler.is_compiling() else measured.of_device(job.device)
        costs = {name: BACKENDS[name].cost(job) for name in BACKENDS if not unsupported[name]}
        chosen, because = min(costs, key=lambda name: costs[name]), ""
        for name in (name for name, cost in costs.items() if cost == math.inf):
            unsupported[name] = BACKENDS[name].unsupported(job)  # which has found out meanwhile
        if chosen != "edges" and job.repeats_edges:
            chosen = "edges"
            because = "An edge is listed more than once, which only this backend tells apart."
    if not is_there(job.device) and chosen != "flex":  # whose blocks are found on the host
        job = replace(job, device=torch.device("cpu"))  # to be told what it would compute
    return Choice(chosen, costs, unsupported, because, found), BACKENDS[chosen].prepare(job)


def _moved(spaces: tuple[Space, Space], device: torch.device) -> tuple[Space, Space]:
    """Both on the device, at once, sharing what they shared before."""
    query, key = spaces
    if type(query).to is Space.to and type(key).to is Space.to:
        return moved(spaces, device)
    there = query.to(device)
    other = there if key is query else key.to(device)
    if query.edges is key.edges:
        other.edges = there.edges
    for here, new in zip(spaces, (there, other), strict=True):
        if here.device.type == "cpu" and not new.has_host:  # as it was changed by a `to` of its own
            new.keep_host(here)
    return there, other


def explain(
    space: Space | tuple[Space, Space],
    mask: Mask | Tensor | None = None,
    bias: Bias | Tensor | None = None,
    **options: Any,
) -> str:
    """Say in words which backend `plan`, of the same arguments, chooses, what it will compute,
    why. With `device="cuda"` of a GPU, also where there is none."""
    return str(plan(space, mask, bias, **options))


def _compare(job: Job, choice: Choice) -> str:
    what = "forward and backward" if job.grad else "forward"
    able = ((name, cost) for name, cost in choice.costs.items() if cost < math.inf)
    estimates = sorted(able, key=lambda item: item[1])
    sentences = [", ".join(f"{name} {_time(cost)}" for name, cost in estimates)]
    sentences += [
        f"{name} is out: {reason}" for name, reason in choice.unsupported.items() if reason
    ]
    source = _source(job, choice.factors, [name for name, _ in estimates])
    return f"Estimated {source}, {what}: {'; '.join(sentences)}."


def _source(job: Job, found: measured.Measured | None, names: list[str]) -> str:
    """What the estimates of these backends are of, and whether that was measured."""
    if found is not None:
        said = measured.source(found, job, {name: kernel_of(name, job) for name in names})
        if said is not None:
            return said
    gpu = job.device.type == "cuda"
    where = f"for an {roofline.gpu_of(job.device).name} GPU" if gpu else "on one CPU core"
    if found is not None:
        of = measured.dtype_of(job.dtype)
        return f"{where} (`attn check` of {found.date} has timed none of these in {of})"
    return where + (", not measured on this machine" if gpu else "")


def kernel_of(backend: str, job: Job) -> str:
    """Return the kernel of the cost model that a backend runs for a job."""
    gpu = job.device.type == "cuda"
    return dense.kernel_of(job) if backend == "dense" and gpu else backend


def _time(nanoseconds: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6)):
        if nanoseconds >= size:
            return f"{float(f'{nanoseconds / size:.2g}'):,g} {unit}"
    return f"{float(f'{nanoseconds / 1e3:.2g}'):,g} µs"


def _summary(job: Job, choice: Choice, prepared: Any) -> str:
    query, key = job.spaces
    who = key.describe() if query is key else f"{query.describe()}, attending to {key.describe()}"
    where = f"{who[:1].upper()}{who[1:]}"
    if job.batch > 1 and query.batch is None:
        where += f", batch {job.batch}"
    share = job.count_bound / max(job.all_pairs, 1)
    exact = job.mask is None or job.mask.allows_all(job.spaces)
    if job.count_bound == job.all_pairs:
        pairs = f"All {job.all_pairs:,} pairs"
        pairs += " may attend" if exact else " are looked at, the mask decides"
    else:
        percent = f"{100 * share:.2g}%"
        of = "segments allow" if job.mask is None else "the mask allows at most"
        pairs = f"Of {job.all_pairs:,} pairs {of} {job.count_bound:,} ({percent})"
    lines = [
        f"{where}; mask {'none' if job.mask is None else job.mask}, bias {_name(job.bias)}, "
        f"dtype {str(job.dtype).removeprefix('torch.')}, "
        f"{counted(job.heads, 'head')} of {job.head_dim}"
        f"{', edge features in keys or values' if job.edge_features else ''}.",
        f"{pairs}.",
        f"Backend {choice.backend}: {BACKENDS[choice.backend].describe(job, prepared)}",
    ]
    special = sum(s.num_special for s in dict.fromkeys(job.spaces))
    if special and job.mask is not None:
        lines.append("Special tokens are exempt from the mask: they see and are seen by all.")
    lines.append(choice.because or _compare(job, choice))
    return "\n".join(lines)


def _name(bias: Bias | None) -> str:
    if bias is None:
        return "none"
    leaves = bias.leaves()
    name = " + ".join(type(leaf).__name__ for leaf in leaves)
    if has_score_mod(bias) and len(leaves) > 1:
        name += " in this order"
    return f"{'learned ' if bias.learned else ''}{name}"
