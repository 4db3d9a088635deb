"""The edges of a graph, and what can be asked of them: which edge, how many hops."""

from __future__ import annotations

import copy
from functools import cached_property

import torch
from torch import Tensor

from attention_core.spaces.csr import CSR

_MOST_HOPS = 1 << 30  # entries of a hop table; 4 GiB of float32


class EdgeList:
    """Directed edges, source to target, of one graph or of several side by side.

    Args:
        edge_index: (2, E) integers as in PyG, row 0 the source, row 1 the target.
        num_nodes: number of nodes N.
        attr: (E,) or (E, F) features of the edges.
        graph: (N,) non-decreasing integers, the graph of each node; None for one graph.
    """

    def __init__(
        self,
        edge_index: Tensor,
        num_nodes: int,
        attr: Tensor | None = None,
        graph: Tensor | None = None,
    ) -> None:
        if edge_index.ndim != 2 or edge_index.shape[0] != 2:
            raise ValueError(f"edge_index must have shape (2, E), got {tuple(edge_index.shape)}")
        if edge_index.is_floating_point() or edge_index.dtype == torch.bool:
            raise TypeError(f"edge_index must hold integers, got {edge_index.dtype}")
        if edge_index.numel():
            low, high = int(edge_index.min()), int(edge_index.max())
            if low < 0 or high >= num_nodes:
                wrong = low if low < 0 else high
                raise ValueError(
                    f"edge_index names node {wrong}, but num_nodes={num_nodes}: nodes are 0 to "
                    f"{num_nodes - 1}"
                )
        if attr is not None and attr.shape[0] != edge_index.shape[1]:
            raise ValueError(
                f"edge_attr has {attr.shape[0]} rows for {edge_index.shape[1]} edges in edge_index"
            )
        if graph is not None:
            if graph.shape != (num_nodes,) or graph.is_floating_point():
                raise ValueError(
                    f"segments must hold an integer per node, shape ({num_nodes},); got "
                    f"{graph.dtype} {tuple(graph.shape)}"
                )
            if bool((graph[1:] < graph[:-1]).any()):
                raise ValueError("segments must not decrease: keep the nodes of a graph together")
            if bool((graph[edge_index[0]] != graph[edge_index[1]]).any()):
                raise ValueError("edge_index joins nodes of different graphs of the batch")
        self.source, self.target = edge_index.long()
        self.num_nodes = num_nodes
        self.attr = attr
        self.graph = graph

    @property
    def num_edges(self) -> int:
        return self.source.shape[0]

    def to(self, device: torch.device | str) -> EdgeList:
        new = copy.copy(self)
        new.source, new.target = self.source.to(device), self.target.to(device)
        new.attr, new.graph = (None if t is None else t.to(device) for t in (self.attr, self.graph))
        for name in ("csr", "_sorted", "repeated", "_sizes", "_local", "_hop_table"):
            new.__dict__.pop(name, None)  # what was computed lies on the old device
        return new

    @cached_property
    def csr(self) -> CSR:
        """The edges sorted by target: once per graph, for all layers, plans and forward passes."""
        return CSR(self.target, self.source, self.num_nodes, self.num_nodes)

    # -- which edge ---------------------------------------------------------------------------

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor]:
        keys, order = (self.target * self.num_nodes + self.source).sort()
        return keys, order

    @cached_property
    def repeated(self) -> int | None:
        """An edge that is listed more than once, if there is one."""
        keys, order = self._sorted
        twice = (keys[1:] == keys[:-1]).nonzero()
        return int(order[twice[0]]) if len(twice) else None

    def find(self, target: Tensor, source: Tensor) -> Tensor:
        """Index of the edge source → target of each pair of nodes, -1 where there is none.

        Raises ValueError where an edge is listed twice: one pair then has two edges. (Pairs that
        come from the edge list itself, as in the `edges` backend, know their edge without this.)
        """
        keys, order = self._sorted
        edge = self.repeated
        if edge is not None:
            raise ValueError(
                f"edge_index lists the edge {int(self.source[edge])} → {int(self.target[edge])} "
                "more than once, and only backend='edges' with the mask Edges() tells such edges "
                "apart; coalesce the edges, or use that"
            )
        wanted = target * self.num_nodes + source
        if len(keys) == 0:
            return torch.full_like(wanted, -1)
        at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        return torch.where((keys[at] == wanted) & (target >= 0) & (source >= 0), order[at], -1)

    # -- how many hops ------------------------------------------------------------------------

    @cached_property
    def _sizes(self) -> Tensor:
        if self.graph is None:
            return torch.tensor([self.num_nodes], device=self.source.device)
        return torch.bincount(self.graph)

    @cached_property
    def _local(self) -> tuple[Tensor, Tensor]:
        """The graph of each node, and the node's rank in it."""
        device = self.source.device
        graph = self.graph
        if graph is None:
            graph = torch.zeros(self.num_nodes, dtype=torch.long, device=device)
        starts = self._sizes.cumsum(0) - self._sizes
        return graph, torch.arange(self.num_nodes, device=device) - starts[graph]

    @cached_property
    def _hop_table(self) -> tuple[Tensor, Tensor]:
        """Hops of all pairs inside each graph, (sum of n²,) row by row, and each graph's start.

        Breadth-first search as batched matrix products, over graphs grouped by size so that a
        large one does not pad the small ones.
        """
        sizes = self._sizes
        areas = sizes**2
        if int(areas.sum()) > _MOST_HOPS:
            raise ValueError(
                f"hops between all pairs of nodes would take {int(areas.sum()):,} entries; "
                "Neighborhood(k) with backend='edges' needs only the pairs within k hops"
            )
        starts = areas.cumsum(0) - areas
        graph, local = self._local
        table = torch.full((int(areas.sum()),), torch.inf, device=sizes.device)
        edge_graph = graph[self.target]
        size_class = torch.ceil(torch.log2(sizes.clamp(min=1).double())).long()
        for power in size_class.unique().tolist():
            members = (size_class == power).nonzero().squeeze(-1)
            n = int(sizes[members].max())
            rank = torch.full_like(sizes, -1)
            rank[members] = torch.arange(len(members), device=sizes.device)
            inside = rank[edge_graph] >= 0
            adjacency = torch.zeros(len(members), n, n, device=sizes.device)
            ends = rank[edge_graph[inside]], local[self.target[inside]], local[self.source[inside]]
            adjacency[ends] = 1
            hops = _all_hops(adjacency)
            exists = torch.arange(n, device=sizes.device) < sizes[members, None]
            which, row, column = (exists[:, :, None] & exists[:, None, :]).nonzero().unbind(1)
            at = starts[members][which] + row * sizes[members][which] + column
            table[at] = hops[which, row, column]
        return table, starts

    def hops(self, target: Tensor, source: Tensor) -> Tensor:
        """Edges on the shortest path source → target, float, infinite where there is none."""
        table, starts = self._hop_table
        graph, local = self._local
        if self.num_nodes == 0:
            return torch.full_like(target + source, torch.inf, dtype=torch.float)
        of = graph[target]
        at = starts[of] + local[target] * self._sizes[of] + local[source]
        same = of == graph[source]
        return table[torch.where(same, at, 0)].masked_fill(~same, torch.inf)

    def within(self, radius: float) -> tuple[Tensor, Tensor, Tensor]:
        """The pairs at most `radius` hops apart as (target, source, hops), without a table."""
        device = self.source.device
        n = self.num_nodes
        by_target = self.target.argsort()
        incoming, degree = self.source[by_target], torch.bincount(self.target, minlength=n)
        start = degree.cumsum(0) - degree
        nodes = torch.arange(n, device=device)
        found, frontier = nodes * n + nodes, nodes * n + nodes
        found_hops = torch.zeros(n, device=device)
        hop = 0
        while hop + 1 <= radius and len(frontier):
            hop += 1
            target, via = frontier // n, frontier % n
            fan = degree[via]
            pair = torch.repeat_interleave(fan)
            nth = torch.arange(len(pair), device=device) - (fan.cumsum(0) - fan)[pair]
            reached = (target[pair] * n + incoming[start[via[pair]] + nth]).unique()
            frontier = reached[~torch.isin(reached, found)]
            found = torch.cat([found, frontier])
            found_hops = torch.cat([found_hops, found_hops.new_full((len(frontier),), hop)])
        return found // n, found % n, found_hops


def _all_hops(adjacency: Tensor) -> Tensor:
    """Hops of all pairs, (G, n, n) float, from adjacency (G, n, n) with [target, source] = 1."""
    n = adjacency.shape[-1]
    reached = torch.eye(n, device=adjacency.device).expand_as(adjacency)
    hops = torch.full_like(adjacency, torch.inf).masked_fill(reached > 0, 0)
    for hop in range(1, n):
        reached = ((adjacency @ reached) > 0).float()
        new = (reached > 0) & hops.isinf()
        if not bool(new.any()):
            break
        hops = hops.masked_fill(new, hop)
        reached = new.float()
    return hops
