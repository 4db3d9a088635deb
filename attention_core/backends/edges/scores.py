"""Scores of pairs in compressed sparse rows, and their gradients, for the `edges` operators.

None allocates a feature per pair, E·H·D numbers: products are sampled at the pairs, sums run over
rows, and `AdditiveV2Scores`, which is no product, goes through the pairs in chunks.

Each has `values()`, the scores (H, E), which the caller may change; and `gradients(of_scores,
of_attr)`, from the gradient of the scores. That of `edge_attr` (M, F) is added to `of_attr`, if
there is that.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attention_core.backends.edges import features
from attention_core.backends.edges.pairs import Pairs, add_rows, bag


class ScoreGradients(NamedTuple):
    """Gradients of the `Inputs` of the same names that a score is made of."""

    q: Tensor | None = None
    k: Tensor | None = None
    weight: Tensor | None = None
    edge_key: Tensor | None = None
    edge_query: Tensor | None = None
    edge_weight: Tensor | None = None


class NoScores:
    """Every pair has the score 0, to which the bias is added."""

    def __init__(self, pairs: Pairs, like: Tensor, heads: int) -> None:
        self.shape, self.like = (heads, len(pairs.row)), like

    def values(self) -> Tensor:
        return self.like.new_zeros(self.shape)

    def gradients(self, of_scores: Tensor, of_attr: Tensor | None) -> ScoreGradients:
        return ScoreGradients()


class DotScores:
    """q · (k + e) + u · f. q (H, Lq, D), k (Hkv, Lk, D), e (M, Hkv, D) or None.

    u (H, Lq, F), the queries of features, and these, f (M, F), or None.
    """

    def __init__(
        self,
        pairs: Pairs,
        q: Tensor,
        k: Tensor,
        edge: Tensor | None,
        attr: Tensor | None,
        edge_query: Tensor | None,
    ) -> None:
        self.pairs, self.q, self.k, self.edge = pairs, q.contiguous(), k.contiguous(), edge
        self.attr, self.edge_query = attr, edge_query

    def values(self) -> Tensor:
        scores = self.pairs.products(self.q, self.k, self.edge)
        if self.edge_query is not None and self.attr is not None:
            features.add_products(scores, self.pairs, self.edge_query, self.attr)
        return scores

    def gradients(self, of_scores: Tensor, of_attr: Tensor | None) -> ScoreGradients:
        pairs, q = self.pairs, self.q
        of_q = pairs.sums(of_scores, self.k, self.edge)
        of_k = pairs.sum_by_key(of_scores, q, len(self.k))
        of_edge = None if self.edge is None else pairs.outer(of_scores, q, self.edge)
        of_query = None
        if self.edge_query is not None and self.attr is not None:
            of_query = features.sums(pairs, of_scores, self.attr).transpose(0, 1)
            if of_attr is not None:
                features.add_outer(of_attr, pairs, of_scores, self.edge_query.transpose(0, 1))
        return ScoreGradients(
            of_q.transpose(0, 1), of_k.transpose(0, 1), edge_key=of_edge, edge_query=of_query
        )


class AdditiveScores:
    """LeakyReLU(q + k + e), for a number per token and head: q (H, Lq, 1), k (H, Lk, 1).

    e (M, H, 1) or None.
    """

    def __init__(
        self, pairs: Pairs, q: Tensor, k: Tensor, edge: Tensor | None, slope: float
    ) -> None:
        self.pairs, self.q, self.k, self.edge, self.slope = pairs, q, k, edge, slope

    def values(self) -> Tensor:
        pairs = self.pairs
        sums = pairs.of_rows(self.q.squeeze(-1).contiguous())
        sums += self.k.squeeze(-1).contiguous().index_select(1, pairs.column)
        if self.edge is not None:
            sums += self.edge.squeeze(-1).index_select(0, pairs.item).T
        self.negative = sums < 0  # a byte a pair, for backward, is less than to gather it again
        return torch.nn.functional.leaky_relu_(sums, self.slope)

    def gradients(self, of_scores: Tensor, of_attr: Tensor | None) -> ScoreGradients:
        pairs = self.pairs
        of_sums = torch.where(self.negative, of_scores * self.slope, of_scores)
        of_edge = None
        if self.edge is not None:
            of_edge = self.edge.new_zeros(self.edge.shape)
            add_rows(of_edge, pairs.item, of_sums.T)
        of_q, of_k = (
            sums[..., None] for sums in (pairs.total(of_sums), pairs.total_by_key(of_sums))
        )
        return ScoreGradients(of_q, of_k, edge_key=of_edge)


class AdditiveV2Scores:
    """weight · LeakyReLU(q + k + e + W f). weight (H, D), the others as in `DotScores`.

    W (Hkv, D, F) projects the features of edges f (M, F), or None.

    Not a product, so features of pairs have to be made: a chunk at a time, all heads together,
    since gathering one row of H·D numbers is far faster than H rows of D. Backward makes them
    again.
    """

    def __init__(
        self,
        pairs: Pairs,
        q: Tensor,
        k: Tensor,
        edge: Tensor | None,
        weight: Tensor,
        slope: float,
        attr: Tensor | None,
        edge_weight: Tensor | None,
    ) -> None:
        self.pairs, self.edge, self.weight, self.slope = pairs, edge, weight, slope
        self.attr, self.edge_weight = attr, edge_weight
        self.q, self.k = (x.transpose(0, 1).contiguous() for x in (q, k))
        self.share = len(q) // len(k)
        room = min(pairs.chunk_length(weight.numel()), len(pairs.row))
        self.room = q.new_empty(room, *weight.shape), q.new_empty(room, len(k), weight.shape[1])

    def values(self) -> Tensor:
        pairs, (heads, dim) = self.pairs, self.weight.shape
        scores = self.q.new_empty(heads, len(pairs.row))
        # One product with a block-diagonal matrix sums within each head; summing the short last
        # dimension itself takes twice as long where heads are small
        summing = torch.block_diag(*self.weight).view(heads, heads * dim)
        for chunk in pairs.chunks(heads * dim):
            hidden = self._hidden(chunk, self._features(chunk))
            hidden = torch.nn.functional.leaky_relu_(hidden, self.slope)
            scores[:, chunk] = summing @ hidden.flatten(1).T
        return scores

    def _hidden(self, chunk: slice, attr: Tensor | None) -> Tensor:
        """q + k + e + W f of some pairs, (C, H, D), from their features f (C, F)."""
        # Into the same memory for every chunk: fresh pages cost more than what is written to them
        pairs, count, (q, k) = self.pairs, chunk.stop - chunk.start, self.room
        hidden = torch.index_select(self.q, 0, pairs.row[chunk], out=q[:count])
        grouped = hidden.unflatten(1, (-1, self.share))
        grouped += torch.index_select(self.k, 0, pairs.column[chunk], out=k[:count])[:, :, None]
        if self.edge is not None:
            item = pairs.item[chunk]
            grouped += torch.index_select(self.edge, 0, item, out=k[:count])[:, :, None]
        if attr is not None and self.edge_weight is not None:
            torch.mm(attr, self.edge_weight.flatten(0, 1).T, out=k[:count].flatten(1))
            grouped += k[:count, :, None]
        return hidden

    def _features(self, chunk: slice) -> Tensor | None:
        """The features of some pairs, (C, F)."""
        if self.edge_weight is None or self.attr is None:
            return None
        return features.gathered(self.attr, self.pairs.item[chunk])

    def gradients(self, of_scores: Tensor, of_attr: Tensor | None) -> ScoreGradients:
        pairs, q, k, edge, share = self.pairs, self.q, self.k, self.edge, self.share
        # Sums of slope times gradient. As LeakyReLU(x) is its slope times x, they give both the
        # gradients of the summands, times the weight, and that of the weight, times the summands
        of_q, of_k = torch.zeros_like(q), q.new_zeros(len(k), *q.shape[1:])
        of_weight = torch.zeros_like(self.weight)
        of_edge = None if edge is None else edge.new_zeros(edge.shape)
        edge_weight, by_feature = self._by_head(), None
        if edge_weight is not None:
            by_feature = torch.zeros_like(edge_weight)  # sums of slope, gradient and feature
        for chunk in pairs.chunks(q[0].numel()):
            item, attr = pairs.item[chunk], self._features(chunk)
            hidden = self._hidden(chunk, attr)
            slopes = hidden.gt_(0).mul_(1 - self.slope).add_(self.slope)
            slopes *= of_scores[:, chunk].T[..., None]
            flat = slopes.flatten(1)
            if q.is_cuda:  # to ask which rows they are would be to wait for it
                add_rows(of_q, pairs.row[chunk], flat)
            else:
                _add_sums(of_q.flatten(1), pairs, chunk, flat)
            add_rows(of_k, pairs.column[chunk], flat)
            if by_feature is not None and edge_weight is not None and attr is not None:
                by_feature.flatten(0, 1).addmm_(flat.T, attr)
                if of_attr is not None:
                    projected = self.weight[..., None] * edge_weight
                    add_rows(of_attr, item, flat @ projected.flatten(0, 1))
            if edge is not None and of_edge is not None:
                grouped = edge.index_select(0, item)[:, :, None] * slopes.unflatten(1, (-1, share))
                of_weight += grouped.sum(0).flatten(0, 1)
                slopes *= self.weight
                add_rows(of_edge, item, slopes.unflatten(1, (-1, share)).sum(2))
        of_weight += (q * of_q).sum(0)
        by_group = of_k.unflatten(1, (-1, share))
        of_weight += (k[:, :, None] * by_group).sum(0).flatten(0, 1)
        of_k = (by_group * self.weight.unflatten(0, (-1, share))).sum(2)
        of_q = of_q.mul_(self.weight)
        of_edge_weight = None
        if by_feature is not None and edge_weight is not None:
            of_weight += (by_feature * edge_weight).sum(-1)
            of_edge_weight = (by_feature * self.weight[..., None]).unflatten(0, (-1, share)).sum(1)
        return ScoreGradients(
            of_q.transpose(0, 1),
            of_k.transpose(0, 1),
            of_weight,
            edge_key=of_edge,
            edge_weight=of_edge_weight,
        )

    def _by_head(self) -> Tensor | None:
        """The projection of features for each query head, (H, D, F)."""
        if self.edge_weight is None:
            return None
        return self.edge_weight.repeat_interleave(self.share, dim=0)


def _add_sums(total: Tensor, pairs: Pairs, chunk: slice, x: Tensor) -> None:
    """Add x (C, W) to the queries of total (N, W) that a chunk of pairs names.

    A chunk may cut through the pairs of a query.
    """
    first, last = int(pairs.row[chunk.start]), int(pairs.row[chunk.stop - 1])
    starts = (pairs.start[first : last + 1] - chunk.start).clamp(min=0)
    pair = torch.arange(len(x), dtype=starts.dtype, device=x.device)
    starts = torch.cat([starts, starts.new_tensor([len(x)])])
    total[first : last + 1] += bag(pair, x, starts)
