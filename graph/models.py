"""Graph transformers: configurations of `attention_core.Encoder` over a `Graph`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn
from torch.compiler import is_exporting

from attention_core import Bias, EdgeBias, Edges, Graph, Mask, RelativeTable, Space
from attention_core.annotated import checked
from attention_core.checks import check_dense, check_whole, may_look
from attention_core.errors import did_you_mean
from attention_core.layers import EncoderOptions, Pooling, make_pool
from attention_core.layers.tokens import learned_tokens
from attention_core.models import Model
from attention_core.pretrained import names
from attention_core.spaces.edge_list import EdgeList
from graph.embeddings import EdgeEmbedding, NodeEmbedding
from graph.encoder import GraphEncoder
from graph.encodings import expander_edges
from graph.encodings.expander import check_degree
from graph.heads import EdgeHead, LinkHead, check_pairs
from graph.pretrained import GRAPH_TRANSFORMERS

Level = Literal["graph", "node", "edge", "link"]


#: Tables of pairs, as the transforms of `graph.encodings` name them.
_TABLES = ("hops", "rrwp", "path")

#: What makes a model read an input.
_READ_BY = {
    "edge_attr": "edge_types= (integers) or edge_features= (floats)",
    "degree": "max_degree=",
    "rwse": "walk_steps=",
    "laplacian": "eigenvectors=",
    "laplacian_values": "eigenvectors=",
}

_GRAPHORMER = {"max_degree": 64, "max_hops": 20, "virtual_nodes": 1, "pooling": "class"}


class GraphTransformer(Model):
    """A transformer over the nodes of graphs, with outputs for graphs, nodes, edges or links.

    Masks say who attends to whom, biases what a pair is to each other, encodings where a node is:

    - GAT: `mask=Edges()`, `score="additive"` (Veličković et al., 2018).
    - Graphormer: `max_degree`, `max_hops`, `biases=[PathBias(...)]`, `virtual_nodes=1` (Ying et
      al., 2021).
    - GPS: `local=Edges()` beside attention to all, `walk_steps` or `eigenvectors`, `edge_dim`
      (Rampášek et al., 2022).
    - GRIT: `biases=[RandomWalkBias(...)]`, `walk_steps`, `degree_scaler=True` (Ma et al., 2023);
      ours does not change what it knows of a pair from layer to layer.
    - Exphormer: `mask=Edges()`, `expander_degree`, `virtual_nodes=1` (Shirzad et al., 2023); ours
      is one softmax over the edges of all three kinds.
    - Within k hops: `mask=Neighborhood(k)`; a list of masks alternates local and global layers.

    Each batch is computed as is best for it, see `attention_core.explain`; of the graphs in it,
    none changes another, and none is too large.

    Args:
        dim: size D of a token.
        depth: number of blocks.
        heads: number of heads.
        num_classes: number of outputs C: classes, or numbers to regress; None returns the vectors
            that they would be computed from, (..., D).
        level: outputs for each "graph"; "node"; "edge", an edge or another pair of nodes; or
            "link": one score for each pair of nodes, see `LinkHead`, and no `num_classes`.
        relations: number of relations of links.
        node_types: number of node types, where x holds integers (N,).
        node_features: number of node features F, where x holds floats (N, F).
        max_degree, walk_steps, eigenvectors: tell nodes their place, see `NodeEmbedding`.
        edge_types: number of edge types, where edge_attr holds integers (E,); each adds a learned
            score per head to its pair (`EdgeBias`).
        edge_features: number of edge features, where edge_attr holds floats (E, F). Without
            either, all edges are alike, and a call with edge_attr is refused: see `unread`.
        edge_dim: make a token of this size of an edge's type or features, which adds to the keys
            and values along the edge, too.
        max_hops: learn a score per head for each distance up to this one, one beyond and one for
            unconnected nodes (`RelativeTable.hops`).
        biases: further ones, such as those of `graph.encodings`, for every layer.
        local: mask of a second attention in each block, beside the first. What is known of edges
            is then for this one, other biases for the first.
        degree_scaler: see `SelfAttention`.
        expander_degree: add the edges of a random graph in which each node has so many: see
            `expander_edges`. They have an edge type of their own, and count as hops.
        virtual_nodes: learned tokens of each graph that all its nodes attend to and that attend
            to them all (Gilmer et al., 2017).
        pooling: of graphs: "mean", "sum" or "max" over nodes; "special", the mean of the virtual
            nodes; "class", the first of them; "attention", a learned query (Lee et al., Set
            Transformer, 2019); or "map", the same with a feed-forward network.
        encoder: options of `Encoder`, `Block` and `MultiheadAttention`. `bias` is added to
            `biases`; `score` ("additive" for GAT, "additive_v2" for GATv2, Brody et al., 2022) is
            of the local attention, where there is one.

    Raises:
        ValueError: arguments that contradict each other; the message names them.

    Example::

        model = GraphTransformer(
            dim=64, depth=4, heads=4, num_classes=2, node_types=7, edge_types=4, max_hops=8
        )
        logits = model(batch.x, batch.edge_index, batch.edge_attr, batch.batch, batch.num_graphs)
    """

    families = GRAPH_TRANSFORMERS
    parts = {names.CLASSIFIER: "head"}

    #: Encodings and sizes of Graphormer (Ying et al., 2021), and of what was trained on ZINC of GPS
    #: (Rampášek et al., 2022) and GRIT (Ma et al., 2023). Types and features of nodes and edges
    #: are the data's; Graphormer's `biases=[PathBias(...)]` and GRIT's `[RandomWalkBias(...)]`
    #: are modules, which no two models should share: give them beside the name.
    presets = {
        "graphormer-slim": {"dim": 80, "depth": 12, "heads": 8, "hidden": 80, **_GRAPHORMER},
        "graphormer": {"dim": 768, "depth": 12, "heads": 32, "hidden": 768, **_GRAPHORMER},
        "gps": {
            "dim": 64, "depth": 10, "heads": 4, "hidden": 128, "local": Edges(), "walk_steps": 20,
        },
        "grit": {
            "dim": 64, "depth": 10, "heads": 8, "hidden": 128, "walk_steps": 21,
            "degree_scaler": True,
        },
    }  # fmt: skip

    @checked(edge_bias="edge_types and edge_features make one")
    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        *,
        num_classes: int | None,
        level: Level = "graph",
        relations: int = 1,
        node_types: int | None = None,
        node_features: int | None = None,
        max_degree: int | None = None,
        walk_steps: int | None = None,
        eigenvectors: int | None = None,
        edge_types: int | None = None,
        edge_features: int | None = None,
        max_hops: int | None = None,
        biases: Sequence[Bias] = (),
        local: Mask | None = None,
        degree_scaler: bool = False,
        expander_degree: int | None = None,
        virtual_nodes: int = 0,
        pooling: Pooling = "mean",
        **encoder: Unpack[EncoderOptions],
    ) -> None:
        super().__init__()
        edge_dim = encoder.get("edge_dim")
        check_whole(dim=dim, heads=heads, relations=relations)
        check_whole(0, virtual_nodes=virtual_nodes)
        check_whole(
            node_types=node_types,
            node_features=node_features,
            edge_types=edge_types,
            edge_features=edge_features,
            edge_dim=edge_dim,
            expander_degree=expander_degree,
            or_none=True,
        )
        if expander_degree is not None:
            check_degree(expander_degree, name="expander_degree")
        _check_outputs(level, relations, pooling, virtual_nodes)
        self.level, self.pooling, self.expander_degree = level, pooling, expander_degree
        self.relations, self.edge_dim = relations, edge_dim
        self.embedding = NodeEmbedding(
            dim,
            types=node_types,
            features=node_features,
            max_degree=max_degree,
            walk_steps=walk_steps,
            eigenvectors=eigenvectors,
        )
        self.edge_embedding: EdgeEmbedding | None = None
        if edge_types is not None or edge_features is not None or expander_degree is not None:
            self.edge_embedding = EdgeEmbedding(
                types=edge_types,
                features=edge_features,
                dim=edge_dim,
                added=expander_degree is not None,
            )
        elif edge_dim is not None:
            raise ValueError(
                f"edge_dim={edge_dim} needs edge_types or edge_features; where edges have neither, "
                "edge_dim is None"
            )
        self.virtual_tokens = learned_tokens(virtual_nodes, dim, std=dim**-0.5)
        of_edges = None if self.edge_embedding is None else self.edge_embedding.gives
        terms: list[Bias] = []
        if of_edges is not None and local is None:
            terms.append(EdgeBias(heads, **of_edges))
        if max_hops is not None:
            terms.append(RelativeTable.hops(heads, max_hops, special=virtual_nodes > 0))
        terms += biases
        shared = sum(terms[1:], terms[0]) if terms else None
        bias = encoder.get("bias")
        if bias is None:
            encoder["bias"] = shared
        elif shared is not None:
            given = bias if isinstance(bias, Sequence) else [bias]
            encoder["bias"] = [shared + own for own in given]
        self.encoder = GraphEncoder(
            dim,
            depth,
            heads,
            local=local,
            edge_bias=of_edges,
            degree_scaler=degree_scaler,
            **encoder,
        )
        #: Inputs that this model makes nothing of, and therefore refuses.
        self.unread = self._unread()
        like = self.encoder.blocks[0].feed_forward
        pooling = pooling if level == "graph" else "mean"  # nothing to learn that nothing trains
        self.pool = make_pool(pooling, dim, heads, like=like, eps=encoder.get("eps", 1e-6))
        self.reset_head(num_classes)

    def _new_head(self, num_classes: int | None) -> nn.Module:
        dim = self.encoder.dim
        if self.level == "link":
            if num_classes is not None:
                raise ValueError(
                    f"level='link' gives one score per pair; got num_classes={num_classes}"
                )
            return LinkHead(dim, self.relations)
        if self.level == "edge":
            if num_classes is None:
                raise ValueError("level='edge' needs num_classes: a pair of nodes has no vector")
            return EdgeHead(dim, num_classes, edge_dim=self.edge_dim)
        return super()._new_head(num_classes)

    def _unread(self) -> frozenset[str]:
        edges, nodes = self.edge_embedding, self.embedding
        read = {
            "edge_attr": edges is not None and (edges.types or edges.features) is not None,
            "degree": nodes.degree is not None,
            "rwse": nodes.walks is not None,
            "laplacian": nodes.eigenvectors is not None,
            "laplacian_values": nodes.eigenvectors is not None,
        }
        return frozenset(name for name, reads in read.items() if not reads)

    @checked
    def space(
        self,
        edge_index: Tensor,
        num_nodes: int,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
        num_graphs: int | None = None,
        *,
        coordinates: Tensor | None = None,
        pair_attr: dict[str, Tensor] | None = None,
    ) -> Graph:
        """Return where this model's tokens sit: nodes, and in front of each graph its virtual ones.

        Its edges are those given, and behind them those of the expander graph.

        Args:
            coordinates, pair_attr: as in `Graph`.

        The other arguments are those of `forward`.
        """
        self._refuse_unread(edge_index, edge_attr=edge_attr)
        added = edge_index.new_empty(2, 0)
        if self.expander_degree is not None:
            given = EdgeList(edge_index, num_nodes, edge_attr, batch, num_graphs=num_graphs)
            added = expander_edges(given, self.expander_degree)
        edges: Tensor | None = None
        if self.edge_embedding is not None:
            edges = self.edge_embedding(edge_attr, edge_index, added.shape[1])
        return Graph(
            torch.cat([edge_index, added], dim=1) if added.numel() else edge_index,
            num_nodes,
            edge_attr=edges,
            segments=batch,
            special=len(self.virtual_tokens),
            num_graphs=None if batch is None else num_graphs,
            coordinates=coordinates,
            pair_attr=pair_attr,
        )

    @checked
    def embed(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
        num_graphs: int | None = None,
        *,
        sizes: Tensor | None = None,
        degree: Tensor | None = None,
        rwse: Tensor | None = None,
        laplacian: Tensor | None = None,
        laplacian_values: Tensor | None = None,
        spectral: Tensor | None = None,
        **pair_attr: Any,
    ) -> tuple[Tensor, Graph]:
        """Return the tokens (L, D) of all nodes and virtual nodes, and the space they sit in.

        Arguments are those of `forward`.
        """
        check_whole(0, num_graphs=num_graphs, or_none=True)
        check_dense(x=x, edge_index=edge_index, batch=batch, sizes=sizes)
        self._refuse_unread(
            edge_index,
            edge_attr=edge_attr,
            degree=degree,
            rwse=rwse,
            laplacian=laplacian,
            laplacian_values=laplacian_values,
        )
        if sizes is not None:
            if batch is not None or num_graphs is not None:
                raise ValueError("sizes stand in place of batch and num_graphs: leave these out")
            batch, num_graphs = _of_sizes(sizes, x), sizes.shape[0]
        if batch is not None and (batch.is_floating_point() or batch.dtype == torch.bool):
            raise TypeError(f"batch must hold integers, the graph of each node, got {batch.dtype}")
        if x.ndim == 0 or (batch is not None and batch.shape != x.shape[:1]):
            raise ValueError(
                "batch must hold the graph of each node: x is "
                f"{tuple(x.shape)}, batch {None if batch is None else tuple(batch.shape)}"
            )
        if x.shape[0] == 0 and batch is None and self.level == "graph":
            raise ValueError(
                f"x is {tuple(x.shape)}, an empty batch: there is no node; give batch and "
                "num_graphs where graphs have none"
            )
        try:
            space = self.space(
                edge_index,
                x.shape[0],
                edge_attr,
                batch,
                num_graphs,
                coordinates=spectral,
                pair_attr=pair_attr,
            )
        except (TypeError, ValueError):  # perhaps as what is no table was taken for one
            self._refuse_misspelt(pair_attr, x, batch)
            raise
        if edge_attr is not None and edge_attr.shape[:1] != edge_index.shape[1:]:
            raise ValueError(
                f"edge_attr must have a row for each of {edge_index.shape[1]} edges, got "
                f"{tuple(edge_attr.shape)}; the graph of each node is batch="
            )
        edges = space.edges
        if edges.num_edges > edge_index.shape[1]:  # a node's place is that in the graph given
            edges = EdgeList(edge_index, x.shape[0], graph=batch, num_graphs=num_graphs)
        nodes = self.embedding(
            x,
            edges,
            degree=degree,
            rwse=rwse,
            laplacian=laplacian,
            laplacian_values=laplacian_values,
        )
        return space.place(nodes, self.virtual_tokens), space

    @checked
    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
        num_graphs: int | None = None,
        *,
        sizes: Tensor | None = None,
        node_mask: Tensor | None = None,
        edge_label_index: Tensor | None = None,
        edge_label_type: Tensor | None = None,
        backend: str | None = None,
        **encodings: Tensor | None,
    ) -> Tensor:
        """Return the outputs for graphs packed in one row, PyG's convention throughout.

        Args:
            x: (N,) integer types or (N, F) float features of all nodes.
            edge_index: (2, E), row 0 the source (key), row 1 the target (query).
            edge_attr: (E,) integer types or (E, F) float features of all edges.
            batch: (N,) non-decreasing integers, the graph of each node; None for one graph.
            num_graphs: G, needed where the last graphs may have no nodes. The mean, sum and maximum
                of a graph without nodes are zeros.
            sizes: (G,) integers, the number of nodes of each graph, in place of `batch` and
                `num_graphs`: what an exported program takes. PyG's batches have `ptr.diff()`.
            node_mask: (N,) bool, the nodes that outputs are asked for, at level "node"; None: all.
                Layers compute no other nodes than those depend on; likewise of pairs.
            edge_label_index: (2, B), the pairs of nodes that outputs are asked for, at level
                "edge", where None asks for those of all edges; at level "link" (2, ...).
            edge_label_type: their relations, integers that broadcast to (...), at level "link".
            backend: a name to override the plan's choice.
            encodings: of nodes, `degree`, `rwse`, `laplacian` and `laplacian_values`; `spectral`,
                coordinates (N, A); and tables of pairs, `hops`, `rrwp`, `path` or those of a
                `PairBias`: as the transforms of `graph.encodings` name and make them. Of the first
                four what is needed and missing is computed.

        Returns: (G, C), nodes in question (n, C), (B, C), or scores (...).

        Raises:
            TypeError, ValueError: an input of another shape, kind or range, or one that the model
                makes nothing of (`unread`); the message names it.
        """
        given = x, edge_index, edge_attr, batch, num_graphs
        tokens, space = self._embedded(given, {"sizes": sizes, **encodings})
        if self.level == "graph":
            return self.read(self.stack(tokens, space, backend=backend), space)
        if self.level == "node":
            if node_mask is not None and (
                node_mask.shape != x.shape[:1] or node_mask.dtype != torch.bool
            ):
                raise ValueError(
                    f"node_mask must be bool ({len(x)},), got {node_mask.dtype} "
                    f"{tuple(node_mask.shape)}"
                )
            output: Tensor = self.head(self._nodes(tokens, space, node_mask, backend))
            return output
        asked = edge_label_index
        if asked is None and self.level == "link":
            raise ValueError("edge_label_index is missing: whose links are to be scored?")
        ends: Tensor | None = None
        if asked is not None:
            check_pairs(asked, x.shape[0])
            if not is_exporting():
                ends = torch.zeros(len(x), dtype=torch.bool, device=x.device)
                ends[asked.flatten()] = True
        nodes = self._nodes(tokens, space, ends, backend)
        assert isinstance(space, Graph)
        pairs, of_edges = self._pairs(space, edge_index, asked)
        if ends is not None:
            pairs = (ends.cumsum(0) - 1)[pairs]
        last = edge_label_type if self.level == "link" else of_edges
        output = self.head(nodes, pairs, last)
        return output

    def _nodes(
        self, tokens: Tensor, space: Space, asked: Tensor | None, backend: str | None
    ) -> Tensor:
        """Encode the nodes that are asked for, a bool (N,), or all: (n, D). No layer computes more
        nodes than those depend on."""
        if asked is None:
            return space.without_special(self.stack(tokens, space, backend=backend))[0]
        assert space.nodes is not None
        wanted = torch.cat([asked, asked.new_zeros(1)])[space.nodes]  # no node is -1
        # How many they are is asked either way, and layers ask which
        keep = wanted.to(space.host.device).nonzero().squeeze(-1)
        return self.stack(tokens, space, keep=keep, backend=backend)

    def _refuse_unread(self, edge_index: Tensor, **inputs: Tensor | None) -> None:
        for name, value in inputs.items():
            rows = None if value is None else value.shape[:1]
            if name == "edge_attr" and rows != edge_index.shape[1:]:
                continue  # something else in its place, such as batch: `embed` says so
            if value is not None and name in self.unread:
                raise ValueError(
                    f"{name} is given to a model that makes nothing of it, got "
                    f"{tuple(value.shape)} {value.dtype}: build it with {_READ_BY[name]}, or leave "
                    f"{name} out"
                )

    def _refuse_misspelt(
        self, pair_attr: Mapping[str, object], x: Tensor, batch: Tensor | None
    ) -> None:
        """Raise where a table of pairs is an argument misspelt: no tensor, or near to a name."""
        for name in [name for name in pair_attr if name not in _TABLES]:
            table = pair_attr[name]
            pairs = len(x) ** 2 if batch is None else int(batch.bincount().square().sum())
            near = did_you_mean(name, inspect.signature(self.forward).parameters)
            shape = tuple(table.shape) if isinstance(table, Tensor) else None
            if shape is None or (near and shape[:1] != (pairs,)):
                raise TypeError(
                    f"{type(self).__name__} takes no argument {name!r}, and a table of pairs is a "
                    f"tensor with a row for each of {pairs}, got {shape or type(table).__name__}."
                    f"{near}"
                )

    def read(self, tokens: Tensor, space: Space) -> Tensor:
        """Return the outputs of graphs (G, C), or of all nodes (N, C), for encoded tokens (L, D).

        Raises:
            TypeError: at other levels, whose outputs are of pairs that `forward` is given.
        """
        if self.level == "graph":
            return super().read(tokens, space)
        if self.level == "node":
            output: Tensor = self.head(space.without_special(tokens)[0])
            return output
        raise TypeError(f"level={self.level!r}: outputs are of pairs of nodes; call the model")

    def _pairs(
        self, space: Graph, edge_index: Tensor, asked: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The pairs asked for and, where edges have tokens, those of the edges between them."""
        pairs = edge_index if asked is None else asked
        if not isinstance(self.head, EdgeHead) or not self.head.edge_dim:
            return pairs, None
        assert space.edge_attr is not None
        if asked is None:
            return pairs, space.edge_attr[: edge_index.shape[1]]
        edge = space.edges.find(asked[1], asked[0])
        none = space.edge_attr.new_zeros(1, space.edge_attr.shape[1])
        return pairs, torch.cat([space.edge_attr, none])[edge]


def _of_sizes(sizes: Tensor, x: Tensor) -> Tensor:
    """The graph of each node, (N,)."""
    if sizes.ndim != 1 or sizes.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"sizes must hold integers (G,), got {sizes.dtype} {tuple(sizes.shape)}")
    if is_exporting():
        node, end = torch.arange(x.shape[0], device=x.device), sizes.cumsum(0)
        return (node[:, None] >= end[None]).sum(1)
    wrong = may_look(sizes) and len(sizes) and int(sizes.min()) < 0
    if wrong or (may_look(sizes) and int(sizes.sum()) != len(x)):
        raise ValueError(
            f"sizes must be at least 0 and sum to the number of nodes, {len(x)}; got "
            f"{sizes.tolist()!s:.80}"
        )
    return torch.repeat_interleave(sizes, output_size=len(x))


def _check_outputs(level: str, relations: int, pooling: str, virtual_nodes: int) -> None:
    for name, value, known in (("level", level, Level), ("pooling", pooling, Pooling)):
        names = known.__args__  # type: ignore[attr-defined]
        if value not in names:
            listed = ", ".join(map(repr, names[:-1]))
            raise ValueError(f"{name} must be {listed} or {names[-1]!r}, got {value!r}")
    if virtual_nodes < 0 or (pooling in ("special", "class") and virtual_nodes == 0):
        raise ValueError(
            f"pooling={pooling!r} with virtual_nodes={virtual_nodes}: "
            + ("at least 1 is needed" if virtual_nodes == 0 else "there is no negative number")
        )
    if level != "link" and relations != 1:
        raise ValueError(f"relations={relations} are of links, but level={level!r}")
