"""Breadth-first search: how many hops lie between the nodes of graphs."""

from __future__ import annotations

import torch
from torch import Tensor

#: Graphs of more nodes are searched from node to node unless they are dense; smaller ones by
#: matrix products, many graphs at a time. Where the two take equally long, on two cores.
_SMALL = 128
_DENSE = 100  # a graph has more than n² / _DENSE edges
#: Entries looked at together in a search from node to node.
_CHUNK = 1 << 22


def all_hops(target: Tensor, source: Tensor, graph: Tensor, local: Tensor, sizes: Tensor) -> Tensor:
    """Count the hops of all pairs inside each graph, (Σ n²,) float32, by query, then key.

    Args:
        target, source: (E,) the edges.
        graph: (N,) the graph of each node.
        local: (N,) the rank of each node in its graph.
        sizes: (G,) nodes of each graph.
    """
    areas = sizes**2
    starts = areas.cumsum(0) - areas
    table = torch.full((int(areas.sum()),), torch.inf, device=sizes.device)
    edge_graph = graph[target]
    degree = torch.bincount(edge_graph, minlength=len(sizes))
    alone = (sizes > _SMALL) & (degree * _DENSE < areas)
    for number in alone.nonzero().flatten().tolist():
        inside = edge_graph == number
        n, start = int(sizes[number]), int(starts[number])
        hops = _from_node_to_node(local[target[inside]], local[source[inside]], n)
        table[start : start + n * n] = hops.flatten()
    # Graphs of about one size together, so that a large one does not pad the small ones
    size_class = torch.ceil(torch.log2(sizes.clamp(min=1).double())).long()
    for power in size_class[~alone].unique().tolist():
        members = ((size_class == power) & ~alone).nonzero().squeeze(-1)
        n = int(sizes[members].max())
        rank = torch.full_like(sizes, -1)
        rank[members] = torch.arange(len(members), device=sizes.device)
        inside = rank[edge_graph] >= 0
        adjacency = torch.zeros(len(members), n, n, device=sizes.device)
        adjacency[rank[edge_graph[inside]], local[target[inside]], local[source[inside]]] = 1
        hops = _by_products(adjacency)
        exists = torch.arange(n, device=sizes.device) < sizes[members, None]
        which, row, column = (exists[:, :, None] & exists[:, None, :]).nonzero().unbind(1)
        at = starts[members][which] + row * sizes[members][which] + column
        table[at] = hops[which, row, column]
    return table


def dense_hops(target: Tensor, source: Tensor, n: int) -> Tensor:
    """Count the hops of all pairs of n nodes, (n, n) float32, by target, then source, by operations
    that an exported program can hold: its loop ends where the graph that it is given does."""
    edge = torch.zeros(n * n, device=target.device).index_fill(0, target * n + source, 1)
    adjacency, reached = edge.view(n, n), torch.eye(n, device=target.device)
    hops = torch.full_like(reached, torch.inf).masked_fill(reached > 0, 0)
    found = torch.ones((), dtype=torch.bool, device=hops.device)
    # Whatever a step needs goes around with it: what it closed over would become a constant
    state = (hops.new_zeros(()), adjacency, reached, hops, found)
    return torch.while_loop(lambda *state: state[-1].clone(), _hop, state)[3]


def _hop(
    hop: Tensor, adjacency: Tensor, frontier: Tensor, hops: Tensor, found: Tensor
) -> tuple[Tensor, ...]:
    new = ((adjacency @ frontier) > 0) & hops.isinf()
    return hop + 1, adjacency.clone(), new.float(), torch.where(new, hop + 1, hops), new.any()


def _by_products(adjacency: Tensor) -> Tensor:
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


def _from_node_to_node(target: Tensor, source: Tensor, n: int) -> Tensor:
    """Hops of all pairs, (n, n) float: time n · E, however long the paths are."""
    incoming, start, degree = _incoming(target, source, n)
    hops = torch.full((n, n), torch.inf, device=target.device)
    rows = max(1, min(n, _CHUNK // max(len(source), n)))
    owner = torch.empty(rows * n, dtype=torch.long, device=target.device)
    for first in range(0, n, rows):
        part = hops[first : first + rows].view(-1)
        row = torch.arange(len(part) // n, device=target.device)
        frontier, hop = row * n + row + first, 0
        while len(frontier):
            part[frontier] = hop
            hop += 1
            pair, via = _step(frontier % n, start, degree)
            reached = (frontier // n)[pair] * n + incoming[via]
            reached = reached[part[reached].isinf()]
            # Where several edges reach a node, the one that wrote last stands for all
            number = torch.arange(len(reached), device=target.device)
            owner[reached] = number
            frontier = reached[owner[reached] == number]
    return hops


def near_pairs(
    target: Tensor, source: Tensor, n: int, radius: float, targets: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the pairs at most `radius` hops apart as (target, source, hops), without a table; of
    some `targets`, or of all nodes."""
    incoming, start, degree = _incoming(target, source, n)
    nodes = torch.arange(n, device=target.device) if targets is None else targets
    found, frontier = nodes * n + nodes, nodes * n + nodes
    found_hops = torch.zeros(len(nodes), device=target.device)
    hop = 0
    while hop + 1 <= radius and len(frontier):
        hop += 1
        pair, via = _step(frontier % n, start, degree)
        reached = ((frontier // n)[pair] * n + incoming[via]).unique()
        frontier = reached[~torch.isin(reached, found)]
        found = torch.cat([found, frontier])
        found_hops = torch.cat([found_hops, found_hops.new_full((len(frontier),), hop)])
    return found // n, found % n, found_hops


def _incoming(target: Tensor, source: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The sources of edges sorted by target, where those of each target start, and how many."""
    degree = torch.bincount(target, minlength=n)
    return source[target.argsort()], degree.cumsum(0) - degree, degree


def _step(nodes: Tensor, start: Tensor, degree: Tensor) -> tuple[Tensor, Tensor]:
    """One hop from each of `nodes`: which of them it leaves, and the edge that it takes."""
    fan = degree[nodes]
    leaves = torch.repeat_interleave(fan)
    nth = torch.arange(len(leaves), device=nodes.device) - (fan.cumsum(0) - fan)[leaves]
    return leaves, start[nodes[leaves]] + nth
