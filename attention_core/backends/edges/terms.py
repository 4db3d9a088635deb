"""What the score of a pair is made of, as the operators of `edges` take it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from attention_core.edge_projection import Apart, EdgeFeatures, EdgeProjection
from attention_core.scores import Additive, AdditiveV2, Score

#: As many features for each number of a head cost as much, a pair, as what they are projected to;
#: and as many are as fast projected in chunks, in forward and again in backward, as once.
_PER_DIM, _IN_CHUNKS = 6, 64


def cheapest(
    key: EdgeFeatures | None, value: EdgeFeatures | None, score: Score | None
) -> tuple[EdgeFeatures | None, EdgeFeatures | None]:
    """Return keys and values of edges, as tensors where features are so many that it is cheaper."""

    def some(features: EdgeFeatures | None, most: int) -> EdgeFeatures | None:
        if not isinstance(features, EdgeProjection) or 0 < features.attr.shape[1] <= most:
            return features
        return features.tensor()

    if score is None:
        key = some(key, 0 if key is None else _PER_DIM * key.shape[-1])
    elif isinstance(score, AdditiveV2):
        key = some(key, _IN_CHUNKS)
    return key, some(value, 0 if value is None else _PER_DIM * value.shape[-1])


class Terms(NamedTuple):
    """Hold what a score that operators know is made of, by the names of `Inputs`.

    Attributes:
        tensors: q, k, weight, edge_key, edge_attr, edge_query and edge_weight.
    """

    name: str
    slope: float
    tensors: tuple[Tensor | None, ...]


NOTHING = Terms("none", 0.0, (None,) * 7)


def terms_of(q: Tensor, k: Tensor, score: Score | None, edges: Apart) -> Terms | None:
    """Return the terms of the score of queries, keys and edges; None of a score of a user's own."""
    edge_key, attr, of_keys = edges.edge_key, edges.attr, edges.of_keys
    if attr is None or of_keys is None:
        attr = of_keys = None
    groups, exact = len(k), torch.promote_types(q.dtype, torch.float32)
    if score is None:
        edge_query = None
        if of_keys is not None:  # q · (W e) = (Wᵀ q) · e
            edge_query = (q.unflatten(0, (groups, -1)) @ of_keys[:, None]).flatten(0, 1)
        return Terms("dot", 0.0, (q, k, None, edge_key, attr, edge_query, None))
    if isinstance(score, AdditiveV2):
        weight = score.weight.to(exact)
        tensors = (q, k, weight, edge_key, attr, None, of_keys)
        return Terms("additive_v2", score.negative_slope, tensors)
    if not isinstance(score, Additive):
        return None
    # The score is a sum, so each token, and each edge, has one number per head in it
    by_group = score.key.to(exact).unflatten(0, (groups, -1))
    left = (q.to(exact) * score.query[:, None].to(exact)).sum(-1, keepdim=True)
    right = (k.to(exact) @ by_group.mT).mT.flatten(0, 1)[..., None]
    if edge_key is not None or attr is not None:
        by_group = score.edge_weight.to(exact).unflatten(0, (groups, -1))
    if attr is not None and of_keys is not None:
        weight = (by_group @ of_keys.to(exact)).flatten(0, 1)
        edge_key = linear(attr.to(exact), weight)[..., None]
    elif edge_key is not None:
        # One product for all heads makes no copy of the features, nor of their gradient
        weight = torch.block_diag(*by_group.to(edge_key.dtype))
        edge_key = linear(edge_key.flatten(1), weight)[..., None]
    return Terms("additive", score.negative_slope, (left, right, None, edge_key, *[None] * 3))
