"""Gradients of queries, of the features' queries, of the weight of AdditiveV2, and of the bias."""

# mypy: disable-error-code="no-untyped-def,import-untyped,import-not-found"

from __future__ import annotations

from typing import Any, NamedTuple

import triton
from triton import language as tl

from attention_core.backends.edges.triton.scores import (
    changes_of,
    edges_of,
    gradients_of,
    heads_of,
    key_with_edge,
    keys_of,
    number,
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


class OfQueries(NamedTuple):
    """Sums over the pairs of queries, or over parts of hubs.

    Attributes:
        query: (Lq, H, D).
        features: (Lq, H, F), the gradient of `edge_query`.
        weight: (Lq, H, D), whose sum is the gradient of `weight`.
    """

    query: Any
    features: Any
    weight: Any


@triton.jit
def _sums(
    x, known, column, item, of_bias, row, first, last, head, strides,
    BLOCK: tl.constexpr, sizes: tl.constexpr,
):  # fmt: skip
    """What `OfQueries` has, in BLOCK lanes; the gradient of the bias is stored."""
    one = tl.zeros([1], tl.int64) + row
    query, of_features = queries_of(x, one, one >= 0, head, sizes)
    of_query = gradients_of(x, known, one, one >= 0, head, sizes)
    weight = weights_of(x, head, sizes)
    sums = tl.zeros([BLOCK, sizes.slots, sizes.pad], sizes.dtype)
    sums_of_features = tl.zeros([BLOCK, sizes.slots, sizes.features_pad], sizes.dtype)
    of_weight = tl.zeros([BLOCK, sizes.slots, sizes.pad], sizes.dtype)
    for begin in range(first, last, BLOCK):
        pair = begin + tl.arange(0, BLOCK)
        live = pair < last
        key_at = tl.load(column + pair, mask=live, other=0)
        edge, feature = edges_of(x, item, pair, live, sizes)
        key = keys_of(x, key_at, live, head, sizes)
        key = key_with_edge(x, key, edge, live, head, sizes)
        value = values_of(x, key_at, live, head, sizes)
        value = value_with_edge(x, value, edge, live, head, sizes)
        s, slope, inside = scores_of(
            x, query, key, of_features, feature, weight, pair, live, head, strides, BLOCK, sizes
        )
        of_s, _ = changes_of(x, s, value, feature, of_query, pair, head, sizes)
        if of_bias is not None:
            at = head.to(tl.int64)[None, :] * strides[4] + pair[:, None] * strides[5]
            there = live[:, None] & (head >= 0)[None, :]
            tl.store(of_bias + at, of_s.to(of_bias.dtype.element_ty), mask=there)
        of_s = of_s * slope * number(x.scale, x.scale_rest, sizes)
        if sizes.score == "dot":
            sums += of_s[:, :, None] * key
            if x.edge_query is not None:
                sums_of_features += of_s[:, :, None] * feature
        if sizes.score == "leaky":
            leaky = tl.where(inside > 0, of_s[:, :, None], of_s[:, :, None] * x.slope)
            sums += leaky * weight
            if x.weight is not None:
                of_weight += leaky * inside
    return sums, sums_of_features, of_weight


@triton.jit
def _store(to, row, head, sums, of_features, of_weight, x, sizes: tl.constexpr):
    D: tl.constexpr = sizes.dim
    if sizes.score != "none":
        stored(to.query, row, head, tl.sum(sums, axis=0), D, sizes.pad, sizes.heads)
    if x.edge_query is not None:
        some, F = tl.sum(of_features, axis=0), sizes.features
        stored(to.features, row, head, some, F, sizes.features_pad, sizes.heads)
    if x.weight is not None:
        stored(to.weight, row, head, tl.sum(of_weight, axis=0), D, sizes.pad, sizes.heads)


@triton.jit(
    do_not_specialize=[
        "bias_head", "bias_pair", "allowed_head", "allowed_pair", "of_bias_head", "of_bias_pair",
        "pairs", "degree",
    ]
)  # fmt: skip
def query_hubs(
    x, known, start, row_of, column, item, bias_head, bias_pair, allowed_head, allowed_pair,
    of_bias, of_bias_head, of_bias_pair, parts, pairs, degree,
    sizes: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the parts of a segment's pairs that belong to hubs."""
    chunk, slot, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head = heads_of(block, sizes)
    row, first, last, hub = part_of_hub(start, row_of, None, pairs, chunk, slot, SEGMENT)
    strides = (bias_head, bias_pair, allowed_head, allowed_pair, of_bias_head, of_bias_pair)
    sums, of_features, of_weight = _sums(
        x, known, column, item, of_bias, row, first, last, head, strides, BLOCK, sizes
    )
    part = chunk.to(tl.int64) * 2 + slot
    head = tl.where(hub, head, -1)
    _store(parts, part, head, sums, of_features, of_weight, x, sizes)


@triton.jit(
    do_not_specialize=[
        "bias_head", "bias_pair", "allowed_head", "allowed_pair", "of_bias_head", "of_bias_pair",
        "pairs", "degree",
    ]
)  # fmt: skip
def query_rows(
    x, known, start, row_of, column, item, bias_head, bias_pair, allowed_head, allowed_pair,
    of_bias, of_bias_head, of_bias_pair, parts, found, pairs, degree,
    sizes: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradients of a query, and of the bias of its pairs."""
    row, head = tl.program_id(0).to(tl.int64), heads_of(tl.program_id(1), sizes)
    first, last = tl.load(start + row).to(tl.int64), tl.load(start + row + 1).to(tl.int64)
    end = last
    if parts is not None:
        end = tl.where(last - first > SEGMENT, first, last)
    strides = (bias_head, bias_pair, allowed_head, allowed_pair, of_bias_head, of_bias_pair)
    sums, of_features, of_weight = _sums(
        x, known, column, item, of_bias, row, first, end, head, strides, BLOCK, sizes
    )
    if parts is not None:
        D: tl.constexpr = sizes.dim
        stop = tl.where(last - first > SEGMENT, (last + SEGMENT - 1) // SEGMENT, 0)
        for begin in range(first // SEGMENT, stop, BLOCK):
            part, live = parts_of(first, last, begin, BLOCK, SEGMENT)
            if sizes.score != "none":
                sums += rows(parts.query, sizes.heads * D, part, live, head, D, sizes.pad, sizes)
            if x.edge_query is not None:
                F: tl.constexpr = sizes.features
                of_features += rows(
                    parts.features, sizes.heads * F, part, live, head, F, sizes.features_pad, sizes
                )
            if x.weight is not None:
                of_weight += rows(
                    parts.weight, sizes.heads * D, part, live, head, D, sizes.pad, sizes
                )
    _store(found, row, head, sums, of_features, of_weight, x, sizes)
