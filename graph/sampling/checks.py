"""What sampling is given, checked before work begins."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from graph.layers.edges import check_edge_index, check_finite


def check_data(data: Any) -> None:
    """Raise TypeError where `data` is no graph that holds its own tensors."""
    if isinstance(data, Data | HeteroData):
        return
    got = type(data).__name__
    if isinstance(data, tuple):
        got = f"({', '.join(type(part).__name__ for part in data)}): stores are not read"
    raise TypeError(f"data must be PyG's Data or HeteroData, got {got}")


def check_graph(data: Data | HeteroData) -> None:
    """Refuse a graph that cannot be drawn from.

    Raises:
        TypeError: edges are no integers, or what is to be a tensor is none.
        ValueError: edges are of another shape or name nodes that there are none of, features are of
            another length, or not finite.
    """
    typed = isinstance(data, HeteroData)
    for kind, store in data.node_items() if typed else [("", data._store)]:
        check_rows(
            store.get("x"), int(store.num_nodes or 0), f"{kind}: x" if typed else "x", "node"
        )
    for kind, store in data.edge_items() if typed else [("", data._store)]:
        prefix = f"{kind}: " if typed else ""
        source, target = (data[kind[0]], data[kind[2]]) if typed else (data, data)
        sources, targets = int(source.num_nodes or 0), int(target.num_nodes or 0)
        edge_index = check_edges(store.get("edge_index"), sources, targets, f"{prefix}edge_index")
        check_rows(store.get("edge_attr"), edge_index.shape[1], f"{prefix}edge_attr", "edge")


def check_edges(edge_index: Any, sources: int, targets: int, name: str = "edge_index") -> Tensor:
    """Return `edge_index` as a plain tensor of int64; raise TypeError or ValueError where it is no
    (2, E) tensor of such nodes."""
    edge_index = check_edge_index(edge_index, name)
    for end, nodes, count in zip(("source", "target"), edge_index, (sources, targets), strict=True):
        check_nodes(nodes, count, name, f"{end} node")
    return edge_index


def check_rows(values: Any, length: int, name: str, of: str) -> None:
    """Raise ValueError where a tensor of features has another length or is not finite."""
    if not isinstance(values, Tensor) or values.layout != torch.strided:
        return  # PyG allows much else, such as sparse features
    if values.ndim == 0 or len(values) != length:
        raise ValueError(
            f"{name} must hold a row per {of}, {length}, got shape {tuple(values.shape)}"
        )
    check_finite(values, name)


def check_nodes(nodes: Tensor, count: int, name: str, kind: str = "node") -> None:
    """Raise TypeError or ValueError where `nodes` holds anything but nodes 0 to `count` - 1."""
    if nodes.is_floating_point() or nodes.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers, got {nodes.dtype}")
    if nodes.numel():
        low, high = int(nodes.min()), int(nodes.max())
        if low < 0 or high >= count:
            raise ValueError(
                f"{name} names {kind} {low if low < 0 else high}, but there are {count}: they are "
                f"0 to {count - 1}"
            )


def check_column(values: Any, length: int, name: str, of: str) -> None:
    """Raise TypeError or ValueError where `values` is no tensor of a finite number each."""
    if not isinstance(values, Tensor) or values.dtype == torch.bool or values.is_complex():
        raise TypeError(f"{name} must be a tensor of numbers, got {values!r:.80}")
    if values.shape != (length,):
        raise ValueError(
            f"{name} must hold a number per {of}, shape ({length},), got {tuple(values.shape)}"
        )
    if values.is_floating_point() and not bool(values.isfinite().all()):
        raise ValueError(f"{name} holds a number that is not finite")


def check_fan_out(num_neighbors: Any, name: str = "num_neighbors") -> list[int]:
    """Return `num_neighbors` as a list of integers of at least -1, one a hop, or raise
    TypeError."""
    if not isinstance(num_neighbors, list | tuple):
        raise TypeError(f"{name} must list a number per hop, got {num_neighbors!r:.80}")
    for count in num_neighbors:
        if not isinstance(count, int) or isinstance(count, bool) or count < -1:
            raise ValueError(
                f"{name} must hold integers of at least 0, or -1 for all neighbors, got {count!r}"
            )
    return list(num_neighbors)
