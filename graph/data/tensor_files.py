"""Graphs in files of tensors: PyG's names, in a .pt, .npz, .safetensors or .jsonl file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from attention_core.pretrained.serialization import load_safetensors, load_torch
from attention_core.training import UsageError
from attention_core.training.inputs import check_file, json_object
from graph.data.graphs import Sample

TENSORS = (".pt", ".pth", ".npz", ".safetensors")
#: What may be called otherwise.
_NAMES = {"y": "target"}
#: Of PyG's batches and data, what says nothing of a graph that the others do not.
_LEFT_OUT = ("batch", "ptr", "num_nodes", "num_graphs", "pos", "smiles", "name")


def read_tensors(path: Path) -> list[Sample]:
    """Read the graphs of a file: one in .npz and .safetensors, whose arrays have PyG's names; in
    .pt a dict of tensors, or PyG's `Data`, or a list of these. A file that could run code is
    refused, and is not run.

    Returns: each graph, `y` as `target`, a column of integers as types (n,); without `x` all nodes
    are of type 0.

    Raises:
        UsageError: it cannot be read, or holds no graph.
    """
    kind = check_file(path).suffix.lower()
    content: Any
    if kind == ".safetensors":
        content = load_safetensors(path, "data")
    elif kind == ".npz":
        content = _arrays(path)
    else:
        content = _pickled(path)
    several = content if isinstance(content, list | tuple) else [content]
    found = []
    for number, graph in enumerate(several, start=1):
        try:
            found.append(as_sample(graph))
        except ValueError as error:
            place = path.name if several is not content else f"{path.name}:{number}"
            raise UsageError(f"{place}: {error}.") from error
    return found


def read_line(line: bytes) -> Sample:
    """Read a graph from a line of JSON, an object of lists with PyG's names.

    Raises:
        ValueError: it is no graph; the message says why.
    """
    content = json_object(line, ["edge_index"])
    return as_sample({name: _tensor(name, value) for name, value in content.items()})


def as_sample(graph: Any) -> Sample:
    """Make a sample of tensors by name, or of PyG's `Data`.

    Raises:
        ValueError: it has no `edge_index`, or holds what is no tensor.
    """
    content = graph if isinstance(graph, Mapping) else getattr(graph, "to_dict", dict)()
    if not isinstance(content, Mapping) or "edge_index" not in content:
        keys = ", ".join(map(str, content)) if isinstance(content, Mapping) else ""
        what = f"it has {keys}" if keys else f"got {type(graph).__name__}"
        raise ValueError(f"a graph has tensors by PyG's names, edge_index among them; {what:.120}")
    sample: Sample = {}
    for key, value in content.items():
        name = str(key)
        if value is None or name in _LEFT_OUT:
            continue
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            raise ValueError(f"{name} must be a dense tensor, got {type(value).__name__}")
        sample[_NAMES.get(name, name)] = _types(value) if name in ("x", "edge_attr") else value
    sample["edge_index"] = _edges(sample["edge_index"])
    if "x" not in sample:
        nodes = content.get("num_nodes")
        edges = sample["edge_index"]
        least = int(edges.max()) + 1 if edges.numel() else 0
        count = least if nodes is None else int(nodes)
        sample["x"] = torch.zeros(count, dtype=torch.int64)
    return sample


def _edges(edge_index: Tensor) -> Tensor:
    if not edge_index.numel():
        return torch.zeros(2, 0, dtype=torch.int64)
    whole = not edge_index.is_floating_point() and edge_index.dtype != torch.bool
    return edge_index.long() if whole else edge_index


def _types(values: Tensor) -> Tensor:
    """One column of integers as types (n,), numbers as float32."""
    if values.is_floating_point():
        return values.float()
    return values[:, 0].long() if values.ndim == 2 and values.shape[1] == 1 else values.long()


def _pickled(path: Path) -> Any:
    """What a file of torch's holds, PyG's own containers included: they only hold things."""
    from torch_geometric.data import data, storage

    containers: list[Any] = [data.Data, data.DataEdgeAttr, data.DataTensorAttr]
    containers += [storage.BaseStorage, storage.GlobalStorage]
    names = {f"{one.__module__}.{one.__qualname__}" for one in containers}
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(containers)
    try:
        return load_torch(path, "data", ours=False, plain=names)
    finally:  # torch's own context would also take away what was there before
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _arrays(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as opened, numpy.lib.npyio.NpzFile(opened) as file:
            return {name: torch.from_numpy(numpy.asarray(file[name])) for name in file.files}
    except Exception as error:  # a damaged archive raises a dozen kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"data: {str(path)!r} cannot be read: {reason}.") from error


def _tensor(name: str, value: Any) -> Tensor:
    try:
        found = torch.tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a list of numbers: {error}") from error
    return found if found.numel() or not isinstance(value, list) else found.long()


def graphs_in(name: str, path: Path) -> Iterator[tuple[str, Sample | Exception]]:
    """Yield the graphs of a file of tensors by name, or its error where it cannot be read."""
    try:
        found = read_tensors(path)
    except (ValueError, OSError) as error:
        yield name, error
        return
    for number, sample in enumerate(found, start=1):
        yield (name if len(found) == 1 else f"{name}:{number}"), sample
