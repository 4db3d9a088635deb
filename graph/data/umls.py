"""UMLS: which medical concept is linked to which, and how."""

from __future__ import annotations

from attention_core.packages import package_folder
from attention_core.training import require
from graph.data.links import LinkData

_PARTS = ("train", "valid", "test")


class UMLS(LinkData):
    """The semantic network of the Unified Medical Language System (McCray, 2003): 6,529 links of 46
    relations between 135 kinds of concepts, such as "virus causes disease or syndrome".

    The files are those that the package pykeen carries. Their split is kept: 5,216 links to train
    with, 652 and 661. A batch is as of `LinkData`.

    Args:
        settings: those of `LinkData`.
    """

    def load(self) -> None:
        parts = [_triples(part) for part in _PARTS]
        everything = [triple for part in parts for triple in part]
        nodes = sorted({end for source, target, _ in everything for end in (source, target)})
        relations = sorted({relation for *_, relation in everything})
        self.fill_links(nodes, relations, parts)


def _triples(part: str) -> list[tuple[str, str, str]]:
    """Source, target and relation of each link of a part."""
    require("pykeen", extra="umls")
    folder = package_folder("pykeen")
    assert folder is not None
    path = folder / "datasets" / "umls" / f"{part}.txt"
    rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return [(source, target, relation) for source, relation, target in rows]
