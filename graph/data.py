"""Graph data sets: files in TU format, and MUTAG, which a package on PyPI brings along."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attention_core.training import DataModule, UsageError, require
from attention_core.training.inputs import files, json_lines, json_object

Sample = dict[str, Tensor]


def read_tu(folder: Path) -> list[Sample]:
    """The graphs of a folder in TU format (Morris et al., TUDataset, 2020), named as the folder.

    Returns: for each graph `x` (n,) node types, `edge_index` (2, e), `edge_attr` (e,) edge types
    where there are any, and `target` (), classes counted from 0 in the order of their labels, where
    there are labels.

    Raises:
        UsageError: a file is missing, holds anything but integers, or does not fit the others.
    """
    folder = folder.resolve()  # "." has no name
    name = folder.name
    path = folder / f"{name}_graph_indicator.txt"
    graph = _column(path) - 1
    if len(graph) and (int(graph[0]) < 0 or bool((graph.diff() < 0).any())):
        raise UsageError(f"{path.name} must name graphs from 1 on, in their order.")
    count = int(graph[-1]) + 1 if len(graph) else 0
    # "row, column" of the adjacency matrix: the edge row → column, both directions listed
    path = folder / f"{name}_A.txt"
    edge_index = _integers(path, columns=2).T - 1
    if edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < len(graph):
        raise UsageError(f"{path.name} names nodes beyond 1 to {len(graph)}.")
    edge_graph = graph[edge_index[0]]
    if bool((edge_graph != graph[edge_index[1]]).any()):
        raise UsageError(f"{path.name} has an edge between two graphs.")
    nodes = _column(folder / f"{name}_node_labels.txt", len(graph))
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
    path = folder / f"{name}_graph_labels.txt"
    if path.exists():
        columns["target"] = _column(path, count).unique(return_inverse=True)[1].unbind()
    path = folder / f"{name}_edge_labels.txt"
    if path.exists():
        kinds = _column(path, edge_index.shape[1])
        columns["edge_attr"] = kinds[order].split(edges.tolist())
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def _column(path: Path, expected: int | None = None) -> Tensor:
    values = _integers(path, columns=1)[:, 0]
    if expected is not None and len(values) != expected:
        raise UsageError(f"{path.name} has {len(values)} lines, {expected} were expected.")
    return values


def _integers(path: Path, columns: int) -> Tensor:
    """The lines (N, columns) of a file of integers separated by commas."""
    if not path.is_file():
        raise UsageError(f"{str(path.parent)!r} is not in TU format: it has no {path.name}.")
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            rows.append([int(value) for value in line.split(",")])
        except ValueError:
            rows.append([])
        if len(rows[-1]) != columns:
            expected = "an integer" if columns == 1 else f"{columns} integers"
            raise UsageError(f"{path.name}: line {number} must be {expected}, got {line!r:.80}.")
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, columns)


def stratified_split(targets: Sequence[int], shares: Sequence[float], name: str) -> list[list[int]]:
    """Splits indices into parts with the same mix of classes, the same on every machine.

    The order inside a class is that of a hash of (name, index): no random number generator, whose
    draws another version of a library may change.

    Args:
        targets: the class of each index.
        shares: the share of each part; together 1.
        name: keys the hash.
    """
    if any(share < 0 for share in shares) or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(f"shares must be at least 0 and sum to 1, got {list(shares)}")
    parts: list[list[int]] = [[] for _ in shares]
    for label in sorted(set(targets)):
        members = [index for index, target in enumerate(targets) if target == label]
        members.sort(key=lambda i: hashlib.blake2b(f"{name}/{i}".encode()).digest())
        ends = [round(len(members) * sum(shares[: k + 1])) for k in range(len(shares))]
        for part, start, end in zip(parts, [0, *ends], ends, strict=False):
            part += members[start:end]
    return [sorted(part) for part in parts]


class Mutag(DataModule):
    """MUTAG (Debnath et al., 1991): 188 molecules, mutagenic or not; atoms and bonds have types.

    The files are those that the package grakel carries; it is not imported. The split is
    stratified and fixed: 60% training, 20% validation, 20% test.

    A batch holds one row of nodes: `x` (N,) atom types, `edge_index` (2, E), `edge_attr` (E,) bond
    types, `batch` (N,) the molecule of each atom, `num_graphs`, `target` (G,).

    `attn predict` reads a folder in TU format, as a whole, or .jsonl files, line by line: one, or
    those below a folder. A line is a molecule, `{"x": [...], "edge_index": [[...], [...]],
    "edge_attr": [...]}`: atom types, for each bond both of its directions, and their types, all
    numbered as `node_names` and `edge_names`.

    Args:
        settings: those of `DataModule`.
    """

    #: What draws a graph reads: the names of node and edge types.
    node_names = ("C", "N", "O", "F", "I", "Cl", "Br")
    edge_names = ("aromatic", "single", "double", "triple")

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)

    def load(self) -> None:
        require("grakel", extra="data")
        spec = importlib.util.find_spec("grakel")
        assert spec is not None and spec.origin is not None
        samples = read_tu(Path(spec.origin).parent / "tests" / "data" / "MUTAG")
        targets = [int(sample["target"]) for sample in samples]
        parts = stratified_split(targets, (0.6, 0.2, 0.2), "mutag")
        self.train_set, self.val_set, self.test_set = (
            _Graphs([samples[index] for index in part]) for part in parts
        )

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        return pack(samples)

    def inputs(self, path: Path) -> Iterator[tuple[str, Any]]:
        name = path.resolve().name
        if path.is_dir() and (path / f"{name}_A.txt").is_file():
            for number, sample in enumerate(read_tu(path), start=1):
                yield f"{name}:{number}", {key: value.tolist() for key, value in sample.items()}
            return
        for name, file in files(path, [".jsonl"]):
            yield from json_lines(name, file)

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
        return {
            "x": torch.tensor(x),
            "edge_index": torch.tensor([source, target], dtype=torch.int64),
            "edge_attr": torch.tensor(kinds, dtype=torch.int64),
        }


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


def pack(samples: Sequence[Sample]) -> dict[str, Any]:
    """Several graphs as one row of nodes, as the arguments of a model and, where they have one,
    their `target` (G,)."""
    sizes = torch.tensor([len(sample["x"]) for sample in samples])
    starts = (sizes.cumsum(0) - sizes).tolist()
    packed: dict[str, Any] = {
        name: torch.cat([sample[name] for sample in samples])
        for name in ("x", "edge_attr")
        if name in samples[0]
    }
    edges = [sample["edge_index"] + start for sample, start in zip(samples, starts, strict=True)]
    packed["edge_index"] = torch.cat(edges, dim=1)
    packed["batch"] = torch.repeat_interleave(sizes)
    packed["num_graphs"] = len(samples)
    if "target" in samples[0]:
        packed["target"] = torch.stack([sample["target"] for sample in samples])
    return packed


def unpack(batch: dict[str, Any]) -> list[Sample]:
    """The graphs of a batch that `pack` made."""
    starts = torch.searchsorted(
        batch["batch"], torch.arange(batch["num_graphs"] + 1, device=batch["batch"].device)
    ).tolist()
    edge_graph = batch["batch"][batch["edge_index"][0]]
    samples = []
    for number in range(batch["num_graphs"]):
        start, end = starts[number], starts[number + 1]
        own = edge_graph == number
        sample = {
            "x": batch["x"][start:end],
            "edge_index": batch["edge_index"][:, own] - start,
        }
        if "target" in batch:
            sample["target"] = batch["target"][number]
        if "edge_attr" in batch:
            sample["edge_attr"] = batch["edge_attr"][own]
        samples.append(sample)
    return samples


class _Graphs(torch.utils.data.Dataset[Sample]):
    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]
