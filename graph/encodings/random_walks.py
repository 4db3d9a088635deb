"""Random walks: where a walk along the edges is after so many steps.

A walk at a node takes each of its outgoing edges with the same chance, an edge that is listed twice
with twice that chance; where a node has none, the walk ends.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_exporting
from torch.nn.functional import embedding_bag

from attention_core.annotated import checked
from attention_core.checks import check_index, check_whole
from attention_core.spaces.csr import count_each
from attention_core.spaces.edge_list import EdgeList

_CHUNK = 1 << 24  # probabilities held at a time, 64 MiB


@checked
def relative_walks(edges: EdgeList, steps: int, target: Tensor, source: Tensor) -> Tensor:
    """Compute how probably a walk from `source` is at `target` after 0, 1, ..., steps - 1 steps.

    Exact, in time steps · n · E per graph whatever pairs are asked for, and in bounded memory.

    Args:
        edges: of one or more graphs.
        steps: how many of these probabilities K.
        target, source: (P,) pairs of nodes of one graph each.

    Returns: (P, K) float32.

    Raises:
        ValueError: `steps` is less than 1, or a pair's nodes are of two graphs.
    """
    check_whole(steps=steps)
    check_index(edges.num_nodes, "(P,)", target=target, source=source)
    if len(target) != len(source):
        raise ValueError(f"target and source must be pairs, got {len(target)} and {len(source)}")
    graph, local = edges.local
    if bool((graph[target] != graph[source]).any()):
        raise ValueError("target and source must be of one graph, pair by pair")
    n, csr = edges.num_nodes, edges.csr
    out_degree = torch.bincount(edges.source, minlength=n)
    chance = 1 / out_degree[csr.column].float()
    found = torch.zeros(steps, len(target), device=target.device)
    # All graphs side by side: column c of `at` is where a walk from the c-th node of each is
    order = local[source].argsort()
    columns = local[source][order]
    width = max(1, _CHUNK // max(n, 1))
    for first in range(0, int(edges.sizes.max()) if n else 0, width):
        start, end = torch.searchsorted(columns, columns.new_tensor([first, first + width]))
        asked, column = order[start:end], columns[start:end] - first
        if not len(asked):
            continue
        last = int(column.max()) + 1
        at = torch.zeros(n, last, device=target.device)
        starting = ((local >= first) & (local < first + last)).nonzero().squeeze(-1)
        at[starting, local[starting] - first] = 1
        for step in range(steps):
            if step:
                at = embedding_bag(
                    csr.column,
                    at,
                    csr.start,
                    mode="sum",
                    per_sample_weights=chance,
                    include_last_offset=True,
                )
            found[step, asked] = at[target[asked], column]
    return found.T.contiguous()


def _powers(edges: EdgeList, steps: int) -> list[Tensor]:
    """Compute where walks are after 0, 1, ..., steps - 1 steps, (N, N) each, by target, then
    source: of all graphs together, by operations that an exported program can hold."""
    n, target, source = edges.num_nodes, edges.target, edges.source
    chance = 1 / count_each(source, n)[source].float()
    step = torch.zeros(n * n, device=chance.device).index_add(0, target * n + source, chance)
    powers = [torch.eye(n, device=chance.device)]
    while len(powers) < steps:
        powers.append(step.view(n, n) @ powers[-1])
    return powers


@checked
def return_probabilities(edges: EdgeList, steps: int) -> Tensor:
    """Compute RWSE: the probability that a walk is back at its node after 1, ..., `steps` steps
    (Dwivedi et al., LSPE, 2022).

    Returns: (N, steps) float32; 0 at nodes without edges.

    Raises:
        ValueError: `steps` is less than 1.
    """
    check_whole(steps=steps)
    if is_exporting():
        powers = _powers(edges, steps + 1)[1:]
        return torch.stack([power.diagonal() for power in powers], dim=1)
    nodes = torch.arange(edges.num_nodes, device=edges.source.device)
    return relative_walks(edges, steps + 1, nodes, nodes)[:, 1:].contiguous()


@checked
def walk_table(edges: EdgeList, steps: int) -> Tensor:
    """Compute RRWP: `relative_walks` of all pairs inside each graph (Ma et al., GRIT, 2023).

    The pair of a query and a key holds the walks from key to query, along the edges as attention
    goes. The diagonal, a node with itself, is GRIT's encoding of nodes: 1 and RWSE.

    Returns: (Σ n², steps) float32, a table for `Graph(pair_attr={"rrwp": ...})`.

    Raises:
        ValueError: the table would be too large.
    """
    check_whole(steps=steps)
    if is_exporting():  # rows as `EdgeList.pair` numbers them there
        return torch.stack(_powers(edges, steps), dim=-1).flatten(0, 1)
    edges.count_pairs("random walks between all pairs (those along edges alone are few)", steps)
    return relative_walks(edges, steps, *edges.all_pairs())
