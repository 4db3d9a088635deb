"""Forward and backward of attention over pairs by the Triton kernels: what `plain` has, faster."""

# Triton ships no types.
# mypy: disable-error-code="import-untyped,import-not-found"

from __future__ import annotations

import struct
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor
from triton import language as tl

from attention_core.backends.edges import dropout
from attention_core.backends.edges.pairs import Pairs, add_rows
from attention_core.backends.edges.plain import Gradients, Inputs, Outputs, per_query
from attention_core.backends.edges.triton.backward import OfQueries, query_hubs, query_rows
from attention_core.backends.edges.triton.forward import Parts, forward_hubs, forward_rows
from attention_core.backends.edges.triton.keys import (
    OfEdges,
    OfKeys,
    feature_pairs,
    key_hubs,
    key_rows,
)
from attention_core.backends.edges.triton.scores import Given, Known, Sizes
from attention_core.backends.edges.triton.tuning import launch

#: Pairs of a segment: a token with more is a hub, whose segments programs of their own go through.
SEGMENT = 1024
#: Numbers of a row that a program takes, unless one head, or one group of keys, has more.
_WIDEST = 1024
#: Numbers in a chunk of what features get through a LeakyReLU (64 MiB of float32).
_CHUNK = 1 << 24


def exact(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that all is computed in."""
    return torch.promote_types(dtype, torch.float32)


def forward(x: Inputs, pairs: Pairs) -> Outputs:
    """Compute what `plain.forward` does; the output in the dtype of v, all else in `exact`'s."""
    work, v = _Work(x, pairs, x.edge_sums), x.v
    rows, heads, features = pairs.rows, x.heads, work.sizes.features
    out = v.new_empty(rows, heads, v.shape[-1])
    lse, top, total = (work.room(heads, rows) for _ in range(3))
    edge_sum = work.room(rows, heads, features) if x.edge_sums else None
    parts = None
    if work.parts:
        room = partial(work.room, work.parts, heads)
        of_features = None if edge_sum is None else room(features)
        parts = Parts(room(), room(), room(v.shape[-1]), of_features)
        work.over_hubs(forward_hubs, *work.lists, *work.strides, parts)
    sink = None if x.sink is None else x.sink.contiguous()
    work.over_rows(
        forward_rows, *work.lists, *work.strides, parts, sink, out, lse, top, total, edge_sum, rows
    )
    return Outputs(out, lse, top, total, edge_sum)


def backward(
    x: Inputs,
    pairs: Pairs,
    found: Outputs,
    of_out: Tensor,
    of_lse: Tensor | None,
    of_edge_sum: Tensor | None,
    of_bias: bool,
) -> Gradients:
    """Compute what `plain.backward` does, each gradient in the dtype of its input."""
    wide = exact(x.v.dtype)
    *per_row, sink = per_query(
        x, found._replace(out=found.out.to(wide)), of_out.to(wide), of_lse, of_edge_sum
    )
    work = _Work(x, pairs, of_edge_sum is not None)
    # By query, so that a pair costs one row of them
    of_sum = None if of_edge_sum is None else of_edge_sum.contiguous()
    by_query = (x.T.contiguous() for x in (found.top, *per_row))
    known = Known(of_out.contiguous(), of_sum, *by_query)
    of_queries, bias = _of_queries(work, known, of_bias)
    of_keys, of_edges = _of_keys(work, known)
    attr, edge_weight = _of_features(work, known)
    key, value = (
        None if like is None or of is None else _by_item(like, pairs.item, of)
        for like, of in zip((x.edge_key, x.edge_value), of_edges, strict=True)
    )
    weight = None if of_queries.weight is None else of_queries.weight.sum(0)
    q, k, v, query = (
        None if t is None else t.transpose(0, 1)
        for t in (of_queries.query, of_keys.key, of_keys.value, of_queries.features)
    )
    assert v is not None
    return Gradients(q, k, v, weight, bias, sink, key, value, attr, query, edge_weight)


def _of_queries(work: _Work, known: Known, of_bias: bool) -> tuple[OfQueries, Tensor | None]:
    x, rows, heads, sizes = work.x, work.pairs.rows, work.x.heads, work.sizes
    bias = torch.empty_like(x.bias) if of_bias and x.bias is not None else None
    strides = (0, 0) if bias is None else bias.stride()

    def room(count: int, of_q: Tensor | None, of_u: Tensor | None) -> OfQueries:
        return OfQueries(
            None if x.q is None else work.room(count, heads, sizes.dim, like=of_q),
            None if x.edge_query is None else work.room(count, heads, sizes.features, like=of_u),
            None if x.weight is None else work.room(count, heads, sizes.dim),
        )

    parts = room(work.parts, None, None) if work.parts else None
    if parts is not None:
        work.over_hubs(query_hubs, known, *work.lists, *work.strides, bias, *strides, parts)
    found = room(rows, x.q, x.edge_query)
    work.over_rows(query_rows, known, *work.lists, *work.strides, bias, *strides, parts, found)
    return found, bias


def _of_keys(work: _Work, known: Known) -> tuple[OfKeys, OfEdges]:
    x, pairs, heads = work.x, work.pairs, work.x.heads
    dim, value_dim, count = work.sizes.dim, work.sizes.value_dim, len(pairs.row)

    def of_pairs(like: Tensor | None) -> Tensor | None:
        return None if like is None else work.room(count, *like.shape[1:])

    of_edges = OfEdges(of_pairs(x.edge_key), of_pairs(x.edge_value))
    lists = (
        pairs.key_start, pairs.column, pairs.key_row, pairs.pair, work.item, *work.strides, of_edges
    )  # fmt: skip
    parts = None
    if work.parts:
        key = None if x.k is None else work.room(work.parts, heads, dim)
        parts = OfKeys(key, work.room(work.parts, heads, value_dim))
        work.over_hubs(key_hubs, known, *lists, parts, by_key=True)
    key = None if x.k is None else work.room(pairs.columns, len(x.k), dim, like=x.k)
    found = OfKeys(key, work.room(pairs.columns, len(x.v), value_dim, like=x.v))
    work.over_rows(key_rows, known, *lists, parts, found, by_key=True)
    return found, of_edges


def _of_features(work: _Work, known: Known) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `edge_attr` and `edge_weight`: a chunk of pairs at a time, as what goes through
    a LeakyReLU is a number for each pair, head and number of a head before it meets features."""
    x, pairs, sizes, heads = work.x, work.pairs, work.sizes, work.x.heads
    wanted = x.edge_attr if x.edge_attr_grad else None
    if x.edge_attr is None or (wanted is None and x.edge_weight is None):
        return None, None
    of_attr = None if wanted is None else torch.zeros_like(wanted, dtype=exact(wanted.dtype))
    by_feature, weighted = None, None
    if x.edge_weight is not None and x.weight is not None:
        by_feature = torch.zeros(
            heads * sizes.dim, sizes.features, dtype=work.dtype, device=x.v.device
        )
        by_head = x.edge_weight.to(work.dtype).repeat_interleave(heads // len(x.edge_weight), 0)
        weighted = (x.weight[..., None] * by_head).flatten(0, 1)
    count = len(pairs.row)
    step = max(_CHUNK // (sizes.features if by_feature is None else heads * sizes.dim), 1)
    for first in range(0, count, step):
        last = min(first + step, count)
        some = None if of_attr is None else work.room(last - first, sizes.features)
        inside = None if by_feature is None else work.room(last - first, heads, sizes.dim)
        work.over_pairs(
            feature_pairs, known, pairs.row, pairs.column, pairs.item, *work.strides, some, inside,
            first, last,
        )  # fmt: skip
        item = pairs.item[first:last]
        if inside is not None and by_feature is not None and weighted is not None:
            by_feature.addmm_(inside.flatten(1).T, x.edge_attr.index_select(0, item).to(work.dtype))
            if some is not None:
                some.addmm_(inside.flatten(1), weighted)
        if some is not None and of_attr is not None:
            add_rows(of_attr, item, some)
    of_weight = None
    if by_feature is not None and x.weight is not None and x.edge_weight is not None:
        by_head = by_feature.unflatten(0, (heads, -1)) * x.weight[..., None]
        of_weight = by_head.unflatten(0, (len(x.edge_weight), -1)).sum(1)
    return of_attr, of_weight


def _by_item(like: Tensor, item: Tensor, of_pairs: Tensor) -> Tensor:
    """Sum what pairs (E, …) give to the edges (M, …) that they belong to."""
    total = torch.zeros_like(like, dtype=of_pairs.dtype, memory_format=torch.contiguous_format)
    add_rows(total, item, of_pairs)
    return total


class _Work:
    """The inputs as kernels take them, and what they are compiled for.

    Attributes:
        given: the inputs.
        sizes, key_sizes: of kernels over queries, and over keys.
        strides: of heads and pairs in bias and allowed.
        item: of the pairs, where features of edges are given.
        lists: start, row, column and item of the pairs.
        parts: places for parts of hubs; 0 where there can be no hub.
    """

    def __init__(self, x: Inputs, pairs: Pairs, sums: bool) -> None:
        self.x, self.pairs, self.dtype = x, pairs, exact(x.v.dtype)
        q, q_step = _by_token(x.q)
        k, k_step = _by_token(x.k)
        v, v_step = _by_token(x.v)
        of_edges = (x.edge_key, x.edge_value, x.edge_attr)
        self.item = pairs.item if any(t is not None for t in of_edges) else None
        self.lists = pairs.start, pairs.row, pairs.column, self.item
        per_pair = [(0, 0) if t is None else t.stride() for t in (x.bias, x.allowed)]
        self.strides = (*per_pair[0], *per_pair[1])
        count = len(pairs.row)
        self.parts = 2 * triton.cdiv(count, SEGMENT) if count > SEGMENT else 0
        self.sizes = self._sizes(sums)
        share = triton.next_power_of_2(self.sizes.value_share)
        together = max(_WIDEST // (_width(self.sizes) * share), 1)
        groups = triton.next_power_of_2(len(x.v))
        self.key_sizes = self.sizes._replace(
            slots=share * min(_power_below(together), groups), share_slots=share
        )
        edge_weight = None
        if x.edge_weight is not None:
            edge_weight = x.edge_weight.permute(2, 0, 1).contiguous()
        edge_query = None
        if x.edge_query is not None:
            edge_query = x.edge_query.transpose(0, 1).contiguous()
        self.given = Given(
            q, q_step, k, k_step, v, v_step,
            _contiguous(x.weight), float(x.slope), _contiguous(x.edge_key),
            _contiguous(x.edge_value), _contiguous(x.edge_attr if self._reads_features else None),
            edge_query, edge_weight, x.bias, x.allowed, x.seed,
            None if x.seed is None else dropout.limit(x.grow),
            *_halves(x.grow), *_halves(x.scale), *_halves(x.softcap or 1.0),
        )  # fmt: skip

    @property
    def _reads_features(self) -> bool:
        return self.sizes.term or self.sizes.sums

    def _sizes(self, sums: bool) -> Sizes:
        x = self.x
        dim = 1 if x.q is None else x.q.shape[-1]
        features = 0 if x.edge_attr is None else x.edge_attr.shape[1]
        pads = [triton.next_power_of_2(max(n, 1)) for n in (dim, x.v.shape[-1], features)]
        by_head = x.edge_query is not None or sums
        sizes = Sizes(
            score={"additive": "leaky", "additive_v2": "leaky"}.get(x.score, x.score),
            dtype=tl.float64 if self.dtype == torch.float64 else tl.float32,
            lowest=torch.finfo(self.dtype).min,
            heads=x.heads,
            key_share=1 if x.k is None else x.heads // len(x.k),
            value_share=x.heads // len(x.v),
            dim=dim,
            value_dim=x.v.shape[-1],
            features=features,
            slots=1,
            share_slots=1,
            pad=pads[0],
            value_pad=pads[1],
            features_pad=pads[2] if by_head else 1,
            capped=x.softcap is not None,
            term=x.edge_query is not None or x.edge_weight is not None,
            sums=sums,
        )
        fits = _power_below(max(_WIDEST // _width(sizes), 1))
        return sizes._replace(slots=min(fits, triton.next_power_of_2(x.heads)))

    def room(self, *shape: int, like: Tensor | None = None) -> Tensor:
        """Room for results, in the dtype of `like`."""
        dtype = self.dtype if like is None else like.dtype
        return torch.empty(shape, dtype=dtype, device=self.x.v.device)

    def over_rows(self, kernel: Any, *arguments: Any, by_key: bool = False) -> None:
        sizes, blocks = self._blocks(by_key)
        rows = self.pairs.columns if by_key else self.pairs.rows
        degree = max(len(self.pairs.row) // max(rows, 1), 1).bit_length()
        count = len(self.pairs.row)
        launch(kernel, (rows, blocks), self.given, *arguments, count, degree, sizes, SEGMENT)

    def over_hubs(self, kernel: Any, *arguments: Any, by_key: bool = False) -> None:
        sizes, blocks = self._blocks(by_key)
        grid, count = (self.parts // 2, 2, blocks), len(self.pairs.row)
        launch(kernel, grid, self.given, *arguments, count, 0, sizes, SEGMENT)

    def over_pairs(self, kernel: Any, *arguments: Any) -> None:
        first, last = arguments[-2:]
        launch(kernel, (last - first,), self.given, *arguments, 0, self.sizes, SEGMENT)

    def _blocks(self, by_key: bool) -> tuple[Sizes, int]:
        if not by_key:
            return self.sizes, triton.cdiv(self.x.heads, self.sizes.slots)
        groups = self.key_sizes.slots // self.key_sizes.share_slots
        return self.key_sizes, triton.cdiv(len(self.x.v), groups)


def _width(sizes: Sizes) -> int:
    """Places for the numbers of a head."""
    return max(sizes.pad, sizes.value_pad, sizes.features_pad)


def _power_below(number: int) -> int:
    return 1 << (number.bit_length() - 1)


def _halves(number: float) -> tuple[float, float]:
    """A number as float32, and what that leaves."""
    high = struct.unpack("f", struct.pack("f", number))[0]
    return high, number - high


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _by_token(x: Tensor | None) -> tuple[Tensor | None, int]:
    """x (H, N, D) as rows of all heads, and how far they are apart: no copy where the heads of a
    token lie side by side, as projections leave them."""
    if x is None:
        return None, 0
    heads, tokens, dim = x.shape
    rows = x.transpose(0, 1)
    together = (dim == 1 or rows.stride(2) == 1) and (heads == 1 or rows.stride(1) == dim)
    if not together:
        rows = rows.contiguous()
    return rows, rows.stride(0) if tokens > 1 else heads * dim
