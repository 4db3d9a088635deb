"""Gradients of keys and values, of what edges add to them, and of features of edges."""

# mypy: disable-error-code="no-untyped-def,import-untyped,import-not-found"

from __future__ import annotations

from typing import Any, NamedTuple

import triton
from triton import language as tl

from attention_core.backends.edges.triton.scores import (
    changes_of,
    edges_of,
    features_of,
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


class OfKeys(NamedTuple):
    """Sums over the pairs of keys: (Lk, Hkv, D) and (Lk, Hkv, Dv), or over parts of hubs, of which
    each head has its own, (parts, H, D) and (parts, H, Dv)."""

    key: Any
    value: Any


class OfEdges(NamedTuple):
    """Gradients of what the edge of each pair adds to key and value, (E, Hkv, D), (E, Hkv, Dv)."""

    key: Any
    value: Any


@triton.jit
def _heads(block, sizes: tl.constexpr):
    """The heads (S,) of a program, groups of those that share a value; -1 in places of none."""
    slot = tl.arange(0, sizes.slots)
    group = block * (sizes.slots // sizes.share_slots) + slot // sizes.share_slots
    nth = slot % sizes.share_slots
    there = (nth < sizes.value_share) & (group < sizes.heads // sizes.value_share)
    return tl.where(there, group * sizes.value_share + nth, -1)


@triton.jit
def _groups(block, head, share: tl.constexpr, sizes: tl.constexpr):
    """The keys or values of the heads (S,) of a program, once each: what `_by_group` leaves."""
    if share == 1:
        group = head
    else:
        GROUPS: tl.constexpr = sizes.slots // sizes.share_slots
        group = block * GROUPS + tl.arange(0, GROUPS)
        group = tl.where(group < sizes.heads // share, group, -1)
    return group


@triton.jit
def _by_group(x, share: tl.constexpr, PAD: tl.constexpr, sizes: tl.constexpr):
    """Sum x (B, S, PAD) over the heads that share a key or value, (B, groups, PAD)."""
    if share != 1:
        GROUPS: tl.constexpr = sizes.slots // sizes.share_slots
        x = tl.sum(tl.reshape(x, [x.shape[0], GROUPS, sizes.share_slots, PAD]), axis=2)
    return x


@triton.jit
def _store_pairs(pointer, pair, live, head, x, DIM: tl.constexpr, PAD: tl.constexpr, HEADS):
    """Store x (B, S, PAD) as rows of all heads, one for each pair."""
    d = tl.arange(0, PAD)[None, None, :]
    at = pair.to(tl.int64)[:, None, None] * HEADS * DIM + head[None, :, None] * DIM + d
    mask = live[:, None, None] & (head >= 0)[None, :, None] & (d < DIM)
    tl.store(pointer + at, x.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _direction(query, inside, weight, x, sizes: tl.constexpr):
    """d score / d key, (B, S, D)."""
    direction = query
    if sizes.score == "leaky":
        direction = tl.where(inside > 0, weight, weight * x.slope)
    return direction


@triton.jit
def _sums(
    x, known, key_row, key_pair, item, of_edges, column, first, last, block, head, strides,
    BLOCK: tl.constexpr, sizes: tl.constexpr,
):  # fmt: skip
    """Gradients of key and value for each head, in BLOCK lanes; those of edges are stored."""
    one = tl.zeros([1], tl.int64) + column
    key_alone = keys_of(x, one, one >= 0, head, sizes)
    value_alone = values_of(x, one, one >= 0, head, sizes)
    weight = weights_of(x, head, sizes)
    of_key = tl.zeros([BLOCK, sizes.slots, sizes.pad], sizes.dtype)
    of_value = tl.zeros([BLOCK, sizes.slots, sizes.value_pad], sizes.dtype)
    for begin in range(first, last, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        live = at < last
        pair = tl.load(key_pair + at, mask=live, other=0)
        row = tl.load(key_row + at, mask=live, other=0)
        edge, feature = edges_of(x, item, pair, live, sizes)
        query, of_features = queries_of(x, row, live, head, sizes)
        of_query = gradients_of(x, known, row, live, head, sizes)
        key = key_with_edge(x, key_alone, edge, live, head, sizes)
        value = value_with_edge(x, value_alone, edge, live, head, sizes)
        s, slope, inside = scores_of(
            x, query, key, of_features, feature, weight, pair, live, head, strides, BLOCK, sizes
        )
        of_s, kept = changes_of(x, s, value, feature, of_query, pair, head, sizes)
        of_values = kept[:, :, None] * of_query[0]
        of_value += of_values
        if of_edges.value is not None:
            V: tl.constexpr = sizes.value_dim
            some = _by_group(of_values, sizes.value_share, sizes.value_pad, sizes)
            group = _groups(block, head, sizes.value_share, sizes)
            _store_pairs(
                of_edges.value, pair, live, group, some, V, sizes.value_pad,
                sizes.heads // sizes.value_share,
            )  # fmt: skip
        if sizes.score != "none":
            of_s = of_s * slope * number(x.scale, x.scale_rest, sizes)
            of_keys = of_s[:, :, None] * _direction(query, inside, weight, x, sizes)
            of_key += of_keys
            if of_edges.key is not None:
                D: tl.constexpr = sizes.dim
                some = _by_group(of_keys, sizes.key_share, sizes.pad, sizes)
                group = _groups(block, head, sizes.key_share, sizes)
                _store_pairs(
                    of_edges.key, pair, live, group, some, D, sizes.pad,
                    sizes.heads // sizes.key_share,
                )  # fmt: skip
    return of_key, of_value


@triton.jit(
    do_not_specialize=["bias_head", "bias_pair", "allowed_head", "allowed_pair", "pairs", "degree"]
)
def key_hubs(
    x, known, start, column_of, key_row, key_pair, item, bias_head, bias_pair, allowed_head,
    allowed_pair, of_edges, parts, pairs, degree,
    sizes: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the parts of a segment's pairs that belong to keys that are hubs."""
    chunk, slot, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head = _heads(block, sizes)
    column, first, last, hub = part_of_hub(start, column_of, key_pair, pairs, chunk, slot, SEGMENT)
    strides = (bias_head, bias_pair, allowed_head, allowed_pair)
    of_key, of_value = _sums(
        x, known, key_row, key_pair, item, of_edges, column, first, last, block, head, strides,
        BLOCK, sizes,
    )  # fmt: skip
    part = chunk.to(tl.int64) * 2 + slot
    head = tl.where(hub, head, -1)
    D: tl.constexpr = sizes.dim
    V: tl.constexpr = sizes.value_dim
    stored(parts.value, part, head, tl.sum(of_value, 0), V, sizes.value_pad, sizes.heads)
    if sizes.score != "none":
        stored(parts.key, part, head, tl.sum(of_key, 0), D, sizes.pad, sizes.heads)


@triton.jit(
    do_not_specialize=["bias_head", "bias_pair", "allowed_head", "allowed_pair", "pairs", "degree"]
)
def key_rows(
    x, known, start, column_of, key_row, key_pair, item, bias_head, bias_pair, allowed_head,
    allowed_pair, of_edges, parts, found, pairs, degree,
    sizes: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradients of a key and its value; the heads that share them are summed here."""
    column, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    head = _heads(block, sizes)
    first, last = tl.load(start + column).to(tl.int64), tl.load(start + column + 1).to(tl.int64)
    end = last
    if parts is not None:
        end = tl.where(last - first > SEGMENT, first, last)
    strides = (bias_head, bias_pair, allowed_head, allowed_pair)
    of_key, of_value = _sums(
        x, known, key_row, key_pair, item, of_edges, column, first, end, block, head, strides,
        BLOCK, sizes,
    )  # fmt: skip
    D: tl.constexpr = sizes.dim
    V: tl.constexpr = sizes.value_dim
    if parts is not None:
        stop = tl.where(last - first > SEGMENT, (last + SEGMENT - 1) // SEGMENT, 0)
        for begin in range(first // SEGMENT, stop, BLOCK):
            part, live = parts_of(first, last, begin, BLOCK, SEGMENT)
            of_value += rows(
                parts.value, sizes.heads * V, part, live, head, V, sizes.value_pad, sizes
            )
            if sizes.score != "none":
                of_key += rows(parts.key, sizes.heads * D, part, live, head, D, sizes.pad, sizes)
    some = tl.sum(_by_group(of_value, sizes.value_share, sizes.value_pad, sizes), axis=0)
    group = _groups(block, head, sizes.value_share, sizes)
    VALUES: tl.constexpr = sizes.heads // sizes.value_share
    stored(found.value, column, group, some, V, sizes.value_pad, VALUES)
    if sizes.score != "none":
        some = tl.sum(_by_group(of_key, sizes.key_share, sizes.pad, sizes), axis=0)
        group = _groups(block, head, sizes.key_share, sizes)
        KEYS: tl.constexpr = sizes.heads // sizes.key_share
        stored(found.key, column, group, some, D, sizes.pad, KEYS)


@triton.jit(
    do_not_specialize=[
        "bias_head", "bias_pair", "allowed_head", "allowed_pair", "first", "last", "degree",
    ]
)  # fmt: skip
def feature_pairs(
    x, known, row_of, column, item, bias_head, bias_pair, allowed_head, allowed_pair, of_attr,
    of_inside, first, last, degree,
    sizes: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write, for pairs from first to last, the gradient of their features (C, F), but for what
    goes through the LeakyReLU: for that, what its inside gets (C, H, D), without `weight`."""
    pair = first.to(tl.int64) + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = pair < last
    row = tl.load(row_of + pair, mask=live, other=0)
    key_at = tl.load(column + pair, mask=live, other=0)
    edge = tl.load(item + pair, mask=live, other=0)
    feature = features_of(x, edge, live, sizes)
    total = tl.zeros([BLOCK, 1, sizes.features_pad], sizes.dtype)
    for block in range((sizes.heads + sizes.slots - 1) // sizes.slots):
        head = heads_of(block, sizes)
        weight = weights_of(x, head, sizes)
        query, of_features = queries_of(x, row, live, head, sizes)
        of_query = gradients_of(x, known, row, live, head, sizes)
        key = keys_of(x, key_at, live, head, sizes)
        key = key_with_edge(x, key, edge, live, head, sizes)
        value = values_of(x, key_at, live, head, sizes)
        value = value_with_edge(x, value, edge, live, head, sizes)
        strides = (bias_head, bias_pair, allowed_head, allowed_pair)
        s, slope, inside = scores_of(
            x, query, key, of_features, feature, weight, pair, live, head, strides, BLOCK, sizes
        )
        of_s, kept = changes_of(x, s, value, feature, of_query, pair, head, sizes)
        of_s = of_s * slope * number(x.scale, x.scale_rest, sizes)
        if sizes.sums:
            total += tl.sum(kept[:, :, None] * of_query[1], axis=1)[:, None, :]
        if x.edge_query is not None:
            total += tl.sum(of_s[:, :, None] * of_features, axis=1)[:, None, :]
        if of_inside is not None:
            some = tl.where(inside > 0, of_s[:, :, None], of_s[:, :, None] * x.slope)
            _store_pairs(of_inside, pair - first, live, head, some, sizes.dim, sizes.pad,
                         sizes.heads)  # fmt: skip
    if of_attr is not None:
        none = tl.zeros([1], tl.int32)
        _store_pairs(of_attr, pair - first, live, none, total, sizes.features,
                     sizes.features_pad, 1)  # fmt: skip
