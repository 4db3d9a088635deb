"""Data modules of sampled batches, which resume exactly and are dealt to several processes.

A batch is a dict. Of a graph without types, N nodes and E edges of which were drawn, it holds

- `x` (N, F) or (N,), `edge_index` (2, E) into these nodes and, where the graph has them,
  `edge_attr` (E, …); of a graph with types `x_dict`, `edge_index_dict` and `edge_attr_dict`;
- for nodes (`SampledNodes`, `Clusters`): `target` (N, …), the `y` of every node, and `node_mask`
  (N,) bool, True at those in question; the others are there for their messages alone, so neither
  loss nor metrics count them. `SampledNodes` puts the nodes in question first. With types both are
  of the nodes of `node_type`;
- for links (`SampledLinks`): `edge_label_index` (2, B) into these nodes, and `target` (B,), the
  label of each link: in training 1, or the label given, and 0 at random pairs.

That is also what `graph.data` makes of one graph with labelled nodes, so the same tasks and models
serve both. All but `target` goes to the model by name.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Data, HeteroData

from attention_core.training import DataModule, DataModuleOptions, UsageError
from attention_core.training.seeding import seed_generators
from graph.sampling.clusters import ClusterData, ClusterLoader
from graph.sampling.loaders import LinkNeighborLoader, NeighborLoader, make_sampler

_STAGES = ("train", "val", "test")


class Sampled(DataModule):
    """One large graph, from which batches are drawn: what its three forms below share.

    What a batch draws depends on the seed, the epoch and the batch alone, so that a resumed run
    continues exactly, whatever the number of workers; in evaluation on the seed and the batch, so
    that it gives the same in every epoch and when repeated by as many processes. With all
    neighbors, -1, evaluation draws nothing and does not depend on batches at all.
    """

    def collate(self, samples: list[Any]) -> dict[str, Any]:
        (sampled,) = samples
        return self.arguments(sampled)

    def arguments(self, sampled: Any) -> dict[str, Any]:
        """Return the model's arguments in a drawn batch, by name, and `target`.

        Of a `Data` `x`, `edge_index` and, where there is one, `edge_attr`; of a `HeteroData`
        `x_dict`, `edge_index_dict` and `edge_attr_dict`. Override it for other things.
        """
        names = ["x", "edge_index", "edge_attr"]
        if isinstance(sampled, HeteroData):
            columns = {f"{name}_dict": sampled.collect(name, True) for name in names}
            return {name: column for name, column in columns.items() if column}
        return {name: sampled[name] for name in names if name in sampled}


class SampledNodes(Sampled):
    """Nodes of one large graph to classify, in batches of some with neighborhoods drawn around.

    A subclass gives the graph, in which `train_mask`, `val_mask` and `test_mask` (N,) say which
    nodes belong to which set, and `y` (N, …) holds the labels. What a batch holds is at the top of
    this file.

    Args:
        num_neighbors: see `NeighborSampler`.
        eval_neighbors: the same for evaluation; None for `num_neighbors`.
        node_type: the type of nodes in question, in a heterogeneous graph.
        sampling: further options of `NeighborSampler`, such as `replace`.
        settings: those of `DataModule`; `batch_size` counts seeds.
    """

    def __init__(
        self,
        *,
        num_neighbors: Any,
        eval_neighbors: Any = None,
        node_type: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        **settings: Unpack[DataModuleOptions],
    ) -> None:
        super().__init__(**settings)
        self.num_neighbors = num_neighbors
        self.eval_neighbors = num_neighbors if eval_neighbors is None else eval_neighbors
        self.node_type, self.sampling = node_type, dict(sampling or {})

    def graph(self) -> Data | HeteroData:
        """Return the graph; called once per process."""
        raise NotImplementedError(f"{type(self).__name__}.graph must return the graph.")

    def load(self) -> None:
        data = self.graph()
        store = self._store(data)
        _check_labels(store)
        masks = {stage: _mask(store, stage) for stage in _STAGES}
        with _as_usage_errors():
            sampler = make_sampler(data, self.num_neighbors, **self.sampling)
            evaluated = copy.copy(sampler)  # of what was sorted once
            evaluated.num_neighbors = self.eval_neighbors
        for stage, mask in masks.items():
            loader = NeighborLoader(
                data,
                None,
                mask if self.node_type is None else (self.node_type, mask),
                neighbor_sampler=sampler if stage == "train" else evaluated,
            )
            setattr(self, f"{stage}_set", _Drawn(loader, stage, self.seed))

    def arguments(self, sampled: Any) -> dict[str, Any]:
        store = self._store(sampled)
        mask = torch.arange(len(store.n_id)) < store.batch_size
        return {**super().arguments(sampled), "node_mask": mask, "target": store.y}

    def _store(self, data: Any) -> Any:
        return data if self.node_type is None else data[self.node_type]


class SampledLinks(Sampled):
    """Links of one large graph to predict, in batches of some with neighborhoods drawn around.

    A subclass gives three graphs, for training, validation and test, as PyG's `RandomLinkSplit`
    does: `edge_index` is what messages pass along, `edge_label_index` and `edge_label` are the
    links in question. What a batch holds is at the top of this file.

    Args:
        num_neighbors, eval_neighbors, sampling: as in `SampledNodes`; with a `time_attr`, the
            graphs have `edge_label_time`.
        edge_type: the type of links in question, in a heterogeneous graph.
        negatives: how many pairs of random nodes, with target 0, to add in training for each link.
        settings: those of `DataModule`; `batch_size` counts links.
    """

    def __init__(
        self,
        *,
        num_neighbors: Any,
        eval_neighbors: Any = None,
        edge_type: Sequence[str] | None = None,
        negatives: float = 0.0,
        sampling: Mapping[str, Any] | None = None,
        **settings: Unpack[DataModuleOptions],
    ) -> None:
        super().__init__(**settings)
        self.num_neighbors = num_neighbors
        self.eval_neighbors = num_neighbors if eval_neighbors is None else eval_neighbors
        self.edge_type = None if edge_type is None else tuple(edge_type)
        self.negatives, self.sampling = negatives, dict(sampling or {})

    def graphs(self) -> tuple[Any, Any, Any]:
        """Return the graphs for training, validation and test; called once per process."""
        raise NotImplementedError(f"{type(self).__name__}.graphs must return three graphs.")

    def load(self) -> None:
        for stage, data in zip(_STAGES, self.graphs(), strict=True):
            store, train = self._store(data), stage == "train"
            if "edge_label_index" not in store or not (train or "edge_label" in store):
                raise UsageError(
                    f"{type(self).__name__}.graphs: edge_label_index and edge_label must be in the "
                    f"graph for {stage}, which has {list(store.keys())}."
                )
            links = store["edge_label_index"]
            with _as_usage_errors():
                loader = LinkNeighborLoader(
                    data,
                    self.num_neighbors if train else self.eval_neighbors,
                    links if self.edge_type is None else (self.edge_type, links),
                    store["edge_label"] if "edge_label" in store else torch.ones(links.shape[1]),
                    getattr(store, "edge_label_time", None),
                    neg_sampling_ratio=self.negatives if train else None,
                    **self.sampling,
                )
            setattr(self, f"{stage}_set", _Drawn(loader, stage, self.seed))

    def arguments(self, sampled: Any) -> dict[str, Any]:
        store = self._store(sampled)
        links = {"edge_label_index": store.edge_label_index, "target": store.edge_label}
        return {**super().arguments(sampled), **links}

    def _store(self, data: Any) -> Any:
        return data if self.edge_type is None else data[self.edge_type]


class Clusters(Sampled):
    """Nodes of one large graph to classify, in batches of clusters with all edges inside them.

    A subclass gives the graph as for `SampledNodes`, without types, and a batch is the same. Each
    set holds the clusters in which it has nodes. Edges between batches are left out, in evaluation,
    too; for a whole graph see `layerwise`.

    Args:
        parts: number of clusters; see `partition`.
        settings: those of `DataModule`; `batch_size` counts clusters.
    """

    def __init__(self, *, parts: int, **settings: Unpack[DataModuleOptions]) -> None:
        super().__init__(**settings)
        self.parts = parts

    def graph(self) -> Data:
        """Return the graph; called once per process."""
        raise NotImplementedError(f"{type(self).__name__}.graph must return the graph.")

    def load(self) -> None:
        data = self.graph()
        _check_labels(data)
        masks = {stage: _mask(data, stage) for stage in _STAGES}
        with _as_usage_errors():
            clusters = ClusterData(data, self.parts)
            loader = ClusterLoader(clusters)
        for stage, mask in masks.items():
            own = clusters.parts[mask.cpu()].unique()
            setattr(self, f"{stage}_set", _Drawn(loader, stage, self.seed, own))

    def arguments(self, sampled: Any) -> dict[str, Any]:
        mask = sampled[f"{sampled.stage}_mask"]
        return {**super().arguments(sampled), "node_mask": mask, "target": sampled.y}


class _Drawn(Dataset[Any]):
    """The batches that a loader draws for some of its items, each the one sample of a batch.

    Args:
        loader: called with a list of its items, draws under torch's global generator, which the
            harness seeds for each training batch.
        items: (n,) which of its items there are; None for all.
    """

    def __init__(self, loader: Any, stage: str, seed: int, items: Tensor | None = None) -> None:
        self.loader, self.stage, self.seed = loader, stage, seed
        self.items = torch.arange(len(loader.dataset)) if items is None else items

    def __len__(self) -> int:
        return len(self.items)

    def __getitems__(self, indices: list[int]) -> list[Any]:
        if self.stage != "train":
            seed_generators(self.seed, self.stage, indices[0])
        sampled = self.loader(self.items[indices])
        sampled.stage = self.stage
        return [sampled]


def _mask(store: Any, stage: str) -> Tensor:
    name = f"{stage}_mask"
    mask = getattr(store, name, None)
    if not isinstance(mask, Tensor) or mask.shape != (store.num_nodes,) or mask.dtype != torch.bool:
        raise UsageError(
            f"graph: {name} must be a mask of its {store.num_nodes} nodes, got {mask!r:.80}."
        )
    if not bool(mask.any()):
        raise UsageError(f"graph: {name} names none of its {store.num_nodes} nodes.")
    return mask


def _check_labels(store: Any) -> None:
    y = getattr(store, "y", None)
    if not isinstance(y, Tensor) or y.ndim == 0 or len(y) != store.num_nodes:
        raise UsageError(
            f"graph: y must hold the label of each of its {store.num_nodes} nodes, got {y!r:.80}."
        )


@contextmanager
def _as_usage_errors() -> Iterator[None]:
    """Turn what a loader refuses into what the command line tells."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise UsageError(f"data: {error}.") from error
