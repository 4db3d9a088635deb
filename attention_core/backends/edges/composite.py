"""Attention over pairs by torch's own operations, which can be differentiated any number of times.

For second derivatives alone, as of forces: it keeps H · E · D numbers, which `plain` avoids.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from attention_core.backends.edges.pairs import Pairs
from attention_core.backends.edges.plain import Inputs, beside_sink


def forward(x: Inputs, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return output, log-sum-exp and sums of features, as `plain.forward` does."""
    row = pairs.row.long()
    s = scores_of(x, pairs) * x.scale
    if x.softcap is not None:
        s = x.softcap * torch.tanh(s / x.softcap)
    if x.bias is not None:
        s = s + x.bias
    if x.allowed is not None:
        s = s.masked_fill(~x.allowed, -torch.inf)
    top = s.new_full((x.heads, pairs.rows), -torch.inf)
    top = top.scatter_reduce(1, row.expand_as(s), s.detach(), "amax")
    top = top.clamp(min=torch.finfo(s.dtype).min)
    exp = torch.exp(s - top.index_select(1, row))
    total = torch.zeros_like(top).index_add(1, row, exp)
    empty = total == 0
    total = total.masked_fill(empty, 1)
    lse = (total.log() + top).masked_fill(empty, -torch.inf)
    share = 1 / total
    if x.sink is not None:
        share = share * beside_sink(x.sink, top, total)
    weights = exp * share.index_select(1, row)
    if x.keep is not None:
        weights = weights * x.keep * x.grow
    values = _keys(x.v, x.edge_value, pairs, x.heads)
    edge_sum = None
    if x.edge_sums and x.edge_attr is not None:
        attr = x.edge_attr.index_select(0, pairs.item.long()).expand(x.heads, -1, -1)
        edge_sum = _sums(weights, attr, row, pairs.rows)
    return _sums(weights, values, row, pairs.rows), lse, edge_sum


def _sums(weights: Tensor, x: Tensor, row: Tensor, rows: int) -> Tensor:
    """(rows, H, D) sums of x (H, E, D), weighted."""
    sums = x.new_zeros(len(x), rows, x.shape[-1])
    return sums.index_add(1, row, weights[..., None] * x).transpose(0, 1)


def _keys(tokens: Tensor, edge: Tensor | None, pairs: Pairs, heads: int) -> Tensor:
    """Keys or values (H, E, D) of the pairs, with the features of their edges."""
    found = tokens.index_select(1, pairs.column.long())
    if edge is not None:
        found = found + edge.index_select(0, pairs.item.long()).transpose(0, 1)
    return found.repeat_interleave(heads // len(tokens), dim=0)


def scores_of(x: Inputs, pairs: Pairs) -> Tensor:
    if x.q is None or x.k is None:
        return x.v.new_zeros(x.heads, len(pairs.row))
    queries = x.q.index_select(1, pairs.row.long())
    edge = x.edge_key
    if x.edge_weight is not None:
        assert x.edge_attr is not None
        edge = torch.einsum("mf,gdf->mgd", x.edge_attr, x.edge_weight)
    keys = _keys(x.k, edge, pairs, x.heads)
    if x.score == "dot":
        s = (queries * keys).sum(-1)
        if x.edge_query is None:
            return s
        assert x.edge_attr is not None
        attr = x.edge_attr.index_select(0, pairs.item.long())
        return s + (x.edge_query.index_select(1, pairs.row.long()) * attr).sum(-1)
    hidden = leaky_relu(queries + keys, x.slope)
    if x.score == "additive":
        return hidden.squeeze(-1)
    assert x.weight is not None
    return (hidden * x.weight[:, None]).sum(-1)
