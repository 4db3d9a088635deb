"""From what is known of nodes and edges to their tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attention_core.annotated import checked
from attention_core.checks import check_dense, check_whole, may_look
from attention_core.spaces.edge_list import EdgeList
from graph.encodings import (
    CentralityEmbedding,
    SignInvariant,
    degrees,
    laplacian_eigenvectors,
    return_probabilities,
)


class NodeEmbedding(nn.Module):
    """The token of a node: its type or its features, and what tells its place in the graph.

    Args:
        dim: size D of a token.
        types: number of node types, for integer x of shape (N,).
        features: number of node features F, for float x of shape (N, F).
        max_degree: add a learned vector for the number of edges in, and one for those out, up to
            this number, which larger ones share: see `CentralityEmbedding`. A softmax, a mean over
            neighbours, cannot count them.
        walk_steps: add a projection of the chances that a random walk is back at the node after 1
            to so many steps: see `return_probabilities`.
        eigenvectors: add an encoding of so many eigenvectors of the Laplacian that does not depend
            on their signs: see `SignInvariant`.

    Raises:
        ValueError: not exactly one of `types` and `features` is given, or a number is less than 1.
    """

    @checked
    def __init__(
        self,
        dim: int,
        *,
        types: int | None = None,
        features: int | None = None,
        max_degree: int | None = None,
        walk_steps: int | None = None,
        eigenvectors: int | None = None,
    ) -> None:
        super().__init__()
        if (types is None) == (features is None):
            raise ValueError(
                "node_types (types, for x of integers) or node_features (features, for x of "
                f"floats) is needed, one of them; got {types} and {features}"
            )
        check_whole(dim=dim)
        check_whole(
            types=types,
            features=features,
            max_degree=max_degree,
            walk_steps=walk_steps,
            eigenvectors=eigenvectors,
            or_none=True,
        )
        self.types, self.features = types, features
        self.project = _projection(types, features, dim=dim)
        self.degree = None if max_degree is None else CentralityEmbedding(dim, max_degree)
        self.walks = None if walk_steps is None else nn.Linear(walk_steps, dim)
        self.eigenvectors = None if eigenvectors is None else SignInvariant(eigenvectors, dim)

    @checked
    def forward(
        self,
        x: Tensor,
        edges: EdgeList,
        *,
        degree: Tensor | None = None,
        rwse: Tensor | None = None,
        laplacian: Tensor | None = None,
        laplacian_values: Tensor | None = None,
    ) -> Tensor:
        """Embed nodes x as tokens (N, D).

        Args:
            x: (N,) types or (N, F) features.
            edges: those of the graph.
            degree: (N, 2), rwse: (N, steps), laplacian, laplacian_values: (N, k), as the transforms
                of `graph.encodings` store them. What is needed and not given is computed.

        Raises:
            TypeError: features where types were announced, or the reverse.
            ValueError: x has another shape, names a type that there is none of, or is not finite;
                an encoding has another shape.
        """
        _check(x, "x", "node", self.types, self.features)
        tokens: Tensor = self.project(x if self.types is not None else x.to(_dtype(self.project)))
        ends = torch.stack([edges.source, edges.target])
        if self.degree is not None:
            if degree is not None and degree.shape != (x.shape[0], 2):
                raise ValueError(f"degree must be {(len(x), 2)}, got {tuple(degree.shape)}")
            tokens = tokens + self.degree(degrees(edges) if degree is None else degree)
        if self.walks is not None:
            steps = self.walks.in_features
            rwse = return_probabilities(edges, steps) if rwse is None else rwse
            if rwse.shape != (x.shape[0], steps):
                raise ValueError(f"rwse must be {(len(x), steps)}, got {tuple(rwse.shape)}")
            tokens = tokens + self.walks(rwse.to(tokens.dtype))
        if self.eigenvectors is not None:
            if laplacian is None or laplacian_values is None:
                laplacian, laplacian_values = laplacian_eigenvectors(edges, self.eigenvectors.k)
            for name, of in (("laplacian", laplacian), ("laplacian_values", laplacian_values)):
                if of.shape != (x.shape[0], self.eigenvectors.k):
                    wanted = len(x), self.eigenvectors.k
                    raise ValueError(f"{name} must be {wanted}, got {tuple(of.shape)}")
                check_dense(**{name: of})  # type: ignore[arg-type]
            tokens = tokens + self.eigenvectors(laplacian, laplacian_values, ends)
        return tokens


class EdgeEmbedding(nn.Module):
    """The features of an edge in attention: its type or its features, as they are or as a token.

    Args:
        types: number of edge types, for integer edge_attr of shape (E,).
        features: number of edge features F, for float edge_attr of shape (E, F). Without either,
            all edges are alike.
        dim: size of an edge's token; None leaves types and features as they are.
        added: edges of a kind of their own come behind those given: they have a type more, or a
            feature more, which is 1, and all others 0.

    Raises:
        ValueError: both `types` and `features` are given.
    """

    @checked
    def __init__(
        self,
        *,
        types: int | None = None,
        features: int | None = None,
        dim: int | None = None,
        added: bool = False,
    ) -> None:
        super().__init__()
        if types is not None and features is not None:
            raise ValueError(
                f"edge_attr holds types or features, not both; got edge_types={types} and "
                f"edge_features={features}"
            )
        check_whole(types=types, features=features, dim=dim, or_none=True)
        self.types, self.features, self.added = types, features, added
        kinds = {"types": (types or 1) + added} if features is None else {}
        numbers = {} if features is None else {"features": features + added}
        self.project = None if dim is None else _projection(**kinds, **numbers, dim=dim)
        #: What it gives, as arguments of `EdgeBias`.
        self.gives: dict[str, int] = {**kinds, **numbers} if dim is None else {"features": dim}

    @checked
    def forward(self, edge_attr: Tensor | None, edge_index: Tensor, added: int = 0) -> Tensor:
        """Return the types, features or tokens of E edges and of so many behind them.

        Args:
            edge_attr: (E,) types or (E, F) features; None where all edges are alike.
            edge_index: (2, E).
            added: number A of edges that are added.

        Returns: (E + A,) types or (E + A, F) features, or of either tokens (E + A, dim).

        Raises:
            TypeError, ValueError: as of `NodeEmbedding`; or `edge_attr` is missing, or not of E
                edges.
        """
        check_whole(0, added=added)
        if edge_index.ndim != 2 or edge_index.shape[0] != 2:
            raise ValueError(f"edge_index must have shape (2, E), got {tuple(edge_index.shape)}")
        count = edge_index.shape[1]
        if self.types is None and self.features is None:
            edge_attr = edge_index.new_zeros(count)
        elif edge_attr is None:
            raise ValueError(
                "edge_attr is missing: the model was built with edge_types or edge_features"
            )
        else:
            _check(edge_attr, "edge_attr", "edge", self.types, self.features)
            if edge_attr.shape[0] != count:
                raise ValueError(
                    f"edge_attr has {len(edge_attr)} rows for {count} edges in edge_index"
                )
        if self.added and self.features is None:
            edge_attr = torch.cat([edge_attr, edge_attr.new_full((added,), self.types or 1)])
        elif self.added:
            given = nn.functional.pad(edge_attr, (0, 1))
            own = nn.functional.pad(edge_attr.new_zeros(added, edge_attr.shape[1]), (0, 1), value=1)
            edge_attr = torch.cat([given, own])
        if self.project is None:
            return edge_attr
        if edge_attr.is_floating_point():
            edge_attr = edge_attr.to(_dtype(self.project))
        tokens: Tensor = self.project(edge_attr)
        return tokens


def _projection(
    types: int | None = None, features: int | None = None, *, dim: int
) -> nn.Embedding | nn.Linear:
    if types is None:
        return nn.Linear(features or 0, dim)
    table = nn.Embedding(types, dim)
    nn.init.normal_(table.weight, std=dim**-0.5)
    return table


def _dtype(layer: nn.Embedding | nn.Linear) -> torch.dtype:
    return layer.weight.dtype


def _check(x: Tensor, name: str, what: str, types: int | None, features: int | None) -> None:
    """Raises TypeError or ValueError where x is not what `{what}_types` or `{what}_features`
    announced."""
    check_dense(**{name: x})  # type: ignore[arg-type]
    if types is not None:
        announced = f"{what}_types={types}"
        if x.is_floating_point() or x.dtype == torch.bool:
            raise TypeError(f"{name} must hold integer {what} types ({announced}), got {x.dtype}")
        if x.ndim != 1:
            count = what[0].upper()
            raise ValueError(
                f"{name} must hold a type per {what}, shape ({count},), got {tuple(x.shape)}"
            )
        if may_look(x) and x.numel() and not 0 <= int(x.min()) <= int(x.max()) < types:
            raise ValueError(
                f"{name} names {what} types {int(x.min())} to {int(x.max())}, but {announced}: "
                f"types are 0 to {types - 1}"
            )
        return
    if not x.is_floating_point():
        raise TypeError(
            f"{name} must hold float {what} features ({what}_features={features}), got {x.dtype}"
        )
    if x.ndim != 2 or x.shape[1] != features:
        raise ValueError(
            f"{name} must have shape ({what[0].upper()}, {features}), got {tuple(x.shape)}"
        )
    if may_look(x) and not bool(x.isfinite().all()):
        first = int((~x.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"{name} has a feature that is not finite, first at {what} {first}")
