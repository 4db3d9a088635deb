"""Graphs of one's own, in a folder: in TU format or as GraphML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from attention_core.training import UsageError
from attention_core.training.inputs import class_folders
from graph.data.graphml import read_graphml
from graph.data.graphs import Sample
from graph.data.module import GraphData, GraphDataOptions
from graph.data.tu import read_tu


class GraphFolder(GraphData):
    """Graphs in a folder: files in TU format, named as the folder; or GraphML files (.graphml).

    GraphML files hold a graph each, and lie in a folder for each class, or in one where a number of
    each graph is to be predicted. Of undirected graphs each edge counts in both directions. The
    split is fixed, 80% training, 10% validation, 10% test, stratified by class; or by `fold`.

    A batch holds one row of nodes: `x` (N,) types or (N, F) features, all of type 0 where neither
    is asked for; `edge_index` (2, E); `edge_attr` likewise where it is asked for; `batch` (N,),
    `num_graphs` and `target` (G,). What TU files give, `read_tu` says.

    Args:
        root: the folder.
        node_type, edge_type: of GraphML, the attribute that tells the kind of a node or edge; kinds
            are numbered in the order of their names, over all files.
        node_features, edge_features: or the attributes that are its features, numbers all.
        target: the attribute of a graph that is to be predicted, a number; None for its folder.
        settings: those of `GraphData`.

    Raises:
        UsageError: types and features are asked for; or when it loads: there are no graphs, or a
            file, which is named, cannot be read or lacks an attribute.
    """

    def __init__(
        self,
        root: str,
        *,
        node_type: str | None = None,
        node_features: Sequence[str] = (),
        edge_type: str | None = None,
        edge_features: Sequence[str] = (),
        target: str | None = None,
        **settings: Unpack[GraphDataOptions],
    ) -> None:
        super().__init__(**settings)
        for kind, features, of in (
            (node_type, node_features, "node"),
            (edge_type, edge_features, "edge"),
        ):
            if kind is not None and features:
                raise UsageError(f"data.{of}_type and data.{of}_features: one of them, not both.")
        self.root = Path(root).expanduser()
        self.node_type, self.node_features = node_type, list(node_features)
        self.edge_type, self.edge_features = edge_type, list(edge_features)
        self.target = target

    def load(self) -> None:
        name = self.root.resolve().name
        if not self.root.is_dir():
            raise UsageError(f"data.root: there is no folder {str(self.root)!r}.")
        if (self.root / f"{name}_A.txt").exists():
            samples = read_tu(self.root)
            if "target" not in samples[0]:
                raise UsageError(f"data.root: {str(self.root)!r} has no {name}_graph_labels.txt.")
        else:
            samples = self._read_graphml()
        is_class = not samples[0]["target"].is_floating_point()
        if is_class:
            most = max(int(sample["target"]) for sample in samples)
            if most >= len(self.classes):
                raise UsageError(
                    f"data.classes names {len(self.classes)} classes; the graphs of {name} have "
                    f"{most + 1}."
                )
        strata = [int(sample["target"]) if is_class else 0 for sample in samples]
        self.split(samples, name, strata=strata, shares=(0.8, 0.1, 0.1))

    def _read_graphml(self) -> list[Sample]:
        if self.target is None:
            names = class_folders(self.root)
            files = [
                (path, label)
                for label, folder in enumerate(names)
                for path in sorted((self.root / folder).glob("*.graphml"))
            ]
        else:
            files = [(path, 0) for path in sorted(self.root.glob("*.graphml"))]
        if not files:
            raise UsageError(
                f"data.root: {str(self.root)!r} holds neither {self.root.resolve().name}_A.txt, of "
                "the TU format, nor files that end in .graphml."
            )
        graphs = [read_graphml(path) for path, _ in files]
        places = [path.name for path, _ in files]
        nodes = [[values for _, values in graph.nodes(data=True)] for graph in graphs]
        edges = [[values for *_, values in graph.edges(data=True)] for graph in graphs]
        x = _columns(nodes, places, "node", self.node_type, self.node_features)
        edge_attr = _columns(edges, places, "edge", self.edge_type, self.edge_features)
        samples = []
        for index, (graph, (_, label)) in enumerate(zip(graphs, files, strict=True)):
            number = {node: k for k, node in enumerate(graph)}
            ends = [(number[a], number[b]) for a, b in graph.edges()]
            own = torch.tensor(ends, dtype=torch.int64).reshape(-1, 2).T
            both = not graph.is_directed()
            # A loop is one edge in either direction
            back = own[0] != own[1]
            sample = {
                "x": torch.zeros(len(graph), dtype=torch.int64) if x is None else x[index],
                "edge_index": torch.cat([own, own.flip(0)[:, back]], 1) if both else own,
            }
            if edge_attr is not None:
                attr = edge_attr[index]
                sample["edge_attr"] = torch.cat([attr, attr[back]]) if both else attr
            if self.target is None:
                sample["target"] = torch.tensor(label)
            else:
                sample["target"] = _numbers([graph.graph], [self.target], places[index], "graph")[
                    0, 0
                ]
            samples.append(sample)
        return samples


def _columns(
    rows: list[list[Mapping[str, Any]]],
    places: list[str],
    of: str,
    kind: str | None,
    features: Sequence[str],
) -> list[Tensor] | None:
    """For each graph the types (n,) or features (n, F) of its nodes or edges."""
    if features:
        return [_numbers(own, features, p, of) for own, p in zip(rows, places, strict=True)]
    if kind is None:
        return None
    values = [
        [_value(row, kind, p, of) for row in own] for own, p in zip(rows, places, strict=True)
    ]
    known = {name: k for k, name in enumerate(sorted({str(v) for own in values for v in own}))}
    return [torch.tensor([known[str(v)] for v in own], dtype=torch.int64) for own in values]


def _numbers(
    rows: Iterable[Mapping[str, Any]], names: Sequence[str], place: str, of: str
) -> Tensor:
    table = []
    for row in rows:
        values = [_value(row, name, place, of) for name in names]
        for name, value in zip(names, values, strict=True):
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise UsageError(
                    f"{place}: the attribute {name!r} of each {of} must be a finite number, got "
                    f"{value!r:.80}."
                )
        table.append(values)
    return torch.tensor(table, dtype=torch.float32).reshape(-1, len(names))


def _value(row: Mapping[str, Any], name: str, place: str, of: str) -> Any:
    if name not in row:
        have = ", ".join(map(repr, row)) or "none"
        raise UsageError(f"{place}: a {of} has no attribute {name!r}; it has {have}.")
    return row[name]
