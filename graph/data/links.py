"""What is linked, in one graph: links to train with are its edges, others are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from attention_core.training import UsageError
from attention_core.training.inputs import csv_rows, files
from attention_core.training.splits import stratified_split
from graph.data.graphml_columns import Columns, GraphML, kinds_of
from graph.data.graphs import Sample
from graph.data.module import GraphData, GraphDataOptions

Links = Sequence[tuple[str, str, str]]


class LinkData(GraphData):
    """Links of one graph. A subclass calls `fill_links` in `load`.

    A batch is the whole graph of the links to train with, and links in question: `x` (N,), a type
    of its own for each node, or its features; `edge_index` (2, 2E), each link in both directions;
    `edge_attr` (2E,), its relation, and R more for the direction from target to source;
    `edge_label_index` (2, B) and `edge_label_type` (B,).

    `attn predict` reads .csv files with the columns `source`, `target` and, where there are several
    relations, `relation`, whose cells are names of nodes and relations.

    Args:
        settings: those of `GraphData`; `batch_size` counts links, and `fold` has no meaning here.
    """

    level = "link"
    #: All links, (3, T): source, target and relation.
    known_links: Tensor
    #: Names of the relations.
    relations: Sequence[str] = ()

    def __init__(self, **settings: Unpack[GraphDataOptions]) -> None:
        super().__init__(**settings)
        if self.fold is not None:
            raise UsageError("data.fold: links are split in one way only.")

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        if stage == "predict" and self.train_set is None:
            self.load()  # a link is predicted in the graph of those to train with

    def fill_links(
        self,
        nodes: Sequence[str],
        relations: Sequence[str],
        parts: Sequence[Links],
        features: Tensor | None = None,
    ) -> None:
        """Fill the three data sets.

        Args:
            nodes, relations: their names, in the order of their numbers.
            parts: of each data set source, target and relation of every link, by name.
            features: of nodes (N, F), or their types (N,); by default each has a type of its own.
        """
        self.relations = list(relations)
        self.node_names = list(nodes) if features is None else []
        self._nodes = {name: number for number, name in enumerate(nodes)}
        self._kinds = {name: number for number, name in enumerate(relations)}
        self.edge_names = [*relations, *(f"inverse of {name}" for name in relations)]
        links = [torch.stack([self._link(*link) for link in part], dim=1) for part in parts]
        self.known_links = torch.cat(links, dim=1)
        source, target, relation = links[0]
        self._graph = self.prepare(
            {
                "x": torch.arange(len(nodes)) if features is None else features,
                "edge_index": torch.stack(
                    [torch.cat([source, target]), torch.cat([target, source])]
                ),
                "edge_attr": torch.cat([relation, relation + len(relations)]),
            }
        )
        self.fill(*([{"link": link} for link in of_part.T] for of_part in links))

    def _link(self, source: str, target: str, relation: str) -> Tensor:
        for name in (source, target):
            if name not in self._nodes:
                raise ValueError(f"{name!r:.80} is no node of the graph that was trained with")
        if relation not in self._kinds:
            raise ValueError(
                f"{relation!r:.80} is no relation; there are {', '.join(self.relations)!s:.200}"
            )
        return torch.tensor([self._nodes[source], self._nodes[target], self._kinds[relation]])

    def graphs(self) -> list[Sample]:
        self.setup()
        return [self._graph]

    def describe(self) -> dict[str, Any]:
        found = super().describe()
        return {**found, "num_classes": None, "relations": len(self.relations)}

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        source, target, relation = torch.stack([sample["link"] for sample in samples], dim=1)
        return {
            **self._graph,
            "edge_label_index": torch.stack([source, target]),
            "edge_label_type": relation,
        }

    def inputs(self, path: Path) -> Iterator[tuple[str, Any]]:
        columns = ["source", "target", "relation"][: 2 + (len(self.relations) > 1)]
        for name, file in files(path, [".csv"]):
            yield from csv_rows(name, file, columns, largest=self.largest_input)

    def read(self, raw: dict[str, str]) -> Sample:
        relation = raw["relation"] if len(self.relations) > 1 else self.relations[0]
        return {"link": self._link(raw["source"], raw["target"], relation)}


class GraphLinks(LinkData):
    """Links of one's own: the edges of a GraphML file, or the rows of a .csv file with the columns
    `source`, `target` and perhaps `relation`.

    The split is fixed, 80% training, 10% validation, 10% test, but that links of nodes which would
    have none to train with are trained with. A link that is listed twice counts once.

    Args:
        root: the file.
        relation: of GraphML, the attribute of an edge that says which relation it is; None for one.
        node_type, node_features: of GraphML, the attribute that tells the type of a node, or those
            that are its features; by default each node has a type of its own.
        settings: those of `GraphData`; `batch_size` counts links, and `fold` has no meaning here.

    Raises:
        UsageError: when it loads: the file cannot be read or lacks a column or an attribute, or it
            has too few links.
    """

    def __init__(
        self,
        root: str,
        *,
        relation: str | None = None,
        node_type: str | None = None,
        node_features: Sequence[str] = (),
        **settings: Unpack[GraphDataOptions],
    ) -> None:
        super().__init__(**settings)
        self.root, self.relation = Path(root).expanduser(), relation
        self.columns = Columns(node_type, node_features).checked()

    def load(self) -> None:
        if self.root.suffix.lower() not in (".graphml", ".csv") or not self.root.is_file():
            raise UsageError(
                "data.root: a file that ends in .graphml or .csv is needed, got "
                f"{str(self.root)!r}."
            )
        features = None
        if self.root.suffix.lower() == ".csv":
            links = self._rows()
            nodes = sorted({end for source, target, _ in links for end in (source, target)})
        else:
            graph = GraphML(self.root)
            nodes, links = graph.ids, self._edges(graph)
            kind = self.columns.node_type
            if kind is not None or self.columns.node_features:
                kinds = [] if kind is None else kinds_of([graph], "node", kind)
                features = graph.sample(self.columns, kinds)["x"]
        links = list(dict.fromkeys(links))
        relations = sorted({relation for *_, relation in links})
        one = [0] * len(links)
        train, *rest = stratified_split(one, (0.8, 0.1, 0.1), self.root.name) if links else [[]]
        seen = {end for index in train for end in links[index][:2]}
        for part in rest:
            for index in [i for i in part if not seen.issuperset(links[i][:2])]:
                part.remove(index)
                train.append(index)
                seen.update(links[index][:2])
        if not all((train, *rest)) or not rest:
            raise UsageError(
                f"data.root: {self.root.name} has {len(links)} links, too few for three parts."
            )
        self.fill_links(
            nodes, relations, [[links[i] for i in part] for part in (train, *rest)], features
        )

    def _rows(self) -> list[tuple[str, str, str]]:
        links = []
        for place, row in csv_rows(self.root.name, self.root, ["source", "target"]):
            if isinstance(row, Exception):
                raise UsageError(f"{place}: {row}.")
            links.append((row["source"], row["target"], row.get("relation", "link")))
        return links

    def _edges(self, graph: GraphML) -> list[tuple[str, str, str]]:
        edges = graph.edge_index.T.tolist()
        kinds = (
            ["link"] * len(edges)
            if self.relation is None
            else list(map(str, graph.values("edge", self.relation)))
        )
        ids = graph.ids
        return [(ids[a], ids[b], kind) for (a, b), kind in zip(edges, kinds, strict=True)]
