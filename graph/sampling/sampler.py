"""Neighbor sampling in plain torch, behind the interface of PyG's samplers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.sampler import (
    BaseSampler,
    EdgeSamplerInput,
    HeteroSamplerOutput,
    NegativeSampling,
    NodeSamplerInput,
    SamplerOutput,
)
from torch_geometric.sampler.base import NumNeighbors, SubgraphType
from torch_geometric.sampler.neighbor_sampler import edge_sample, node_sample

from attention_core.annotated import Unchecked, checked
from attention_core.checks import check_choice
from graph.layers.edges import check_edge_index
from graph.sampling.checks import (
    check_column,
    check_data,
    check_fan_out,
    check_graph,
    check_nodes,
)
from graph.sampling.draw import Found, InEdges

EdgeType = tuple[str, str, str]

# A graph without types is one with a single type of nodes and of edges
_NODE, _EDGE = "", ("", "", "")


class NeighborSampler(BaseSampler):
    """Samples neighborhoods hop by hop (Hamilton et al., GraphSAGE, 2017), vectorised in torch.

    The options, their defaults and what comes out are those of PyG's `NeighborSampler`, which
    needs pyg-lib; so this serves any PyG loader that takes a sampler. All randomness comes from
    torch's global generator.

    Beyond PyG: `subgraph_type="induced"` may be `disjoint` and temporal.

    Args:
        data: the graph, with `edge_index` in each edge type.
        num_neighbors: edges to draw into each node, one number a hop, -1 for all; a dict of such
            lists gives each edge type its own. No hop at all, `[]`, leaves the seeds alone.
        subgraph_type: "directional" keeps the edges drawn, "bidirectional" adds their reverse,
            "induced" keeps all edges between the nodes found.
        replace: draw with replacement.
        disjoint: a subgraph of its own for each seed; always so with times.
        temporal_strategy: of the neighbors that are not newer than the seed take any ("uniform")
            or the latest ("last").
        time_attr: name of the times, of nodes or of edges.
        weight_attr: name of the weights of edges: at least 0, and relative to each other.

    Raises:
        TypeError, ValueError: an argument that cannot be, an `edge_index` of another shape, kind or
            range, or an `x` or `edge_attr` of another length or with values that are not finite;
            the message names it.
    """

    @checked
    def __init__(
        self,
        data: Unchecked[Data | HeteroData],
        num_neighbors: Any,
        subgraph_type: SubgraphType | str = "directional",
        replace: bool = False,
        disjoint: bool = False,
        temporal_strategy: str = "uniform",
        time_attr: str | None = None,
        weight_attr: str | None = None,
    ) -> None:
        check_data(data)
        check_choice(("uniform", "last"), temporal_strategy=temporal_strategy)
        if not isinstance(subgraph_type, SubgraphType):
            check_choice([one.value for one in SubgraphType], subgraph_type=subgraph_type)
        check_graph(data)
        self.subgraph_type = SubgraphType(subgraph_type)
        self.replace, self.last = replace, temporal_strategy == "last"
        if isinstance(data, HeteroData):
            nodes, edges = dict(data.node_items()), dict(data.edge_items())
        else:
            nodes, edges = {_NODE: data._store}, {_EDGE: data._store}
        self.typed = isinstance(data, HeteroData)
        self.counts = {name: int(store.num_nodes or 0) for name, store in nodes.items()}
        times = _times(nodes, edges, time_attr)
        self.node_times, self.temporal = times.of_nodes, time_attr is not None
        self.time_types = {time.dtype for of_kind in times for time in of_kind.values()}
        self.disjoint = disjoint or self.temporal
        self.edges: dict[EdgeType, InEdges] = {}
        for kind, store in edges.items():
            ends = self.counts[kind[0]], self.counts[kind[2]]
            prefix = f"{kind}: " if self.typed else ""
            edge_index = check_edge_index(store["edge_index"]).cpu()
            time = times.of_edges.get(kind)
            if kind[0] in self.node_times:
                time = self.node_times[kind[0]][edge_index[0]]
            weight = None
            if weight_attr is not None:
                weight = store.get(weight_attr)
                name = f"{prefix}weight_attr={weight_attr!r}"
                check_column(weight, edge_index.shape[1], name, "edge")
                if bool((weight < 0).any()):
                    raise ValueError(f"{name} must be at least 0, got {float(weight.min())}")
                weight = weight.cpu()
            self.edges[kind] = InEdges(edge_index, *ends, time=time, weight=weight)
        self.num_neighbors = num_neighbors

    @property
    def num_neighbors(self) -> dict[EdgeType, list[int]]:
        """Edges to draw into each node, of each edge type and in each hop."""
        return self._num_neighbors

    @num_neighbors.setter
    def num_neighbors(self, value: Any) -> None:
        if not self.typed:
            self._num_neighbors = {_EDGE: check_fan_out(value)}
            return
        given = value if isinstance(value, NumNeighbors) else NumNeighbors(value)
        self._num_neighbors = {
            kind: check_fan_out(counts, f"num_neighbors[{kind}]")
            for kind, counts in given.get_values(list(self.edges)).items()
        }

    # What PyG's negative sampling asks for
    @property
    def num_nodes(self) -> int | dict[str, int]:
        return self.counts if self.typed else self.counts[_NODE]

    @property
    def node_time(self) -> Tensor | dict[str, Tensor] | None:
        return (self.node_times or None) if self.typed else self.node_times.get(_NODE)

    def sample_from_nodes(
        self, index: NodeSamplerInput, **kwargs: Any
    ) -> SamplerOutput | HeteroSamplerOutput:
        return self._directed(node_sample(index, self._sample))

    def sample_from_edges(
        self, index: EdgeSamplerInput, neg_sampling: NegativeSampling | None = None
    ) -> SamplerOutput | HeteroSamplerOutput:
        sampled = edge_sample(
            index, self._sample, self.num_nodes, self.disjoint, self.node_time, neg_sampling
        )
        return self._directed(sampled)

    def _directed(
        self, sampled: SamplerOutput | HeteroSamplerOutput
    ) -> SamplerOutput | HeteroSamplerOutput:
        both_ways = self.subgraph_type == SubgraphType.bidirectional
        return sampled.to_bidirectional() if both_ways else sampled

    def _sample(
        self, seed: Tensor | dict[str, Tensor], seed_time: Tensor | dict[str, Tensor] | None
    ) -> SamplerOutput | HeteroSamplerOutput:
        seeds = seed if isinstance(seed, dict) else {_NODE: seed}
        times = seed_time if isinstance(seed_time, dict) else {}
        if isinstance(seed_time, Tensor):
            times = {_NODE: seed_time}
        found, until = self._start(seeds, times)
        hops = max((len(counts) for counts in self.num_neighbors.values()), default=0)
        begin = dict.fromkeys(found, 0)
        nodes = {kind: [len(of_kind)] for kind, of_kind in found.items()}
        parts: dict[EdgeType, list[_Edges]] = {kind: [] for kind in self.edges}
        for hop in range(hops):
            end = {kind: len(of_kind) for kind, of_kind in found.items()}
            for kind in self.edges:
                span = (begin[kind[2]], end[kind[2]])
                parts[kind].append(self._expand(kind, found, span, hop, until))
            begin = end
            for name, of_name in found.items():
                nodes[name].append(len(of_name) - end[name])
        edges: dict[EdgeType, list[int]] | None = {
            kind: [len(part.row) for part in own] for kind, own in parts.items()
        }
        if self.subgraph_type == SubgraphType.induced:
            parts = {kind: [self._induce(kind, found, until)] for kind in self.edges}
            edges = None  # they belong to no hop
        joined = {
            kind: _Edges(*(torch.cat(own) for own in zip(_Edges.none(), *of_kind, strict=True)))
            for kind, of_kind in parts.items()
        }
        if self.typed:
            return HeteroSamplerOutput(
                node={name: of_name.node for name, of_name in found.items()},
                row={kind: own.row for kind, own in joined.items()},
                col={kind: own.col for kind, own in joined.items()},
                edge={kind: own.edge for kind, own in joined.items()},
                batch={n: own.batch for n, own in found.items()} if self.disjoint else None,
                num_sampled_nodes=nodes,
                num_sampled_edges=edges,
            )
        return SamplerOutput(
            found[_NODE].node,
            *joined[_EDGE],
            batch=found[_NODE].batch if self.disjoint else None,
            num_sampled_nodes=nodes[_NODE],
            num_sampled_edges=None if edges is None else edges[_EDGE],
        )

    def _start(
        self, seeds: dict[str, Tensor], times: dict[str, Tensor]
    ) -> tuple[dict[str, Found], Tensor | None]:
        """The seeds as the first nodes found, and the time of each subgraph."""
        none = torch.empty(0, dtype=torch.int64)
        found, until, subgraphs = {}, [], 0
        for name, count in self.counts.items():
            node = seeds.get(name, none)
            check_nodes(node, count, "the seeds", f"{name} node".strip())
            batch = torch.arange(subgraphs, subgraphs + len(node)) if self.disjoint else None
            found[name] = Found(count, node, batch)
            subgraphs += len(node)
            if self.temporal and name in seeds:
                time = times.get(name)
                if time is None and name not in self.node_times:
                    raise ValueError(
                        "input_time is missing: time_attr names times of edges or of other nodes, "
                        "so the seeds have none"
                    )
                until.append(self.node_times[name][node] if time is None else time)
        for time in until:
            # Comparing them, torch would round large integers to float32
            if {time.is_floating_point()} != {dtype.is_floating_point for dtype in self.time_types}:
                raise TypeError(
                    f"input_time must be of the same kind as time_attr, {self.time_types}, got "
                    f"{time.dtype}"
                )
        return found, torch.cat(until) if until else None

    def _expand(
        self,
        kind: EdgeType,
        found: dict[str, Found],
        span: tuple[int, int],
        hop: int,
        until: Tensor | None,
    ) -> _Edges:
        """Draws into the nodes `span` of those found; the sources are found, too."""
        edges, count = self.edges[kind], self.num_neighbors[kind][hop]
        if count == 0 or span[0] == span[1]:
            return _Edges.none()
        key = slice(*span)
        node = found[kind[2]].node[key]
        batch = found[kind[2]].batch[key] if self.disjoint else None
        owner, position = edges.draw(
            node,
            count,
            replace=self.replace,
            until=None if until is None else until[batch],
            last=self.last and edges.time is not None,
        )
        source, edge = edges.at(position)
        row = found[kind[0]].add(source, None if batch is None else batch[owner])
        return _Edges(row, span[0] + owner, edge)

    def _induce(self, kind: EdgeType, found: dict[str, Found], until: Tensor | None) -> _Edges:
        """All edges between the nodes found that are no newer than their subgraph."""
        edges, target = self.edges[kind], found[kind[2]]
        batch = target.batch if self.disjoint else None
        owner, position = edges.all(target.node, until=None if until is None else until[batch])
        source, edge = edges.at(position)
        row = found[kind[0]].find(source, None if batch is None else batch[owner])
        inside = row >= 0
        return _Edges(row[inside], owner[inside], edge[inside])


class _Edges(NamedTuple):
    """Edges of a batch, (M,) each: source and target as nodes of the batch, and which it was."""

    row: Tensor
    col: Tensor
    edge: Tensor

    @classmethod
    def none(cls) -> _Edges:
        return cls(*(torch.empty(0, dtype=torch.int64) for _ in range(3)))


class _Times(NamedTuple):
    of_nodes: dict[str, Tensor]
    of_edges: dict[EdgeType, Tensor]


def _times(nodes: dict[str, Any], edges: dict[EdgeType, Any], name: str | None) -> _Times:
    """The times called `name`, of each type of nodes, or of edges, that has them."""
    times = _Times({}, {})
    if name is None:
        return times
    label = f"time_attr={name!r}"
    for node, store in nodes.items():
        if name in store and store.is_node_attr(name):
            check_column(store[name], int(store.num_nodes), label, "node")
            times.of_nodes[node] = store[name].cpu()
    for edge, store in edges.items():
        if name in store and not (edge == _EDGE and times.of_nodes):
            check_column(store[name], store.num_edges, label, "edge")
            times.of_edges[edge] = store[name].cpu()
    if bool(times.of_nodes) == bool(times.of_edges):
        where = "of both nodes and edges" if times.of_nodes else "of neither nodes nor edges"
        raise ValueError(f"{label} must name times of nodes or times of edges; it is {where}")
    return times
