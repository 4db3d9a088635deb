"""How well a query fits a key: the scaled dot product, and the additive scores of GAT and GATv2."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from attention_core.annotated import checked
from attention_core.checks import check_number, check_whole

ScoreName = Literal["dot", "additive", "additive_v2"]


class Score(nn.Module):
    """A score of queries and keys other than their dot product; override `forward`.

    Attributes:
        heads: for how many query heads it is made; None for any number.
    """

    heads: int | None = None

    def forward(self, query: Tensor, key: Tensor, head: Tensor) -> Tensor:
        """Compute the scores of pairs of broadcastable shape.

        Args:
            query, key: (..., D), broadcastable against each other.
            head: index of the query head of each pair, broadcastable to (...).
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(query, key, head)")

    def with_edge(self, query: Tensor, key: Tensor, edge: Tensor, head: Tensor) -> Tensor:
        """Compute the scores of pairs along edges, whose features are added to the key.

        Args:
            query, key, head: as in `forward`.
            edge: (..., D), broadcastable against query and key; 0 where a pair has no edge.
        """
        return self(query, key + edge, head)


class Additive(Score):
    """``LeakyReLU(a · query + b · key)`` (Veličković et al., GAT, 2018).

    With features of edges, ``LeakyReLU(a · query + b · key + c · edge)``: as PyG's GATConv has it,
    the edge has a weight of its own, and a place inside the nonlinearity, where no bias comes.

    Args:
        heads: number of query heads H.
        head_dim: size D of a head.
        negative_slope: of the LeakyReLU.
        edge: learn c, for attention with `edge_key`.
    """

    @checked
    def __init__(
        self, heads: int, head_dim: int, negative_slope: float = 0.2, *, edge: bool = False
    ) -> None:
        super().__init__()
        check_whole(heads=heads, head_dim=head_dim)
        check_number(negative_slope=negative_slope)
        self.query = nn.Parameter(torch.empty(heads, head_dim))
        self.key = nn.Parameter(torch.empty(heads, head_dim))
        self.edge = nn.Parameter(torch.empty(heads, head_dim)) if edge else None
        self.heads, self.negative_slope = heads, negative_slope
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in self.parameters():
            nn.init.xavier_uniform_(weight)

    def forward(self, query: Tensor, key: Tensor, head: Tensor) -> Tensor:
        return self._score((query, self.query[head]), (key, self.key[head]))

    def with_edge(self, query: Tensor, key: Tensor, edge: Tensor, head: Tensor) -> Tensor:
        of_edge = edge, self.edge_weight[head]
        return self._score((query, self.query[head]), (key, self.key[head]), of_edge)

    @property
    def edge_weight(self) -> Tensor:
        """c, (H, D).

        Raises:
            ValueError: there is none.
        """
        if self.edge is None:
            raise ValueError(
                "edge_key needs a score with a weight for it, Additive(..., edge=True); to add to "
                "scores outside the LeakyReLU, give bias=EdgeBias(...) instead"
            )
        return self.edge

    def _score(self, *terms: tuple[Tensor, Tensor]) -> Tensor:
        first, *rest = ((x * weight.to(x.dtype)).sum(-1) for x, weight in terms)
        return nn.functional.leaky_relu(sum(rest, first), self.negative_slope)


class AdditiveV2(Score):
    """``a · LeakyReLU(query + key)`` (Brody et al., GATv2, 2022); with features of edges, as in
    PyG's GATv2Conv, ``a · LeakyReLU(query + key + edge)``.

    Args:
        heads: number of query heads H.
        head_dim: size D of a head.
        negative_slope: of the LeakyReLU.
    """

    @checked
    def __init__(self, heads: int, head_dim: int, negative_slope: float = 0.2) -> None:
        super().__init__()
        check_whole(heads=heads, head_dim=head_dim)
        check_number(negative_slope=negative_slope)
        self.weight = nn.Parameter(torch.empty(heads, head_dim))
        self.heads, self.negative_slope = heads, negative_slope
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)

    def forward(self, query: Tensor, key: Tensor, head: Tensor) -> Tensor:
        hidden = nn.functional.leaky_relu(query + key, self.negative_slope)
        return (hidden * self.weight[head].to(hidden.dtype)).sum(-1)


def make_score(
    score: Score | ScoreName | None, heads: int, head_dim: int, *, edge: bool = False
) -> Score | None:
    """Return the score of this name, with weights of its own; None for the dot product.

    Args:
        score: one that is made already, or the name of one.
        heads, head_dim, edge: as in `Additive`.
    """
    if score is None or isinstance(score, Score):
        return score
    if not isinstance(score, str) or score not in get_args(ScoreName):
        known = ", ".join(map(repr, get_args(ScoreName)))
        error = ValueError if isinstance(score, str) else TypeError
        raise error(f"score must be one of {known}, a Score or None, got {score!r}")
    if score == "additive":
        return Additive(heads, head_dim, edge=edge)
    return AdditiveV2(heads, head_dim) if score == "additive_v2" else None
