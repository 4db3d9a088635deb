"""How well a query fits a key: the scaled dot product, and the additive scores of GAT and GATv2."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Score(nn.Module):
    """A score of queries and keys other than their dot product; override `forward`.

    Attributes:
        heads: for how many query heads it is made; None for any number.
    """

    heads: int | None = None

    def forward(self, query: Tensor, key: Tensor, head: Tensor) -> Tensor:
        """Scores of pairs of broadcastable shape.

        Args:
            query, key: (..., D), broadcastable against each other.
            head: index of the query head of each pair, broadcastable to (...).
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(query, key, head)")


class Additive(Score):
    """``LeakyReLU(a · query + b · key)`` (Veličković et al., GAT, 2018).

    Args:
        heads: number of query heads H.
        head_dim: size D of a head.
        negative_slope: of the LeakyReLU.
    """

    def __init__(self, heads: int, head_dim: int, negative_slope: float = 0.2) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(heads, head_dim))
        self.key = nn.Parameter(torch.empty(heads, head_dim))
        self.heads, self.negative_slope = heads, negative_slope
        for weight in (self.query, self.key):
            nn.init.xavier_uniform_(weight)

    def forward(self, query: Tensor, key: Tensor, head: Tensor) -> Tensor:
        of_query = (query * self.query[head].to(query.dtype)).sum(-1)
        of_key = (key * self.key[head].to(key.dtype)).sum(-1)
        return nn.functional.leaky_relu(of_query + of_key, self.negative_slope)


class AdditiveV2(Score):
    """``a · LeakyReLU(query + key)`` (Brody et al., GATv2, 2022).

    Args:
        heads: number of query heads H.
        head_dim: size D of a head.
        negative_slope: of the LeakyReLU.
    """

    def __init__(self, heads: int, head_dim: int, negative_slope: float = 0.2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, head_dim))
        self.heads, self.negative_slope = heads, negative_slope
        nn.init.xavier_uniform_(self.weight)

    def forward(self, query: Tensor, key: Tensor, head: Tensor) -> Tensor:
        hidden = nn.functional.leaky_relu(query + key, self.negative_slope)
        return (hidden * self.weight[head].to(hidden.dtype)).sum(-1)
