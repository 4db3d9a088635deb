"""Graphs as samples: one at a time, or several as one row of nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

#: A graph, by PyG's names: `x` (n,) types or (n, F) features, `edge_index` (2, e), row 0 the
#: source, and what else there is: `edge_attr` (e,) or (e, F); `target`, of the graph or, beside
#: `node_mask` (n,), of each node; what an encoding has added.
Sample = dict[str, Tensor]


class Graphs(torch.utils.data.Dataset[Sample]):
    """Graphs in memory.

    Args:
        samples: the graphs.
        transform: applied to a graph, of which it makes another, whenever it is drawn.
    """

    def __init__(
        self, samples: Sequence[Sample], transform: Callable[[Sample], Sample] | None = None
    ) -> None:
        self.samples = list(samples)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        sample = self.samples[index]
        return sample if self.transform is None else self.transform(sample)


def pack(samples: Sequence[Sample]) -> dict[str, Any]:
    """Pack several graphs into one row of nodes, as the arguments of a model and, where they have
    one, their `target`.

    As PyG's batches do it: node numbers, which are in what is named `..._index`, count on from
    graph to graph, and all else is put one after the other. The target of a graph gives (G, ...);
    one of nodes, which a `node_mask` stands beside, (N, ...); one of pairs of nodes, which are in
    `edge_label_index`, (B, ...).

    Raises:
        ValueError: a graph lacks what another has.

    Returns: what the graphs have by name, `batch` (N,), the graph of each node, and `num_graphs`.
    """
    sizes = torch.tensor([len(sample["x"]) for sample in samples])
    starts = (sizes.cumsum(0) - sizes).tolist()
    packed: dict[str, Any] = {}
    for sample in samples:
        for name in samples[0].keys() ^ sample.keys():
            raise ValueError(f"one graph of the batch has {name}, another has not")
    of_graphs = {"node_mask", "edge_label_index"}.isdisjoint(samples[0])
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if name.endswith("_index"):
            shifted = [value + start for value, start in zip(values, starts, strict=True)]
            packed[name] = torch.cat(shifted, dim=1)
        elif isinstance(values[0], list):
            packed[name] = [value for own in values for value in own]
        elif name == "target" and of_graphs:
            packed[name] = torch.stack(values)
        else:
            packed[name] = torch.cat(values)
    packed["batch"] = torch.repeat_interleave(sizes)
    packed["num_graphs"] = len(samples)
    return packed


def unpack(batch: dict[str, Any]) -> list[Sample]:
    """Unpack the graphs of a batch that `pack` made.

    What has a row for each edge is named `edge_...`; other things have one for each node, or for
    each pair of nodes of a graph.
    """
    graphs = batch["num_graphs"]
    nodes = torch.bincount(batch["batch"], minlength=graphs)
    starts = (nodes.cumsum(0) - nodes).tolist()
    edges, asked = (
        torch.bincount(batch["batch"][batch[name][0]], minlength=graphs).tolist()
        if name in batch
        else []
        for name in ("edge_index", "edge_label_index")
    )
    of_graphs = {"node_mask", "edge_label_index"}.isdisjoint(batch)
    samples: list[Sample] = [{} for _ in range(graphs)]
    for name, value in batch.items():
        if name in ("batch", "num_graphs"):
            continue
        if name.endswith("_index"):
            parts = value.split(asked if name.startswith("edge_label") else edges, dim=1)
            parts = [part - start for part, start in zip(parts, starts, strict=True)]
        elif name == "target" and of_graphs:
            parts = value.unbind()
        elif name.startswith("edge_label") or (name == "target" and asked):
            parts = value.split(asked)
        elif name.startswith("edge_"):
            parts = value.split(edges)
        else:
            parts = value.split((nodes if len(value) == int(nodes.sum()) else nodes**2).tolist())
        for sample, part in zip(samples, parts, strict=True):
            sample[name] = part
    return samples


def cut(sample: Sample, most: int) -> Sample:
    """Return the first `most` nodes of a graph with the edges between them."""
    nodes = len(sample["x"])
    if nodes <= most:
        return sample
    lists = ("edge_index", "edge_label_index")
    edges, asked = ((sample[name] < most).all(0) if name in sample else None for name in lists)
    found: Sample = {}
    for name, value in sample.items():
        kept = asked if name.startswith("edge_label") else edges
        if name.startswith("edge_"):
            found[name] = value[:, kept] if name.endswith("_index") else value[kept]
        elif len(value) == nodes:
            found[name] = value[:most]
        else:  # a row for each pair of nodes
            square = value.view(nodes, nodes, *value.shape[1:])
            found[name] = square[:most, :most].flatten(0, 1)
    return found


def check_graph(sample: Sample) -> None:
    """Refuse a graph that no model can take.

    Raises:
        ValueError: edges are no (2, e) integers or name nodes that there are none of, edge features
            are of another length, or a value is not finite.
    """
    edge_index, nodes = sample["edge_index"], len(sample["x"])
    if edge_index.ndim != 2 or len(edge_index) != 2 or edge_index.dtype != torch.int64:
        raise ValueError(
            f"edge_index must hold int64 of shape (2, e), got {edge_index.dtype} "
            f"{tuple(edge_index.shape)}"
        )
    if edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < nodes:
        wrong = edge_index[(edge_index < 0) | (edge_index >= nodes)][0]
        raise ValueError(f"edge_index names node {int(wrong)}, but nodes are 0 to {nodes - 1}")
    if "edge_attr" in sample and len(sample["edge_attr"]) != edge_index.shape[1]:
        raise ValueError(
            f"edge_attr has {len(sample['edge_attr'])} rows for {edge_index.shape[1]} edges"
        )
    for name, value in sample.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            row = (~value.isfinite()).nonzero()[0].tolist()
            raise ValueError(f"{name}{row} is {float(value[tuple(row)])}; numbers are needed")
