"""Molecules from a table, written as SMILES."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

import torch
from torch.nn.functional import one_hot

from attention_core.training import UsageError, require
from attention_core.training.inputs import csv_rows, files
from graph.data.graphs import Sample
from graph.data.module import GraphData, GraphDataOptions


class Molecules(GraphData):
    """Molecules in a CSV file with a header: a column of SMILES and one of what is to be predicted.

    Atoms and bonds have PyG's features (`torch_geometric.utils.from_rdmol`), one-hot. Hydrogens are
    counted at their atoms. A split in the file is kept, in a column that says train, val or test;
    else it is fixed, 80% training, 10% validation, 10% test, stratified by class; or by `fold`. It
    is by row: molecules that are listed twice, or are alike, may come to lie in two parts.

    A batch holds one row of nodes: `x` (N, 177), `edge_index` (2, E), `edge_attr` (E, 30), `batch`
    (N,), `num_graphs` and `target` (G,): classes where `classes` are given, else floats.

    `attn predict` reads the column of SMILES of other CSV files; `largest_input` counts the
    characters of a row, and by default is 5,000, as the attention of a molecule may take the square
    of its atoms.

    Args:
        root: the file.
        smiles, target: names of the columns. With `classes`, the target is one of their names.
        split: name of the column that says which part a row belongs to, if there is one.
        settings: those of `GraphData`.

    Raises:
        UsageError: when it loads: the file or a column is missing, or, naming its line, a row is no
            molecule or has no target.
    """

    largest_input = 5_000

    def __init__(
        self,
        root: str,
        *,
        smiles: str = "smiles",
        target: str = "target",
        split: str | None = None,
        **settings: Unpack[GraphDataOptions],
    ) -> None:
        super().__init__(**settings)
        self.path = Path(root).expanduser()
        self.smiles, self.target, self.split_column = smiles, target, split

    def load(self) -> None:
        require("rdkit", extra="molecules")
        columns = [self.smiles, self.target]
        if self.split_column is not None:
            columns.append(self.split_column)
        if not self.path.is_file():
            raise UsageError(f"data.root: there is no file {str(self.path)!r}.")
        samples, parts = [], []
        for place, row in csv_rows(self.path.name, self.path, columns):
            try:
                if isinstance(row, Exception):
                    raise row
                samples.append({**self._molecule(row[self.smiles]), "target": self._target(row)})
                if self.split_column is not None:
                    parts.append(_part(row[self.split_column]))
            except (ValueError, OSError, csv.Error) as error:
                raise UsageError(f"{place}: {error}.") from error
        if not samples:
            raise UsageError(f"data.root: {str(self.path)!r} has no rows.")
        if parts and self.fold is None:
            prepared = self.prepare_all(samples, self.path.name)
            train, val, test = (
                [sample for sample, own in zip(prepared, parts, strict=True) if own == part]
                for part in ("train", "val", "test")
            )
            self.fill(train, val, test)
            return
        strata = [int(sample["target"]) if self.classes else 0 for sample in samples]
        self.split(samples, self.path.name, strata=strata, shares=(0.8, 0.1, 0.1))

    def _target(self, row: dict[str, str]) -> torch.Tensor:
        value = row[self.target].strip()
        if self.classes:
            if value not in self.classes:
                raise ValueError(
                    f"{self.target} is {value!r}; data.classes names {', '.join(self.classes)}"
                )
            return torch.tensor(self.classes.index(value))
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(f"{self.target} is {value}; a finite number is needed")
        return torch.tensor(number)

    @staticmethod
    def _molecule(smiles: str) -> Sample:
        from rdkit import Chem, rdBase
        from torch_geometric.utils.smiles import e_map, from_rdmol, x_map

        with rdBase.BlockLogs():
            molecule = Chem.MolFromSmiles(smiles)
        if molecule is None or not molecule.GetNumAtoms():
            raise ValueError(f"{smiles!r:.80} is no molecule in SMILES")
        data = from_rdmol(molecule)
        return {
            "x": _one_hot(data.x, [len(values) for values in x_map.values()]),
            "edge_index": data.edge_index,
            "edge_attr": _one_hot(data.edge_attr, [len(values) for values in e_map.values()]),
        }

    def inputs(self, path: Path) -> Iterator[tuple[str, Any]]:
        require("rdkit", extra="molecules")
        for name, file in files(path, [".csv"]):
            for place, row in csv_rows(name, file, [self.smiles], largest=self.largest_input):
                yield place, row if isinstance(row, Exception) else row[self.smiles]

    def read(self, raw: str) -> Sample:
        return self.prepare(self._molecule(raw))


def _one_hot(columns: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Columns (n, K) of categories as floats (n, sum of their sizes)."""
    parts = [one_hot(column, size) for column, size in zip(columns.T, sizes, strict=True)]
    return torch.cat(parts, dim=1).float()


def _part(value: str) -> str:
    part = {"valid": "val", "validation": "val"}.get(value.strip(), value.strip())
    if part not in ("train", "val", "test"):
        raise ValueError(f"the split is {value!r}; train, val or test is needed")
    return part
