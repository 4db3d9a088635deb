"""Files in TU format, which most data sets of small graphs come in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from attention_core.training import UsageError
from graph.data.graphs import Sample


def read_tu(folder: Path) -> list[Sample]:
    """Read the graphs of a folder in TU format (Morris et al., TUDataset, 2020), named alike.

    Returns: for each graph

        - `x` (n,) node types, where the nodes have one label and no attributes; else (n, F): their
          attributes, then each of their labels one-hot, as PyG has them. Without either, all nodes
          are of type 0.
        - `edge_index` (2, e);
        - `edge_attr` (e,) edge types or (e, F) likewise, where there is anything;
        - `target`, where there is one: () classes counted from 0 in the order of their labels; or
          () or (T,) floats, where graphs have attributes.

    Raises:
        UsageError: a file is missing or does not fit the others, or a line is no row of numbers.
    """
    folder = folder.resolve()  # "." has no name
    name = folder.name
    path = folder / f"{name}_graph_indicator.txt"
    graph = _table(path, int, columns=1)[:, 0] - 1
    if len(graph) and (int(graph[0]) < 0 or bool((graph.diff() < 0).any())):
        raise UsageError(f"{path.name} must name graphs from 1 on, in their order.")
    count = int(graph[-1]) + 1 if len(graph) else 0
    if not count:
        raise UsageError(f"{path.name} is empty: there is no graph.")
    # "row, column" of the adjacency matrix: the edge row → column, both directions listed
    path = folder / f"{name}_A.txt"
    edge_index = _table(path, int, columns=2).T - 1
    if edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < len(graph):
        raise UsageError(f"{path.name} names nodes beyond 1 to {len(graph)}.")
    edge_graph = graph[edge_index[0]]
    if bool((edge_graph != graph[edge_index[1]]).any()):
        raise UsageError(f"{path.name} has an edge between two graphs.")
    nodes = _described(folder / f"{name}_node", len(graph))
    if nodes is None:
        nodes = torch.zeros(len(graph), dtype=torch.int64)
    sizes = torch.bincount(graph, minlength=count)
    # Edges may come in any order; those of a graph keep theirs
    order = edge_graph.argsort(stable=True)
    edges = torch.bincount(edge_graph, minlength=count)
    starts = sizes.cumsum(0) - sizes
    own = (edge_index - starts[edge_graph])[:, order]
    columns: dict[str, Sequence[Tensor]] = {
        "x": nodes.split(sizes.tolist()),
        "edge_index": own.split(edges.tolist(), dim=1),
    }
    kinds = _described(folder / f"{name}_edge", edge_index.shape[1])
    if kinds is not None:
        columns["edge_attr"] = kinds[order].split(edges.tolist())
    numbers, labels = (folder / f"{name}_graph_{what}.txt" for what in ("attributes", "labels"))
    if numbers.exists():
        columns["target"] = _table(numbers, float, expected=count).squeeze(1).unbind()
    elif labels.exists():
        classes = _table(labels, int, columns=1, expected=count)[:, 0]
        columns["target"] = classes.unique(return_inverse=True)[1].unbind()
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def _described(path: Path, count: int) -> Tensor | None:
    """Read the types or features of `count` nodes or edges from `..._labels.txt` and
    `..._attributes.txt`: (count,) or (count, F), None where there is neither file."""
    parts = []
    numbers, kinds = (path.with_name(f"{path.name}_{w}.txt") for w in ("attributes", "labels"))
    if numbers.exists():
        parts.append(_table(numbers, float, expected=count))
    if kinds.exists():
        labels = _table(kinds, int, expected=count)
        if labels.shape[1] == 1 and not parts:
            return labels[:, 0]
        for column in labels.T if count else ():
            parts.append(one_hot(column - column.min()).float())
    return torch.cat(parts, dim=1) if parts else None


def _table(
    path: Path, kind: type, *, columns: int | None = None, expected: int | None = None
) -> Tensor:
    """The lines of a file of numbers separated by commas: (lines, columns) int64 or float32.

    Args:
        kind: int or float.
        columns: how many are expected; None for as many as the first line has.
        expected: how many lines are.
    """
    if not path.is_file():
        raise UsageError(f"{str(path.parent)!r} is not in TU format: it has no {path.name}.")
    rows: list[list[float]] = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        try:
            rows.append([kind(value) for value in line.split(",")])
        except ValueError:
            rows.append([])
        columns = len(rows[-1]) if columns is None and rows[-1] else columns
        if len(rows[-1]) != columns or not all(map(math.isfinite, rows[-1])):
            one, many = ("an integer", "integers") if kind is int else ("a number", "numbers")
            what = f"{columns} {many}" if columns and columns > 1 else one
            raise UsageError(f"{path.name}: line {number} must be {what}, got {line!r:.80}.")
    if expected is not None and len(rows) != expected:
        raise UsageError(f"{path.name} has {len(rows)} lines, {expected} were expected.")
    dtype = torch.int64 if kind is int else torch.float32
    return torch.tensor(rows, dtype=dtype).reshape(len(rows), columns or 1)
