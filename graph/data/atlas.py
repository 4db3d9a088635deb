"""All small graphs, and what is exactly known of them."""

from __future__ import annotations

from typing import Unpack

import torch

from attention_core.training import UsageError, require
from graph.data.graphs import Sample
from graph.data.module import GraphData, GraphDataOptions

PROPERTIES = ("planarity", "algebraic_connectivity")


class Atlas(GraphData):
    """The 1,252 graphs of one to seven nodes (Read & Wilson, An Atlas of Graphs, 1998; in
    networkx), with a property of each, computed exactly.

    No two of them are isomorphic, so those to test with are new. The split is fixed, and stratified
    by the number of nodes and planarity: 60% training, 20% validation, 20% test; or by `fold`.

    A batch holds one row of nodes: `x` (N,), all of type 0, `edge_index` (2, E), `batch` (N,),
    `num_graphs` and `target` (G,): of `planarity`, 1 where the graph can be drawn without
    crossings; of `algebraic_connectivity`, a float, the second-smallest eigenvalue of the Laplacian
    (Fiedler, 1973), 0 where the graph is not connected and for one node.

    Args:
        property: "planarity" or "algebraic_connectivity".
        settings: those of `GraphData`.

    Raises:
        UsageError: there is no such property.
    """

    def __init__(self, property: str, **settings: Unpack[GraphDataOptions]) -> None:
        super().__init__(**settings)
        if property not in PROPERTIES:
            raise UsageError(
                f"data.property must be one of {', '.join(PROPERTIES)}, got {property!r}."
            )
        self.property = property

    def load(self) -> None:
        require("networkx", extra="graph")
        from networkx import check_planarity
        from networkx.generators.atlas import graph_atlas_g

        samples, strata = [], []
        for graph in graph_atlas_g()[1:]:  # the first has no nodes
            nodes = graph.number_of_nodes()
            edges = torch.tensor(list(graph.edges), dtype=torch.int64).reshape(-1, 2).T
            planar = check_planarity(graph)[0]
            sample: Sample = {
                "x": torch.zeros(nodes, dtype=torch.int64),
                "edge_index": torch.cat([edges, edges.flip(0)], dim=1),
            }
            if self.property == "planarity":
                sample["target"] = torch.tensor(int(planar))
            else:
                sample["target"] = algebraic_connectivity(sample["edge_index"], nodes)
            samples.append(sample)
            strata.append(2 * nodes + int(planar))
        self.split(samples, "atlas", strata=strata)


def algebraic_connectivity(edge_index: torch.Tensor, nodes: int) -> torch.Tensor:
    """Compute the second-smallest eigenvalue () of the Laplacian of a graph, of which `edge_index`
    (2, e) lists each edge in both directions."""
    adjacency = torch.zeros(nodes, nodes, dtype=torch.float64)
    adjacency[edge_index[0], edge_index[1]] = 1
    laplacian = adjacency.sum(1).diag() - adjacency
    values = torch.linalg.eigvalsh(laplacian)
    return values[1].clamp(min=0).float() if nodes > 1 else torch.tensor(0.0)
