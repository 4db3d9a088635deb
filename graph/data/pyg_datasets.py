"""The data sets that PyG and OGB can fetch and read, by their names there."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from attention_core.errors import did_you_mean
from attention_core.training import UsageError, require
from attention_core.training.unpickling import plain_pickles
from graph.data.graphs import Sample
from graph.data.module import GraphData, GraphDataOptions

_PARTS = ("train", "val", "test")

#: The data sets of PyG that can be read: of graphs whose nodes are of one kind, from files that are
#: no programs. (Of others some evaluate what is in a file, take functions to call, or download
#: models.)
READABLE = frozenset(
    {
        *("AQSOL", "Actor", "Airports", "Amazon", "AmazonProducts", "AttributedGraphDataset"),
        *("BA2MotifDataset", "BAMultiShapesDataset", "BAShapes", "CitationFull", "Coauthor"),
        *("CoraFull", "DGraphFin", "DeezerEurope", "EllipticBitcoinDataset", "EmailEUCore"),
        *("FacebookPagePage", "FakeDataset", "Flickr", "GNNBenchmarkDataset", "GemsecDeezer"),
        *("GitHub", "HeterophilousGraphDataset", "KarateClub", "LINKXDataset", "LRGBDataset"),
        *("LastFMAsia", "MNISTSuperpixels", "MalNetTiny", "MixHopSyntheticDataset", "MoleculeNet"),
        *("NELL", "PPI", "Planetoid", "PolBlogs", "QM7b", "QM9", "RandomPartitionGraphDataset"),
        *("Reddit", "Reddit2", "StochasticBlockModelDataset", "TUDataset", "Twitch", "UPFD"),
        *("WebKB", "WikiCS", "WikipediaNetwork", "Yelp", "ZINC"),
    }
)


class PyGDataset(GraphData):
    """A data set of `torch_geometric.datasets`: TUDataset, Planetoid, ZINC...; or, where the
    package ogb is installed, one of OGB: ogbg-molhiv, ogbn-arxiv...

    Where a data set comes in three parts, has masks of nodes, or is OGB's with its split, that is
    kept, and of several masks `fold` chooses one. Else graphs are split as `GraphData` does, 80%,
    10%, 10%, stratified where the targets are classes. PyG downloads files that `root` lacks. A
    file that could run code is refused.

    Of a graph, `x`, `edge_index`, `edge_attr` and, as `target`, `y` are taken; one column of
    integers becomes (n,) types, and without `x` all nodes are of type 0. Targets are a graph's, or
    its nodes': these have a `node_mask` beside them. Transforms of PyG that want more of its data
    go into `options`.

    Args:
        name: of the class in PyG, one of `READABLE`, or OGB's name of the data set.
        root: the folder of its files.
        options: further arguments of the class, such as ``{"name": "PROTEINS"}``.
        settings: those of `GraphData`.

    Raises:
        UsageError: the name is none; or when it loads: the files are missing or the graphs have no
            target.
    """

    def __init__(
        self,
        name: str,
        root: str,
        *,
        options: Mapping[str, Any] | None = None,
        **settings: Unpack[GraphDataOptions],
    ) -> None:
        super().__init__(**settings)
        if "://" in root or "::" in root:
            raise UsageError(f"data.root must be a folder of this machine, got {root!r}.")
        self.dataset, self.root = name, Path(root).expanduser()
        self.options = dict(options or {})
        if "meta_dict" in self.options:
            raise UsageError("data.options.meta_dict is refused: it names files to read.")
        self._make = _ogb(name) if name.startswith(("ogbg-", "ogbn-")) else _pyg(name)

    def prepare_data(self) -> None:
        """Download: Lightning's hook, called in one process of a machine before any other."""
        self._open()

    def load(self) -> None:
        parts = self._open()
        samples = [[_sample(data) for data in part] for part in parts]
        everything = [sample for part in samples for sample in part]
        if any("target" not in sample for sample in everything):
            raise UsageError(f"data.name: graphs of {self.dataset} have no target y.")
        of_nodes = all(
            sample["target"].shape[:1] == sample["x"].shape[:1] for sample in everything
        ) and any(len(sample["x"]) > 1 for sample in everything)
        if of_nodes and len(everything) == 1:
            self.fill_nodes(everything[0], *self._masks(parts[0]))
        elif of_nodes:
            self._fill_parts([[_all_nodes(sample) for sample in part] for part in samples])
        else:
            self._fill_parts([[_of_graph(sample) for sample in part] for part in samples], parts[0])

    def _fill_parts(self, parts: list[list[Sample]], source: Any = None) -> None:
        name = self.dataset
        if len(parts) == 3:
            self.fill(*(self.prepare_all(part, name) for part in parts))
            return
        (samples,) = parts
        if self.fold is None and hasattr(source, "get_idx_split"):
            own = source.get_idx_split()
            prepared = self.prepare_all(samples, name)
            self.fill(
                *([prepared[i] for i in own[part].tolist()] for part in ("train", "valid", "test"))
            )
            return
        is_class = all(
            s["target"].ndim == 0 and not s["target"].is_floating_point() for s in samples
        )
        strata = [int(sample["target"]) if is_class else 0 for sample in samples]
        self.split(samples, name, strata=strata, shares=(0.8, 0.1, 0.1))

    def _masks(self, dataset: Any) -> list[Tensor]:
        """The nodes, (N,) bool each, to train, validate and test with."""
        data = dataset[0]
        if hasattr(dataset, "get_idx_split"):
            own = dataset.get_idx_split()
            masks = [torch.zeros(data.num_nodes, dtype=torch.bool) for _ in _PARTS]
            for mask, part in zip(masks, ("train", "valid", "test"), strict=True):
                mask[own[part]] = True
            return masks
        missing = [f"{part}_mask" for part in _PARTS if f"{part}_mask" not in data]
        if missing:
            raise UsageError(
                f"data.name: the graph of {self.dataset} has no {missing[0]}, so its nodes are not "
                "split; torch_geometric.transforms.RandomNodeSplit as data.options.transform does."
            )
        masks = [data[f"{part}_mask"] for part in _PARTS]
        columns = {mask.shape[1] for mask in masks if mask.ndim == 2}
        if columns and (self.fold or 0) >= min(columns):
            raise UsageError(
                f"data.fold: {self.dataset} has {min(columns)} splits, got {self.fold}."
            )
        return [mask[:, self.fold or 0] if mask.ndim == 2 else mask for mask in masks]

    def _open(self) -> list[Any]:
        """The data set, or its three parts where the class takes `split="train"`."""
        known = inspect.signature(self._make).parameters
        given = dict(self.options)
        if "root" in known:
            given["root"] = str(self.root)
        if self.dataset.startswith("ogb"):
            given["name"] = self.dataset
        in_parts = "split" in known and known["split"].default == "train" and "split" not in given
        try:
            with plain_pickles(f"data: {self.dataset} in {str(self.root)!r}"):
                if in_parts:
                    return [self._make(**given, split=part) for part in _PARTS]
                return [self._make(**given)]
        except UsageError:
            raise
        except (TypeError, ValueError, AssertionError) as error:
            raise UsageError(f"data.options: {self.dataset}: {error or 'refused'}") from error
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(
                f"data: {self.dataset} is not in {str(self.root.absolute())!r}, and could not be "
                f"downloaded: {reason}. Where there is no internet, put its raw files there as PyG "
                "lays them out."
            ) from error


def _pyg(name: str) -> Any:
    from torch_geometric import datasets

    if name not in READABLE:
        if name in datasets.__all__:
            raise UsageError(
                f"data.name: {name!r} is refused: it is not among those of PyG's data sets that "
                f"are known to be graphs and to be read without running code."
            )
        raise UsageError(f"data.name: PyG has no data set {name!r}.{did_you_mean(name, READABLE)}")
    return getattr(datasets, name)


def _ogb(name: str) -> Any:
    require("ogb", extra="ogb")
    from ogb.graphproppred import PygGraphPropPredDataset
    from ogb.nodeproppred import PygNodePropPredDataset

    return PygGraphPropPredDataset if name.startswith("ogbg-") else PygNodePropPredDataset


def _sample(data: Any) -> Sample:
    """A graph of PyG as ours; its target still has the shape of `y`."""
    x = data.x if data.x is not None else torch.zeros(data.num_nodes, dtype=torch.int64)
    sample = {"x": _types(x), "edge_index": data.edge_index}
    if data.edge_attr is not None:
        sample["edge_attr"] = _types(data.edge_attr)
    if isinstance(data.y, Tensor):
        sample["target"] = data.y
    return sample


def _types(values: Tensor) -> Tensor:
    """One column of integers as types (n,)."""
    if values.ndim == 2 and values.shape[1] == 1 and not values.is_floating_point():
        return values[:, 0].long()
    return values


def _of_graph(sample: Sample) -> Sample:
    target = sample["target"]
    if target.ndim and len(target) == 1:
        target = target[0]  # of PyG's one row per graph
    return {**sample, "target": target.squeeze() if target.numel() == 1 else target}


def _all_nodes(sample: Sample) -> Sample:
    return {**sample, "node_mask": torch.ones(len(sample["x"]), dtype=torch.bool)}
