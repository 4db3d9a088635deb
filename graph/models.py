"""Graph transformers: configurations of `attention_core.Encoder` over a `Graph`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from attention_core import AttentionPool, Bias, EdgeBias, Encoder, Graph, Mask, RelativeTable, pool
from graph.embeddings import NodeEmbedding

Pooling = Literal["mean", "sum", "max", "virtual_node", "attention"]


class GraphTransformer(nn.Module):
    """A transformer over the nodes of graphs, with one output per graph.

    The mask says who attends to whom, the biases what a pair is to each other:

    - `mask=None`, `max_hops`, `max_degree`, `virtual_nodes=1`: Graphormer (Ying et al., 2021).
    - `mask=Edges()`: attention along the edges alone, as in message passing.
    - `mask=Neighborhood(k)`: within k hops; a list of masks alternates local and global layers.

    Args:
        dim: size D of a token.
        depth: number of blocks.
        heads: number of heads.
        classes: number of outputs per graph; None returns the pooled graph itself, (G, D).
        node_types: number of node types, where x holds integers (N,).
        node_features: number of node features F, where x holds floats (N, F).
        max_degree: tell nodes their degree, up to this one; see `NodeEmbedding`.
        edge_types: number of edge types, where edge_attr holds integers (E,); each adds a learned
            score per head to its pair (`EdgeBias`).
        edge_features: number of edge features, where edge_attr holds floats (E, F).
        max_hops: learn a score per head for each distance up to this one, one beyond and one for
            unconnected nodes (`RelativeTable.hops`).
        mask: for every layer, or a list of masks (None: all pairs inside a graph) that the layers
            take in turn.
        virtual_nodes: learned tokens of each graph that all its nodes attend to and that attend
            to them all (Gilmer et al., 2017).
        pooling: "mean", "sum" or "max" over nodes; "virtual_node" (the mean of them, if several);
            or "attention", a learned query (Lee et al., Set Transformer, 2019).
        encoder: further options of `Encoder`, `Block` and `MultiheadAttention`.

    Raises:
        ValueError: arguments that contradict each other; the message names them.

    Example::

        model = GraphTransformer(
            dim=64, depth=4, heads=4, classes=2, node_types=7, edge_types=4, max_hops=8
        )
        logits = model(batch.x, batch.edge_index, batch.edge_attr, batch.batch, batch.num_graphs)
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        *,
        classes: int | None,
        node_types: int | None = None,
        node_features: int | None = None,
        max_degree: int | None = None,
        edge_types: int | None = None,
        edge_features: int | None = None,
        max_hops: int | None = None,
        mask: Mask | Sequence[Mask | None] | None = None,
        virtual_nodes: int = 0,
        pooling: Pooling = "mean",
        **encoder: Any,
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "sum", "max", "virtual_node", "attention"):
            raise ValueError(
                "pooling must be 'mean', 'sum', 'max', 'virtual_node' or 'attention', "
                f"got {pooling!r}"
            )
        if virtual_nodes < 0 or (pooling == "virtual_node" and virtual_nodes == 0):
            raise ValueError(
                f"pooling={pooling!r} with virtual_nodes={virtual_nodes}: "
                + ("at least 1 is needed" if virtual_nodes == 0 else "there is no negative number")
            )
        if edge_types is not None and edge_features is not None:
            raise ValueError(
                f"edge_attr holds types or features, not both; got edge_types={edge_types} and "
                f"edge_features={edge_features}"
            )
        self.pooling = pooling
        self.embedding = NodeEmbedding(
            dim, types=node_types, features=node_features, max_degree=max_degree
        )
        self.virtual_tokens = nn.Parameter(torch.empty(virtual_nodes, dim))
        nn.init.normal_(self.virtual_tokens, std=dim**-0.5)
        biases: list[Bias] = []
        self.uses_edge_attr = edge_types is not None or edge_features is not None
        if self.uses_edge_attr:
            biases.append(EdgeBias(heads, types=edge_types, features=edge_features))
        if max_hops is not None:
            biases.append(RelativeTable.hops(heads, max_hops, special=virtual_nodes > 0))
        bias = biases[0] + biases[1] if len(biases) == 2 else biases[0] if biases else None
        self.encoder = Encoder(dim, depth, heads, mask=mask, bias=bias, **encoder)
        self.pool = AttentionPool(dim, heads) if pooling == "attention" else None
        self.head = nn.Identity() if classes is None else nn.Linear(dim, classes)

    def space(
        self,
        edge_index: Tensor,
        num_nodes: int,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
        num_graphs: int | None = None,
    ) -> Graph:
        """Where this model's tokens sit: the nodes, and its virtual nodes in front of each graph's.

        Arguments are those of `forward`.
        """
        if self.uses_edge_attr and edge_attr is None:
            raise ValueError(
                "edge_attr is missing: the model was built with edge_types or edge_features"
            )
        return Graph(
            edge_index,
            num_nodes,
            edge_attr=edge_attr if self.uses_edge_attr else None,
            segments=batch,
            special=len(self.virtual_tokens),
            num_graphs=None if batch is None else num_graphs,
        )

    def encode(self, x: Tensor, space: Graph, edge_index: Tensor) -> Tensor:
        """The encoded tokens (L, D) of nodes x, virtual nodes included, where `space` has them."""
        tokens = space.place(self.embedding(x, edge_index), self.virtual_tokens)
        encoded: Tensor = self.encoder(tokens, space)
        return encoded

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
        num_graphs: int | None = None,
    ) -> Tensor:
        """The outputs (G, classes) of G graphs packed in one row, PyG's convention throughout.

        Args:
            x: (N,) integer types or (N, F) float features of all nodes.
            edge_index: (2, E), row 0 the source (key), row 1 the target (query).
            edge_attr: (E,) integer types or (E, F) float features of all edges.
            batch: (N,) non-decreasing integers, the graph of each node; None for one graph.
            num_graphs: G, needed where the last graphs may have no nodes. The mean, sum and maximum
                of a graph without nodes are zeros.

        Raises:
            TypeError, ValueError: an input of another shape, kind or range; the message names it.
        """
        if x.ndim == 0 or (batch is not None and batch.shape != x.shape[:1]):
            raise ValueError(
                "batch must hold the graph of each node: x is "
                f"{tuple(x.shape)}, batch {None if batch is None else tuple(batch.shape)}"
            )
        space = self.space(edge_index, len(x), edge_attr, batch, num_graphs)
        tokens = self.encode(x, space, edge_index)
        if self.pool is not None:
            pooled = self.pool(tokens, space)
        else:
            how = "special" if self.pooling == "virtual_node" else self.pooling
            pooled = pool(tokens, space, cast(Literal["mean", "sum", "max", "special"], how))
        output: Tensor = self.head(pooled)
        return output
