"""From what is known of a node to its token."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NodeEmbedding(nn.Module):
    """The token of a node: its type or its features, and optionally its degree.

    The degree tells a node how many neighbours it has, which a softmax, a mean over neighbours,
    cannot count (centrality encoding: Ying et al., Graphormer, 2021).

    Args:
        dim: size D of a token.
        types: number of node types, for integer x of shape (N,).
        features: number of node features F, for float x of shape (N, F).
        max_degree: learn a vector for each in-degree up to this one, which larger degrees share;
            None leaves degrees out.

    Raises:
        ValueError: not exactly one of `types` and `features` is given.
    """

    def __init__(
        self,
        dim: int,
        *,
        types: int | None = None,
        features: int | None = None,
        max_degree: int | None = None,
    ) -> None:
        super().__init__()
        if (types is None) == (features is None):
            raise ValueError(
                "node_types (for x of integers) or node_features (for x of floats) is needed, "
                f"one of them; got {types} and {features}"
            )
        if max_degree is not None and max_degree < 1:
            raise ValueError(f"max_degree must be at least 1, or None, got {max_degree}")
        self.types, self.features, self.max_degree = types, features, max_degree
        self.project: nn.Embedding | nn.Linear
        if types is not None:
            self.project = nn.Embedding(types, dim)
            nn.init.normal_(self.project.weight, std=dim**-0.5)
        else:
            self.project = nn.Linear(features or 0, dim)
        self.degree = None if max_degree is None else nn.Embedding(max_degree + 1, dim)
        if self.degree is not None:
            nn.init.normal_(self.degree.weight, std=dim**-0.5)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """The tokens (N, D) of nodes x, (N,) types or (N, F) features, with edges (2, E).

        Raises:
            TypeError: features where types were announced, or the reverse.
            ValueError: x has another shape, or names a type that there is none of.
        """
        self._check(x)
        tokens: Tensor = self.project(x if self.types is not None else x.to(self.project.weight))
        if self.degree is not None:
            degree = torch.bincount(edge_index[1], minlength=len(x))
            tokens = tokens + self.degree(degree.clamp(max=self.max_degree))
        return tokens

    def _check(self, x: Tensor) -> None:
        if self.types is not None:
            if x.is_floating_point() or x.dtype == torch.bool:
                raise TypeError(
                    f"x must hold integer node types (node_types={self.types}), got {x.dtype}"
                )
            if x.ndim != 1:
                raise ValueError(f"x must hold a type per node, shape (N,), got {tuple(x.shape)}")
            if x.numel() and not 0 <= int(x.min()) <= int(x.max()) < self.types:
                raise ValueError(
                    f"x names node types {int(x.min())} to {int(x.max())}, but node_types="
                    f"{self.types}: types are 0 to {self.types - 1}"
                )
            return
        if not x.is_floating_point():
            raise TypeError(
                f"x must hold float node features (node_features={self.features}), got {x.dtype}"
            )
        if x.ndim != 2 or x.shape[1] != self.features:
            raise ValueError(f"x must have shape (N, {self.features}), got {tuple(x.shape)}")
        if not bool(x.isfinite().all()):
            node = int((~x.isfinite()).any(1).nonzero()[0])
            raise ValueError(f"x has a feature that is not finite, first at node {node}")
