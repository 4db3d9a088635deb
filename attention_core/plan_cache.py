"""What plans found, kept for later calls of equal spaces, mask and bias.

Whether they are equal is seen from what they hold, number by number and in tensors of its own, not
from which objects or tensors they are. So a change of any kind is seen, also one through NumPy or
`.data`, which no version of a tensor tells of; new objects that hold the same are recognised; and
nothing of a caller is kept alive. Comparing reads each number once, which planning does many times.

Only what answers from what it holds can be compared so: the spaces and masks of this package, and
of biases, whose values no plan depends on, what tells the plan about structure. A plan with a mask
or space of the user's own, which may look anywhere, is made anew each time. So is one of tensors
that need a gradient, or that are on another device than the CPU and were not moved there from it:
they would have to be waited for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from attention_core.backends import fast, measured
from attention_core.biases import Bias
from attention_core.job import NO_JOB, Job
from attention_core.lasting import can_last, lasting
from attention_core.masks import Mask
from attention_core.spaces import Space
from attention_core.spaces.edge_list import EdgeList
from attention_core.transfer import is_of_package, tensors_in

#: The most plans that are kept, those whose structure is equal and whose numbers differ, and the
#: bytes of all.
MOST_PLANS, _MOST_ALIKE, MOST_BYTES = 64, 4, 64 << 20
#: Larger ones are kept when their structure comes for the second time: batches that are sampled
#: hardly ever come again.
_LARGE = 1 << 20

_PLAIN = (int, float, bool, str, type(None), torch.device, torch.dtype)
#: Of edges, what masks ask about; features and tables of pairs are for biases and layers.
_OF_EDGES = ("num_nodes", "num_targets", "num_graphs", "bipartite", "source", "target", "graph")
#: Of spaces, what no mask of this package asks about.
_NOT_ASKED = {"tokenwise", "_tokenwise", "edges", "zeroed"}


class _Unknown(Exception):
    """Something that cannot be compared by what it holds."""


class Contents:
    """Hold what a job depends on, to find one that is equal.

    Attributes:
        key: all but the numbers in tensors.
        tensors: those.
    """

    def __init__(self, job: Job, backend: str | None) -> None:
        self._parts: list[Any] = [
            backend, job.heads, job.head_dim, job.batch, job.device, job.grad, job.weights,
            job.softcap, job.edge_features, job.dtype, type(job.score), torch.get_default_dtype(),
            fast.setting(), measured.setting(),  # what backends cost
        ]  # fmt: skip
        self.tensors: list[Tensor] = []
        query, key = job.spaces
        self._parts += (query is key, query.edges is key.edges)
        if _are_all_alike(job):
            self._parts += (query.length, query.batch, key.length, key.batch)
        else:
            if job.device.type != "cpu":
                job = job.host  # whose numbers nobody waits for
                query, key = job.spaces
            self._of_bias(job.bias)
            self._add(job.mask)
            self._of_space(query)
            if key is not query:
                self._of_space(key)
            if query.edges is not None:
                self._of_edges(query.edges)
            if key.edges is not None and key.edges is not query.edges:
                self._of_edges(key.edges)
        self.key = tuple(self._parts)

    def _add(self, value: object) -> None:
        kind = type(value)
        if kind in _PLAIN:
            self._parts += (kind, value)  # as 1, 1.0 and True are equal
        elif kind is Tensor:
            self._of_tensor(value)  # type: ignore[arg-type]
        elif kind is tuple or kind is list:
            self._parts += (kind, len(value))  # type: ignore[arg-type]
            for one in value:  # type: ignore[attr-defined]
                self._add(one)
        elif isinstance(value, Mask) and is_of_package(kind):
            self._of_object(value, set())
        else:
            raise _Unknown(kind)

    def _of_tensor(self, tensor: Tensor) -> None:
        if tensor.requires_grad or tensor.device.type != "cpu" or tensor.layout != torch.strided:
            raise _Unknown(tensor)
        self._parts += (tensor.shape, tensor.dtype)
        self.tensors.append(tensor)

    def _of_object(self, value: object, left_out: set[str]) -> None:
        kind = type(value)
        self._parts.append(kind)
        for name, held in vars(value).items():
            if name in left_out or isinstance(getattr(kind, name, None), cached_property):
                continue
            self._parts.append(name)
            self._add(held)

    def _of_space(self, space: Space) -> None:
        if not is_of_package(type(space)):
            raise _Unknown(type(space))
        self._parts.append(space.batch)
        self._of_object(space, _NOT_ASKED)

    def _of_edges(self, edges: EdgeList) -> None:
        for name in _OF_EDGES:
            self._add(getattr(edges, name))
        self._add(edges.pair_attr.get("hops"))

    def _of_bias(self, bias: Bias | None) -> None:
        for leaf in () if bias is None else bias.leaves():
            kind, key = type(leaf), getattr(leaf.block_key, "__func__", None)
            if key is not Bias.block_key and not (key is kind.block_key and is_of_package(kind)):
                raise _Unknown(kind)
            self._parts += (kind, leaf.heads, leaf.learned)
            # What a block key follows from: numbers, and of which kind all else is
            self._parts += [
                (name, held if type(held) in _PLAIN else type(held))
                for name, held in vars(leaf).items()
                if name not in _OF_MODULES
            ]


def _are_all_alike(job: Job) -> bool:
    """Whether no pair differs from another, so that places, which may be many, do not matter."""
    return (
        (job.mask is None or (is_of_package(type(job.mask)) and job.mask.allows_all(job.spaces)))
        and job.bias is None
        and not job.edge_features
        and all(space.segments is None and space.valid is None for space in job.spaces)
    )


_OF_MODULES = set(vars(nn.Module()))


def contents(job: Job, backend: str | None) -> Contents | None:
    """Return what a job depends on, None where that cannot be compared."""
    if not can_last() or job.moving or (job.device.type != "cpu" and not _known_on_host(job)):
        return None
    try:
        return Contents(job, backend)
    except _Unknown:
        return None


def _known_on_host(job: Job) -> bool:
    """Whether the numbers that a job on a device depends on are on the CPU, too."""
    here = all(x.device.type == "cpu" for x in tensors_in(job.mask))
    return here and all(space.has_host for space in job.spaces)


@dataclass
class _Entry:
    """A plan: the numbers that it was found for, and what was found."""

    key: Hashable
    tensors: list[Tensor]
    found: Any
    #: When it was found or asked for last, and when its bytes were counted.
    used: int
    counted: int = -1
    _bytes: int = 0

    @property
    def bytes(self) -> int:
        """The bytes that it holds by now: what was found may grow where it is used."""
        if self.counted < self.used:
            self.counted = self.used
            sizes = dict(_storages((self.tensors, self.found), set()))
            self._bytes = sum(sizes.values())
        return self._bytes


class PlanCache:
    """Plans by what they depend on. The least recently used are dropped, by number and bytes.

    Threads may share it: looking needs no lock, and what one cannot keep because another is just
    keeping something is planned again.
    """

    def __init__(self, most: int = MOST_PLANS, most_bytes: int = MOST_BYTES) -> None:
        self.most, self.most_bytes = most, most_bytes
        self._entries: dict[Hashable, list[_Entry]] = {}
        self._seen: OrderedDict[int, None] = OrderedDict()
        self._clock = count()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return sum(map(len, list(self._entries.values())))

    @property
    def bytes(self) -> int:
        """The bytes of all that is kept."""
        return sum(entry.bytes for alike in list(self._entries.values()) for entry in alike)

    def find(self, wanted: Contents) -> Any:
        """Return what was kept for equal contents, None where nothing was."""
        for entry in self._entries.get(wanted.key, ()):
            if all(map(torch.equal, entry.tensors, wanted.tensors)):
                entry.used = next(self._clock)
                return entry.found
        return None

    @lasting
    def keep(self, wanted: Contents, found: Any) -> None:
        """Keep what was found for these contents, with copies of their tensors."""
        entry = _Entry(wanted.key, wanted.tensors, found, next(self._clock))
        size = entry.bytes
        if size > self.most_bytes // 2 or not self._lock.acquire(blocking=False):
            return
        try:
            if size > _LARGE and not self._comes_again(hash(wanted.key)):
                return
            entry.tensors = [tensor.clone() for tensor in wanted.tensors]
            alike = [*self._entries.get(wanted.key, ()), entry]
            alike.sort(key=lambda one: one.used)
            # A new list, as another thread may be going through the old one
            self._entries[wanted.key] = alike[-_MOST_ALIKE:]
            self._drop()
        finally:
            self._lock.release()

    def clear(self) -> None:
        """Forget all plans."""
        with self._lock:
            self._entries, self._seen = {}, OrderedDict()

    def _comes_again(self, key: int) -> bool:
        known = key in self._seen
        self._seen[key] = None
        while len(self._seen) > 4 * self.most:
            self._seen.popitem(last=False)
        return known

    def _drop(self) -> None:
        entries = [entry for alike in self._entries.values() for entry in alike]
        entries.sort(key=lambda one: one.used, reverse=True)
        total = 0
        for number, entry in enumerate(entries):
            size = entry.bytes
            if number < self.most and total + size <= self.most_bytes:
                total += size
            else:
                rest = [one for one in self._entries[entry.key] if one is not entry]
                if rest:
                    self._entries[entry.key] = rest
                else:
                    del self._entries[entry.key]


def _storages(value: Any, seen: set[int]) -> Iterator[tuple[int, int]]:
    """Yield address and bytes of the memory of each tensor in `value`."""
    if type(value) in _PLAIN or value is NO_JOB or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        with suppress(NotImplementedError):  # what torch.func left in a graph tells of no memory
            storage = value.untyped_storage()
            yield storage.data_ptr(), storage.nbytes()
    elif isinstance(value, dict):
        for one in list(value.values()):
            yield from _storages(one, seen)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _storages(one, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type | nn.Module):
        yield from _storages(vars(value), seen)


#: Those of this process.
PLANS = PlanCache()
