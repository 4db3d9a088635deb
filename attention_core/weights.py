"""Attention weights of pairs, without a table of all pairs."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from attention_core.spaces import Pairs


class PairWeights(NamedTuple):
    """The attention weights, before dropout, of the P pairs that the mask allows; others have 0.

    Memory follows the pairs, where a tensor (B, H, Lq, Lk) holds all there could be.

    Attributes:
        pairs: `batch`, `query` and `key` of each pair, (P,), and what any `Pairs` tell: the
            `distance` between the two, the `edge`, ...
        values: (P, H), of all heads or of some.
    """

    pairs: Pairs
    values: Tensor

    def dense(self) -> Tensor:
        """Return them as (B, H, Lq, Lk). An edge that is listed twice has the sum of both."""
        batch, _, queries, keys = self.pairs.shape
        heads = self.values.shape[1]
        at = (self.pairs.batch * queries + self.pairs.query) * keys + self.pairs.key
        dense = self.values.new_zeros(heads, batch * queries * keys)
        return dense.index_add(1, at, self.values.T).view(heads, batch, queries, keys).movedim(0, 1)

    def of_edges(self) -> Tensor:
        """Return the weights of the edges of a space, (B, E, H), in the order of its `edge_index`.

        An edge that the mask does not allow, or whose node was dropped, has 0.

        Raises:
            TypeError: the pairs are of a space without edges.
        """
        edge, space = self.pairs.edge, self.pairs.spaces[1]
        assert space.edges is not None  # or `edge` had been refused
        count, found = space.edges.num_edges, edge >= 0
        batch, heads = self.pairs.shape[0], self.values.shape[1]
        at = (self.pairs.batch * count + edge)[found]
        weights = self.values.new_zeros(batch * count, heads)
        return weights.index_copy(0, at, self.values[found]).view(batch, count, heads)

    def detach(self) -> PairWeights:
        return self._replace(values=self.values.detach())
