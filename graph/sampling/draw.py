"""The edges into each node, and drawing some of them, for many nodes at once."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from attention_core.spaces.csr import CSR


class InEdges:
    """E edges of one type, sorted by target, from which those into given nodes are drawn.

    Sorting is the one step whose cost grows with the graph; drawing costs what it returns, and a
    binary search where edges have times. All randomness comes from torch's global generator.
    (`index_select`, here and there, takes a quarter of the time of indexing.)

    Args:
        edge_index: (2, E) integers, row 0 the source, row 1 the target.
        sources, targets: number of nodes at either end.
        time: (E,) when an edge appears; edges into a node are then sorted by it.
        weight: (E,) how likely an edge is drawn, relative to others into the same node.

    Attributes:
        start: (targets + 1,) the first edge into each node.
        source: (E,) the source of each sorted edge.
        edge: (E,) where each sorted edge stood in `edge_index`.
        time: (E,) sorted, or None.
    """

    def __init__(
        self,
        edge_index: Tensor,
        sources: int,
        targets: int,
        *,
        time: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> None:
        source, target = edge_index
        order = None if time is None else time.argsort(stable=True)
        if order is not None:
            source, target = source[order], target[order]
        csr = CSR(target, source, targets, sources)
        self.start, self.source = csr.start, csr.column
        self.edge = csr.item if order is None else order[csr.item]
        self.time = None if time is None else time[self.edge]
        self.weight = None
        if weight is not None:
            weight = weight[self.edge].double()
            # Per node, or the running sum below loses the small weights of one behind the large
            # ones of another
            total = weight.new_zeros(targets).index_add_(0, csr.row, weight)
            self.weight = weight / total.clamp(min=torch.finfo(torch.float64).tiny)[csr.row]

    @cached_property
    def _running(self) -> Tensor:
        """(E + 1,) the sum of the weights in front of each sorted edge."""
        assert self.weight is not None
        return torch.cat([self.weight.new_zeros(1), self.weight.cumsum(0)])

    def draw(
        self,
        node: Tensor,
        count: int,
        *,
        replace: bool = False,
        until: Tensor | None = None,
        last: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Draw up to `count` edges into each node.

        Without replacement every set of `count` edges is equally likely, or, with weights, edges
        are drawn one after the other, each time by the weights of those that are left. Edges of
        weight 0 are never drawn.

        Args:
            node: (n,) targets; a node may come twice and is then drawn for twice.
            count: edges per node, all that there are where they are fewer; -1 for all.
            replace: draw `count` edges with replacement into each node that has any.
            until: (n,) only edges of this time or earlier.
            last: the last `count` edges by time, in place of random ones.

        Returns: two (M,) tensors in the order of `node`, which node an edge is drawn for, as an
            index into it, and where the edge stands in the sorted ones.
        """
        start, end = self.window(node, until)
        if last and count >= 0:
            start = torch.maximum(start, end - count)
        size = end - start
        if self.weight is not None:
            if replace and count >= 0:
                return self._weighted_with_replacement(start, end, count)
            return self._weighted(start, size, count)
        if count < 0:
            count, replace = int(size.max()) if len(size) else 0, False
        some = size > (0 if replace else count)  # those of which not simply everything is taken
        owner, rank = _enumerate(some * count if replace else size.clamp(max=count))
        if bool(some.any()):
            picks = _with_replacement if replace else _without_replacement
            rank[some.index_select(0, owner)] = picks(size[some], count).flatten()
        return owner, start.index_select(0, owner) + rank

    def at(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return the source of each sorted edge, and where it stood in `edge_index`, as int64."""
        return (
            self.source.index_select(0, position).long(),
            self.edge.index_select(0, position).long(),
        )

    def all(self, node: Tensor, *, until: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return all edges into each node, whatever their weight; arguments as in `draw`."""
        start, end = self.window(node, until)
        owner, rank = _enumerate(end - start)
        return owner, start[owner] + rank

    def window(self, node: Tensor, until: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the first edge into each node and behind the last, of time `until` or less."""
        low, end = (self.start.index_select(0, at).long() for at in (node, node + 1))
        if until is None or self.time is None or len(self.time) == 0:
            return low, end
        start, high = low, end
        while bool((searching := low < high).any()):
            middle = (low + high) // 2
            early = self.time[middle.clamp(max=len(self.time) - 1)] <= until
            low = torch.where(searching & early, middle + 1, low)
            high = torch.where(searching & ~early, middle, high)
        return start, high

    def _weighted(self, start: Tensor, size: Tensor, count: int) -> tuple[Tensor, Tensor]:
        assert self.weight is not None
        owner, rank = _enumerate(size)
        position = start[owner] + rank
        weight = self.weight[position]
        possible = weight > 0
        owner, position, weight = owner[possible], position[possible], weight[possible]
        if count < 0:
            return owner, position
        # The largest keys log(u) / w are a weighted sample (Efraimidis & Spirakis, 2006)
        key = torch.log1p(-torch.rand(len(weight), dtype=torch.float64)) / weight
        order = key.argsort(descending=True)
        order = order[owner[order].argsort(stable=True)]
        _, rank = _enumerate(torch.bincount(owner, minlength=len(size)))
        taken = order[rank < count].sort().values
        return owner[taken], position[taken]

    def _weighted_with_replacement(
        self, start: Tensor, end: Tensor, count: int
    ) -> tuple[Tensor, Tensor]:
        low, high = self._running[start], self._running[end]
        owner = (high > low).nonzero().repeat_interleave(count)
        low, high = low[owner], high[owner]
        at = low + torch.rand(len(owner), dtype=torch.float64) * (high - low)
        at = torch.minimum(at, torch.nextafter(high, low))  # rounding may reach the end
        return owner, torch.searchsorted(self._running, at, right=True) - 1


def _enumerate(counts: Tensor) -> tuple[Tensor, Tensor]:
    """For `counts[i]` things of each i, (M,) each: its i, and its number among those of i."""
    owner = torch.repeat_interleave(counts)
    starts = counts.cumsum(0) - counts
    return owner, torch.arange(len(owner)) - starts.index_select(0, owner)


def _with_replacement(size: Tensor, count: int) -> Tensor:
    """(n, count) numbers from 0 to `size` - 1."""
    # Float64: its product with a size below 2**53 never rounds up to that size
    return (torch.rand(len(size), count, dtype=torch.float64) * size[:, None]).long()


def _without_replacement(size: Tensor, count: int) -> Tensor:
    """(n, count) different numbers from 0 to `size` - 1, where size > count; every set is equally
    likely (Floyd's algorithm: Bentley & Floyd, A sample of brilliance, 1987)."""
    top = size[:, None] - count + torch.arange(count)
    drawn = (torch.rand(len(size), count, dtype=torch.float64) * (top + 1)).long()
    for k in range(1, count):
        taken = (drawn[:, :k] == drawn[:, k : k + 1]).any(1)
        drawn[:, k] = torch.where(taken, top[:, k], drawn[:, k])
    return drawn


class Found:
    """The nodes of one type that a batch holds, in the order in which they were found.

    Args:
        num_nodes: of this type in the whole graph.
        node: (n,) the first of them, which may repeat.
        batch: (n,) the subgraph of each, where subgraphs are disjoint: a node is then found once
            for each of them.

    Attributes:
        key: (N,) batch * num_nodes + node, of all found so far.
    """

    def __init__(self, num_nodes: int, node: Tensor, batch: Tensor | None = None) -> None:
        self.num_nodes = max(num_nodes, 1)
        self.key = self._keys(node, batch)

    def __len__(self) -> int:
        return len(self.key)

    @property
    def node(self) -> Tensor:
        return self.key % self.num_nodes

    @property
    def batch(self) -> Tensor:
        return self.key // self.num_nodes

    def add(self, node: Tensor, batch: Tensor | None = None) -> Tensor:
        """Return where each of `node` stands among the found, (n,), those that are new behind the
        rest."""
        known = len(self.key)
        key = torch.cat([self.key, self._keys(node, batch)])
        unique, inverse = key.unique(return_inverse=True)
        first = torch.full_like(unique, len(key))
        first.scatter_reduce_(0, inverse, torch.arange(len(key)), "amin")
        place = torch.zeros_like(key, dtype=torch.bool)
        place[:known] = True
        place[first] = True
        number = place.cumsum(0) - 1
        self.key = key[place]
        return number.index_select(0, first).index_select(0, inverse[known:])

    def find(self, node: Tensor, batch: Tensor | None = None) -> Tensor:
        """Return where each of `node` stands among the found, (n,), -1 where it does not."""
        if len(self.key) == 0:
            return torch.full_like(node, -1, dtype=torch.int64)
        ordered, order = self.key.sort(stable=True)
        wanted = self._keys(node, batch)
        at = torch.searchsorted(ordered, wanted).clamp(max=len(ordered) - 1)
        return torch.where(ordered[at] == wanted, order[at], -1)

    def _keys(self, node: Tensor, batch: Tensor | None) -> Tensor:
        return node.long() if batch is None else batch * self.num_nodes + node
