"""Tokens at the nodes of a graph."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Self,
)

import torch
from torch import Tensor
from torch.compiler import is_exporting

from attention_core.annotated import checked
from attention_core.checks import check_whole, may_look
from attention_core.errors import counted
from attention_core.lasting import computed, lasting
from attention_core.spaces.base import PairList, Space
from attention_core.spaces.edge_list import EdgeList
from attention_core.spaces.packing import (
    check_coordinates,
    insert_special,
    rows,
)

if TYPE_CHECKING:
    from attention_core.spaces.pairs import Pairs


class Graph(Space):
    """The nodes of a graph, or of a batch of graphs. Distance is hops along edges, key to query.

    Args:
        edge_index: (2, E) integers as in PyG: row 0 the source (key), row 1 the target (query).
        num_nodes: number of nodes N.
        edge_attr: (E,) or (E, F), features of the edges, for `EdgeBias` and
            `MultiheadAttention(edge_dim=F)`.
        segments: (N,) non-decreasing integers, the graph of each node; PyG's `batch.batch`.
        coordinates: (N, A) places of the nodes, such as spectral coordinates for `Rotary`.
        special: virtual nodes in front of each graph's nodes.
        num_graphs: number of graphs in `segments`, where the last ones may have no nodes.
        pair_attr: tables of all pairs of nodes inside each graph, by name: (Σ n²,) or (Σ n², F),
            graph by graph, query by query. `graph.encodings` computes them once per graph; hops,
            (Σ n²,) float called "hops", are then not searched again.

    Unconnected nodes are infinitely far apart.
    """

    edges: EdgeList
    nodes: Tensor
    searched: ClassVar[bool] = True

    @lasting
    @checked(batch="the graph of each node is segments=, as in segments=data.batch")
    def __init__(
        self,
        edge_index: Tensor,
        num_nodes: int,
        *,
        edge_attr: Tensor | None = None,
        segments: Tensor | None = None,
        coordinates: Tensor | None = None,
        special: int = 0,
        num_graphs: int | None = None,
        pair_attr: Mapping[str, Tensor] | None = None,
    ) -> None:
        check_whole(0, num_nodes=num_nodes, special=special)
        check_whole(0, num_graphs=num_graphs, or_none=True)
        if num_graphs is not None and segments is not None and may_look(segments):
            named = int(segments.max()) + 1 if segments.numel() else 0
            if num_graphs < named:
                raise ValueError(f"num_graphs={num_graphs}, but segments name {named} graphs")
        if coordinates is not None:
            check_coordinates(coordinates, num_nodes)
        self.edges = EdgeList(
            edge_index, num_nodes, edge_attr, segments, pair_attr, num_graphs=num_graphs
        )
        num_graphs = self.edges.num_graphs
        token_segments, source, is_special = insert_special(
            segments, num_nodes, special, num_graphs, edge_index.device
        )
        self.num_nodes = num_nodes
        self.nodes = source.to(edge_index.device)
        self.whole, self._num_special = special == 0, source.shape[0] - num_nodes
        super().__init__(
            source.shape[0],  # a symbol in an exported program, as len() would not be
            coordinates=None if coordinates is None else rows(coordinates, self.nodes, 2, 0.0),
            segments=token_segments,
            special=is_special if is_special is None else is_special.to(edge_index.device),
            num_segments=num_graphs,
        )

    @classmethod
    @checked
    def bipartite(
        cls,
        edge_index: Tensor,
        num_sources: int,
        num_targets: int,
        *,
        edge_attr: Tensor | None = None,
    ) -> tuple[Self, Self]:
        """Make a space of edges from one set of nodes to another, without distance: for `Edges()`.

        Args:
            edge_index: (2, E) integers: row 0 the source (key), row 1 the target (query).
            num_sources, num_targets: number of nodes of either set.
            edge_attr: (E,) or (E, F), features of the edges.

        Returns: (space of the targets, space of the sources), as `attend` takes the spaces of
            queries and keys.
        """
        check_whole(0, num_sources=num_sources, num_targets=num_targets)
        return cls.over(EdgeList(edge_index, num_sources, edge_attr, num_targets=num_targets))

    @classmethod
    @checked
    def over(cls, edges: EdgeList) -> tuple[Self, Self]:
        """Make the space of the targets and that of the sources of these edges, which keep what
        they have computed; one and the same space where targets are no set of their own."""
        source = cls._all_nodes(edges, edges.num_nodes)
        target = cls._all_nodes(edges, edges.num_targets) if edges.bipartite else source
        return target, source

    @classmethod
    def _all_nodes(cls, edges: EdgeList, count: int) -> Self:
        if cls.__init__ is Graph.__init__:
            new = cls.__new__(cls)
            Space.__init__(new, count)
        else:  # which may hold more
            new = cls(edges.source.new_empty(2, 0), count)
        new.edges, new.num_nodes, new.whole = edges, count, True
        device = edges.source.device
        new.nodes = edges.memo(("nodes", count), lambda: torch.arange(count, device=device))
        return new

    @classmethod
    @checked
    def from_pyg(
        cls,
        data: Any,
        *,
        special: int = 0,
        pair_attr: Iterable[str] = (),
        coordinates: str | None = None,
    ) -> Self:
        """Make a space of PyG's `Data` or `Batch`: `edge_index`, `edge_attr` and, as segments,
        `batch`.

        Args:
            special: virtual nodes in front of each graph's nodes.
            pair_attr: names of attributes of `data` that are tables of pairs.
            coordinates: name of the attribute that holds (N, A) coordinates, if any does.
        """
        if not hasattr(data, "edge_index"):
            raise TypeError(f"data must be a PyG Data or Batch, got {type(data).__name__}")
        pair_attr = list(pair_attr)
        for argument, names in (("pair_attr", pair_attr), ("coordinates", [coordinates])):
            for name in names:
                if name is not None and not (isinstance(name, str) and name in data):
                    raise ValueError(f"{argument} names {name!r:.80}, which data has not")
        segments = getattr(data, "batch", None)
        return cls(
            data.edge_index,
            data.num_nodes,
            edge_attr=data.edge_attr,
            segments=segments,
            special=special,
            num_graphs=None if segments is None else data.num_graphs,
            pair_attr={name: data[name] for name in pair_attr},
            coordinates=None if coordinates is None else data[coordinates],
        )

    @property
    def num_special(self) -> int:
        if is_exporting():  # to count them would be to look at values
            return self.length - self.num_nodes
        return 0 if self.special is None else self._num_special

    @computed
    def _num_special(self) -> int:
        return super().num_special

    def arrived(self, origin: Self) -> None:
        if "_num_special" in vars(origin):
            self._num_special = origin._num_special
        super().arrived(origin)

    def distance(self, pairs: Pairs) -> Tensor:
        return self.edges.hops(*self._ends(pairs))

    def reach(self, radius: float) -> PairList | None:
        return self.reach_from(self, radius)

    def reach_from(self, queries: Space, radius: float) -> PairList | None:
        query_of, key_of = queries.token_of_node(), self.token_of_node()
        if query_of is None or key_of is None or math.isinf(radius):
            return None
        if queries.edges is not self.edges:
            return None
        targets = (query_of >= 0).nonzero().squeeze(-1)  # dropped tokens are in no pair
        target, source, hops = self.edges.within(radius, targets)
        key = key_of[source]
        kept = key >= 0
        return PairList(query_of[target[kept]], key[kept], distance=hops[kept])

    def reach_bound(self, radius: float) -> float:
        twice = self.length - self.num_special > self.num_nodes  # nodes of one graph, packed
        return math.inf if twice else self.edges.within_bound(radius)

    def distance_along(self, edge: Tensor) -> Tensor | None:
        return self.edges.hops_along(edge)

    def sits_at(self, position: int | tuple[int, ...]) -> Tensor:
        if isinstance(position, tuple):
            raise TypeError(f"nodes of a Graph are numbers, got {position}")
        return self.nodes == position

    def describe(self) -> str:
        return self._describe(
            f"a graph of {counted(self.length, 'node')} and {counted(self.edges.num_edges, 'edge')}"
        )
