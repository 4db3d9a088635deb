"""Dot-product attention over pairs in compressed sparse rows, as Triton kernels for CUDA.

One program per query and head goes through the pairs of its row with an online softmax (Milakov
and Gimelshein, 2018) and stores the log-sum-exp. Backward is a pass over queries, which leaves two
numbers per pair, and one over keys, so no sum needs an atomic. A hub is a longer loop in its
program. Proved against the plain path on CPU tensors in Triton's interpreter; not yet run on a GPU.
"""

# Triton ships no types, and compiles functions that are written without. It is on Linux with CUDA
# only, and takes long to import: `operator` imports this file when a GPU has work for it.
# mypy: disable-error-code="no-untyped-def,import-untyped,import-not-found"

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from triton import language as tl

from attention_core.backends.edges.pairs import Pairs, by_token
from attention_core.backends.edges.plain import Gradients, Inputs, Outputs, per_query

#: Pairs that a program takes at once.
_BLOCK = 32


@triton.jit
def _scores(
    q, k, bias, allowed, column, pair, live, head, group, pairs, d, in_d,
    k_head, k_token, k_dim, scale, softcap,
    CAPPED: tl.constexpr, BIASED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Scores of a block of pairs with q (1, D), and tanh'(score / cap)."""
    at = group * k_head + column[:, None] * k_token + d * k_dim
    key = tl.load(k + at, mask=live[:, None] & in_d, other=0.0)
    s = tl.sum(q * key, axis=1) * scale
    slope = s * 0 + 1
    if CAPPED:
        tanh = 2 / (1 + tl.exp(-2 * (s / softcap))) - 1
        slope = 1 - tanh * tanh
        s = softcap * tanh
    if BIASED:
        s += tl.load(bias + head * pairs + pair, mask=live, other=0.0)
    if MASKED:
        may = tl.load(allowed + head * pairs + pair, mask=live, other=0)
        s = tl.where(may != 0, s, float("-inf"))
    return tl.where(live, s, float("-inf")), slope, key


@triton.jit
def _forward_kernel(
    q, k, v, bias, allowed, keep, sink, start, column, out, lse, norm,
    q_head, q_token, q_dim, k_head, k_token, k_dim, v_head, v_token, v_dim,
    rows, pairs, heads, share, D, DV, factors,
    CAPPED: tl.constexpr, BIASED: tl.constexpr, MASKED: tl.constexpr, DROPS: tl.constexpr,
    SINK: tl.constexpr, BLOCK: tl.constexpr, PAD: tl.constexpr, PAD_V: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    group = head // share
    scale, softcap, grow = tl.load(factors), tl.load(factors + 1), tl.load(factors + 2)
    d, dv = tl.arange(0, PAD)[None, :], tl.arange(0, PAD_V)[None, :]
    in_d, in_dv = d < D, dv < DV
    query = tl.load(q + head * q_head + row * q_token + d * q_dim, mask=in_d, other=0.0)
    first, last = tl.load(start + row), tl.load(start + row + 1)
    top = tl.sum(query, axis=1) * 0 - 1e30  # finite, so that -inf minus it is -inf
    if SINK:
        top = tl.maximum(top, tl.load(sink + head))
    total = tl.zeros_like(top)
    sums = tl.zeros([1, PAD_V], dtype=query.dtype)
    for block in range(first, last, BLOCK):
        pair = block + tl.arange(0, BLOCK)
        live = pair < last
        at = tl.load(column + pair, mask=live, other=0).to(tl.int64)
        s, _, _ = _scores(
            query, k, bias, allowed, at, pair, live, head, group, pairs, d, in_d,
            k_head, k_token, k_dim, scale, softcap, CAPPED, BIASED, MASKED,
        )  # fmt: skip
        higher = tl.maximum(top, tl.max(s, axis=0))
        shrink = tl.exp(top - higher)
        weight = tl.exp(s - higher)
        total = total * shrink + tl.sum(weight, axis=0)
        if DROPS:
            kept = tl.load(keep + head * pairs + pair, mask=live, other=0)
            weight = tl.where(kept != 0, weight * grow, 0.0)
        where = group * v_head + at[:, None] * v_token + dv * v_dim
        value = tl.load(v + where, mask=live[:, None] & in_dv, other=0.0)
        sums = sums * shrink + tl.sum(weight[:, None] * value, axis=0)[None, :]
        top = higher
    one = tl.arange(0, 1)
    empty = total == 0
    found = tl.log(tl.where(empty, 1.0, total)) + top
    tl.store(lse + head * rows + row + one, tl.where(empty, float("-inf"), found))
    if SINK:
        total += tl.exp(tl.load(sink + head) - top)
    empty = total == 0
    total = tl.where(empty, 1.0, total)
    found = tl.where(empty, 0.0, tl.log(total) + top)
    tl.store(norm + head * rows + row + one, found)
    tl.store(out + (row * heads + head) * DV + dv, sums / total[:, None], mask=in_dv)


@triton.jit
def _query_kernel(
    q, k, v, bias, allowed, keep, start, column, of_out, norm, mean, of_q, of_score, of_raw,
    weights, q_head, q_token, q_dim, k_head, k_token, k_dim, v_head, v_token, v_dim,
    rows, pairs, heads, share, D, DV, factors,
    CAPPED: tl.constexpr, BIASED: tl.constexpr, MASKED: tl.constexpr, DROPS: tl.constexpr,
    BLOCK: tl.constexpr, PAD: tl.constexpr, PAD_V: tl.constexpr,
):  # fmt: skip
    """Gradients of the queries and of each score, and the weight of each value."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    group = head // share
    scale, softcap, grow = tl.load(factors), tl.load(factors + 1), tl.load(factors + 2)
    d, dv = tl.arange(0, PAD)[None, :], tl.arange(0, PAD_V)[None, :]
    in_d, in_dv = d < D, dv < DV
    query = tl.load(q + head * q_head + row * q_token + d * q_dim, mask=in_d, other=0.0)
    gradient = tl.load(of_out + (row * heads + head) * DV + dv, mask=in_dv, other=0.0)
    scaled, expected = tl.load(norm + head * rows + row), tl.load(mean + head * rows + row)
    first, last = tl.load(start + row), tl.load(start + row + 1)
    sums = tl.zeros([1, PAD], dtype=query.dtype)
    for block in range(first, last, BLOCK):
        pair = block + tl.arange(0, BLOCK)
        live = pair < last
        at = tl.load(column + pair, mask=live, other=0).to(tl.int64)
        s, slope, key = _scores(
            query, k, bias, allowed, at, pair, live, head, group, pairs, d, in_d,
            k_head, k_token, k_dim, scale, softcap, CAPPED, BIASED, MASKED,
        )  # fmt: skip
        weight = tl.exp(s - scaled)
        where = group * v_head + at[:, None] * v_token + dv * v_dim
        value = tl.load(v + where, mask=live[:, None] & in_dv, other=0.0)
        of_weight = tl.sum(gradient * value, axis=1)
        kept = weight
        if DROPS:
            drawn = tl.load(keep + head * pairs + pair, mask=live, other=0)
            factor = tl.where(drawn != 0, grow, 0.0)
            of_weight *= factor
            kept = weight * factor
        change = weight * (of_weight - expected)
        raw = change * slope * scale
        tl.store(of_score + head * pairs + pair, change, mask=live)
        tl.store(of_raw + head * pairs + pair, raw, mask=live)
        tl.store(weights + head * pairs + pair, kept, mask=live)
        sums += tl.sum(raw[:, None] * key, axis=0)[None, :]
    tl.store(of_q + (row * heads + head) * D + d, sums, mask=in_d)


@triton.jit
def _key_kernel(
    q, of_out, of_raw, weights, start, key_row, key_pair, of_k, of_v,
    q_head, q_token, q_dim, pairs, heads, groups, share, D, DV,
    BLOCK: tl.constexpr, PAD: tl.constexpr, PAD_V: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values; the query heads that share a key are summed here."""
    column, group = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    d, dv = tl.arange(0, PAD)[None, :], tl.arange(0, PAD_V)[None, :]
    in_d, in_dv = d < D, dv < DV
    first, last = tl.load(start + column), tl.load(start + column + 1)
    of_key = tl.zeros([1, PAD], dtype=of_k.dtype.element_ty)
    of_value = tl.zeros([1, PAD_V], dtype=of_v.dtype.element_ty)
    for block in range(first, last, BLOCK):
        at = block + tl.arange(0, BLOCK)
        live = at < last
        pair = tl.load(key_pair + at, mask=live, other=0)
        row = tl.load(key_row + at, mask=live, other=0).to(tl.int64)
        for nth in range(share):
            head = group * share + nth
            raw = tl.load(of_raw + head * pairs + pair, mask=live, other=0.0)
            weight = tl.load(weights + head * pairs + pair, mask=live, other=0.0)
            where = head * q_head + row[:, None] * q_token + d * q_dim
            query = tl.load(q + where, mask=live[:, None] & in_d, other=0.0)
            where = (row[:, None] * heads + head) * DV + dv
            gradient = tl.load(of_out + where, mask=live[:, None] & in_dv, other=0.0)
            of_key += tl.sum(raw[:, None] * query, axis=0)[None, :]
            of_value += tl.sum(weight[:, None] * gradient, axis=0)[None, :]
    tl.store(of_k + (column * groups + group) * D + d, of_key, mask=in_d)
    tl.store(of_v + (column * groups + group) * DV + dv, of_value, mask=in_dv)


def _pads(x: Inputs) -> dict[str, int]:
    assert x.q is not None
    dims = x.q.shape[-1], x.v.shape[-1]
    return {"BLOCK": _BLOCK} | dict(
        zip(("PAD", "PAD_V"), map(triton.next_power_of_2, dims), strict=True)
    )


def _arguments(x: Inputs, pairs: Pairs) -> tuple[list[Any], dict[str, Any]]:
    """The sizes, strides and options that the kernels over queries share."""
    assert x.q is not None and x.k is not None
    sizes = (pairs.rows, len(pairs.row), x.heads, x.heads // len(x.v), x.q.shape[-1])
    capped = x.softcap is not None
    # Floats in a tensor, as arguments of a kernel would be rounded to float32
    factors = x.v.new_tensor([x.scale, x.softcap if x.softcap is not None else 1.0, x.grow])
    numbers = [*x.q.stride(), *x.k.stride(), *x.v.stride(), *sizes, x.v.shape[-1], factors]
    flags = {"CAPPED": capped, "BIASED": x.bias is not None, "MASKED": x.allowed is not None}
    return numbers, flags | {"DROPS": x.keep is not None} | _pads(x)


def _per_pair(x: Inputs) -> list[Tensor]:
    """Bias, mask and dropout (H, E), end to end; a stand-in for what there is not."""
    return [x.v if t is None else t.contiguous() for t in (x.bias, x.allowed, x.keep)]


def forward(x: Inputs, pairs: Pairs) -> Outputs:
    """Compute what `plain.forward` does, in Triton."""
    out = x.v.new_empty(pairs.rows, x.heads, x.v.shape[-1])
    lse = x.v.new_empty(x.heads, pairs.rows)
    norm = torch.empty_like(lse)
    numbers, flags = _arguments(x, pairs)
    sink = x.v if x.sink is None else x.sink
    if out.numel():
        _forward_kernel[pairs.rows, x.heads](
            x.q, x.k, x.v, *_per_pair(x), sink, pairs.start, pairs.column, out, lse, norm,
            *numbers, SINK=x.sink is not None, **flags,
        )  # fmt: skip
    return Outputs(out, lse, norm, None)


def backward(
    x: Inputs,
    pairs: Pairs,
    found: Outputs,
    of_out: Tensor,
    of_lse: Tensor | None,
    of_edge_sum: Tensor | None,
    of_bias: bool,
) -> Gradients:
    """Compute what `plain.backward` does, in Triton."""
    assert x.q is not None and x.k is not None and pairs.key_start is not None
    of_out = of_out.contiguous()
    mean, sink = per_query(x, found, of_out, of_lse, of_edge_sum)
    of_q, of_k, of_v = by_token(x.q), by_token(x.k), by_token(x.v)
    of_score, of_raw, weights = x.v.new_empty(3, x.heads, len(pairs.row)).unbind()
    numbers, flags = _arguments(x, pairs)
    _query_kernel[pairs.rows, x.heads](
        x.q, x.k, x.v, *_per_pair(x), pairs.start, pairs.column, of_out, found.norm, mean,
        of_q, of_score, of_raw, weights, *numbers, **flags,
    )  # fmt: skip
    groups = len(x.v)
    _key_kernel[pairs.columns, groups](
        x.q, of_out, of_raw, weights, pairs.key_start, pairs.key_row, pairs.pair, of_k, of_v,
        *x.q.stride(), len(pairs.row), x.heads, groups, x.heads // groups,
        x.q.shape[-1], x.v.shape[-1], **_pads(x),
    )  # fmt: skip
    bias = of_score if of_bias else None
    q, k, v = (t.transpose(0, 1) for t in (of_q, of_k, of_v))
    return Gradients(q, k, v, bias=bias, sink=sink)
