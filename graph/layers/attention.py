"""Attention along the edges of a graph."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from attention_core import Additive, AdditiveV2, Bias, Edges, Graph, Score, plan
from attention_core.annotated import checked
from attention_core.checks import (
    check_chance,
    check_dense,
    check_dtype,
    check_flag,
    check_kind,
    check_number,
    check_whole,
)
from attention_core.edge_projection import EdgeFeatures, as_tensor, project
from attention_core.layers import RecordedAttention
from attention_core.precision import product_dtype
from attention_core.spaces.edge_list import EdgeList
from graph.layers.adjacency import agreed_size, as_adjacency, read_edges
from graph.layers.edges import (
    REDUCTIONS,
    check_finite,
    in_input_order,
    keeps_sorted,
    loop_features,
    sorted_once,
)
from graph.layers.messages import SeenMessages
from graph.layers.projections import check_size, projection, reset, size_in, start


class GraphAttention(RecordedAttention, SeenMessages):
    """Multi-head attention of each node to the sources of the edges into it.

    The score is what names the layer: "dot" is the graph transformer (Shi et al., UniMP, 2021),
    "additive" GAT (Veličković et al., 2018), "additive_v2" GATv2 (Brody et al., 2022). An edge that
    is listed twice is two; a node without an edge gets what residual and bias add to 0.

    A graph's edges are sorted at the first call with an `edge_index`, and no more while that tensor
    lives: layers and passes that are given the same tensor share it.

    Args:
        dim: size of a node, or (of a source, of a target); -1 for that of the first input.
        heads: number of query heads H.
        head_dim: size D of a head; that of a target / heads by default.
        score: "dot", "additive" or "additive_v2".
        kv_heads: number of key and value heads, a divisor of `heads`; `heads` by default.
        concat: the output is all heads side by side, H · D numbers; else their mean, D.
        share_weights: queries are projected as keys are. By default GAT's are, with one `dim`.
            Values are projected as keys are in both additive scores, by themselves for "dot".
        edge_dim: size F of the features of edges, -1 for that of the first; None: none are taken.
            They take part in the keys, projected without bias.
        edge_values: the same is added to the values. By default for "dot" alone, as published.
        bias: added to the scores, such as `EdgeBias`, which learns from types or features of edges.
        self_loops: each node attends to itself by exactly one loop, whatever loops are listed. Of
            two sets of nodes, targets are taken for the first of the sources.
        fill_value: features of these loops: a number, a tensor (F,), or what is made of those of
            the other edges into the node: "mean", "add", "min", "max" or "mul".
        residual: add a projection of the node itself; or "gated", between which and the attention
            a learned gate of both chooses (β of UniMP).
        attention_dropout: chance that an attention weight is dropped in training.
        negative_slope: of the LeakyReLU of additive scores.
        projection_bias: whether queries, keys and values have a bias.
        output_bias: whether the output has one; it is the residual's where there is a residual.

    Raises:
        ValueError: arguments that contradict each other; the message names them.
    """

    @checked
    def __init__(
        self,
        dim: int | tuple[int, int],
        heads: int = 1,
        *,
        head_dim: int | None = None,
        score: Literal["dot", "additive", "additive_v2"] = "dot",
        kv_heads: int | None = None,
        concat: bool = True,
        share_weights: bool | None = None,
        edge_dim: int | None = None,
        edge_values: bool | None = None,
        bias: Bias | None = None,
        self_loops: bool = False,
        fill_value: float | Tensor | str = "mean",
        residual: bool | Literal["gated"] = False,
        attention_dropout: float = 0.0,
        negative_slope: float = 0.2,
        projection_bias: bool = True,
        output_bias: bool = True,
    ) -> None:
        super().__init__()
        check_size("dim", dim)
        source_dim, target_dim = dim if isinstance(dim, tuple | list) else (dim, dim)
        kv_heads = heads if kv_heads is None else kv_heads
        check_whole(heads=heads, kv_heads=kv_heads)
        check_whole(head_dim=head_dim, or_none=True)
        if heads % kv_heads:
            raise ValueError(f"heads={heads} must be a multiple of kv_heads={kv_heads}")
        check_number(negative_slope=negative_slope)
        if edge_dim is not None:
            check_size("edge_dim", edge_dim)
        if head_dim is None:
            if target_dim % heads or target_dim == -1:
                raise ValueError(f"dim={dim} must be a multiple of heads={heads}, or give head_dim")
            head_dim = target_dim // heads
        if score not in ("dot", "additive", "additive_v2"):
            raise ValueError(f"score must be 'dot', 'additive' or 'additive_v2', got {score!r}")
        if residual not in (False, True, "gated"):
            raise ValueError(f"residual must be a bool or 'gated', got {residual!r}")
        check_chance(attention_dropout=attention_dropout)
        if not isinstance(fill_value, str | Tensor):
            check_number(fill_value=fill_value)
        if isinstance(fill_value, str) and fill_value not in REDUCTIONS:
            raise ValueError(
                f"fill_value must be a number, a tensor or one of {', '.join(REDUCTIONS)}; got "
                f"{fill_value!r}"
            )
        if share_weights is None:
            one = not isinstance(dim, tuple | list)
            share_weights = score == "additive" and one and kv_heads == heads
        if share_weights and (source_dim != target_dim or kv_heads != heads):
            raise ValueError(
                "share_weights needs one dim and as many kv_heads as heads; got "
                f"dim={dim}, heads={heads}, kv_heads={kv_heads}"
            )
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.concat, self.self_loops, self.fill_value = concat, self_loops, fill_value
        self.attention_dropout, self.bias = attention_dropout, bias
        self.edge_values = score == "dot" if edge_values is None else edge_values
        inner, kv_inner = heads * head_dim, kv_heads * head_dim
        width = inner if concat else head_dim
        self.key = projection(source_dim, kv_inner, projection_bias)
        #: None where it is the projection of the keys.
        self.query = None if share_weights else projection(target_dim, inner, projection_bias)
        self.value = projection(source_dim, kv_inner, projection_bias) if score == "dot" else None
        self.edge = None if edge_dim is None else projection(edge_dim, kv_inner, bias=False)
        self.score: Score | None = None
        if score == "additive":
            self.score = Additive(heads, head_dim, negative_slope, edge=edge_dim is not None)
        elif score == "additive_v2":
            self.score = AdditiveV2(heads, head_dim, negative_slope)
        self.residual = projection(target_dim, width, output_bias) if residual else None
        self.gate = nn.Linear(3 * width, 1, bias=False) if residual == "gated" else None
        self.output_bias: nn.Parameter | None = None
        if output_bias and not residual:
            self.output_bias = nn.Parameter(torch.zeros(width))
        self._start()

    def _start(self) -> None:
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                start(layer)
        if self.output_bias is not None:
            nn.init.zeros_(self.output_bias)

    def reset_parameters(self) -> None:
        """Draw all parameters anew, those of the score and of the bias, too."""
        for part in (self.score, self.bias):
            if part is not None:
                reset(part)
        self._start()

    @property
    def source_dim(self) -> int:
        """Size of a source; -1 while no input has told."""
        return size_in(self.key)

    @property
    def target_dim(self) -> int:
        """Size of a target; -1 while no input has told."""
        return size_in(self.key if self.query is None else self.query)

    @property
    def edge_dim(self) -> int | None:
        """Number of features of an edge; -1 while no input has told."""
        return None if self.edge is None else size_in(self.edge)

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor | None],
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        *,
        size: tuple[int, int] | None = None,
        return_attention_weights: bool | None = None,
        backend: str | None = None,
    ) -> Any:
        """Attend along the edges.

        Args:
            x: (N, dim) nodes, or (sources (N, dim), targets (M, dim')) as two sets. With an
                additive score the targets may be None: the score is then of the source alone, and
                there is no residual.
            edge_index: (2, E) integers, or PyG's `EdgeIndex`: row 0 the source (key), row 1 the
                target (query). Or PyG's `adj_t`, a sparse tensor (M, N) of any layout, whose values
                are `edge_attr` where they are (E, F); edges are in the order that it has them.
            edge_attr: (E, F) floats, or (E,) for F = 1; for a bias that wants them, (E,) integers.
            size: (N, M), to be checked; and needed where nothing else tells of M.
            return_attention_weights: also return ``(edge_index, weights)``, the weights (E, H)
                before dropout. The edges are those given; with `self_loops`, those of nodes that
                were given none follow behind them. (PyG's GATConv returns weights after dropout,
                without the loops that were given, and all loops at the end.) For an `adj_t` it is a
                sparse tensor (M, N, H) of them in its layout, and its values.
            backend: a name to override the plan's choice.

        Returns: (N, H · D), or (M, H · D) of the targets; D instead of H · D with concat=False.

        Raises:
            TypeError, ValueError: an input of another shape, kind or range, or one that is not
                finite; the message names it.
        """
        check_kind(Tensor, edge_attr=edge_attr)
        if return_attention_weights is not None:
            check_flag(return_attention_weights=return_attention_weights)
        two = not isinstance(x, Tensor)
        source, target = self._check_nodes(x)
        index, attr, told = read_edges(edge_index)
        if edge_attr is None and not (self.edge is None and self.bias is None):
            edge_attr = attr
        self._check_features(edge_attr, index.shape[1])
        nodes = len(source), None if target is None else len(target)
        sources, targets = agreed_size(size, told, nodes)
        edges = sorted_once(index, sources, targets if two else None, given=(edge_index,))
        kept: Tensor | None = None
        if self.self_loops:
            in_place = not (return_attention_weights or self.watched)
            in_place &= not keeps_sorted(edge_index) and backend in (None, "edges")
            edges, kept, edge_attr = self._with_loops(edges, edge_attr, in_place)
        if edge_attr is not None and self.bias is not None:
            edges = edges.with_attr(edge_attr)
        k = self.key(source)
        if target is None:
            q = k.new_zeros(targets, self.heads * self.head_dim)
        else:
            q = self.query(target) if self.query is not None else self.key(target) if two else k
        q = self._heads(q, self.heads)
        k = self._heads(k, self.kv_heads)
        v = k if self.value is None else self._heads(self.value(source), self.kv_heads)
        edge_key = self._edge_key(edge_attr)
        edge_value = edge_key if self.edge_values else None
        out, weights = self.attend(
            q,
            k,
            v,
            bias=self.bias,
            score=self.score,
            edge_key=edge_key,
            edge_value=edge_value,
            dropout_p=self.attention_dropout if self.training else 0.0,
            weights=bool(return_attention_weights) or self.watched,
            plan=plan(
                Graph.over(edges),
                Edges(),
                self.bias,
                score=self.score,
                heads=self.heads,
                head_dim=self.head_dim,
                device=q.device,
                grad=torch.is_grad_enabled(),
                edge_features=edge_key is not None,
                dtype=product_dtype(q),
                backend=backend,
            ),
        )
        out = out[0].transpose(0, 1)
        alpha: Tensor | None = None
        if weights is not None:
            alpha = weights.of_edges()[0]
            at: Tensor | None = None
            if kept is not None:
                index, at = in_input_order(index, kept, edges.num_edges - len(kept))
                alpha = _rows_at(at, alpha, index.shape[1])
            if self.watched:
                query, value = (of_nodes[0].transpose(0, 1) for of_nodes in (q, v))
                shown = None if edge_value is None else as_tensor(edge_value)
                if shown is not None and at is not None:
                    shown = _rows_at(at, shown, index.shape[1])
                out = self.show(index, (sources, targets), query, value, alpha, shown)
        out = self._with_node(out.flatten(1) if self.concat else out.mean(1), target)
        if alpha is None or not return_attention_weights:
            return out
        if edge_index.layout != torch.strided:
            return out, as_adjacency(alpha, index, edge_index)
        return out, (edge_index if kept is None else index, alpha)

    def _with_loops(
        self, edges: EdgeList, attr: Tensor | None, in_place: bool
    ) -> tuple[EdgeList, Tensor | None, Tensor | None]:
        """The edges with one self-loop at each node, their features, and which of those given they
        are, before the loops; None where all stay `in_place`."""
        if in_place:
            given, edges = edges, edges.looped_in_place()
            if attr is not None:
                loops = edges.num_edges - given.num_edges
                ends = given.target.where(given.target != given.source, loops)
                attr = torch.cat([attr, loop_features(attr, ends, loops, self.fill_value)])
            return edges, None, attr
        edges, kept = edges.looped
        if attr is not None:
            attr = attr[kept]
            loops, ends = edges.num_edges - len(kept), edges.target[: len(kept)]
            attr = torch.cat([attr, loop_features(attr, ends, loops, self.fill_value)])
        return edges, kept, attr

    def _with_node(self, out: Tensor, target: Tensor | None) -> Tensor:
        """The output with what a node itself adds to it."""
        if self.residual is None or target is None:
            bias = self.output_bias if self.residual is None else self.residual.bias
            return out if bias is None else out + bias
        own = self.residual(target)
        if self.gate is None:
            return out + own
        share = torch.sigmoid(self.gate(torch.cat([out, own, out - own], dim=-1)))
        return share * own + (1 - share) * out

    def _edge_key(self, edge_attr: Tensor | None) -> EdgeFeatures | None:
        if self.edge is None or edge_attr is None:
            return None
        attr = edge_attr[:, None] if edge_attr.ndim == 1 else edge_attr
        if self.edge_dim == -1:
            self.edge(attr[:0])  # which is told its size so
        return project(self.edge, attr.to(self.edge.weight.dtype), self.kv_heads)

    @staticmethod
    def _heads(x: Tensor, heads: int) -> Tensor:
        """(1, H, N, D) from (N, H · D)."""
        return x.unflatten(-1, (heads, -1)).transpose(0, 1)[None]

    def _check_nodes(
        self, x: Tensor | tuple[Tensor, Tensor | None]
    ) -> tuple[Tensor, Tensor | None]:
        if not isinstance(x, Tensor) and (
            not isinstance(x, tuple | list)
            or len(x) != 2
            or not isinstance(x[0], Tensor)
            or not isinstance(x[1], Tensor | None)
        ):
            raise TypeError(f"x must be a tensor, or (sources, targets), got {x!r:.80}")
        source, target = (x, x) if isinstance(x, Tensor) else x
        if target is None and (self.score is None or self.gate is not None):
            raise TypeError(
                "x must be a tensor, or (sources, targets), got no targets, and "
                + ("score='dot'" if self.score is None else "residual='gated'")
                + " needs them"
            )
        sides = (source, self.source_dim, "sources"), (target, self.target_dim, "targets")
        for nodes, dim, side in sides:
            if nodes is None:
                continue
            name = "x" if source is target else f"x, the {side},"
            wrong = nodes.ndim != 2 or dim not in (-1, nodes.shape[1])
            if wrong or not nodes.is_floating_point():
                raise ValueError(
                    f"{name} must be float (N, {'F' if dim == -1 else dim}), got {nodes.dtype} "
                    f"{tuple(nodes.shape)}"
                )
            check_dense(x=nodes)
            check_dtype(self.key, x=nodes)
        check_finite(source, "x")
        if target is not None and target is not source:
            check_finite(target, "x")
        return source, target

    def _check_features(self, edge_attr: Tensor | None, count: int) -> None:
        dim = self.edge_dim
        shape = f"(E, {'F' if dim == -1 else dim})"
        if edge_attr is None:
            if self.edge is not None:
                raise ValueError(f"edge_attr is missing: edge_dim={dim} asks for floats {shape}")
            return
        if self.edge is None and self.bias is None:
            raise ValueError(
                "edge_attr is given to a layer that makes nothing of it: build it with edge_dim="
                ", or with a bias such as EdgeBias"
            )
        check_dense(edge_attr=edge_attr)
        if edge_attr.ndim < 1 or len(edge_attr) != count:
            rows = len(edge_attr) if edge_attr.ndim else "no"
            raise ValueError(f"edge_attr has {rows} rows for {count} edges in edge_index")
        features = edge_attr[:, None] if edge_attr.ndim == 1 else edge_attr
        if self.edge is not None and (
            features.ndim != 2
            or dim not in (-1, features.shape[1])
            or not features.is_floating_point()
        ):
            raise ValueError(
                f"edge_attr must be float {shape} for edge_dim={dim}, got {edge_attr.dtype} "
                f"{tuple(edge_attr.shape)}"
            )
        check_finite(edge_attr, "edge_attr")

    def extra_repr(self) -> str:
        return f"heads={self.heads}, kv_heads={self.kv_heads}, head_dim={self.head_dim}"


def _rows_at(at: Tensor, values: Tensor, count: int) -> Tensor:
    """(count, ...) with the values in these rows, and 0 elsewhere."""
    return values.new_zeros(count, *values.shape[1:]).index_copy(0, at, values)
