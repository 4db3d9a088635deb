"""Which backend computes an attention, and why; decided once per forward, shared by its layers."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.compiler import is_exporting

from attention_core.annotated import checked
from attention_core.backends import blocks, dense, edges, reference
from attention_core.biases import Bias, as_bias
from attention_core.checks import check_kind, check_number, check_whole
from attention_core.lasting import Memory, lasting
from attention_core.masks import Mask
from attention_core.masks.dense import as_mask
from attention_core.scores import Score
from attention_core.spaces import Graph, Pairs, Space

T = TypeVar("T")

BACKENDS: dict[str, ModuleType] = {
    "reference": reference,
    "dense": dense,
    "blocks": blocks,
    "edges": edges,
}


class BackendError(NotImplementedError):
    """The backend asked for cannot do this job; the message says what it lacks."""


@dataclass(frozen=True)
class Job:
    """What one attention has to compute: all that the choice of a backend may depend on."""

    spaces: tuple[Space, Space]
    mask: Mask | None = None
    bias: Bias | None = None
    score: Score | None = None
    heads: int = 1
    head_dim: int = 64
    batch: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    grad: bool = False
    weights: bool = False
    softcap: float | None = None
    edge_features: bool = False
    #: What a backend found out to tell its cost, and will need.
    notes: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def all_pairs(self) -> int:
        """Pairs per head if everyone could attend to everyone in their row."""
        return self.batch * self.spaces[0].length * self.spaces[1].length

    @property
    def row_pairs(self) -> int:
        """The pairs that mask and bias are asked about: a batch shares one row of tokens where its
        samples sit in the same places."""
        shared = all(space.batch is None for space in self.spaces)
        return self.all_pairs // max(self.batch, 1) if shared else self.all_pairs

    @property
    def allows_all(self) -> bool:
        """Whether every pair may attend, as far as the structure shows."""
        segments = any(space.segments is not None for space in self.spaces)
        return not segments and (self.mask is None or self.mask.allows_all(self.spaces))

    @cached_property
    def sample_pairs(self) -> int:
        """Pairs per head inside samples: what is left of all pairs once segments are apart."""
        query, key = (space.segments for space in self.spaces)
        if query is None or key is None or query.ndim > 1 or key.ndim > 1:
            return self.all_pairs
        n = max(space.num_segments for space in self.spaces)
        sizes = [torch.bincount(segments, minlength=n) for segments in (query, key)]
        return self.batch * int((sizes[0] * sizes[1]).sum())

    @cached_property
    def count_bound(self) -> int:
        """At most how many pairs per head are allowed."""
        if self.mask is None or not self.sample_pairs:
            return self.sample_pairs
        special = sum(space.num_special for space in self.spaces)
        with_special = self.batch * special * max(space.length for space in self.spaces)
        bound = self.batch * self.mask.count_bound(self.spaces) + with_special
        return int(min(bound, self.sample_pairs))

    @property
    def repeats_edges(self) -> bool:
        """Whether the mask lists the edges of a graph, and some edge twice."""
        space = self.spaces[1]
        if self.mask is None or not isinstance(space, Graph):
            return False
        listed = self.mask.candidates(self.spaces)
        return listed is not None and listed.edge is not None and space.edges.repeated is not None

    def pairs(self) -> Pairs:
        """Every pair of query and key."""
        return Pairs.all(self.spaces, batch=self.batch, heads=self.heads, device=self.device)

    def allowed(self, pairs: Pairs) -> Tensor | None:
        """What mask and segments allow, in at most the broadcast shape of `pairs`; None: all.

        Validity is left to the backend, which may know a cheaper way to drop padding.
        """
        same, mask = pairs.same_sample, self.mask
        # A length that an exported program leaves open is a symbol: asking would fix its range
        known = all(isinstance(space.length, int) for space in self.spaces)
        if mask is None or (known and mask.allows_all(self.spaces)):
            return same
        allowed = mask.at(pairs)
        if not allowed.ndim:
            allowed = allowed.expand(torch.broadcast_shapes(pairs.query.shape, pairs.key.shape))
        return allowed if same is None else allowed & same


class Options(NamedTuple):
    """What one call of an attention adds to its plan; the backends' arguments."""

    bias: Bias | None
    score: Score | None
    scale: float
    softcap: float | None
    sink: Tensor | None
    edge_key: Tensor | None
    edge_value: Tensor | None
    dropout_p: float
    weights: bool
    lse: bool


class Result(NamedTuple):
    """What a backend returns: the output and, where asked for, weights and log-sum-exp."""

    output: Tensor
    weights: Tensor | None = None
    lse: Tensor | None = None


@dataclass
class Plan:
    """The chosen backend and what it prepared from the mask; `str(plan)` explains it.

    A plan belongs to one forward pass: it remembers biases and rotations that layers share, and
    those hold a graph for the backward pass.
    """

    job: Job
    backend: str
    because: str
    prepared: Any
    _memory: Memory = field(default_factory=Memory, repr=False)

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """`compute()`, the first time that `key` comes up in this forward pass."""
        return self._memory.once(key, compute)

    def bias(self, bias: Bias | None, pairs: Pairs) -> Tensor | None:
        """The scores that `bias` adds to `pairs`, computed once for all layers that share it."""
        return None if bias is None else self.once(("bias", bias), lambda: bias(pairs))

    def renewed(self) -> Plan:
        """This plan for another forward pass; what was found in the mask stays."""
        return replace(self, _memory=Memory())

    def __str__(self) -> str:
        return _explain(self)


@lasting
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
    backend: str | None = None,
) -> Plan:
    """Choose how to compute an attention, and prepare what its layers and heads share.

    Args:
        space: where the tokens sit, or (space of the queries, space of the keys).
        mask, bias, score, softcap: as in `attend`.
        heads: number of query heads; those of the bias where it has a number, else 1.
        head_dim: size of a head.
        batch: batch size; the space's own where it has one, else 1.
        device: where the attention will run.
        grad: whether a gradient is needed.
        weights: whether the attention weights are asked for.
        edge_features: whether `edge_key` or `edge_value` will be given.
        backend: a name to override the choice.

    Raises:
        TypeError: edge features without a Graph.
        BackendError: `backend` cannot do this job.
    """
    spaces = space if isinstance(space, tuple) else (space, space)
    if len(spaces) != 2 or not all(isinstance(s, Space) for s in spaces):
        raise TypeError(
            "space must be a Space such as Sequence(length), or (space of queries, space of keys); "
            f"got {space!r}"
        )
    if edge_features and not all(isinstance(s, Graph) for s in spaces):
        got = " attending to ".join(s.describe() for s in dict.fromkeys(spaces))
        raise TypeError(
            "edge features (edge_features=, edge_key=, edge_value=, edge_dim=) need a Graph's "
            f"nodes, got {got}"
        )
    check_whole(0, heads=heads, batch=batch, or_none=True)
    check_whole(0, head_dim=head_dim)
    check_kind(Score, score=score)
    check_number(above=0, softcap=softcap, or_none=True)
    bias = as_bias(bias)
    if heads is None:
        heads = (None if bias is None else bias.heads) or 1
    device = torch.device(device)
    spaces = _moved(spaces, device)
    sizes = [s.batch for s in spaces if s.batch is not None]  # no set: they may be symbols
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
    )
    if backend is not None and (not isinstance(backend, str) or backend not in BACKENDS):
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    lacks = {name: module.lacks(job) for name, module in BACKENDS.items()}
    if backend is not None:
        if lacks[backend]:
            raise BackendError(f"backend={backend!r} cannot do this: {lacks[backend]}")
        chosen, because = backend, "You asked for this backend."
    elif is_exporting():
        # Costs depend on sizes that stay open, and lists of pairs on values
        chosen = "dense" if not lacks["dense"] else "reference"
        because = "An exported program computes all pairs, whatever its sizes."
    else:
        costs = {name: BACKENDS[name].cost(job) for name in BACKENDS if not lacks[name]}
        chosen, because = min(costs, key=lambda name: costs[name]), _compare(job, costs, lacks)
        if chosen != "edges" and job.repeats_edges:
            chosen = "edges"
            because = "An edge is listed more than once, which only this backend tells apart."
    return Plan(job, chosen, because, BACKENDS[chosen].prepare(job))


def _moved(spaces: tuple[Space, Space], device: torch.device) -> tuple[Space, Space]:
    """Both on the device, where they share what they shared before."""
    query, key = spaces
    moved = query.to(device)
    other = moved if key is query else key.to(device)
    if isinstance(query, Graph) and isinstance(key, Graph) and query.edges is key.edges:
        assert isinstance(moved, Graph) and isinstance(other, Graph)
        other.edges = moved.edges
    return moved, other


def explain(
    space: Space | tuple[Space, Space],
    mask: Mask | Tensor | None = None,
    bias: Bias | Tensor | None = None,
    **options: Any,
) -> str:
    """In words: which backend `plan` chooses, what it will compute, and why. Arguments as there."""
    return str(plan(space, mask, bias, **options))


def _compare(job: Job, costs: dict[str, float], lacks: dict[str, str | None]) -> str:
    what = "forward and backward" if job.grad else "forward"
    estimates = sorted(costs.items(), key=lambda item: item[1])
    sentences = [", ".join(f"{name} {_time(cost)}" for name, cost in estimates)]
    sentences += [f"{name} is out: {reason}" for name, reason in lacks.items() if reason]
    return f"Estimated on two CPU cores, {what}: {'; '.join(sentences)}."


def _time(nanoseconds: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6)):
        if nanoseconds >= size:
            return f"{float(f'{nanoseconds / size:.2g}'):,g} {unit}"
    return f"{float(f'{nanoseconds / 1e3:.2g}'):,g} µs"


def _explain(plan: Plan) -> str:
    job = plan.job
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
        f"{job.heads} heads of {job.head_dim}"
        f"{', edge features in keys or values' if job.edge_features else ''}.",
        f"{pairs}.",
        f"Backend {plan.backend}: {BACKENDS[plan.backend].describe(job, plan.prepared)}",
    ]
    special = sum(s.num_special for s in dict.fromkeys(job.spaces))
    if special and job.mask is not None:
        lines.append("Special tokens are exempt from the mask: they see and are seen by all.")
    if plan.because:
        lines.append(plan.because)
    return "\n".join(lines)


def _name(bias: Bias | None) -> str:
    if bias is None:
        return "none"
    return f"{'learned ' if bias.learned else ''}{type(bias).__name__.lstrip('_')}"
