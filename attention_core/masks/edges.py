"""Attention along the edges of a graph."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attention_core.masks.algebra import Mask, PairList, Spaces
from attention_core.spaces import Graph, Pairs


@dataclass(frozen=True)
class Edges(Mask):
    """Attend along exactly the listed edges of a Graph, from target (query) to source (key).

    A node attends to itself only where a self-loop is listed; `Neighborhood(1)` adds the node.
    """

    def allowed(self, pairs: Pairs) -> Tensor:
        return pairs.edge >= 0

    def count_bound(self, spaces: Spaces) -> float:
        return spaces[1].edges.num_edges if isinstance(spaces[1], Graph) else math.inf

    def candidates(self, spaces: Spaces) -> PairList | None:
        space = spaces[1]
        token = space.token_of_node() if isinstance(space, Graph) else None
        if not isinstance(space, Graph) or spaces[0] is not space or token is None:
            return None
        edges = space.edges
        edge = torch.arange(edges.num_edges, device=edges.source.device)
        query, key = token[edges.target], token[edges.source]
        kept = (query >= 0) & (key >= 0)  # dropped tokens have no edges
        hops = (edges.target != edges.source).float()  # one, or none along a self-loop
        return PairList(query[kept], key[kept], edge=edge[kept], distance=hops[kept])

    def __repr__(self) -> str:
        return "Edges()"
