"""Scores of listed pairs by torch's own operations, for scores of a user's own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attention_core.edge_projection import EdgeFeatures, rows
from attention_core.scores import Score
from attention_core.spaces.csr import CSR

#: Numbers in the features of the pairs of a chunk.
_CHUNK = 1 << 22


def pair_scores(
    q: Tensor,
    k: Tensor,
    csr: CSR,
    score: Score | None,
    edge_key: EdgeFeatures | None,
    edge: Tensor | None,
) -> Tensor:
    """Compute scores (H, E) of any kind, the dot product for None, with a gradient by autograd.

    Features of pairs are made a chunk at a time, and again in backward, so none are kept.
    Arguments are those of `edge_attention`.
    """
    share = len(q) // len(k)
    head = torch.arange(len(q), device=q.device)[:, None]

    def some(row: Tensor, column: Tensor, edge: Tensor) -> Tensor:
        queries = q.index_select(1, row)
        keys = k.index_select(1, column).repeat_interleave(share, dim=0)
        if edge_key is None:
            return (queries * keys).sum(-1) if score is None else score(queries, keys, head)
        features = rows(edge_key, edge).transpose(0, 1).repeat_interleave(share, dim=0)
        if score is None:
            return (queries * (keys + features)).sum(-1)
        return score.with_edge(queries, keys, features, head)

    length = max(_CHUNK // max(len(q) * q.shape[-1], 1), 1)
    edge = csr.item if edge is None else edge
    chunks = zip(*(x.split(length) for x in (csr.row, csr.column, edge)), strict=True)
    return torch.cat([checkpoint(some, *chunk, use_reentrant=False) for chunk in chunks], dim=-1)
