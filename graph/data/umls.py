"""UMLS: which medical concept is linked to which, and how."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from attention_core.packages import package_folder
from attention_core.training import UsageError, require
from graph.data.graphs import Sample
from graph.data.module import GraphData, GraphDataOptions

_PARTS = ("train", "valid", "test")


class UMLS(GraphData):
    """The semantic network of the Unified Medical Language System (McCray, 2003): 6,529 links of 46
    relations between 135 kinds of concepts, such as "virus causes disease or syndrome".

    The files are those that the package pykeen carries. Their split is kept: 5,216 links to train
    with, 652 and 661.

    A batch is the whole graph of the links to train with, and links in question: `x` (135,), a type
    of its own for each node; `edge_index` (2, 10432), each link in both directions; `edge_attr`
    (10432,), its relation, and 46 more for the direction from target to source;
    `edge_label_index` (2, B) and `edge_label_type` (B,).

    Args:
        settings: those of `GraphData`; `batch_size` counts links, and `fold` has no meaning here.
    """

    #: All links, (3, 6529): source, target and relation.
    known_links: Tensor

    def __init__(self, **settings: Unpack[GraphDataOptions]) -> None:
        super().__init__(**settings)
        if self.fold is not None:
            raise UsageError("data.fold: the links of UMLS are split in one way only.")

    def load(self) -> None:
        triples = {part: _triples(part) for part in _PARTS}
        everything = [triple for part in triples.values() for triple in part]
        nodes = sorted({end for source, _, target in everything for end in (source, target)})
        relations = sorted({relation for _, relation, _ in everything})
        node = {name: number for number, name in enumerate(nodes)}
        kind = {name: number for number, name in enumerate(relations)}
        self.node_names = nodes
        self.edge_names = [*relations, *(f"inverse of {name}" for name in relations)]
        links = {
            part: torch.tensor([[node[a], node[b], kind[r]] for a, r, b in own]).T
            for part, own in triples.items()
        }
        self.known_links = torch.cat(list(links.values()), dim=1)
        source, target, relation = links["train"]
        self._graph = self.prepare(
            {
                "x": torch.arange(len(nodes)),
                "edge_index": torch.stack(
                    [torch.cat([source, target]), torch.cat([target, source])]
                ),
                "edge_attr": torch.cat([relation, relation + len(relations)]),
            }
        )
        self.fill(*([{"link": link} for link in links[part].T] for part in _PARTS))

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        source, target, relation = torch.stack([sample["link"] for sample in samples], dim=1)
        return {
            **self._graph,
            "edge_label_index": torch.stack([source, target]),
            "edge_label_type": relation,
        }


def _triples(part: str) -> list[list[str]]:
    """Source, relation and target of each link of a part."""
    require("pykeen", extra="umls")
    folder = package_folder("pykeen")
    assert folder is not None
    path = folder / "datasets" / "umls" / f"{part}.txt"
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
