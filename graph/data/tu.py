"""Files in TU format, which most data sets of small graphs come in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from attention_core.training import UsageError
from graph.data.graphs import Sample
from graph.models import Level

#: The labels of a kind by column, as texts: of the one column of types, or of several columns.
Names = Sequence[str] | Sequence[Sequence[str]]


def is_tu(folder: Path) -> bool:
    """Return whether a folder is in TU format, whose files are named as it is."""
    return folder.is_dir() and (folder / f"{folder.resolve().name}_A.txt").is_file()


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
    return TUFolder(folder).samples()


class TUFolder:
    """The files of a folder in TU format, read and checked.

    Args:
        folder: the files are named as it is.
        level: what the target is of: "node" and "edge" take these' labels, which then tell nothing
            of what nodes and edges are; or at "node" the attributes, where there are no labels.

    Attributes:
        classes: the labels that are the target, as texts, in their order; none where there are no
            labels.

    Raises:
        UsageError: as of `read_tu`.
    """

    def __init__(self, folder: Path, level: Level = "graph") -> None:
        folder = folder.resolve()  # "." has no name
        self.name, self.level = folder.name, level
        path = folder / f"{self.name}_graph_indicator.txt"
        graph = _table(path, int, columns=1)[:, 0] - 1
        if len(graph) and (int(graph[0]) < 0 or bool((graph.diff() < 0).any())):
            raise UsageError(f"{path.name} must name graphs from 1 on, in their order.")
        self.count = int(graph[-1]) + 1 if len(graph) else 0
        if not self.count:
            raise UsageError(f"{path.name} is empty: there is no graph.")
        # "row, column" of the adjacency matrix: the edge row → column, both directions listed
        path = folder / f"{self.name}_A.txt"
        edge_index = _table(path, int, columns=2).T - 1
        nodes = len(graph)
        if edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < nodes:
            raise UsageError(f"{path.name} names nodes beyond 1 to {nodes}.")
        if bool((graph[edge_index[0]] != graph[edge_index[1]]).any()):
            raise UsageError(f"{path.name} has an edge between two graphs.")
        self.graph, self.edge_index = graph, edge_index
        counts = {"node": nodes, "edge": edge_index.shape[1], "graph": self.count}
        self.labels: dict[str, Tensor] = {}
        self.attributes: dict[str, Tensor] = {}
        for of, expected in counts.items():
            columns = 1 if of == "graph" else None
            numbers, kinds = (
                folder / f"{self.name}_{of}_{what}.txt" for what in ("attributes", "labels")
            )
            if numbers.exists():
                self.attributes[of] = _table(numbers, float, expected=expected)
            if kinds.exists() and (of != "graph" or not numbers.exists()):
                self.labels[of] = _table(kinds, int, columns=columns, expected=expected)
        # What is to be told is no part of what is known
        self._target, self._numbers = self.labels.get(level), None
        if self._target is not None and level != "graph":
            del self.labels[level]
        elif level in self.attributes:
            self._numbers = self.attributes.pop(level)
        if self._target is not None and self._target.shape[1] > 1:
            raise UsageError(
                f"{self.name}_{level}_labels.txt has {self._target.shape[1]} columns; as the "
                "target one is needed."
            )
        self.classes = (
            [] if self._target is None else list(map(str, self._target.unique().tolist()))
        )

    def names(self, of: Literal["node", "edge"]) -> Names:
        """Return the labels that nodes or edges have: of one column those that occur; of several,
        or beside attributes, for each column all from the least to the largest, as in PyG."""
        labels = self.labels.get(of)
        if labels is None or not len(labels):
            return []
        if self._are_types(of):
            return list(map(str, labels.unique().tolist()))
        return [
            [str(label) for label in range(int(column.min()), int(column.max()) + 1)]
            for column in labels.T
        ]

    def samples(
        self,
        node_names: Names | None = None,
        edge_names: Names | None = None,
        classes: Sequence[str] | None = None,
    ) -> list[Sample]:
        """Return the graphs, as of `read_tu`.

        Args:
            node_names, edge_names: the labels that count, as of `names`: types are indices into
                them. None leaves the numbers of one column as they are.
            classes: the labels of the target, which is an index into them; or other names, as many
                as there are labels. None counts the labels there are.

        Raises:
            UsageError: there is another label.
        """
        nodes = self._described("node", node_names)
        if nodes is None:
            nodes = torch.zeros(len(self.graph), dtype=torch.int64)
        sizes = torch.bincount(self.graph, minlength=self.count)
        # Edges may come in any order; those of a graph keep theirs
        edge_graph = self.graph[self.edge_index[0]]
        order = edge_graph.argsort(stable=True)
        edges = torch.bincount(edge_graph, minlength=self.count).tolist()
        starts = sizes.cumsum(0) - sizes
        own = (self.edge_index - starts[edge_graph])[:, order]
        columns: dict[str, Sequence[Tensor]] = {
            "x": nodes.split(sizes.tolist()),
            "edge_index": own.split(edges, dim=1),
        }
        kinds = self._described("edge", edge_names)
        if kinds is not None:
            columns["edge_attr"] = kinds[order].split(edges)
        target = self._targets(classes)
        if target is not None:
            columns["target"] = (
                target.unbind()
                if self.level == "graph"
                else target.split(sizes.tolist())
                if self.level == "node"
                else target[order].split(edges)
            )
        return [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]

    def _are_types(self, of: str) -> bool:
        return of not in self.attributes and self.labels[of].shape[1] == 1

    def _described(self, of: Literal["node", "edge"], names: Names | None) -> Tensor | None:
        """The types (count,) or features (count, F) of nodes or edges; None where there are none"""
        labels, parts = self.labels.get(of), []
        if of in self.attributes:
            parts.append(self.attributes[of])
        if labels is None:
            return parts[0] if parts else None
        if self._are_types(of):
            return labels[:, 0] if not names else self._index(labels[:, 0], names, of)
        columns = names or self.names(of)
        listed = 1 if columns and isinstance(columns[0], str) else len(columns)
        if len(labels) and (listed != labels.shape[1] or isinstance(columns[0], str)):
            raise UsageError(
                f"{self.name}_{of}_labels.txt has {labels.shape[1]} columns of labels, beside "
                f"{'attributes' if of in self.attributes else 'nothing'}; data.{of}_names lists "
                f"the labels of {listed}{', and nothing beside' if listed == 1 else ''}."
            )
        for column, known in zip(labels.T, columns, strict=False):
            parts.append(one_hot(self._index(column, known, of), len(known)).float())
        return torch.cat(parts, dim=1) if parts else None

    def _index(self, labels: Tensor, names: Names, of: str) -> Tensor:
        number = {str(name): index for index, name in enumerate(names)}
        found, places = labels.unique(return_inverse=True)
        for label in map(str, found.tolist()):
            if label not in number:
                raise UsageError(
                    f"{self.name}_{of}_labels.txt has the label {label}, which "
                    f"data.{of}_names does not list; it has {', '.join(number)}."
                )
        return torch.tensor([number[str(label)] for label in found.tolist()]).long()[places]

    def _targets(self, classes: Sequence[str] | None) -> Tensor | None:
        if self._numbers is not None:
            return self._numbers.squeeze(1)
        if self._target is None:
            return None
        labels, places = self._target[:, 0].unique(return_inverse=True)
        if not classes:
            return places
        known = [str(label) in classes for label in labels.tolist()]
        if not any(known) and len(labels) == len(classes):
            return places  # other names for them, in their order
        if not all(known):
            raise UsageError(
                f"data.classes names {len(classes)} classes; the {self.level}s of {self.name} have "
                f"{len(labels)}. They are {', '.join(classes)} and {', '.join(self.classes)}."
            )
        return torch.tensor([list(classes).index(str(label)) for label in labels.tolist()])[places]


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
