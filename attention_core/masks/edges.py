"""Attention along the edges of a graph."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attention_core.masks.algebra import Mask, Spaces
from attention_core.spaces import PairList, Pairs, Space


@dataclass(frozen=True)
class Edges(Mask):
    """Attend along exactly the listed edges of a space, from target (query) to source (key).

    A node attends to itself only where a self-loop is listed; `Neighborhood(1)` adds the node.
    """

    def allowed(self, pairs: Pairs) -> Tensor:
        return pairs.edge >= 0

    def count_bound(self, spaces: Spaces) -> float:
        query_space, key_space = spaces
        edges, nodes = key_space.edges, _few(query_space)
        if edges is None:
            return math.inf
        if nodes is None or query_space.edges is not edges:
            return edges.num_edges
        return int(edges.csr.start.diff()[nodes[nodes >= 0]].sum())

    def names_edges(self, spaces: Spaces) -> bool:
        query_space, key_space = spaces
        shared = key_space.edges is not None and query_space.edges is key_space.edges
        return shared and all(space.token_of_node() is not None for space in spaces)

    def candidates(self, spaces: Spaces) -> PairList | None:
        query_space, key_space = spaces
        edges = key_space.edges
        if edges is None or query_space.edges is not edges:
            return None
        query_of, key_of = query_space.token_of_node(), key_space.token_of_node()
        if query_of is None or key_of is None:
            return None
        nodes = _few(query_space)
        if nodes is not None:
            tokens = (nodes >= 0).nonzero().squeeze(-1)
            owner, edge = edges.into(nodes[tokens])
            query = tokens[owner]
        else:
            edge = torch.arange(edges.num_edges, device=edges.source.device)
            query = query_of[edges.target]
        key = key_of[edges.source[edge]]
        kept = (query >= 0) & (key >= 0)  # dropped tokens have no edges
        edge = edge[kept]
        return PairList(query[kept], key[kept], edge=edge, distance=key_space.distance_along(edge))

    def __repr__(self) -> str:
        return "Edges()"


def _few(space: Space) -> Tensor | None:
    """The nodes of a space with so few of those of its edges that their edges are looked up."""
    edges = space.edges
    return space.nodes if edges is not None and 2 * space.length < edges.num_targets else None
