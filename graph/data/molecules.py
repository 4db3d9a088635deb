"""Molecules from a table, written as SMILES."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch.nn.functional import one_hot

from attention_core.training import UsageError, require
from attention_core.training.console import tell
from attention_core.training.inputs import csv_rows, files, text_lines
from graph.data.graphs import Sample
from graph.data.module import GraphData, GraphDataOptions


class Molecules(GraphData):
    """Molecules in a CSV file with a header: a column of SMILES and one of what is to be predicted.

    Atoms and bonds have PyG's features (`torch_geometric.utils.from_rdmol`), one-hot; a molecule
    with an atom or a bond that PyG's tables lack, such as a metal with eleven neighbours, is
    refused as one that is no SMILES. Hydrogens are counted at their atoms. A split in the file is
    kept, in a column that says train, val or test; else it is fixed, 80% training, 10% validation,
    10% test, stratified by class; or by `fold`. It is by row: molecules that are listed twice, or
    are alike, may come to lie in two parts.

    A batch holds one row of nodes: `x` (N, 177), `edge_index` (2, E), `edge_attr` (E, 30), `batch`
    (N,), `num_graphs` and `target` (G,): classes where `classes` are given, else floats.

    `attn predict` reads the column of SMILES of other CSV files, .smi files, whose lines begin with
    one, or a single one in place of a file; `largest_input` counts the characters of a row, and by
    default is 5,000, as the attention of a molecule may take the square of its atoms.

    Args:
        root: the file.
        smiles, target: names of the columns. With `classes`, the target is one of their names.
        split: name of the column that says which part a row belongs to, if there is one.
        corrupted: what to do about a row that is no molecule with a target: "raise" an error that
            names it; or "skip" it, and name it on the terminal.
        settings: those of `GraphData`.

    Raises:
        UsageError: when it loads: the file or a column is missing, all rows are skipped, or, naming
            its line, a row is no molecule or has no target.
    """

    largest_input = 5_000

    def __init__(
        self,
        root: str,
        *,
        smiles: str = "smiles",
        target: str = "target",
        split: str | None = None,
        corrupted: Literal["raise", "skip"] = "raise",
        **settings: Unpack[GraphDataOptions],
    ) -> None:
        super().__init__(**settings)
        self._stated = "classes" in settings
        self.path = Path(root).expanduser()
        self.smiles, self.target, self.split_column = smiles, target, split
        if corrupted not in ("raise", "skip"):
            raise UsageError(f"data.corrupted must be 'raise' or 'skip', got {corrupted!r}.")
        self.corrupted = corrupted

    def describe(self) -> dict[str, Any]:
        """Return what `GraphData` does, before it loads from the column of targets alone: `classes`
        are what is in it, in order; none where it holds numbers, not all of them whole."""
        if self.train_set is not None:
            return super().describe()
        sizes = [sum(len(values) for values in kinds.values()) for kinds in _maps()]
        values = {
            row[self.target].strip()
            for _, row in self._rows([self.target])
            if not isinstance(row, Exception)
        } - {""}
        classes = self.classes
        if not self._stated:
            classes = [] if _are_numbers(values) else sorted(values, key=_in_order)
        return {
            "level": "graph",
            "node_types": None,
            "node_features": sizes[0],
            "node_names": [],
            "edge_types": None,
            "edge_features": sizes[1],
            "edge_names": [],
            "classes": classes,
            "numbers": not classes,
            "num_classes": len(classes) or 1,
        }

    def _rows(self, columns: list[str]) -> Iterator[tuple[str, dict[str, str] | Exception]]:
        if not self.path.is_file():
            raise UsageError(f"data.root: there is no file {str(self.path)!r}.")
        rows = iter(csv_rows(self.path.name, self.path, columns))
        first = next(rows, None)
        if first is None:
            raise UsageError(f"data.root: {str(self.path)!r} has no rows.")
        if isinstance(first[1], Exception) and first[0] == self.path.name:  # its header
            raise UsageError(f"{first[0]}: {first[1]}.")
        yield first
        yield from rows

    def load(self) -> None:
        require("rdkit", extra="molecules")
        columns = [self.smiles, self.target]
        if self.split_column is not None:
            columns.append(self.split_column)
        samples, parts = [], []
        for place, row in self._rows(columns):
            try:
                if isinstance(row, Exception):
                    raise row
                sample = {**self._molecule(row[self.smiles]), "target": self._target(row)}
                if self.split_column is not None:
                    parts.append(_part(row[self.split_column]))
                samples.append(sample)
            except (ValueError, OSError, csv.Error) as error:
                if self.corrupted == "raise":
                    raise UsageError(
                        f"{place}: {error}. data.corrupted=skip leaves such rows out."
                    ) from error
                tell("data", f"left out: {place}: {error}")
        if not samples:
            raise UsageError(f"data.root: no row of {str(self.path)!r} is a molecule.")
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
        from torch_geometric.utils.smiles import from_rdmol

        with rdBase.BlockLogs():
            molecule = Chem.MolFromSmiles(smiles)
        if molecule is None or not molecule.GetNumAtoms():
            raise ValueError(f"{smiles!r:.80} is no molecule in SMILES")
        try:
            data = from_rdmol(molecule)
        except ValueError as error:  # "11 is not in list"
            raise ValueError(f"{smiles!r:.80} has {_unknown(molecule, error)}") from error
        atoms, bonds = ([len(values) for values in kinds.values()] for kinds in _maps())
        return {
            "x": _one_hot(data.x, atoms),
            "edge_index": data.edge_index,
            "edge_attr": _one_hot(data.edge_attr, bonds),
        }

    def inputs(self, path: Path) -> Iterator[tuple[str, Any]]:
        require("rdkit", extra="molecules")
        if not path.exists() and path.suffix.lower() not in (".csv", ".smi"):
            yield str(path), str(path)  # a SMILES itself
            return
        for name, file in files(path, [".csv", ".smi"]):
            if file.suffix.lower() == ".smi":
                for place, line in text_lines(name, file, largest=self.largest_input):
                    if isinstance(line, Exception) or line.strip():
                        yield place, line if isinstance(line, Exception) else line.split()[0]
                continue
            for place, row in csv_rows(name, file, [self.smiles], largest=self.largest_input):
                yield place, row if isinstance(row, Exception) else row[self.smiles]

    def read(self, raw: str) -> Sample:
        return self.prepare(self._molecule(raw))


def _maps() -> tuple[dict[str, Any], dict[str, Any]]:
    """PyG's tables of what atoms and bonds may be."""
    require("rdkit", extra="molecules")
    from torch_geometric.utils.smiles import e_map, x_map

    return x_map, e_map


def _unknown(molecule: Any, error: ValueError) -> str:
    """Say which atom or bond of a molecule PyG's tables lack."""
    atoms, bonds = _maps()
    told = {
        "atomic_num": "GetAtomicNum",
        "chirality": "GetChiralTag",
        "degree": "GetTotalDegree",
        "formal_charge": "GetFormalCharge",
        "num_hs": "GetTotalNumHs",
        "num_radical_electrons": "GetNumRadicalElectrons",
        "hybridization": "GetHybridization",
        "bond_type": "GetBondType",
        "stereo": "GetStereo",
    }
    for what, parts, kinds in (
        ("the atom", molecule.GetAtoms(), atoms),
        ("a bond", molecule.GetBonds(), bonds),
    ):
        for part in parts:
            for name, known in kinds.items():
                if name not in told:
                    continue
                value = getattr(part, told[name])()
                if value not in known and str(value) not in known:
                    which = f"{what} {part.GetSymbol()}" if what == "the atom" else what
                    return f"{which} with {name} {value}, which PyG's tables lack"
    return f"an atom or a bond that PyG's tables lack: {error}"


def _are_numbers(values: Iterable[str]) -> bool:
    """Whether all are numbers, and some of them are no whole ones."""
    try:
        found = [float(value) for value in values]
    except ValueError:
        return False
    return not all(number.is_integer() for number in found)


def _in_order(name: str) -> tuple[float, str]:
    """Whole numbers by their size."""
    return (float(name) if name.lstrip("-").isdecimal() else math.inf, name)


def _one_hot(columns: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Columns (n, K) of categories as floats (n, sum of their sizes)."""
    parts = [one_hot(column, size) for column, size in zip(columns.T, sizes, strict=True)]
    return torch.cat(parts, dim=1).float()


def _part(value: str) -> str:
    part = {"valid": "val", "validation": "val"}.get(value.strip(), value.strip())
    if part not in ("train", "val", "test"):
        raise ValueError(f"the split is {value!r}; train, val or test is needed")
    return part
