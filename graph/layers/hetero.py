"""Attention in graphs whose nodes and edges are of several types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from attention_core import Edges, Graph, PairWeights, plan
from attention_core.annotated import checked
from attention_core.checks import (
    check_chance,
    check_dense,
    check_dtype,
    check_flag,
    check_kind,
    check_whole,
    may_look,
)
from attention_core.edge_projection import EdgeFeatures, joined, project
from attention_core.layers import RecordedAttention
from attention_core.precision import product_dtype
from attention_core.spaces.edge_list import EdgeList
from graph.layers.adjacency import GivenEdges, agreed_size, as_adjacency, read_edges
from graph.layers.edges import check_finite, sorted_once
from graph.layers.projections import check_size, projection, size_in, start

EdgeType = tuple[str, str, str]


class HeteroGraphAttention(RecordedAttention):
    """The attention of a heterogeneous graph transformer (Hu et al., HGT, 2020).

    Queries, keys and values are projected by the type of their node; for each type of edges, a
    matrix per head turns the keys and another the values. A node's softmax is one, over all edges
    into it of whatever type. (The published priority of a type is a factor of its matrix here.)
    Output: a projection of GELU(attention) by type of node, between which and the node itself a
    learned share per type chooses, where the sizes are the same.

    Args:
        dim: size of a node, or that of each type; -1 for that of the first input.
        out_dim: size of the output, H · D.
        heads: number of heads H.
        metadata: (types of nodes, types of edges as (source, relation, target)), as PyG's
            `HeteroData.metadata()` gives them.
        edge_dim: size F of the features of edges, or that of each type that has any; -1 for that of
            the first input. A linear layer by type, without bias, makes of them what is added to
            keys and values.
        attention_dropout: chance that an attention weight is dropped in training.

    Raises:
        ValueError: arguments that contradict each other; the message names them.
    """

    @checked
    def __init__(
        self,
        dim: int | Mapping[str, int],
        out_dim: int,
        heads: int,
        metadata: tuple[Sequence[str], Sequence[EdgeType]],
        *,
        edge_dim: int | Mapping[EdgeType, int] | None = None,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(metadata) != 2 or any(len(edge) != 3 for edge in metadata[1]):
            raise ValueError(
                "metadata must be (types of nodes, types of edges as (source, relation, target)), "
                f"got {metadata!r:.80}"
            )
        self.node_types = list(metadata[0])
        self.edge_types: list[EdgeType] = [(source, by, to) for source, by, to in metadata[1]]
        for name, size in (("dim", dim), ("edge_dim", edge_dim)):
            if not isinstance(size, Mapping | None):
                check_size(name, size)
        check_whole(out_dim=out_dim, heads=heads)
        if out_dim % heads:
            raise ValueError(f"out_dim={out_dim} must be a multiple of heads={heads}")
        check_chance(attention_dropout=attention_dropout)
        dims = dict(dim) if isinstance(dim, Mapping) else dict.fromkeys(self.node_types, dim)
        if not isinstance(edge_dim, Mapping | None):
            edge_dim = dict.fromkeys(self.edge_types, edge_dim)
        self.edge_dims = dict(edge_dim or {})
        self._check(dims)
        self.dims, self.heads, self.head_dim = dims, heads, out_dim // heads
        self.attention_dropout = attention_dropout
        self.targets = [t for t in self.node_types if t in {edge[-1] for edge in self.edge_types}]
        self.sources = [t for t in self.node_types if t in {edge[0] for edge in self.edge_types}]
        of_targets, of_sources = (
            {_name(t): dims[t] for t in types} for types in (self.targets, self.sources)
        )
        self.query = _projections(of_targets, out_dim)
        self.key = _projections(of_sources, out_dim)
        self.value = _projections(of_sources, out_dim)
        self.out = _projections(dict.fromkeys(of_targets, out_dim), out_dim)
        #: (types of edges, H, D, D)
        shape = len(self.edge_types), heads, self.head_dim, self.head_dim
        self.key_relation = nn.Parameter(torch.empty(shape))
        self.value_relation = nn.Parameter(torch.empty(shape))
        self.edge = _projections(
            {_name(*t): n for t, n in self.edge_dims.items()}, out_dim, bias=False
        )
        #: Share of the attention, before a sigmoid, by type of node.
        self.share = nn.ParameterDict()
        for t, size in dims.items():
            self._settle(t, size)
        self.register_load_state_dict_pre_hook(_settle_all)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                start(layer)
        for matrices in (self.key_relation, self.value_relation):
            bound = (3 / self.head_dim) ** 0.5  # Xavier's, of each matrix
            nn.init.uniform_(matrices, -bound, bound)
        for share in self.share.values():
            nn.init.ones_(share)

    def _settle(self, t: str, size: int) -> None:
        """Nodes of this type have this size, -1 while no input has told."""
        self.dims[t] = size
        if t in self.targets and size == self.heads * self.head_dim and _name(t) not in self.share:
            self.share[_name(t)] = nn.Parameter(self.key_relation.new_ones(()))

    def forward(
        self,
        x_dict: Mapping[str, Tensor],
        edge_index_dict: Mapping[EdgeType, Tensor],
        edge_attr_dict: Mapping[EdgeType, Tensor] | None = None,
        *,
        num_targets: Mapping[str, int] | None = None,
        return_attention_weights: bool | None = None,
        backend: str | None = None,
    ) -> Any:
        """Attend along the edges of all types.

        Args:
            x_dict: (N, dim) nodes of each type. A type that is missing has no nodes.
            edge_index_dict: (2, E) edges by type, row 0 the source (key), row 1 the target (query),
                both counted within their type; or PyG's `adj_t`, as in `GraphAttention`. A type
                that is missing has no edges.
            edge_attr_dict: (E, F) floats for each type of edges that `edge_dim` names.
            num_targets: how many nodes of a type, the first of it, to compute, as
                `graph.sampling.trim_to_seeds` tells; by default all. Edges lead to these alone.
            return_attention_weights: also return ``{type: (edge_index, weights)}``, the weights
                (E, H) before dropout of the edges as given.
            backend: a name to override the plan's choice.

        Returns: (N, out_dim) nodes of each type given that is a target of some type of edges, or
            the first `num_targets` of them.

        Raises:
            TypeError, ValueError: an input of another shape, kind or range, one that is missing or
                not finite; the message names it.
        """
        check_kind(Mapping, or_none=False, x_dict=x_dict, edge_index_dict=edge_index_dict)
        check_kind(Mapping, edge_attr_dict=edge_attr_dict, num_targets=num_targets)
        if return_attention_weights is not None:
            check_flag(return_attention_weights=return_attention_weights)
        for edge, attr in (edge_attr_dict or {}).items():
            check_kind(Tensor, or_none=False, **{f"edge_attr_dict[{edge!r}]": attr})
        x = self._nodes(x_dict)
        to = self._targets(x, num_targets or {})
        given = self._read(x_dict, to, edge_index_dict)
        # Each type of edges has sources of its own, what it makes of the nodes; of a type without
        # edges no node, which its layers see all the same: every parameter shall have a gradient
        count = {edge: len(x[edge[0]]) if given[edge].edge_index.numel() else 0 for edge in given}
        sources = {t: x[t][: max(count[e] for e in count if e[0] == t)] for t in self.sources}
        queries, keys, values = (
            {t: layers[_name(t)](nodes).unflatten(-1, (self.heads, -1)) for t, nodes in of.items()}
            for layers, of in (
                (self.query, to),
                (self.key, sources),
                (self.value, sources),
            )
        )
        q = _row(queries.values())
        k, v = (
            _row(
                torch.einsum("nhd,hde->nhe", of_type[edge[0]][: count[edge]], relation[i])
                for i, edge in enumerate(given)
            )
            for of_type, relation in ((keys, self.key_relation), (values, self.value_relation))
        )
        edges = self._together(to, given, count, edge_index_dict)
        edge_key = self._edge_key(given, edge_attr_dict or {})
        out, weights = self.attend(
            q,
            k,
            v,
            edge_key=edge_key,
            edge_value=edge_key,
            dropout_p=self.attention_dropout if self.training else 0.0,
            weights=bool(return_attention_weights),
            plan=plan(
                Graph.over(edges),
                Edges(),
                heads=self.heads,
                head_dim=self.head_dim,
                device=q.device,
                grad=torch.is_grad_enabled(),
                edge_features=edge_key is not None,
                dtype=product_dtype(q),
                backend=backend,
            ),
        )
        tokens = out[0].transpose(0, 1).flatten(1).split([len(to[t]) for t in self.targets])
        every = {
            t: self._with_node(t, of_nodes, to[t])
            for t, of_nodes in zip(self.targets, tokens, strict=True)
        }
        # What belongs to a missing type has a gradient from the others, of zeros
        missing = [every[t].sum() for t in self.targets if t not in x_dict]
        found = {t: sum(missing, every[t]) for t in self.targets if t in x_dict}
        if weights is None:
            return found
        return found, self._by_type(weights, given, edge_index_dict)

    def _nodes(self, x_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The nodes of every type, none of those that are missing."""
        nodes: dict[str, Tensor] = {}
        for t in self.node_types:
            size = self.dims[t]
            if t not in x_dict:
                if size == -1 and t in {*self.sources, *self.targets}:
                    raise ValueError(
                        f"x_dict has no nodes {t!r}; it has {list(x_dict)}, but dim=-1 leaves the "
                        "size to the first input"
                    )
                nodes[t] = self.key_relation.new_zeros(0, max(size, 0))
                continue
            x = x_dict[t]
            wrong = not isinstance(x, Tensor) or x.ndim != 2 or not x.is_floating_point()
            if wrong or size not in (-1, x.shape[1]):
                got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else f"{x!r:.80}"
                raise ValueError(
                    f"x_dict[{t!r}] must be float (N, {'F' if size == -1 else size}), got {got}"
                )
            check_dense(**{f"x_dict[{t!r}]": x})  # type: ignore[arg-type]
            for layers in (self.query, self.key):
                if _name(t) in layers:
                    check_dtype(layers[_name(t)], **{f"x_dict[{t!r}]": x})
            check_finite(x, f"x_dict[{t!r}]")
            self._settle(t, x.shape[1])
            nodes[t] = x
        return nodes

    def _targets(self, x: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
        """The nodes to compute, of each type to which edges lead."""
        for t, count in counts.items():
            if t not in x or not 0 <= count <= len(x[t]):
                raise ValueError(
                    f"num_targets[{t!r}]={count}, but x_dict has "
                    f"{len(x[t]) if t in x else 'no'} such nodes"
                )
        return {t: x[t][: counts.get(t, len(x[t]))] for t in self.targets}

    def _read(
        self,
        x_dict: Mapping[str, Tensor],
        to: Mapping[str, Tensor],
        edge_index_dict: Mapping[EdgeType, Tensor],
    ) -> dict[EdgeType, GivenEdges]:
        """The edges of every type, none of those that are missing, as nodes of `x_dict`."""
        unknown = set(edge_index_dict) - set(self.edge_types)
        if unknown:
            raise ValueError(
                f"edge_index_dict has edges {sorted(unknown)}, but metadata knows {self.edge_types}"
            )
        none = torch.empty(2, 0, dtype=torch.long, device=self.key_relation.device)
        given = dict.fromkeys(self.edge_types, GivenEdges(none))
        for edge in self.edge_types:
            if edge not in edge_index_dict:
                continue
            name = f"edge_index_dict[{edge!r}]"
            given[edge] = read_edges(edge_index_dict[edge], name)
            index = given[edge].edge_index
            if not index.numel():
                continue
            for t in (edge[0], edge[-1]):
                if t not in x_dict:
                    raise ValueError(
                        f"x_dict has no nodes {t!r}; it has {list(x_dict)}, but {name} has edges"
                    )
            sizes = agreed_size(
                None, given[edge].size, (len(x_dict[edge[0]]), len(to[edge[-1]])), name
            )
            for end, size, what in zip(index, sizes, (edge[0], edge[-1]), strict=True):
                if may_look(end) and not 0 <= int(end.min()) <= int(end.max()) < size:
                    raise ValueError(
                        f"{name} names nodes {int(end.min())} to {int(end.max())} of {what!r}, but "
                        f"there are {size}"
                    )
        return given

    def _together(
        self,
        to: Mapping[str, Tensor],
        given: Mapping[EdgeType, GivenEdges],
        sources: Mapping[EdgeType, int],
        edge_index_dict: Mapping[EdgeType, Tensor],
    ) -> EdgeList:
        """The edges of all types in one list."""
        starts, targets = {}, 0
        for t in self.targets:
            starts[t] = targets
            targets += len(to[t])
        parts, first = [], 0
        for edge, (index, *_) in given.items():
            parts.append(torch.stack([index[0] + first, index[1] + starts[edge[-1]]]))
            first += sources[edge]
        known, layout = tuple(edge_index_dict.values()), (*sources.values(), *starts.values())
        kinds = tuple(edge_index_dict)
        together = torch.cat(parts, 1)
        return sorted_once(together, first, targets, given=known, layout=(kinds, layout))

    def _edge_key(
        self, given: Mapping[EdgeType, GivenEdges], edge_attr_dict: Mapping[EdgeType, Tensor]
    ) -> EdgeFeatures | None:
        """(E, H, D) of all edges, zeros where a type has no features."""
        if not self.edge_dims and not edge_attr_dict:
            return None
        for edge in edge_attr_dict:
            if edge not in self.edge_dims:
                raise ValueError(
                    f"edge_attr_dict has features of {edge!r}, but edge_dim names "
                    f"{list(self.edge_dims)}"
                )
        parts: list[EdgeFeatures | int] = []
        for edge, (index, own, _) in given.items():
            count = index.shape[1]
            if edge not in self.edge_dims:
                parts.append(count)
                continue
            linear = self.edge[_name(*edge)]
            assert isinstance(linear, nn.Linear)
            size = size_in(linear)
            name, attr = f"edge_attr_dict[{edge!r}]", edge_attr_dict.get(edge, own)
            if attr is None and not count and size != -1:
                attr = self.key_relation.new_zeros(0, size)
            wanted = "F" if size == -1 else size
            if attr is None:
                raise ValueError(
                    f"{name} is missing: edge_dim={size} asks for floats (E, {wanted})"
                )
            if (
                attr.ndim != 2
                or len(attr) != count
                or size not in (-1, attr.shape[1])
                or not attr.is_floating_point()
            ):
                raise ValueError(
                    f"{name} must be float (E, {wanted}) for {count} edges, got {attr.dtype} "
                    f"{tuple(attr.shape)}"
                )
            check_finite(attr, name)
            if size == -1:
                linear(attr[:0])  # which is told its size so
            parts.append(project(linear, attr.to(linear.weight.dtype), self.heads))
        return joined(parts, self.key_relation.new_zeros(0, self.heads, self.head_dim))

    def _with_node(self, t: str, attention: Tensor, x: Tensor) -> Tensor:
        out: Tensor = self.out[_name(t)](F.gelu(attention))
        if _name(t) not in self.share:
            return out
        share = torch.sigmoid(self.share[_name(t)])
        return share * out + (1 - share) * x

    @staticmethod
    def _by_type(
        weights: PairWeights,
        given: Mapping[EdgeType, GivenEdges],
        edge_index_dict: Mapping[EdgeType, Tensor],
    ) -> dict[EdgeType, tuple[Tensor, Tensor]]:
        parts = weights.of_edges()[0].split([edges.edge_index.shape[1] for edges in given.values()])
        found = {}
        for (edge, (index, *_)), part in zip(given.items(), parts, strict=True):
            if edge in edge_index_dict:
                own = edge_index_dict[edge]
                sparse = own.layout != torch.strided
                found[edge] = as_adjacency(part, index, own) if sparse else (own, part)
        return found

    def _check(self, dims: Mapping[str, int]) -> None:
        if not self.edge_types:
            raise ValueError("metadata names no types of edges, along which to attend")
        ends = {node for edge in self.edge_types for node in (edge[0], edge[-1])}
        if set(dims) != set(self.node_types) or not ends <= set(dims):
            raise ValueError(
                f"metadata has nodes {self.node_types}, its edges join {sorted(ends)}, and dim has "
                f"{list(dims)}: these must be the same"
            )
        check_size("dim", dims)
        check_size("edge_dim", self.edge_dims)
        if not set(self.edge_dims) <= set(self.edge_types):
            raise ValueError(
                f"edge_dim has edges {list(self.edge_dims)}, but metadata has {self.edge_types}"
            )

    def extra_repr(self) -> str:
        return f"heads={self.heads}, head_dim={self.head_dim}"


def _name(*parts: str) -> str:
    """A type as the name of a module, which must hold no dot nor be a name that modules have."""
    return f"[{' '.join(parts)}]".replace(".", ":")


def _row(parts: Any) -> Tensor:
    """(1, H, N, D) from tokens (n, H, D) of each type."""
    return torch.cat(list(parts)).transpose(0, 1)[None]


def _projections(sizes: Mapping[str, int], out: int, bias: bool = True) -> nn.ModuleDict:
    """A linear layer by name, from these sizes."""
    return nn.ModuleDict({name: projection(size, out, bias) for name, size in sizes.items()})


def _settle_all(
    module: HeteroGraphAttention, state_dict: Mapping[str, Tensor], prefix: str, *_: Any
) -> None:
    """Takes the sizes that no input has told from the weights that are about to be loaded."""
    for t in module.targets:
        weight = state_dict.get(f"{prefix}query.{_name(t)}.weight")
        if module.dims[t] == -1 and weight is not None and not is_lazy(weight):
            module._settle(t, weight.shape[1])
