"""Small graphs to draw from, and what is asked of a batch."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from graph.sampling import NeighborLoader


def random_graph(nodes: int = 60, edges: int = 240, **more: Any) -> Data:
    """Directed, with repeated edges, self-loops and, as the last ones, isolated nodes."""
    edge_index = torch.randint(nodes - 3, (2, edges))
    x = torch.randn(nodes, 4)
    return Data(x=x, edge_index=edge_index, edge_attr=torch.randn(edges, 2), **more)


def first(data: Data | HeteroData, *args: Any, **options: Any) -> Any:
    options.setdefault("batch_size", 8)
    return next(iter(NeighborLoader(data, *args, **options)))


def global_edges(batch: Data) -> Tensor:
    return batch.n_id[batch.edge_index]


def equal_sets(a: Tensor, b: Tensor) -> bool:
    """Of columns, each as often."""
    return Counter(map(tuple, a.T.tolist())) == Counter(map(tuple, b.T.tolist()))


def star(leaves: int, **more: Tensor) -> Data:
    """Leaves 1 to `leaves`, each with an edge to node 0."""
    edge_index = torch.stack([torch.arange(1, leaves + 1), torch.zeros(leaves, dtype=torch.int64)])
    return Data(edge_index=edge_index, num_nodes=leaves + 1, **more)


def as_pyg(sample: dict[str, Tensor]) -> Data:
    """A graph of `graph.data` without its target."""
    return Data(edge_index=sample["edge_index"], num_nodes=len(sample["x"]))
