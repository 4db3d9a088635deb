"""Attention in graphs whose nodes and edges are of several types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attention_core import Edges, Graph, PairWeights, RecordedAttention, plan
from attention_core.checks import check_whole
from attention_core.spaces.edge_list import EdgeList
from graph.layers.edges import check_edge_index, check_finite, sorted_once

EdgeType = tuple[str, str, str]


class HeteroGraphAttention(RecordedAttention):
    """The attention of a heterogeneous graph transformer (Hu et al., HGT, 2020).

    Queries, keys and values are projected by the type of their node; for each type of edges, a
    matrix per head turns the keys and another the values. A node's softmax is one, over all edges
    into it of whatever type. (The published priority of a type is a factor of its matrix here.)
    Output: a projection of GELU(attention) by type of node, between which and the node itself a
    learned share per type chooses, where the sizes are the same.

    Args:
        dim: size of a node, or that of each type.
        out_dim: size of the output, H · D.
        heads: number of heads H.
        metadata: (types of nodes, types of edges as (source, relation, target)), as PyG's
            `HeteroData.metadata()` gives them.
        edge_dim: size F of the features of edges, or that of each type that has any. A linear layer
            by type, without bias, makes of them what is added to keys and values.
        dropout: chance that an attention weight is dropped in training.

    Raises:
        ValueError: arguments that contradict each other; the message names them.
    """

    def __init__(
        self,
        dim: int | Mapping[str, int],
        out_dim: int,
        heads: int,
        metadata: tuple[Sequence[str], Sequence[EdgeType]],
        *,
        edge_dim: int | Mapping[EdgeType, int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.node_types = list(metadata[0])
        self.edge_types: list[EdgeType] = [(source, by, to) for source, by, to in metadata[1]]
        check_whole(out_dim=out_dim, heads=heads)
        if out_dim % heads:
            raise ValueError(f"out_dim={out_dim} must be a multiple of heads={heads}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        dims = dict.fromkeys(self.node_types, dim) if isinstance(dim, int) else dict(dim)
        if isinstance(edge_dim, int):
            edge_dim = dict.fromkeys(self.edge_types, edge_dim)
        self.edge_dims = dict(edge_dim or {})
        self._check(dims)
        self.dims, self.heads, self.head_dim = dims, heads, out_dim // heads
        self.dropout = dropout
        self.targets = [t for t in self.node_types if t in {edge[-1] for edge in self.edge_types}]
        sources = [t for t in self.node_types if t in {edge[0] for edge in self.edge_types}]
        self.query = nn.ModuleDict({_name(t): nn.Linear(dims[t], out_dim) for t in self.targets})
        self.key = nn.ModuleDict({_name(t): nn.Linear(dims[t], out_dim) for t in sources})
        self.value = nn.ModuleDict({_name(t): nn.Linear(dims[t], out_dim) for t in sources})
        self.out = nn.ModuleDict({_name(t): nn.Linear(out_dim, out_dim) for t in self.targets})
        #: (types of edges, H, D, D)
        shape = len(self.edge_types), heads, self.head_dim, self.head_dim
        self.key_relation = nn.Parameter(torch.empty(shape))
        self.value_relation = nn.Parameter(torch.empty(shape))
        self.edge = nn.ModuleDict(
            {_name(*t): nn.Linear(n, out_dim, bias=False) for t, n in self.edge_dims.items()}
        )
        #: Share of the attention, before a sigmoid, by type of node.
        self.share = nn.ParameterDict(
            {_name(t): nn.Parameter(torch.ones(())) for t in self.targets if dims[t] == out_dim}
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for matrices in (self.key_relation, self.value_relation):
            bound = (3 / self.head_dim) ** 0.5  # Xavier's, of each matrix
            nn.init.uniform_(matrices, -bound, bound)

    def forward(
        self,
        x_dict: Mapping[str, Tensor],
        edge_index_dict: Mapping[EdgeType, Tensor],
        edge_attr_dict: Mapping[EdgeType, Tensor] | None = None,
        *,
        return_attention_weights: bool | None = None,
        backend: str | None = None,
    ) -> Any:
        """Attend along the edges of all types.

        Args:
            x_dict: (N, dim) nodes of each type.
            edge_index_dict: (2, E) edges by type, row 0 the source (key), row 1 the target (query),
                both counted within their type. A type that is missing has no edges.
            edge_attr_dict: (E, F) floats for each type of edges that `edge_dim` names.
            return_attention_weights: also return ``{type: (edge_index, weights)}``, the weights
                (E, H) before dropout of the edges as given.
            backend: a name to override the plan's choice.

        Returns: (N, out_dim) nodes of each type that is a target of some type of edges.

        Raises:
            TypeError, ValueError: an input of another shape, kind or range, one that is missing or
                not finite; the message names it.
        """
        self._check_nodes(x_dict)
        given, types, edges = self._edges(x_dict, edge_index_dict)
        of_type = {
            name: {t: layers[_name(t)](x_dict[t]).unflatten(-1, (self.heads, -1)) for t in used}
            for name, layers, used in (
                ("query", self.query, self.targets),
                ("key", self.key, dict.fromkeys(edge[0] for edge in types)),
                ("value", self.value, dict.fromkeys(edge[0] for edge in types)),
            )
        }
        q = _row(of_type["query"][t] for t in self.targets)
        # Each type of edges has sources of its own: what it makes of the nodes
        k, v = (
            _row(
                torch.einsum("nhd,hde->nhe", of_type[name][edge[0]], relation[i])
                for edge, i in types.items()
            )
            if types
            else q[:, :, :0]
            for name, relation in (("key", self.key_relation), ("value", self.value_relation))
        )
        edge_key = self._edge_key(types, given, edge_attr_dict or {})
        out, weights = self.attend(
            q,
            k,
            v,
            edge_key=edge_key,
            edge_value=edge_key,
            dropout_p=self.dropout if self.training else 0.0,
            weights=bool(return_attention_weights),
            plan=plan(
                Graph.over(edges),
                Edges(),
                heads=self.heads,
                head_dim=self.head_dim,
                device=q.device,
                grad=torch.is_grad_enabled(),
                edge_features=edge_key is not None,
                backend=backend,
            ),
        )
        tokens = out[0].transpose(0, 1).flatten(1).split([len(x_dict[t]) for t in self.targets])
        found = {
            t: self._with_node(t, of_nodes, x_dict[t])
            for t, of_nodes in zip(self.targets, tokens, strict=True)
        }
        if weights is None:
            return found
        return found, self._by_type(weights, given, edge_index_dict)

    def _edges(
        self, x_dict: Mapping[str, Tensor], edge_index_dict: Mapping[EdgeType, Tensor]
    ) -> tuple[dict[EdgeType, Tensor], dict[EdgeType, int], EdgeList]:
        """The edges by type, the types that there are with their number, and all in one list."""
        unknown = set(edge_index_dict) - set(self.edge_types)
        if unknown:
            raise ValueError(
                f"edge_index_dict has edges {sorted(unknown)}, but metadata knows {self.edge_types}"
            )
        given = {
            edge: check_edge_index(edge_index_dict[edge], f"edge_index_dict[{edge!r}]")
            for edge in self.edge_types
            if edge in edge_index_dict
        }
        types = {edge: i for i, edge in enumerate(self.edge_types) if edge in given}
        starts, count = {}, 0
        for t in self.targets:
            starts[t] = count
            count += len(x_dict[t])
        sources, parts = 0, []
        for edge, edge_index in given.items():
            sizes = len(x_dict[edge[0]]), len(x_dict[edge[-1]])
            for end, size, what in zip(edge_index, sizes, (edge[0], edge[-1]), strict=True):
                if end.numel() and not 0 <= int(end.min()) <= int(end.max()) < size:
                    raise ValueError(
                        f"edge_index_dict[{edge!r}] names nodes {int(end.min())} to "
                        f"{int(end.max())} of {what!r}, but there are {size}"
                    )
            parts.append(edge_index + edge_index.new_tensor([[sources], [starts[edge[-1]]]]))
            sources += sizes[0]
        device = next(iter(x_dict.values())).device
        none = torch.empty(2, 0, dtype=torch.long, device=device)
        first = next((edge_index_dict[edge] for edge in given), none)
        return given, types, sorted_once(torch.cat([none, *parts], 1), sources, count, given=first)

    def _edge_key(
        self,
        types: Mapping[EdgeType, int],
        given: Mapping[EdgeType, Tensor],
        edge_attr_dict: Mapping[EdgeType, Tensor],
    ) -> Tensor | None:
        """(E, H, D) of all edges, zeros where a type has no features."""
        for edge in edge_attr_dict:
            if edge not in self.edge_dims:
                raise ValueError(
                    f"edge_attr_dict has features of {edge!r}, but edge_dim names "
                    f"{list(self.edge_dims)}"
                )
        parts = []
        for edge in types:
            count, size = given[edge].shape[1], self.edge_dims.get(edge)
            if size is None:
                parts.append(self.key_relation.new_zeros(count, self.heads, self.head_dim))
                continue
            name, attr = f"edge_attr_dict[{edge!r}]", edge_attr_dict.get(edge)
            if attr is None:
                raise ValueError(f"{name} is missing: edge_dim={size} asks for floats (E, {size})")
            if attr.shape != (count, size) or not attr.is_floating_point():
                raise ValueError(
                    f"{name} must be float (E, {size}) for {count} edges, got {attr.dtype} "
                    f"{tuple(attr.shape)}"
                )
            check_finite(attr, name)
            parts.append(self.edge[_name(*edge)](attr).unflatten(-1, (self.heads, -1)))
        return torch.cat(parts) if self.edge_dims and parts else None

    def _with_node(self, t: str, attention: Tensor, x: Tensor) -> Tensor:
        out: Tensor = self.out[_name(t)](F.gelu(attention))
        if _name(t) not in self.share:
            return out
        share = torch.sigmoid(self.share[_name(t)])
        return share * out + (1 - share) * x

    @staticmethod
    def _by_type(
        weights: PairWeights,
        given: Mapping[EdgeType, Tensor],
        edge_index_dict: Mapping[EdgeType, Tensor],
    ) -> dict[EdgeType, tuple[Tensor, Tensor]]:
        parts = weights.of_edges()[0].split([edges.shape[1] for edges in given.values()])
        return {
            edge: (edge_index_dict[edge], part) for edge, part in zip(given, parts, strict=True)
        }

    def _check(self, dims: Mapping[str, int]) -> None:
        if not self.edge_types:
            raise ValueError("metadata names no types of edges, along which to attend")
        ends = {node for edge in self.edge_types for node in (edge[0], edge[-1])}
        if set(dims) != set(self.node_types) or not ends <= set(dims):
            raise ValueError(
                f"metadata has nodes {self.node_types}, its edges join {sorted(ends)}, and dim has "
                f"{list(dims)}: these must be the same"
            )
        if not set(self.edge_dims) <= set(self.edge_types):
            raise ValueError(
                f"edge_dim has edges {list(self.edge_dims)}, but metadata has {self.edge_types}"
            )

    def _check_nodes(self, x_dict: Mapping[str, Tensor]) -> None:
        for t in self.node_types:
            if t not in x_dict:
                raise ValueError(f"x_dict has no nodes {t!r}; it has {list(x_dict)}")
            x, size = x_dict[t], self.dims[t]
            if x.ndim != 2 or x.shape[1] != size or not x.is_floating_point():
                raise ValueError(
                    f"x_dict[{t!r}] must be float (N, {size}), got {x.dtype} {tuple(x.shape)}"
                )
            check_finite(x, f"x_dict[{t!r}]")

    def extra_repr(self) -> str:
        return f"heads={self.heads}, head_dim={self.head_dim}"


def _name(*parts: str) -> str:
    """A type as the name of a module, which must hold no dot nor be a name that modules have."""
    return f"[{' '.join(parts)}]".replace(".", ":")


def _row(parts: Any) -> Tensor:
    """(1, H, N, D) from tokens (n, H, D) of each type."""
    return torch.cat(list(parts)).transpose(0, 1)[None]
