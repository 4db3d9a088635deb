"""Edges as PyG's layers take them: a list of them, or a sparse matrix of who attends to whom."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.utils import to_edge_index, to_torch_sparse_tensor

from graph.layers.edges import check_edge_index

_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)

#: (number of sources, number of targets), None where nothing tells.
Size = tuple[int | None, int | None]


class GivenEdges(NamedTuple):
    """The edges that an `edge_index` of any form gives.

    Attributes:
        edge_index: (2, E) int64, row 0 the source, row 1 the target.
        edge_attr: (E, F) values of a sparse matrix; None where they are one number each, which PyG
            takes for weights of edges, that attention has none of.
        size: of the sets of nodes.
    """

    edge_index: Tensor
    edge_attr: Tensor | None = None
    size: Size = (None, None)


def read_edges(edge_index: Any, name: str = "edge_index") -> GivenEdges:
    """Read the edges of a tensor (2, E), or of PyG's `adj_t`, a sparse matrix (targets, sources).

    Raises:
        TypeError: it is neither, or a list that does not hold integers.
        ValueError: it has another shape.
    """
    if not isinstance(edge_index, Tensor):
        raise TypeError(
            f"{name} must be a dense tensor (2, E) of integers, or a sparse one of torch's "
            f"(targets, sources), got {type(edge_index).__name__}"
        )
    if edge_index.layout not in _SPARSE:
        size: Size = (None, None)
        if isinstance(edge_index, EdgeIndex):
            size = edge_index.sparse_size(0), edge_index.sparse_size(1)
        return GivenEdges(check_edge_index(edge_index, name), None, size)
    if edge_index.sparse_dim() != 2 or edge_index.dense_dim() > 1:
        raise ValueError(
            f"{name} must be a sparse matrix (targets, sources), whose values are numbers or rows "
            f"of numbers; got {tuple(edge_index.shape)}"
        )
    if edge_index.layout == torch.sparse_coo and not edge_index.is_coalesced():
        ends, values = edge_index._indices(), edge_index._values()  # edges in the order given
    else:
        ends, values = to_edge_index(edge_index)
    attr = values if values.ndim > 1 else None
    return GivenEdges(ends.flip(0), attr, (edge_index.shape[1], edge_index.shape[0]))


def as_adjacency(weights: Tensor, index: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Make a sparse tensor (targets, sources, H) of weights (E, H) of edges (2, E), of the layout
    of `like`, and its values: those of an edge that is listed repeatedly are one, their sum."""
    size = like.shape[0], like.shape[1]
    matrix = to_torch_sparse_tensor(index.flip(0), weights, size, layout=like.layout)
    return matrix, matrix.values()


def agreed_size(size: Any, told: Size, nodes: Size, name: str = "edge_index") -> tuple[int, int]:
    """Return the numbers of sources and of targets, of which nobody says another.

    Args:
        size: the argument, (sources, targets) or None.
        told: by the edges.
        nodes: numbers of nodes given; the targets' is None where there are none. It is then that
            of the sources where nothing tells, as in PyG.
        name: of the edges.

    Raises:
        TypeError: `size` is no pair of integers of at least 0.
        ValueError: two of them differ.
    """
    if size is not None and (
        not isinstance(size, tuple | list)
        or len(size) != 2
        or not all(count is None or (type(count) is int and count >= 0) for count in size)
    ):
        raise TypeError(f"size must be (number of sources, number of targets), got {size!r:.80}")
    found: list[int] = []
    for side, own in enumerate(nodes):
        what = ("sources", "targets")[side]
        given: int | None = None if size is None else size[side]
        for teller, count in (("size", given), (name, told[side])):
            if count is None:
                continue
            if own is not None and own != count:
                raise ValueError(f"{teller} tells of {count} {what}, but there are {own}")
            own = count
        found.append(found[0] if own is None else own)
    return found[0], found[1]
