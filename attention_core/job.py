"""What one attention has to compute: a `Job`, its `Plan`, and what backends take and give."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from attention_core.biases import Bias
from attention_core.edge_projection import EdgeFeatures
from attention_core.lasting import Memory, computed, lasting
from attention_core.masks import Mask
from attention_core.score_mods import has_score_mod, split
from attention_core.scores import Score
from attention_core.spaces import Pairs, Space
from attention_core.transfer import is_of_package, moved, tensors_in

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """One attention to compute: all that the choice of a backend may depend on."""

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
    #: What products are computed in, see `precision.product_dtype`.
    dtype: torch.dtype = torch.float32
    #: What a backend found out to tell its cost, and will need.
    notes: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @computed
    def host(self) -> Job:
        """This job with spaces and mask on the CPU, where planning may look at numbers without
        waiting for a device; the job itself, where it is there, or has a mask of the user's own,
        which may hold anything."""
        if self.device.type in ("cpu", "meta") or not is_ours(self.mask):
            return self
        query, key = self.spaces
        spaces = moved((query.host, key.host), "cpu")
        if query.edges is key.edges and spaces[0].edges is not spaces[1].edges:
            other = copy.copy(spaces[1])
            other.edges, spaces = spaces[0].edges, (spaces[0], other)
        device = torch.device("cpu")
        return replace(self, spaces=spaces, mask=moved(self.mask, device), device=device, notes={})

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
    def moving(self) -> bool:
        """Whether what is allowed has to be asked with each forward pass."""
        return any(space.moving for space in self.spaces)

    @property
    def allows_all(self) -> bool:
        """Whether every pair may attend, as far as the structure shows."""
        segments = any(space.segments is not None for space in self.spaces)
        return not segments and (self.mask is None or self.mask.allows_all(self.spaces))

    @computed
    def sample_pairs(self) -> int:
        """Pairs per head inside samples: what is left of all pairs once segments are apart, or of
        padded rows without their padding."""
        if all(space.segments is None and space.valid is None for space in self.spaces):
            return self.all_pairs
        query, key = (space.host.segments for space in self.spaces)
        if query is None and key is None:
            return self.all_pairs if torch.compiler.is_compiling() else self._without_padding()
        if query is None or key is None or query.ndim > 1 or key.ndim > 1:
            return self.all_pairs
        n = max(space.num_segments for space in self.spaces)
        sizes = [torch.bincount(segments, minlength=n) for segments in (query, key)]
        return self.batch * int((sizes[0] * sizes[1]).sum())

    def _without_padding(self) -> int:
        valid = [space.host.valid for space in self.spaces]
        counts = [
            space.length if own is None else own.sum(-1)
            for space, own in zip(self.spaces, valid, strict=True)
        ]
        pairs = counts[0] * counts[1]
        if not isinstance(pairs, Tensor):
            return self.all_pairs
        return int(pairs.sum()) * (1 if pairs.ndim else self.batch)

    @computed
    def mask_bound(self) -> float:
        """At most how many pairs the mask allows in a row of the batch, special tokens aside: of
        points, hops and tensors it is counted, so once for all backends."""
        if self.mask is None:
            return math.inf
        # A tensor of pairs stays where it is, rather than to be copied and counted
        holds = self.device.type != "cpu" and any(True for _ in tensors_in(self.mask))
        return self.mask.count_bound((self if holds else self.host).spaces)

    @computed
    def count_bound(self) -> int:
        """At most how many pairs per head are allowed."""
        if self.mask is None or not self.sample_pairs:
            return self.sample_pairs
        special = sum(space.num_special for space in self.spaces)
        with_special = self.batch * special * max(space.length for space in self.spaces)
        bound = self.batch * self.mask_bound + with_special
        return int(min(bound, self.sample_pairs))

    @property
    def modifies(self) -> bool:
        """Whether the bias does more to a score than to add to it."""
        return has_score_mod(self.bias)

    @property
    def repeats_edges(self) -> bool:
        """Whether the mask lists the edges of a graph, and some edge twice."""
        mask = self.mask
        if mask is None or self.spaces[1].edges is None or not mask.lists_candidates:
            return False
        spaces = self.host.spaces
        edges = spaces[1].edges
        return edges is not None and edges.repeated is not None and mask.names_edges(spaces)

    @lasting
    def pairs(self) -> Pairs:
        """Return every pair of query and key."""
        return Pairs.all(self.spaces, batch=self.batch, heads=self.heads, device=self.device)

    def allowed(self, pairs: Pairs) -> Tensor | None:
        """Return the pairs that mask and segments allow, bool, broadcasts to `pairs`; None: all.

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


def is_ours(mask: Mask | Bias | None) -> bool:
    """Return whether a mask or bias is of this package, with all that it is composed of."""
    if mask is None:
        return True
    parts = [part for part in vars(mask).values() if isinstance(part, Mask)]
    return is_of_package(type(mask)) and all(map(is_ours, parts))


#: The job of what is kept between forward passes, which must not hold a caller's spaces and biases.
NO_JOB = Job(spaces=(Space(0),) * 2)


class Options(NamedTuple):
    """The arguments of one call of an attention, beside those of its plan."""

    bias: Bias | None
    score: Score | None
    scale: float
    softcap: float | None
    sink: Tensor | None
    edge_key: EdgeFeatures | None
    edge_value: EdgeFeatures | None
    dropout_p: float
    weights: bool
    lse: bool


class Result(NamedTuple):
    """The output of a backend and, where asked for, weights and log-sum-exp."""

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
    prepared: Any
    #: Put into words what is computed and why; asked by `str`, as few plans are ever read.
    summary: Callable[[], str] = field(default=str, repr=False)
    # No class, which is not traced as what makes a default
    _memory: Memory = field(default_factory=lambda: Memory(), repr=False)

    def memo(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return the value cached under `key`, computing it on a miss; it is kept
        for one forward pass."""
        return self._memory.memo(key, compute)

    def bias(self, bias: Bias | None, pairs: Pairs) -> Tensor | None:
        """Return the scores that `bias` adds to `pairs` after what it modifies, if it does;
        computed once for layers that share it."""
        added = split(bias)[1]
        return None if added is None else self.memo(("bias", bias), lambda: added(pairs))

    @property
    def order(self) -> Tensor | None:
        """The order (L,), or (B, L), in which the backend computes on the tokens of its space; None
        where that is theirs. It brings them into it itself, in each layer, unless `in_order`."""
        order: Tensor | None = getattr(self.prepared, "order", None)
        return order

    def in_order(self) -> Plan:
        """Return this plan for tokens that have been brought into its `order`, with their space."""
        prepared = self.prepared.in_order()
        space = self.job.spaces[0].keep(self.prepared.order_on_host)
        job = replace(self.job, spaces=(space, space), notes={})
        return replace(self, job=job, prepared=prepared, _memory=Memory())

    def renewed(self) -> Plan:
        """Return this plan for another forward pass; what was found in the mask stays."""
        return replace(self, _memory=Memory())

    def __str__(self) -> str:
        return self.summary()
