"""Output, log-sum-exp and sums of features: hubs in parts, then all queries."""

# mypy: disable-error-code="no-untyped-def,import-untyped,import-not-found"

from __future__ import annotations

from typing import Any, NamedTuple

import triton
from triton import language as tl

from attention_core.backends.edges.triton.scores import (
    edges_of,
    heads_of,
    kept_by_dropout,
    key_with_edge,
    keys_of,
    part_of_hub,
    parts_of,
    queries_of,
    rows,
    scores_of,
    stored,
    value_with_edge,
    values_of,
    weights_of,
)


class Parts(NamedTuple):
    """Softmaxes over the parts of hubs, two for each segment of the pairs.

    Attributes:
        top, total: (parts, H) the largest score, and the sum of exp(score - top).
        sums, of_features: (parts, H, Dv) and (parts, H, F), weighted sums.
    """

    top: Any
    total: Any
    sums: Any
    of_features: Any


@triton.jit
def _softmax(
    x, column, item, row, first, last, head, strides, BLOCK: tl.constexpr, sizes: tl.constexpr
):
    """Softmaxes of BLOCK lanes over every BLOCK-th pair of a query: top and total (B, S), weighted
    sums of values (B, S, Dv) and of features (B, S, F)."""
    one = tl.zeros([1], tl.int64) + row
    query, of_features = queries_of(x, one, one >= 0, head, sizes)
    weight = weights_of(x, head, sizes)
    top = tl.full([BLOCK, sizes.slots], sizes.lowest, sizes.dtype)
    total = tl.zeros([BLOCK, sizes.slots], sizes.dtype)
    sums = tl.zeros([BLOCK, sizes.slots, sizes.value_pad], sizes.dtype)
    sums_of_features = tl.zeros([BLOCK, sizes.slots, sizes.features_pad], sizes.dtype)
    for begin in range(first, last, BLOCK):
        pair = begin + tl.arange(0, BLOCK)
        live = pair < last
        key_at = tl.load(column + pair, mask=live, other=0)
        edge, known = edges_of(x, item, pair, live, sizes)
        key = keys_of(x, key_at, live, head, sizes)
        key = key_with_edge(x, key, edge, live, head, sizes)
        s, _, _ = scores_of(
            x, query, key, of_features, known, weight, pair, live, head, strides, BLOCK, sizes
        )
        higher = tl.maximum(top, s)
        shrink = tl.exp(top - higher)
        p = tl.exp(s - higher)
        top = higher
        total = total * shrink + p
        if x.seed is not None:
            p *= kept_by_dropout(x, pair, head, sizes)
        value = values_of(x, key_at, live, head, sizes)
        value = value_with_edge(x, value, edge, live, head, sizes)
        sums = sums * shrink[:, :, None] + p[:, :, None] * value
        if sizes.sums:
            sums_of_features = sums_of_features * shrink[:, :, None] + p[:, :, None] * known
    return top, total, sums, sums_of_features


@triton.jit
def _joined(top, total, sums, sums_of_features, sizes: tl.constexpr):
    """One softmax of those of all lanes."""
    highest = tl.max(top, axis=0)
    factor = tl.exp(top - highest[None, :])
    total = tl.sum(total * factor, axis=0)
    sums = tl.sum(sums * factor[:, :, None], axis=0)
    if sizes.sums:
        sums_of_features = tl.sum(sums_of_features * factor[:, :, None], axis=0)
    return highest, total, sums, sums_of_features


@triton.jit(
    do_not_specialize=["bias_head", "bias_pair", "allowed_head", "allowed_pair", "pairs", "degree"]
)
def forward_hubs(
    x, start, row_of, column, item, bias_head, bias_pair, allowed_head, allowed_pair, parts, pairs,
    degree, sizes: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the parts of a segment's pairs that belong to hubs."""
    chunk, slot, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head = heads_of(block, sizes)
    row, first, last, hub = part_of_hub(start, row_of, None, pairs, chunk, slot, SEGMENT)
    strides = (bias_head, bias_pair, allowed_head, allowed_pair)
    top, total, sums, of_features = _softmax(
        x, column, item, row, first, last, head, strides, BLOCK, sizes
    )
    top, total, sums, of_features = _joined(top, total, sums, of_features, sizes)
    part = chunk.to(tl.int64) * 2 + slot
    head = tl.where(hub, head, -1)
    there = head >= 0
    tl.store(parts.top + part * sizes.heads + head, top, mask=there)
    tl.store(parts.total + part * sizes.heads + head, total, mask=there)
    V: tl.constexpr = sizes.value_dim
    stored(parts.sums, part, head, sums, V, sizes.value_pad, sizes.heads)
    if sizes.sums:
        F: tl.constexpr = sizes.features
        stored(parts.of_features, part, head, of_features, F, sizes.features_pad, sizes.heads)


@triton.jit(
    do_not_specialize=[
        "bias_head", "bias_pair", "allowed_head", "allowed_pair", "count", "pairs", "degree",
    ]
)  # fmt: skip
def forward_rows(
    x, start, row_of, column, item, bias_head, bias_pair, allowed_head, allowed_pair, parts, sink,
    out, lse, highest, totals, edge_sum, count, pairs, degree,
    sizes: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write `Outputs` of a query; `highest` is its `top`."""
    row, head = tl.program_id(0).to(tl.int64), heads_of(tl.program_id(1), sizes)
    V: tl.constexpr = sizes.value_dim
    F: tl.constexpr = sizes.features
    there = head >= 0
    first, last = tl.load(start + row).to(tl.int64), tl.load(start + row + 1).to(tl.int64)
    end = last
    if parts is not None:
        end = tl.where(last - first > SEGMENT, first, last)
    strides = (bias_head, bias_pair, allowed_head, allowed_pair)
    top, total, sums, of_features = _softmax(
        x, column, item, row, first, end, head, strides, BLOCK, sizes
    )
    if parts is not None:
        stop = tl.where(last - first > SEGMENT, (last + SEGMENT - 1) // SEGMENT, 0)
        for begin in range(first // SEGMENT, stop, BLOCK):
            part, live = parts_of(first, last, begin, BLOCK, SEGMENT)
            at = part[:, None] * sizes.heads + head[None, :]
            mask = live[:, None] & there[None, :]
            other = tl.load(parts.top + at, mask=mask, other=sizes.lowest)
            higher = tl.maximum(top, other)
            shrink, grow = tl.exp(top - higher), tl.exp(other - higher)
            top = higher
            total = total * shrink + tl.load(parts.total + at, mask=mask, other=0.0) * grow
            some = rows(parts.sums, sizes.heads * V, part, live, head, V, sizes.value_pad, sizes)
            sums = sums * shrink[:, :, None] + some * grow[:, :, None]
            if sizes.sums:
                some = rows(
                    parts.of_features, sizes.heads * F, part, live, head, F, sizes.features_pad,
                    sizes,
                )  # fmt: skip
                of_features = of_features * shrink[:, :, None] + some * grow[:, :, None]
    top, total, sums, of_features = _joined(top, total, sums, of_features, sizes)
    empty = total == 0
    total = tl.where(empty, 1.0, total)
    at = head * count.to(tl.int64) + row
    tl.store(lse + at, tl.where(empty, float("-inf"), tl.log(total) + top), mask=there)
    tl.store(highest + at, top, mask=there)
    tl.store(totals + at, total, mask=there)
    if sink is not None:
        total += tl.exp(tl.load(sink + head, mask=there, other=0.0).to(sizes.dtype) - top)
    factor = 1 / total
    stored(out, row, head, sums * factor[:, None], V, sizes.value_pad, sizes.heads)
    if sizes.sums:
        stored(
            edge_sum, row, head, of_features * factor[:, None], F, sizes.features_pad, sizes.heads
        )
