"""What all passes share, as Triton functions: rows of tokens, scores of pairs, their gradients.

Tiles are (B, S, D): pairs, of which B are 1 where all share a token; heads; numbers of a head.
"""

# Triton ships no types, and compiles functions that are written without.
# mypy: disable-error-code="no-untyped-def,import-untyped,import-not-found"

from __future__ import annotations

from typing import Any, NamedTuple

import triton
from triton import language as tl


class Sizes(NamedTuple):
    """Hold what kernels are compiled for.

    Attributes:
        score: "none", "dot", or "leaky", of Additive (with D = 1 and no weight) and AdditiveV2.
        dtype: in which all is computed.
        lowest: its lowest finite number.
        heads: H.
        key_share, value_share: heads that share a key, and a value.
        dim, value_dim, features: D, Dv and F.
        slots: heads of a program; of the passes over keys, all of as many groups as fit.
        share_slots: places for the heads that share a value, among the slots of passes over keys.
        pad, value_pad, features_pad: places for the numbers of a head.
        capped, term, sums: whether there is a softcap; whether the score has a term of features of
            edges; whether their weighted sums are asked for.
    """

    score: str
    dtype: Any
    lowest: float
    heads: int
    key_share: int
    value_share: int
    dim: int
    value_dim: int
    features: int
    slots: int
    share_slots: int
    pad: int
    value_pad: int
    features_pad: int
    capped: bool
    term: bool
    sums: bool


class Given(NamedTuple):
    """Hold the inputs; None for what there is not.

    Attributes:
        q, k, v: tokens, (N, H · D), and how far they are apart.
        weight: (H, D) of "leaky", or None for ones.
        slope: of the LeakyReLU.
        edge_key, edge_value: (M, Hkv, D), contiguous, as all that follow.
        attr: (M, F).
        edge_query: (Lq, H, F).
        edge_weight: (F, Hkv, D).
        bias, allowed: (H, E), of any strides.
        seed: (1,) int64, of dropout.
        limit: which of the numbers up to 2³² it draws keep a weight: those below.
        grow, scale, cap: the factor on weights that are kept, scale and softcap, as float32; and
            what this leaves of each.
    """

    q: Any
    q_step: Any
    k: Any
    k_step: Any
    v: Any
    v_step: Any
    weight: Any
    slope: Any
    edge_key: Any
    edge_value: Any
    attr: Any
    edge_query: Any
    edge_weight: Any
    bias: Any
    allowed: Any
    seed: Any
    limit: Any
    grow: Any
    grow_rest: Any
    scale: Any
    scale_rest: Any
    cap: Any
    cap_rest: Any


class Known(NamedTuple):
    """Hold what backward passes are given.

    Attributes:
        of_out, of_sum: gradients of the output (Lq, H, Dv), and of sums of features (Lq, H, F).
        top, share, mean: (Lq, H), as in `plain`.
    """

    of_out: Any
    of_sum: Any
    top: Any
    share: Any
    mean: Any


@triton.jit
def number(high, rest, sizes: tl.constexpr):
    """Return a number of the host, exact in float64 too: arguments are rounded to float32."""
    return tl.cast(high, sizes.dtype) + tl.cast(rest, sizes.dtype)


@triton.jit
def rows(pointer, step, row, live, head, DIM: tl.constexpr, PAD: tl.constexpr, sizes: tl.constexpr):
    """Load (B, S, PAD) numbers of the rows (B,) for the heads (S,); 0 where there are none."""
    d = tl.arange(0, PAD)[None, None, :]
    at = row.to(tl.int64)[:, None, None] * step + head[None, :, None] * DIM + d
    there = live[:, None, None] & (head >= 0)[None, :, None] & (d < DIM)
    return tl.load(pointer + at, mask=there, other=0.0).to(sizes.dtype)


@triton.jit
def in_group(head, share: tl.constexpr):
    """Return the key or value of each head (S,); -1 stays."""
    return tl.where(head < 0, -1, head // share)


@triton.jit
def heads_of(block, sizes: tl.constexpr):
    """Return the heads (S,) of a program, -1 in places that are none."""
    head = block * sizes.slots + tl.arange(0, sizes.slots)
    return tl.where(head < sizes.heads, head, -1)


@triton.jit
def features_of(x, item, live, sizes: tl.constexpr):
    """Load features of edges, (B, 1, F)."""
    none = tl.zeros([1], tl.int32)
    return rows(x.attr, sizes.features, item, live, none, sizes.features, sizes.features_pad, sizes)


@triton.jit
def edges_of(x, item, pair, live, sizes: tl.constexpr):
    """Load the edges (B,) of pairs, and their features (B, 1, F) where scores or sums have some."""
    edge = pair
    if item is not None:
        edge = tl.load(item + pair, mask=live, other=0)
    feature = tl.zeros([1, 1, 1], sizes.dtype)
    if sizes.sums or x.edge_query is not None:
        feature = features_of(x, edge, live, sizes)
    return edge, feature


@triton.jit
def queries_of(x, row, live, head, sizes: tl.constexpr):
    """Load queries, and those of features: (B, S, D) and (B, S, F)."""
    query = tl.zeros([1, 1, 1], sizes.dtype)
    of_features = query
    if sizes.score != "none":
        query = rows(x.q, x.q_step, row, live, head, sizes.dim, sizes.pad, sizes)
    if x.edge_query is not None:
        F: tl.constexpr = sizes.features
        of_features = rows(
            x.edge_query, sizes.heads * F, row, live, head, F, sizes.features_pad, sizes
        )
    return query, of_features


@triton.jit
def weights_of(x, head, sizes: tl.constexpr):
    """Load the weight of a score, (1, S, D)."""
    weight = tl.full([1, 1, 1], 1.0, sizes.dtype)
    if x.weight is not None:
        first = tl.zeros([1], tl.int32)
        weight = rows(x.weight, 0, first, first == 0, head, sizes.dim, sizes.pad, sizes)
    return weight


@triton.jit
def keys_of(x, column, live, head, sizes: tl.constexpr):
    """Load keys (B, S, D), without what edges add."""
    key = tl.zeros([1, 1, 1], sizes.dtype)
    if sizes.score != "none":
        group = in_group(head, sizes.key_share)
        key = rows(x.k, x.k_step, column, live, group, sizes.dim, sizes.pad, sizes)
    return key


@triton.jit
def values_of(x, column, live, head, sizes: tl.constexpr):
    """Load values (B, S, Dv), without what edges add."""
    group = in_group(head, sizes.value_share)
    return rows(x.v, x.v_step, column, live, group, sizes.value_dim, sizes.value_pad, sizes)


@triton.jit
def key_with_edge(x, key, item, live, head, sizes: tl.constexpr):
    """Add to keys (B, S, D) what the edges of pairs add to them."""
    D: tl.constexpr = sizes.dim
    KEYS: tl.constexpr = sizes.heads // sizes.key_share
    if x.edge_key is not None:
        group = in_group(head, sizes.key_share)
        key += rows(x.edge_key, KEYS * D, item, live, group, D, sizes.pad, sizes)
    if x.edge_weight is not None:
        group = in_group(head, sizes.key_share)
        first = tl.zeros([1], tl.int32)
        key += tl.zeros_like(item).to(sizes.dtype)[:, None, None]  # the shape of what is added
        for f in range(sizes.features):
            at = item.to(tl.int64) * sizes.features + f
            one = tl.load(x.attr + at, mask=live, other=0.0).to(sizes.dtype)
            column = rows(
                x.edge_weight + f * KEYS * D, 0, first, first == 0, group, D, sizes.pad, sizes
            )
            key += one[:, None, None] * column
    return key


@triton.jit
def value_with_edge(x, value, item, live, head, sizes: tl.constexpr):
    """Add to values (B, S, Dv) what the edges of pairs add to them."""
    if x.edge_value is not None:
        group = in_group(head, sizes.value_share)
        V: tl.constexpr = sizes.value_dim
        VALUES: tl.constexpr = sizes.heads // sizes.value_share
        value += rows(x.edge_value, VALUES * V, item, live, group, V, sizes.value_pad, sizes)
    return value


@triton.jit
def scores_of(
    x, query, key, of_features, feature, weight, pair, live, head, strides,
    BLOCK: tl.constexpr, sizes: tl.constexpr,
):  # fmt: skip
    """Compute scores (B, S), -inf where a pair is not allowed; d score / d (score before softcap);
    and what is inside the LeakyReLU, (B, S, D).

    `strides` are those of heads and pairs in bias and allowed.
    """
    s = tl.zeros([BLOCK, sizes.slots], sizes.dtype)
    inside = query
    if sizes.score == "dot":
        s += tl.sum(query * key, axis=2)
        if x.edge_query is not None:
            s += tl.sum(of_features * feature, axis=2)
    if sizes.score == "leaky":
        inside = query + key
        s += tl.sum(tl.where(inside > 0, inside, inside * x.slope) * weight, axis=2)
    s *= number(x.scale, x.scale_rest, sizes)
    slope = tl.full([1, 1], 1.0, sizes.dtype)
    if sizes.capped:
        cap = number(x.cap, x.cap_rest, sizes)
        tanh = 2 / (1 + tl.exp(-2 * (s / cap))) - 1
        slope = 1 - tanh * tanh
        s = cap * tanh
    there = live[:, None] & (head >= 0)[None, :]
    if x.bias is not None:
        at = head.to(tl.int64)[None, :] * strides[0] + pair.to(tl.int64)[:, None] * strides[1]
        s += tl.load(x.bias + at, mask=there, other=0.0).to(sizes.dtype)
    if x.allowed is not None:
        at = head.to(tl.int64)[None, :] * strides[2] + pair.to(tl.int64)[:, None] * strides[3]
        may = tl.load(x.allowed + at, mask=there, other=0)
        s = tl.where(may != 0, s, float("-inf"))
    return tl.where(live[:, None], s, float("-inf")), slope, inside


@triton.jit
def kept_by_dropout(x, pair, head, sizes: tl.constexpr):
    """Draw what dropout multiplies weights (B, S) with, from seed, pair and head alone."""
    place = pair.to(tl.int64)[:, None] + tl.zeros_like(head).to(tl.int64)[None, :]
    head = tl.zeros_like(place) + head[None, :]
    low, high = (place & 0xFFFFFFFF).to(tl.uint32), (place >> 32).to(tl.uint32)
    zero = tl.zeros_like(low)
    drawn, _, _, _ = tl.philox(tl.load(x.seed), low, high, head.to(tl.uint32), zero)
    return tl.where(drawn.to(tl.int64) < x.limit, number(x.grow, x.grow_rest, sizes), 0.0)


@triton.jit
def changes_of(x, s, value, feature, query, pair, head, sizes: tl.constexpr):
    """Compute the gradient of each score (B, S), and the weight that its value has; `query` is what
    `gradients_of` loads."""
    gradient, of_sum, top, share, mean = query
    exp = tl.exp(s - top)
    of_weight = tl.sum(gradient * value, axis=2)
    if sizes.sums:
        of_weight += tl.sum(of_sum * feature, axis=2)
    if x.seed is not None:
        share *= kept_by_dropout(x, pair, head, sizes)
    return exp * (share * of_weight - mean), exp * share


@triton.jit
def numbers_of(pointer, row, live, head, sizes: tl.constexpr):
    """Load a number for each row (B,) and head (S,), from (N, H)."""
    at = row.to(tl.int64)[:, None] * sizes.heads + head[None, :]
    there = live[:, None] & (head >= 0)[None, :]
    return tl.load(pointer + at, mask=there, other=0.0).to(sizes.dtype)


@triton.jit
def gradients_of(x, known, row, live, head, sizes: tl.constexpr):
    """Load gradients of outputs (B, S, Dv) and sums (B, S, F), and top, share, mean (B, S)."""
    V: tl.constexpr = sizes.value_dim
    gradient = rows(known.of_out, sizes.heads * V, row, live, head, V, sizes.value_pad, sizes)
    of_sum = tl.zeros([1, 1, 1], sizes.dtype)
    if sizes.sums:
        F: tl.constexpr = sizes.features
        of_sum = rows(known.of_sum, sizes.heads * F, row, live, head, F, sizes.features_pad, sizes)
    top = numbers_of(known.top, row, live, head, sizes)
    share = numbers_of(known.share, row, live, head, sizes)
    mean = numbers_of(known.mean, row, live, head, sizes)
    return gradient, of_sum, top, share, mean


@triton.jit
def part_of_hub(start, owner, order, pairs, chunk, slot, SEGMENT: tl.constexpr):
    """Return the pairs of a segment that belong to a hub: to the token of its first pair (slot 0),
    or to that of its last, where it is another (slot 1); none where that token is no hub.

    A token with more pairs than a segment has no more than these two places in one. `owner` has
    the token of each pair, or of the pairs that `order` names.
    """
    begin = chunk.to(tl.int64) * SEGMENT
    end = tl.minimum(begin + SEGMENT, pairs)
    at = tl.where(slot == 0, begin, end - 1)
    if order is not None:
        at = tl.load(order + at).to(tl.int64)
    token = tl.load(owner + at).to(tl.int64)
    first, last = tl.load(start + token).to(tl.int64), tl.load(start + token + 1).to(tl.int64)
    hub = (last - first > SEGMENT) & ((slot == 0) | (first > begin))
    first = tl.maximum(first, begin)
    return token, first, tl.where(hub, tl.minimum(last, end), first), hub


@triton.jit
def parts_of(first, last, begin, BLOCK: tl.constexpr, SEGMENT: tl.constexpr):
    """Return where the parts of a hub, of the pairs from first to last, lie: from a segment on."""
    chunk = begin + tl.arange(0, BLOCK)
    return chunk * 2 + tl.where(chunk * SEGMENT < first, 1, 0), chunk * SEGMENT < last


@triton.jit
def stored(pointer, row, head, x, DIM: tl.constexpr, PAD: tl.constexpr, HEADS: tl.constexpr):
    """Store x (S, PAD) as a row of all heads."""
    d = tl.arange(0, PAD)[None, :]
    at = row.to(tl.int64) * HEADS * DIM + head[:, None] * DIM + d
    mask = (head >= 0)[:, None] & (d < DIM)
    tl.store(pointer + at, x.to(pointer.dtype.element_ty), mask=mask)
