"""Graph data sets: files in TU format, and MUTAG, which a package on PyPI brings along."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attention_core.training import DataModule, UsageError, require

Sample = dict[str, Tensor]


def read_tu(folder: Path) -> list[Sample]:
    """The graphs of a folder in TU format (Morris et al., TUDataset, 2020), named as the folder.

    Returns: for each graph `x` (n,) node types, `edge_index` (2, e), `edge_attr` (e,) edge types
    where there are any, and `target` (), classes counted from 0 in the order of their labels.

    Raises:
        UsageError: a file is missing, or one has another number of lines than it must.
    """
    name = folder.name
    graph = _column(folder / f"{name}_graph_indicator.txt") - 1
    edges = _lines(folder / f"{name}_A.txt")
    # "row, column" of the adjacency matrix: the edge row → column, both directions listed
    edge_index = torch.tensor([[int(n) for n in line.split(",")] for line in edges]).T - 1
    nodes = _column(folder / f"{name}_node_labels.txt", len(graph))
    labels = _column(folder / f"{name}_graph_labels.txt", int(graph.max()) + 1)
    target = labels.unique(return_inverse=True)[1]
    path = folder / f"{name}_edge_labels.txt"
    kinds = _column(path, len(edges)) if path.exists() else None
    sizes = torch.bincount(graph, minlength=len(target))
    starts = sizes.cumsum(0) - sizes
    samples: list[Sample] = []
    edge_graph = graph[edge_index[0]]
    for number, (start, size) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
        own = edge_graph == number
        sample = {
            "x": nodes[start : start + size],
            "edge_index": edge_index[:, own] - start,
            "target": target[number],
        }
        if kinds is not None:
            sample["edge_attr"] = kinds[own]
        samples.append(sample)
    return samples


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise UsageError(f"{str(path.parent)!r} is not in TU format: it has no {path.name}.")
    return path.read_text().split("\n")[:-1]


def _column(path: Path, expected: int | None = None) -> Tensor:
    values = torch.tensor([int(line) for line in _lines(path)])
    if expected is not None and len(values) != expected:
        raise UsageError(f"{path.name} has {len(values)} lines, {expected} were expected.")
    return values


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


def pack(samples: Sequence[Sample]) -> dict[str, Any]:
    """Several graphs as one row of nodes, as the arguments of a model and their `target` (G,)."""
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
    packed["target"] = torch.stack([sample["target"] for sample in samples])
    return packed


def unpack(batch: dict[str, Any]) -> list[Sample]:
    """The graphs of a batch that `pack` made."""
    starts = torch.searchsorted(
        batch["batch"], torch.arange(batch["num_graphs"] + 1, device=batch["batch"].device)
    ).tolist()
    edge_graph = batch["batch"][batch["edge_index"][0]]
    samples = []
    for number, target in enumerate(batch["target"]):
        start, end = starts[number], starts[number + 1]
        own = edge_graph == number
        sample = {
            "x": batch["x"][start:end],
            "edge_index": batch["edge_index"][:, own] - start,
            "target": target,
        }
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
