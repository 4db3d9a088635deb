"""From the attributes of GraphML files to types, features and targets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from attention_core.training import UsageError
from graph.data.graphml import read_graphml
from graph.data.graphs import Sample


class Columns(NamedTuple):
    """The attributes that say what nodes and edges are: one for the type, or several features."""

    node_type: str | None = None
    node_features: Sequence[str] = ()
    edge_type: str | None = None
    edge_features: Sequence[str] = ()

    def checked(self) -> Self:
        """Return them; refuse types and features of the same thing, and a name that is no list."""
        for of in ("node", "edge"):
            features = getattr(self, f"{of}_features")
            if isinstance(features, str):
                raise UsageError(
                    f"data.{of}_features must be a list of names, such as [{features}]; "
                    f"got {features!r}."
                )
            if getattr(self, f"{of}_type") is not None and getattr(self, f"{of}_features"):
                raise UsageError(f"data.{of}_type and data.{of}_features: one of them, not both.")
        return self._replace(
            node_features=list(self.node_features), edge_features=list(self.edge_features)
        )


class GraphML:
    """The graph of a GraphML file, as tensors and attributes.

    Args:
        path: of the file.

    Attributes:
        ids: the names of the nodes.
        edge_index: (2, e), the edges as they are listed.
        attributes: those of each "node", of each "edge", and of the "graph".

    Raises:
        UsageError: as of `read_graphml`.
    """

    def __init__(self, path: Path) -> None:
        graph = read_graphml(path)
        self.place = path.name
        self.ids = [str(node) for node in graph]
        number = {node: index for index, node in enumerate(graph)}
        ends = [(number[a], number[b]) for a, b in graph.edges()]
        self.edge_index = torch.tensor(ends, dtype=torch.int64).reshape(-1, 2).T
        self.directed = bool(graph.is_directed())
        self.attributes: dict[str, list[Mapping[str, Any]]] = {
            "node": [values for _, values in graph.nodes(data=True)],
            "edge": [values for *_, values in graph.edges(data=True)],
            "graph": [graph.graph],
        }

    def sample(
        self, columns: Columns, node_names: Sequence[Any] = (), edge_names: Sequence[Any] = ()
    ) -> Sample:
        """Return the graph with its types or features; edges of an undirected one count in both
        directions, those back behind the others.

        Raises:
            UsageError: an attribute is missing, is no number, or is none of the names.
        """
        own = self.edge_index
        back = own[0] != own[1]  # a loop is one edge in either direction
        x = self._described("node", columns.node_type, columns.node_features, node_names)
        if x is None:
            x = torch.zeros(len(self.ids), dtype=torch.int64)
        both = own if self.directed else torch.cat([own, own.flip(0)[:, back]], 1)
        found: Sample = {"x": x, "edge_index": both}
        attr = self._described("edge", columns.edge_type, columns.edge_features, edge_names)
        if attr is not None:
            found["edge_attr"] = attr if self.directed else torch.cat([attr, attr[back]])
        return found

    def values(self, of: str, name: str) -> list[Any]:
        """Return the attribute of each node, each edge, or the graph.

        Raises:
            UsageError: one lacks it.
        """
        for row in self.attributes[of]:
            if name not in row:
                have = ", ".join(map(repr, row)) or "none"
                raise UsageError(f"{self.place}: a {of} has no attribute {name!r}; it has {have}.")
        return [row[name] for row in self.attributes[of]]

    def _described(
        self, of: str, kind: str | None, features: Sequence[str], names: Sequence[Any]
    ) -> Tensor | None:
        if features:
            columns = [numbers(self.values(of, name), name, of, self.place) for name in features]
            return torch.stack(columns, dim=1)
        if kind is None:
            return None
        number = {str(name): index for index, name in enumerate(names)}
        values = list(map(str, self.values(of, kind)))
        for value in values:
            if value not in number:
                raise UsageError(
                    f"{self.place}: the {kind!r} of a {of} is {value!r:.80}, which data.{of}_names "
                    f"does not list; it has {', '.join(number)}."
                )
        return torch.tensor([number[value] for value in values], dtype=torch.int64)


def kinds_of(graphs: Iterable[GraphML], of: str, name: str) -> list[str]:
    """Return what the attribute `name` of nodes or edges is, in the order of the names."""
    return sorted({str(value) for graph in graphs for value in graph.values(of, name)})


def numbers(values: Iterable[Any], name: str, of: str, place: str) -> Tensor:
    """Make an attribute a tensor (n,) of float32.

    Raises:
        UsageError: one is no finite number.
    """
    found = list(values)
    for value in found:
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise UsageError(
                f"{place}: the attribute {name!r} of each {of} must be a finite number, got "
                f"{value!r:.80}."
            )
    return torch.tensor(found, dtype=torch.float32)


def as_targets(
    graphs: Sequence[GraphML], of: str, name: str, classes: Sequence[str] | None
) -> tuple[list[tuple[Tensor, Tensor]], list[str]]:
    """Make an attribute the target.

    Args:
        of: "node", "edge" or "graph". Nodes and edges may lack it.
        classes: what it may be, where it is one of several words; [] for what there is, unless
            those are numbers; None demands numbers.

    Returns: of each graph the targets (n,) of all nodes or edges and which of them have one, bool;
    and the classes, none where targets are numbers.

    Raises:
        UsageError: a graph lacks the attribute, all nodes or edges do, or it is another.
    """
    if of == "graph":
        for graph in graphs:
            graph.values(of, name)
    rows = [[row.get(name) for row in graph.attributes[of]] for graph in graphs]
    there = [value for own in rows for value in own if value is not None]
    if not there:
        known = sorted({key for graph in graphs for row in graph.attributes[of] for key in row})
        raise UsageError(
            f"data.target: no {of} has the attribute {name!r}; there are "
            f"{', '.join(map(repr, known)) or 'none'}."
        )
    words = any(isinstance(value, str | bool) for value in there)
    if classes is not None and not classes and words:
        classes = sorted(set(map(str, there)))
    found = []
    for graph, own in zip(graphs, rows, strict=True):
        has = torch.tensor([value is not None for value in own], dtype=torch.bool)
        if classes:
            for value in own:
                if value is not None and str(value) not in classes:
                    raise UsageError(
                        f"{graph.place}: the {name!r} of a {of} is {str(value)!r:.80}, which "
                        f"data.classes does not list; it has {', '.join(classes)}."
                    )
            number = [0 if value is None else list(classes).index(str(value)) for value in own]
            values = torch.tensor(number, dtype=torch.int64)
        else:
            given = [0.0 if value is None else value for value in own]
            values = numbers(given, name, of, graph.place)
        found.append((values, has))
    return found, list(classes or ())
