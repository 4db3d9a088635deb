"""What a graph model attends to, as numbers: between nodes, and by the hops between them.

All are exact: the model runs on its fused path, and the weights are recorded beside it, those of
the pairs that may attend alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from attention_core import Graph, record_attention
from attention_core.weights import PairWeights


class NodeAttention(NamedTuple):
    """What a layer's nodes attended to in one pass.

    Attributes:
        name: of the layer, such as "layer 2", or "layer 2, local" of a second attention beside it.
        weights: of the pairs that may attend; tokens are nodes and virtual nodes.
    """

    name: str
    weights: PairWeights

    @property
    def nodes(self) -> tuple[Tensor, Tensor]:
        """(P,) the query and the key of each pair, as nodes; -1 for virtual ones."""
        pairs = self.weights.pairs
        return pairs.take("nodes", "query"), pairs.take("nodes", "key")

    @property
    def even(self) -> Tensor:
        """(P,) the weights of a query that attends evenly to all that it may attend to."""
        query = self.weights.pairs.query
        return 1 / torch.bincount(query)[query].float()

    def between(self, nodes: Tensor, head: int | None = None) -> tuple[Tensor, Tensor]:
        """Among some of the nodes, (n,): their attention to each other, (n, n) with queries as
        rows, and what it would be if spread evenly; 0 where they may not attend.

        Args:
            head: one of the heads, negative ones from the last; None: the mean of all.

        Raises:
            ValueError: there is no such head.
        """
        values = self.weights.values.float()
        heads = values.shape[1]
        if head is not None and not -heads <= head < heads:
            raise ValueError(f"{self.name} has {heads} heads, there is no head {head}")
        of_pairs = values.mean(1) if head is None else values[:, head]
        space = self.weights.pairs.spaces[1]
        assert isinstance(space, Graph)
        # One place more, where virtual nodes, -1, look
        place = nodes.new_full((space.num_nodes + 1,), -1)
        place[nodes] = torch.arange(len(nodes), device=nodes.device)
        query, key = (place[end] for end in self.nodes)
        inside = (query >= 0) & (key >= 0)
        at, size = query[inside] * len(nodes) + key[inside], len(nodes)
        found = (
            torch.zeros(size * size, device=nodes.device).index_add(0, at, values[inside])
            for values in (of_pairs, self.even)
        )
        weights, even = (table.view(size, size) for table in found)
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


def node_attention(model: nn.Module, inputs: Mapping[str, Any]) -> list[NodeAttention]:
    """The attention between nodes in each layer, in the order the model defines them.

    Layers that attend to or from something else, such as attention pooling, are left out.

    Args:
        model: in eval mode; any whose layers are those of `attention_core` or `graph.layers`.
        inputs: its arguments by name, of one batch.

    Raises:
        ValueError: the model is in training mode, or no layer attends between nodes.
    """
    if model.training:
        raise ValueError("model must be in eval mode, so that all it does is seen: model.eval()")
    with record_attention(model, pairs=True) as maps, torch.no_grad():
        model(**inputs)
    found = []
    for index, weights in enumerate(maps):
        queries, keys = maps.spaces(index)
        if not isinstance(queries, Graph) or not isinstance(keys, Graph):
            continue
        if not keys.edges.bipartite and weights.pairs.shape[0] == 1:
            found.append(NodeAttention(_spoken(maps.names[index]), weights))
    if not found:
        raise ValueError(f"no layer of {type(model).__name__} attends between nodes of a Graph")
    return found


def hop_profile(layers: list[NodeAttention], most: int = 6) -> HopProfile:
    """The share of each head's attention at 0, 1, 2, ... hops, over all nodes of a batch.

    Hops are those along the edges that the layer knows, from key to query.

    Args:
        layers: as `node_attention` gives them.
        most: hops beyond are counted together.
    """
    names = [*map(str, range(most + 1)), f"> {most}", "unconnected", "virtual node"]
    heads = max(layer.weights.values.shape[1] for layer in layers)
    shares, spread = [], []
    for layer in layers:
        (query, key), pairs = layer.nodes, layer.weights.pairs
        distance = pairs.distance
        column = distance.clamp(max=most + 1).masked_fill(distance.isinf(), most + 2).long()
        column = column.masked_fill(key < 0, most + 3)[query >= 0]
        both = torch.cat([layer.weights.values.float(), layer.even[:, None]], dim=1)[query >= 0]
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


def _spoken(name: str) -> str:
    """Blocks are counted from 1; layers elsewhere are called what the model calls them."""
    block = re.search(r"blocks\.(\d+)\.attention(\.local)?$", name)
    if block is None:
        return name or "the layer"
    return f"layer {int(block[1]) + 1}" + (", local" if block[2] else "")
