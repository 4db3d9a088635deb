"""What a graph model attends to, as numbers: between nodes, in what is pooled, and by the hops
between nodes.

Recorded are the weights of the pairs that may attend alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

import attention_core.interpret.maps as core
from attention_core import Graph, Space
from graph.models import GraphTransformer


class NodeAttention(core.LayerAttention):
    """The attention of a layer's nodes in one pass: the weights of the pairs that may attend, whose
    tokens are nodes and virtual nodes. Its name is such as "layer 2", or "layer 2, local" of a
    second attention beside it."""

    __slots__ = ()

    @property
    def nodes(self) -> tuple[Tensor, Tensor]:
        """(P,) the query and the key of each pair, as nodes; -1 for virtual ones."""
        pairs = self.pairs.pairs
        return pairs.take("nodes", "query"), pairs.take("nodes", "key")

    @property
    def even(self) -> Tensor:
        """(P,) the weights of a query that attends evenly to all that it may attend to."""
        query = self.pairs.pairs.query
        return 1 / torch.bincount(query)[query].float()

    def between(self, nodes: Tensor, head: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the attention among some nodes (n,), (n, n) with queries as rows, and what it
        would be if spread evenly; 0 where they may not attend.

        Args:
            head: place of one of `heads`, negative ones from the last; None: the mean of all.

        Raises:
            ValueError: there is no such head.
        """
        values = self.pairs.values.float()
        chosen = core.choose("head", None if head is None else [head], values.shape[1])
        space, size = self.pairs.pairs.spaces[1], len(nodes)
        assert isinstance(space, Graph)
        # One place more, where virtual nodes, -1, look
        place = nodes.new_full((space.num_nodes + 1,), -1)
        place[nodes] = torch.arange(size, device=nodes.device)
        query, key = (place[end] for end in self.nodes)
        inside = (query >= 0) & (key >= 0)
        both = torch.stack([values[:, chosen].mean(1), self.even])[:, inside]
        at = (query * size + key)[inside]
        weights, even = both.new_zeros(2, size * size).index_add(1, at, both).view(2, size, size)
        return weights, even


class HopProfile(NamedTuple):
    """At how many hops heads look.

    Attributes:
        layers: names of the layers.
        hops: names of the columns: "0", "1", ...; "> 6"; "unconnected"; "virtual node". Those that
            no layer may attend to are left out.
        shares: (layers, heads, columns) of all attention of the nodes, with sums of 1; NaN where a
            layer has fewer heads than another.
        even: (layers, columns), shares if each node attended evenly to all that it may attend to.
    """

    layers: list[str]
    hops: list[str]
    shares: Tensor
    even: Tensor


def attention_maps(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> list[NodeAttention]:
    """Return the attention between nodes in each layer, in the order the model defines them.

    Layers that attend to or from something else, such as attention pooling, are left out.

    Args:
        model: in eval mode; any whose layers are those of `attention_core` or `graph.layers`.
        inputs: its arguments by name, of one batch.
        layers: which ones, in the order wanted; negative numbers count from the last. All by
            default.
        heads: which ones, likewise. All by default.

    Raises:
        ValueError: the model is in training mode, no layer attends between nodes, or there is no
            such layer or head.
    """
    found = _record(model, inputs, heads=heads)
    return [
        NodeAttention(_spoken(found[at].name), *found[at][1:])
        for at in core.choose("layer", layers, len(found))
    ]


def pooling_attention(model: GraphTransformer, inputs: Mapping[str, Any]) -> Tensor:
    """Return how much of each node reaches its graph's vector in the last step, per head: (heads,
    N), with sums over a graph of at most 1; the rest goes to virtual nodes.

    That is the last layer's attention of the first virtual node, or of all, where "class" or
    "special" is pooled; that of the learned query where pooling is "attention" or "map"; and else
    the last layer's attention averaged over the nodes.

    Raises:
        TypeError: another kind of model.
        ValueError: it is in training mode, or its `level` is not "graph".
    """
    _check_pools(model)
    last = model.encoder.blocks[-1].attention
    # Where it attends locally, too, that comes second
    (first, *_), pooled = core.record_to_pool(model, lambda: model(**inputs), last, pairs=True)
    shares, layer = core.reaching([first], pooled)
    return _of_nodes(shares, layer.keys)


def attention_rollout(
    model: GraphTransformer, inputs: Mapping[str, Any], **options: Unpack[core.RolloutOptions]
) -> Tensor:
    """Return how much of each node is in its graph's vector, (N,), going back through all layers:
    see `attention_core.interpret.maps.rollout`, whose `options` these are. It makes tables of all
    pairs of a batch.

    Raises:
        TypeError, ValueError: as `pooling_attention`; a number out of range; or layers that share
            their blocks, or attend locally, too.
    """
    _check_pools(model)
    encoder = model.encoder
    layers, pooled = core.record_to_pool(model, lambda: model(**inputs), encoder, pairs=True)
    if len(layers) != len(encoder.masks):
        raise ValueError(
            f"a rollout needs one attention for each layer, but {len(encoder.masks)} layers have "
            f"{len(layers)} (num_groups=, local=)"
        )
    return _of_nodes(core.rollout(layers, pooled, **options), layers[0].queries)


def mean_attention_distance(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Return how far heads look, (layers, heads): the mean distance in hops, along the edges that a
    layer knows, weighted by attention; NaN where a layer has fewer heads than another.

    Virtual nodes, which sit nowhere, and unconnected nodes have no part in it; `attention_by_hops`
    counts them.

    Raises: as `attention_maps`.
    """
    found = _record(model, inputs)
    rows = [core.mean_distance(one, lambda pairs: pairs.distance) for one in found]
    return nn.utils.rnn.pad_sequence(rows, True, padding_value=math.nan)


def attention_by_hops(layers: Sequence[NodeAttention], *, most: int = 6) -> HopProfile:
    """Return the share of each head's attention at 0, 1, 2, ... hops, over all nodes of a batch.

    Hops are those along the edges that the layer knows, from key to query.

    Args:
        layers: as `attention_maps` gives them.
        most: hops beyond are counted together.
    """
    names = [*map(str, range(most + 1)), f"> {most}", "unconnected", "virtual node"]
    heads = max(layer.pairs.values.shape[1] for layer in layers)
    shares, spread = [], []
    for layer in layers:
        (query, key), pairs = layer.nodes, layer.pairs.pairs
        distance = pairs.distance
        column = distance.clamp(max=most + 1).masked_fill(distance.isinf(), most + 2).long()
        column = column.masked_fill(key < 0, most + 3)[query >= 0]
        both = torch.cat([layer.pairs.values.float(), layer.even[:, None]], dim=1)[query >= 0]
        sums = both.new_zeros(len(names), both.shape[1]).index_add(0, column, both)
        sums = sums / sums.sum(0).clamp(min=torch.finfo(sums.dtype).tiny)
        of_heads = sums[:, :-1].T
        shares.append(pad(of_heads, (0, 0, 0, heads - len(of_heads)), value=math.nan))
        spread.append(sums[:, -1])
    even = torch.stack(spread)
    there = (even > 0).any(0)
    return HopProfile(
        [layer.name for layer in layers],
        [name for name, kept in zip(names, there.tolist(), strict=True) if kept],
        torch.stack(shares)[..., there],
        even[:, there],
    )


def _record(
    model: nn.Module, inputs: Mapping[str, Any], *, heads: Sequence[int] | None = None
) -> list[core.LayerAttention]:
    """The pairs of all layers that attend between nodes."""
    found = [
        layer
        for layer in core.record(model, lambda: model(**inputs), heads=heads, pairs=True)
        if isinstance(layer.queries, Graph)
        and isinstance(layer.keys, Graph)
        and not layer.keys.edges.bipartite
        and layer.pairs.pairs.shape[0] == 1
    ]
    if not found:
        raise ValueError(f"no layer of {type(model).__name__} attends between nodes of a Graph")
    return found


def _check_pools(model: nn.Module) -> None:
    if not isinstance(model, GraphTransformer):
        raise TypeError(
            f"model must be a GraphTransformer, which pools, got {type(model).__name__}"
        )
    if model.level != "graph":
        raise ValueError(f"model must pool graphs, level='graph', got level={model.level!r}")


def _of_nodes(shares: Tensor, space: Space) -> Tensor:
    """(..., N) of (..., L)."""
    return shares if space.special is None else shares[..., ~space.special]


def _spoken(name: str) -> str:
    """Blocks are counted from 1; layers elsewhere are called what the model calls them."""
    block = re.search(r"blocks\.(\d+)\.attention(\.local)?$", name)
    if block is None:
        return name or "the layer"
    return f"layer {int(block[1]) + 1}" + (", local" if block[2] else "")
