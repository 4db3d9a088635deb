"""PyG's loaders of sampled neighborhoods, from PyPI alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict, Unpack

import torch
import torch_geometric.sampler
import torch_geometric.typing
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import LinkLoader, NodeLoader
from torch_geometric.sampler import BaseSampler, NegativeSampling
from torch_geometric.sampler.base import NegativeSamplingMode

from attention_core.annotated import Unchecked, checked
from attention_core.checks import check_choice, check_dense, check_number
from graph.sampling.checks import (
    check_column,
    check_data,
    check_edges,
    check_graph,
    check_nodes,
)
from graph.sampling.sampler import NeighborSampler


class DataLoaderOptions(TypedDict, total=False):
    """Options of torch's `DataLoader`."""

    batch_size: int | None
    shuffle: bool | None
    sampler: Any
    batch_sampler: Any
    num_workers: int
    pin_memory: bool
    drop_last: bool
    timeout: float
    worker_init_fn: Callable[[int], None] | None
    multiprocessing_context: Any
    generator: torch.Generator | None
    prefetch_factor: int | None
    persistent_workers: bool
    pin_memory_device: str
    in_order: bool


class LoaderOptions(DataLoaderOptions, total=False):
    """Options of PyG's `NodeLoader` and `LinkLoader`."""

    transform_sampler_output: Callable[[Any], Any] | None
    filter_per_worker: bool | None
    custom_cls: Any
    input_id: Tensor | None


class NeighborLoader(NodeLoader):
    """Batches of seed nodes with neighborhoods drawn around them (Hamilton et al., 2017).

    Arguments, defaults and the fields of a batch are those of `torch_geometric.loader.
    NeighborLoader`, which cannot be used without pyg-lib or torch-sparse; where pyg-lib is
    installed, it does the drawing. A batch is a `Data` or `HeteroData` with `n_id`, `e_id`,
    `input_id`, `batch_size`, `num_sampled_nodes`, `num_sampled_edges`, with `batch` where subgraphs
    are disjoint; the seeds are its first `batch_size` nodes.

    Args:
        data: the graph.
        num_neighbors: see `NeighborSampler`, as for `replace` to `weight_attr`.
        input_nodes: the seeds, (n,) integers or a mask (N,); None for all nodes. In a heterogeneous
            graph a type of nodes, or a tuple of it and the seeds.
        input_time: (n,) the time of each seed, in place of its own.
        transform: applied to every batch.
        is_sorted: the edges are sorted by target, and by time; a hint to pyg-lib. Here edges sorted
            by target are seen to be so.
        neighbor_sampler: draws in place of a new one, so that several loaders share what was
            sorted once; `num_neighbors` to `weight_attr` are then its own.
        options: those of PyG's `NodeLoader` (`transform_sampler_output`, `filter_per_worker`) and
            of torch's `DataLoader` (`batch_size`, `shuffle`, `drop_last`, `num_workers`, …).

    Raises:
        TypeError, ValueError: an argument that cannot be; the message names it.
    """

    @checked
    def __init__(
        self,
        data: Unchecked[Data | HeteroData],
        num_neighbors: Any,
        input_nodes: Any = None,
        input_time: Tensor | None = None,
        replace: bool = False,
        subgraph_type: str = "directional",
        disjoint: bool = False,
        temporal_strategy: str = "uniform",
        time_attr: str | None = None,
        weight_attr: str | None = None,
        transform: Callable[[Any], Any] | None = None,
        *,
        is_sorted: bool = False,
        neighbor_sampler: BaseSampler | None = None,
        **options: Unpack[LoaderOptions],
    ) -> None:
        check_data(data)
        if input_time is not None and time_attr is None and neighbor_sampler is None:
            raise ValueError("input_time needs time_attr, the name of the times in the graph")
        kind, nodes = input_nodes, None
        if isinstance(data, Data):
            kind, nodes = None, input_nodes
        elif isinstance(input_nodes, tuple | list) and len(input_nodes) == 2:
            kind, nodes = input_nodes
        if isinstance(data, HeteroData) and kind not in data.node_types:
            raise ValueError(
                f"input_nodes must be a type of nodes, of {data.node_types}, or a tuple of it and "
                f"the seeds; got {input_nodes!r:.80}"
            )
        count = data.num_nodes if kind is None else data[kind].num_nodes
        seeds = count
        if nodes is not None:
            nodes, seeds = _seeds(nodes, count)
            input_nodes = nodes if kind is None else (kind, nodes)
        if input_time is not None:
            check_column(input_time, seeds, "input_time", "seed")
        sampler = neighbor_sampler or make_sampler(
            data, num_neighbors, replace=replace, subgraph_type=subgraph_type, disjoint=disjoint,
            temporal_strategy=temporal_strategy, time_attr=time_attr, weight_attr=weight_attr,
            is_sorted=is_sorted,
        )  # fmt: skip
        super().__init__(data, sampler, input_nodes, input_time, transform, **options)


class LinkNeighborLoader(LinkLoader):
    """Batches of seed links with neighborhoods drawn around both of their ends.

    Arguments, defaults and the fields of a batch are those of `torch_geometric.loader.
    LinkNeighborLoader`; see `NeighborLoader`. A batch has `edge_label_index` (2, B) into its nodes
    and `edge_label`, or, with triplets, `src_index`, `dst_pos_index` and `dst_neg_index`. As in
    PyG, negatives are any pairs of nodes, now and then a link, and links to predict are not taken
    out of the graph.

    Args:
        data: the graph.
        num_neighbors: see `NeighborSampler`, as for `replace` to `weight_attr`.
        edge_label_index: (2, n) the seeds; None for all edges. In a heterogeneous graph a type of
            edges, or a tuple of it and the seeds.
        edge_label: (n,) their labels.
        edge_label_time: (n,) their times, together with `time_attr`.
        neg_sampling: PyG's `NegativeSampling`, its mode ("binary" or "triplet"), or a dict of its
            arguments.
        transform, is_sorted, neighbor_sampler, options: as in `NeighborLoader`.

    Raises:
        TypeError, ValueError: an argument that cannot be; the message names it.
    """

    @checked
    def __init__(
        self,
        data: Unchecked[Data | HeteroData],
        num_neighbors: Any,
        edge_label_index: Any = None,
        edge_label: Tensor | None = None,
        edge_label_time: Tensor | None = None,
        replace: bool = False,
        subgraph_type: str = "directional",
        disjoint: bool = False,
        temporal_strategy: str = "uniform",
        neg_sampling: Any = None,
        neg_sampling_ratio: float | None = None,
        time_attr: str | None = None,
        weight_attr: str | None = None,
        transform: Callable[[Any], Any] | None = None,
        *,
        is_sorted: bool = False,
        neighbor_sampler: BaseSampler | None = None,
        **options: Unpack[LoaderOptions],
    ) -> None:
        check_data(data)
        if neighbor_sampler is None and (edge_label_time is None) != (time_attr is None):
            missing = "edge_label_time" if edge_label_time is None else "time_attr"
            raise ValueError(f"edge_label_time and time_attr go together; {missing} is missing")
        check_number(least=0, neg_sampling_ratio=neg_sampling_ratio, or_none=True)
        if neg_sampling_ratio:
            neg_sampling = NegativeSampling("binary", neg_sampling_ratio)
        neg_sampling = _negatives(neg_sampling)
        apart = disjoint or edge_label_time is not None
        if neg_sampling is not None and apart and neg_sampling.amount % 1:
            # PyG would number their subgraphs as if there were as many of them as of links
            raise ValueError(
                "neg_sampling must have a whole amount where subgraphs are disjoint, got "
                f"{neg_sampling.amount}"
            )
        count = _check_links(data, edge_label_index)
        for name, values in (("edge_label", edge_label), ("edge_label_time", edge_label_time)):
            if values is not None and values.shape[:1] != (count,):
                raise ValueError(
                    f"{name} must hold a value per link, {count}; got {tuple(values.shape)}"
                )
        sampler = neighbor_sampler or make_sampler(
            data, num_neighbors, replace=replace, subgraph_type=subgraph_type, disjoint=disjoint,
            temporal_strategy=temporal_strategy, time_attr=time_attr, weight_attr=weight_attr,
            is_sorted=is_sorted,
        )  # fmt: skip
        super().__init__(
            data, sampler, edge_label_index, edge_label, edge_label_time, neg_sampling,
            transform=transform, **options,
        )  # fmt: skip


def make_sampler(
    data: Unchecked[Data | HeteroData],
    num_neighbors: Any,
    *,
    subgraph_type: str = "directional",
    is_sorted: bool = False,
    **options: Any,
) -> BaseSampler:
    """Make PyG's sampler where pyg-lib, which knows no induced subgraphs, is installed, else
    ours."""
    if torch_geometric.typing.WITH_PYG_LIB and subgraph_type != "induced":
        check_graph(data)  # pyg-lib would read beyond its memory
        return torch_geometric.sampler.NeighborSampler(
            data, num_neighbors, subgraph_type=subgraph_type, is_sorted=is_sorted, **options
        )
    return NeighborSampler(data, num_neighbors, subgraph_type=subgraph_type, **options)


def _negatives(neg_sampling: Any) -> NegativeSampling | None:
    if neg_sampling is None or isinstance(neg_sampling, NegativeSampling):
        return neg_sampling
    if not isinstance(neg_sampling, dict):
        check_choice([mode.value for mode in NegativeSamplingMode], neg_sampling=neg_sampling)
    try:
        return NegativeSampling.cast(neg_sampling)
    except (TypeError, ValueError) as error:
        raise type(error)(f"neg_sampling={neg_sampling!r:.80}: {error}") from None


def _seeds(given: Any, count: int) -> tuple[Tensor, int]:
    """The seeds, as integers or as a mask, and how many they are."""
    try:
        nodes = torch.as_tensor(given)
    except Exception:
        raise TypeError(
            f"input_nodes must be integers (n,) or a mask ({count},), got {given!r:.80}"
        ) from None
    check_dense(input_nodes=nodes)
    if nodes.dtype == torch.bool:
        if nodes.shape != (count,):
            raise ValueError(
                f"input_nodes must be a mask of shape ({count},), got {tuple(nodes.shape)}"
            )
        return nodes, int(nodes.sum())
    if nodes.ndim != 1:
        raise ValueError(f"input_nodes must have shape (n,), got {tuple(nodes.shape)}")
    if len(nodes) == 0:
        return nodes.long(), 0  # an empty list has no type
    check_nodes(nodes, count, "input_nodes")
    return nodes, len(nodes)


def _check_links(data: Unchecked[Data | HeteroData], links: Any) -> int:
    """How many links there are."""
    if isinstance(data, Data):
        ends = int(data.num_nodes or 0), int(data.num_nodes or 0)
        index = data.edge_index if links is None else links
    else:
        alone = not isinstance(links, tuple | list) or len(links) != 2 or isinstance(links[0], str)
        kind, index = (links, None) if alone else links
        if isinstance(kind, tuple):
            kind = data._to_canonical(*kind)  # of ("user", "item"), as PyG's loader does
        if kind not in data.edge_types:
            raise ValueError(
                f"edge_label_index must be a type of edges, of {data.edge_types}, or a tuple of it "
                f"and the seeds; got {links!r:.80}"
            )
        ends = int(data[kind[0]].num_nodes), int(data[kind[-1]].num_nodes)
        index = data[kind].edge_index if index is None else index
    check_edges(index, *ends, "edge_label_index")
    return int(index.shape[1])
