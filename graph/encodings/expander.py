"""Random edges that bring all nodes of a graph near to each other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_exporting

from attention_core.annotated import checked
from attention_core.checks import check_whole, may_look
from attention_core.spaces.edge_list import EdgeList
from attention_core.transfer import moved


def check_degree(degree: int, seed: int = 0, *, name: str = "degree") -> None:
    """Raise TypeError or ValueError where no graph of this degree can be drawn.

    Args:
        name: of the argument that has the degree.
    """
    check_whole(degree=degree)
    check_whole(None, seed=seed)
    if degree < 2 or degree % 2:
        raise ValueError(f"{name} must be even and at least 2, got {degree}")


@checked
def expander_edges(edges: EdgeList, degree: int, *, seed: int = 0) -> Tensor:
    """Draw a random regular graph on the nodes of each graph (Shirzad et al., Exphormer, 2023).

    It is the union of degree / 2 cycles, each through all nodes of a graph in the order of a random
    permutation. Such a graph is connected, and with high probability nearly Ramanujan: the second
    eigenvalue of its adjacency is at most 2√(degree - 1) + ε (Friedman, 2008), so that log n layers
    of attention bring everything everywhere, with degree · n pairs.

    Edges that `edges` has are left out, as are repeated ones, of which small graphs have many (with
    n ≤ degree they become complete): attention is a softmax over distinct neighbours.

    Args:
        edges: of one or more graphs.
        degree: even, at least 2.
        seed: equal graphs get equal edges; renumbered nodes get other edges.

    Returns: (2, E') integers, both directions of each edge.
    """
    check_degree(degree, seed)
    if is_exporting():
        raise ValueError(
            "an exported program cannot draw the edges of a random graph (expander_degree=): "
            "train with them stored, by AddExpander(degree) as data.pre_transform"
        )
    if not may_look(edges.source):  # each step would be waited for
        return moved(expander_edges(edges.host, degree, seed=seed), edges.source.device)
    n, device = edges.num_nodes, edges.source.device
    graph, local = edges.local
    listed = edges.target * n + edges.source
    pairs = [listed.new_zeros(0)]
    # A row of numbers for the n-th node of a graph, drawn row by row, so that company and its size
    # do not matter
    draw = torch.Generator().manual_seed(int(seed))
    largest = int(edges.sizes.max()) if n else 0
    keys = torch.rand(largest, degree // 2, generator=draw, dtype=torch.float64).to(device)
    for key in keys.T:
        order = (graph + key[local]).argsort()
        first = edges.sizes.cumsum(0) - edges.sizes
        following = torch.where(local + 1 < edges.sizes[graph], local + 1, 0) + first[graph]
        one, other = order, order[following]
        pairs += [one * n + other, other * n + one]
    wanted = torch.cat(pairs).unique()
    wanted = wanted[~torch.isin(wanted, listed) & (wanted // max(n, 1) != wanted % max(n, 1))]
    return torch.stack([wanted % max(n, 1), wanted // max(n, 1)])
