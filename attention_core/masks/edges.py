"""Attention along the edges of a graph."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attention_core.masks.algebra import Mask, Spaces
from attention_core.spaces import PairList, Pairs


@dataclass(frozen=True)
class Edges(Mask):
    """Attend along exactly the listed edges of a space, from target (query) to source (key).

    A node attends to itself only where a self-loop is listed; `Neighborhood(1)` adds the node.
    """

    def allowed(self, pairs: Pairs) -> Tensor:
        return pairs.edge >= 0

    def count_bound(self, spaces: Spaces) -> float:
        edges = spaces[1].edges
        return math.inf if edges is None else edges.num_edges

    def candidates(self, spaces: Spaces) -> PairList | None:
        query_space, key_space = spaces
        edges = key_space.edges
        if edges is None or query_space.edges is not edges:
            return None
        query_of, key_of = query_space.token_of_node(), key_space.token_of_node()
        if query_of is None or key_of is None:
            return None
        edge = torch.arange(edges.num_edges, device=edges.source.device)
        query, key = query_of[edges.target], key_of[edges.source]
        kept = (query >= 0) & (key >= 0)  # dropped tokens have no edges
        edge = edge[kept]
        return PairList(query[kept], key[kept], edge=edge, distance=key_space.distance_along(edge))

    def __repr__(self) -> str:
        return "Edges()"
