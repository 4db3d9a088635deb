"""What each layer of a stack has to compute, where outputs are asked for at some nodes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attention_core.annotated import checked
from attention_core.checks import check_dense, check_whole, check_whole_each
from graph.sampling.checks import check_edges, check_nodes

EdgeType = tuple[str, str, str]

# A graph without types is one with a single type of nodes and of edges
_NODE, _EDGE = "", ("", "", "")


@dataclass(frozen=True)
class TrimmedLayer:
    """Hold the part of a graph that one layer needs; of a graph with types, dicts by type.

    Attributes:
        edge_index: (2, e) the edges, from the nodes that the layer takes to those that it gives.
        edge: which edges of the graph they are, to index `edge_attr` with: (e,), or a slice where
            they are the first.
        num_sources: how many nodes the layer takes, what the layer before gives.
        num_targets: how many it gives, the first of those that it takes.
    """

    edge_index: Any
    edge: Any
    num_sources: Any
    num_targets: Any


@dataclass(frozen=True)
class Trimmed:
    """Hold what `trim_to_seeds` finds.

    Attributes:
        node: which nodes the first layer takes, seeds first, to index `x` with: (n,), or a slice
            where they are the first; of a graph with types, a dict by type.
        layers: of each layer what it needs, the first layer's first.
    """

    node: Any
    layers: list[TrimmedLayer]


@checked
def trim_to_seeds(edge_index: Any, num_nodes: Any, seeds: Any, num_layers: int) -> Trimmed:
    """Find what each layer of a stack has to compute for the outputs at `seeds`.

    The last layer computes the seeds, from the edges into them; the one before, the nodes that
    these come from, too; and so on. Outputs at the seeds and all gradients are as without it, if
    what a layer computes for a node depends on the node, the edges into it and their sources, as in
    attention, SAGE and GIN. (GCN reads how many edges lead into each source, and BatchNorm all
    nodes; give GCN its normalisation as `edge_attr`.) Each layer is called with
    (sources, targets)::

        trimmed = trim_to_seeds(batch.edge_index, len(batch.x), batch.batch_size, num_layers=2)
        x = batch.x[trimmed.node]
        for conv, layer in zip(convs, trimmed.layers):
            x = conv((x, x[: layer.num_targets]), layer.edge_index, batch.edge_attr[layer.edge])

    gives the rows of the seeds, in their order. PyG's `trim_to_layer`, which the layers here serve,
    too, leaves out edges and nodes, but computes in each layer what is only there to be read; and
    it needs a batch whose hops are counted. This one takes any graph, drawn or not, and copies
    nothing of a batch of `NeighborLoader`, where nodes and edges come hop by hop.
    `GraphTransformer` does the same by itself for the nodes in `node_mask`.

    Args:
        edge_index: (2, E) integers, row 0 the source, row 1 the target. Of a graph with types
            `edge_index_dict`; the other arguments are then dicts by type of node, as is what comes
            out, and `HeteroGraphAttention` takes `num_targets`.
        num_nodes: number of nodes N.
        seeds: the nodes in question: how many, the first of all (`batch.batch_size`); a mask (N,);
            or different integers (n,). A type that is missing has none.
        num_layers: number of layers, each of which reads along the edges once.

    Raises:
        TypeError, ValueError: an argument of another shape, kind or range; the message names it.
    """
    check_whole(0, num_layers=num_layers)
    typed = isinstance(edge_index, Mapping)
    if typed and not (isinstance(num_nodes, Mapping) and isinstance(seeds, Mapping)):
        raise TypeError(
            "edge_index by type needs num_nodes and seeds by type, dicts, too; got "
            f"{type(num_nodes).__name__} and {type(seeds).__name__}"
        )
    edges: Mapping[EdgeType, Any] = edge_index if typed else {_EDGE: edge_index}
    counts: dict[str, int] = dict(num_nodes) if typed else {_NODE: num_nodes}
    wanted: dict[str, Any] = dict(seeds) if typed else {_NODE: seeds}
    check_whole_each(0, num_nodes=counts.values())
    plain = {}
    for kind, index in edges.items():
        name = f"edge_index[{kind!r}]" if typed else "edge_index"
        plain[kind] = check_edges(index, counts[kind[0]], counts[kind[2]], name)
    like = next(iter(plain.values()), torch.empty(0, dtype=torch.long))
    order = {
        t: _seeds(wanted.get(t, 0), count, f"seeds[{t!r}]" if typed else "seeds", like.device)
        for t, count in counts.items()
    }
    found = _hops(plain, counts, order, num_layers)
    node: dict[str, Tensor | slice] = {}
    place: dict[str, Tensor | None] = {}
    for t, count in counts.items():
        every = torch.cat(found.order[t])
        rank = torch.arange(len(every), device=every.device)
        if torch.equal(every, rank):
            node[t], place[t] = slice(0, len(every)), None
        else:
            node[t], place[t] = every, every.new_full((count,), -1).index_copy(0, every, rank)
    sizes = {t: torch.tensor([len(part) for part in found.order[t]]).cumsum(0) for t in counts}
    layers = []
    for left in reversed(range(num_layers)):  # hops that the targets of a layer may be away
        kept = {kind: _first(of_target, left) for kind, of_target in found.of_edge.items()}
        trimmed = {
            kind: _placed(index[:, kept[kind]], place[kind[0]], place[kind[2]])
            for kind, index in plain.items()
        }
        sources, targets = (
            {t: int(size[hop]) for t, size in sizes.items()} for hop in (left + 1, left)
        )
        layer = (trimmed, kept, sources, targets)
        layers.append(TrimmedLayer(*(layer if typed else (next(iter(x.values())) for x in layer))))
    return Trimmed(node if typed else node[_NODE], layers)


@dataclass(frozen=True)
class _Hops:
    """Nodes by type, those of each hop in their order; and the hop of each edge's target, one more
    than any that counts where it is farther."""

    order: dict[str, list[Tensor]]
    of_edge: dict[EdgeType, Tensor]


def _hops(
    edges: Mapping[EdgeType, Tensor],
    counts: Mapping[str, int],
    seeds: Mapping[str, Tensor],
    hops: int,
) -> _Hops:
    away = {
        t: at.new_full((counts[t],), hops + 1, dtype=torch.int32).index_fill(0, at, 0)
        for t, at in seeds.items()
    }
    order = {t: [at] for t, at in seeds.items()}
    for hop in range(1, hops + 1):
        for kind, (source, target) in edges.items():
            reached = source[away[kind[2]].index_select(0, target) == hop - 1]
            of_sources = away[kind[0]]
            new = reached[of_sources.index_select(0, reached) > hop]
            of_sources.index_fill_(0, new, hop)
        for t, of_nodes in away.items():
            order[t].append((of_nodes == hop).nonzero().squeeze(-1))
    return _Hops(
        order, {kind: away[kind[2]].index_select(0, index[1]) for kind, index in edges.items()}
    )


def _first(of_target: Tensor, most: int) -> Tensor | slice:
    """The edges whose target is at most so many hops away."""
    kept = of_target <= most
    count = int(kept.sum())
    return slice(0, count) if bool(kept[:count].all()) else kept.nonzero().squeeze(-1)


def _placed(edge_index: Tensor, source: Tensor | None, target: Tensor | None) -> Tensor:
    """The edges with each node's place in the new order; None where that is its old one."""
    if source is None and target is None:
        return edge_index
    ends = zip(edge_index, (source, target), strict=True)
    return torch.stack([end if place is None else place[end] for end, place in ends])


def _seeds(given: Any, count: int, name: str, device: torch.device) -> Tensor:
    if isinstance(given, int) and not isinstance(given, bool):
        if not 0 <= given <= count:
            raise ValueError(
                f"{name} must be at most the {count} nodes that there are, got {given}"
            )
        return torch.arange(given, device=device)
    if not isinstance(given, Tensor):
        raise TypeError(f"{name} must be a number, a mask or integers, got {given!r:.80}")
    check_dense(seeds=given)
    if given.dtype == torch.bool:
        if given.shape != (count,):
            raise ValueError(
                f"{name} must be a mask of the {count} nodes, got {tuple(given.shape)}"
            )
        return given.nonzero().squeeze(-1)
    if given.ndim != 1:
        raise ValueError(f"{name} must have shape (n,), got {tuple(given.shape)}")
    check_nodes(given, count, name)
    if len(given.unique()) < len(given):
        raise ValueError(f"{name} names a node more than once")
    return given.long()
