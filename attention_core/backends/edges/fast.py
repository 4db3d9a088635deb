"""Attention over pairs in compressed sparse rows, in kernels for CPUs: `plain`, but faster.

Two numbers per pair and head are alive in backward, and for "additive_v2" a bit per feature. What a
piece of the work adds up depends on the data alone, so results are the same from run to run and for
any number of threads.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from attention_core.backends import fast
from attention_core.backends.edges.pairs import Pairs, add_rows
from attention_core.backends.edges.plain import Gradients, Inputs, Outputs, per_query
from attention_core.backends.fast import threads

#: Numbers of a vector: eight registers of AVX2, four of AVX-512.
_VECTOR = 64
#: Features of a head or of an edge at most: longer vectors take long to compile, and gain little.
_LARGEST = 256
#: Pairs times heads from which the first call, which compiles for seconds, is soon worth it. Later
#: calls of small heads never take longer than plain torch: 1.2 ms where that takes 1.4 to 3
#: (forward and backward of 125 pairs, of one head or eight).
_PAYS = 16_384
#: Numbers of a head from which plain torch, which gathers rows of values by products of sparse
#: matrices, is as fast (heads of 24 to 128: 0.5 to 1.0 of its speed, with features of edges or
#: without, one thread; of 8, 1.1 to 1.6). What "additive_v2" does, it can only do pair by pair.
_AS_FAST = 24


def installed() -> bool:
    """Return whether kernels would be tried; numba is not imported."""
    return fast.installed()


def pays(pairs: int, heads: int, head_dim: int, *, v2: bool) -> bool:
    """Return whether such work is given to kernels, if they are there."""
    much = pairs * heads >= _PAYS and (v2 or head_dim < _AS_FAST)
    return much or fast.setting() == "always"


def takes(x: Inputs, pairs: Pairs) -> bool:
    """Return whether kernels do this and are there: not for tensors of features of pairs."""
    if x.edge_value is not None or (x.edge_key is not None and x.score != "additive"):
        return False
    sizes = [t.shape[-1] for t in (x.q, x.v, x.edge_attr) if t is not None]
    given = (t for t in x if isinstance(t, Tensor))
    worth = pays(len(pairs.row), x.heads, x.v.shape[-1], v2=x.score == "additive_v2")
    return len(pairs.row) > 0 and max(sizes) <= _LARGEST and fast.usable(*given, pays=worth)


def forward(x: Inputs, pairs: Pairs) -> Outputs:
    """Compute what `plain.forward` does."""
    given = _Given(x, pairs)
    rows, v = pairs.rows, x.v
    out = v.new_empty(rows, x.heads, v.shape[-1])
    lse, top, total = (v.new_empty(x.heads, rows) for _ in range(3))
    edge_sum = None
    if x.edge_sums and x.edge_attr is not None:
        edge_sum = v.new_empty(rows, x.heads, x.edge_attr.shape[1])
    given.run(
        given.bounds, given.module.forward, *given.arguments, _flat(x.sink, v),
        *given.numbers, *(_flat(x, v) for x in (out, lse, top, total, edge_sum)),
    )  # fmt: skip
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
    """Compute what `plain.backward` does."""
    assert pairs.key_start is not None and pairs.key_row is not None and pairs.pair is not None
    given, v, heads = _Given(x, pairs), x.v, x.heads
    share, mean, sink = 1 / found.total, None, None
    if x.sink is not None or of_lse is not None:
        share, mean, sink = per_query(x, found, of_out, of_lse, of_edge_sum)
    sums = None
    if found.edge_sum is not None:
        sums = torch.zeros_like(found.edge_sum) if of_edge_sum is None else of_edge_sum
    of_out, count, bounds = of_out.contiguous(), len(pairs.row), given.bounds
    dim = x.q.shape[-1] if x.q is not None else 0
    width, features = heads * dim, 0 if x.edge_attr is None else x.edge_attr.shape[1]
    v2 = x.score == "additive_v2"
    of_v = _by_token(v)
    of_q, of_k, of_query = (None if t is None else _by_token(t) for t in (x.q, x.k, x.edge_query))
    bias = torch.empty_like(x.bias) if of_bias and x.bias is not None else None
    of_pairs = v.new_empty(count, 2, heads)
    signs = torch.empty(count * given.bytes_of_signs if v2 else 0, dtype=torch.uint8)
    of_features = weighted = None
    if x.edge_attr_grad and x.edge_attr is not None:
        of_features = v.new_empty(count, features)
        if x.edge_weight is not None and x.weight is not None:
            by_head = x.edge_weight.repeat_interleave(heads // len(x.edge_weight), 0)
            weighted = x.weight[..., None] * by_head
    by_piece = v.new_zeros(len(bounds) - 1, width if v2 else 0)
    by_feature = v.new_zeros(len(bounds) - 1, features, width if x.edge_weight is not None else 0)
    given.run(
        bounds, given.module.backward_queries, *given.arguments, *given.numbers,
        _flat(found.out, v), _flat(found.top, v), _flat(share, v), _flat(found.edge_sum, v),
        _flat(mean, v), _flat(of_out, v), _flat(sums, v), _flat(weighted, v), _flat(of_pairs, v),
        signs.numpy(),
        _flat(of_q, v), _flat(of_query, v), *_strided(bias, v), _flat(of_features, v),
        _flat(by_piece, v), _flat(by_feature, v),
    )  # fmt: skip
    by_key = threads.cut(pairs.key_start.numpy())
    by_key_piece = v.new_zeros(len(by_key) - 1, width if v2 else 0)
    given.run(
        by_key, given.module.backward_keys, pairs.key_start.numpy(), pairs.key_row.numpy(),
        pairs.pair.numpy(), *given.queries, *given.keys, *given.weight, *given.numbers[-2:],
        _flat(of_out, v), _flat(of_pairs, v), signs.numpy(), _flat(of_k, v), _flat(of_v, v),
        _flat(by_key_piece, v),
    )  # fmt: skip
    weight = edge_weight = edge_key = edge_attr = None
    if v2 and x.weight is not None:
        weight = (by_piece.sum(0) + by_key_piece.sum(0)).view_as(x.weight)
        if x.edge_weight is not None:
            by_key_head = len(x.edge_weight), -1
            # (F, H · D) as (H, D, F)
            sums_of_features = by_feature.sum(0).T.reshape(heads, dim, features)
            by_head = x.edge_weight.repeat_interleave(heads // len(x.edge_weight), 0)
            weight += (sums_of_features * by_head).sum(-1)
            sums_of_features *= x.weight[..., None]
            edge_weight = sums_of_features.unflatten(0, by_key_head).sum(1)
    if x.edge_key is not None:
        edge_key = torch.zeros_like(x.edge_key)
        add_rows(edge_key, pairs.item, of_pairs[:, 1])
    if of_features is not None and x.edge_attr is not None:
        edge_attr = torch.zeros_like(x.edge_attr)
        add_rows(edge_attr, pairs.item, of_features)
    q, k, query = (None if t is None else t.transpose(0, 1) for t in (of_q, of_k, of_query))
    value = of_v.transpose(0, 1)
    return Gradients(q, k, value, weight, bias, sink, edge_key, None, edge_attr, query, edge_weight)


class _Given:
    """The kernels for some inputs, and the inputs as these take them.

    Attributes:
        module: `loops`, with its constants.
        bounds: of the pieces of the queries.
        queries, keys, weight, arguments, numbers: arguments of kernels, in their order.
        bytes_of_signs: of a pair.
    """

    def __init__(self, x: Inputs, pairs: Pairs) -> None:
        v, heads = x.v, x.heads
        key_share, value_share = (1 if t is None else heads // len(t) for t in (x.k, v))
        dim = 1 if x.q is None else x.q.shape[-1]
        features = 0 if x.edge_attr is None else x.edge_attr.shape[1]
        together = _together(heads, max(dim, v.shape[-1]), features, key_share, value_share)
        self.heads, self.blocks = heads, heads // together
        self.bytes_of_signs = self.blocks * ((together * dim + 7) // 8)
        compiled: Any = import_module("attention_core.backends.fast.compiled")
        self.module = compiled.kernel(
            "attention_core.backends.edges.loops",
            KIND=x.score,
            DIM=dim,
            VALUE_DIM=v.shape[-1],
            HEADS=together,
            KEY_SHARE=min(key_share, together),
            VALUE_SHARE=min(value_share, together),
            FEATURES=features,
            TERM=x.edge_query is not None or x.edge_weight is not None,
            SUMS=x.edge_sums,
            CAPPED=x.softcap is not None,
            BIASED=x.bias is not None,
            MASKED=x.allowed is not None,
            DROPS=x.keep is not None,
            DTYPE=str(v.dtype).removeprefix("torch."),
        )
        start, nothing = pairs.start.numpy(), v.new_empty(0, dtype=torch.uint8)
        self.bounds = threads.cut(start)
        self.queries, self.keys = _rows(x.q, v), _rows(x.k, v)
        self.weight = _flat(x.weight, v), float(x.slope)
        of_key = None
        if x.edge_weight is not None:  # (Hkv, D, F) as (F, H · D)
            of_key = x.edge_weight.repeat_interleave(key_share, 0).flatten(0, 1).T
        self.arguments = (
            start, pairs.column.numpy(), pairs.item.numpy(), *self.queries, *self.keys,
            *_rows(v, v), *self.weight, _flat(x.edge_attr, v), _by_query(x.edge_query, v),
            _flat(of_key, v), _flat(x.edge_key, v), *_strided(x.bias, v),
            *_strided(x.allowed, nothing), *_strided(x.keep, nothing),
        )  # fmt: skip
        softcap = 0.0 if x.softcap is None else float(x.softcap)
        self.numbers = float(x.scale), softcap, float(x.grow), key_share, value_share

    def run(self, bounds: list[int], kernel: Any, *arguments: Any) -> None:
        """Run a kernel over pieces of rows, for the heads of one vector after the other.

        All rows of some heads first: those of their keys stay in cache, and heads that share a key
        add to its gradient in turn.
        """
        for block in range(self.blocks):
            threads.over(bounds, kernel, block, self.heads, *arguments)


def _together(heads: int, dim: int, features: int, *shares: int) -> int:
    """How many heads a vector holds: what shares a key or value is in one, or fills several."""
    fits = max(min(_VECTOR // dim, 2 * _VECTOR // max(features, 1)), 1)
    return max(
        count
        for count in range(1, heads + 1)
        if heads % count == 0
        and (count <= fits or count == 1)
        and all(count % share == 0 or share % count == 0 for share in shares)
    )


def _flat(x: Tensor | None, like: Tensor) -> Any:
    """The numbers of a tensor one after another; none for None, of the dtype of `like`."""
    return (like.new_empty(0) if x is None else x.detach().reshape(-1)).numpy()


def _rows(x: Tensor | None, like: Tensor) -> tuple[Any, int]:
    """The numbers of x (H, N, D) by token, and how far tokens are apart: no copy, where those of a
    token are together, as projections leave them."""
    if x is None or not x.numel():
        return _flat(None, like), 0
    heads, tokens, dim = x.shape
    rows = x.detach().transpose(0, 1)
    together = (dim == 1 or rows.stride(2) == 1) and (heads == 1 or rows.stride(1) == dim)
    if not together:
        rows = rows.contiguous()
    step = rows.stride(0) if tokens > 1 else heads * dim
    return rows.as_strided(((tokens - 1) * step + heads * dim,), (1,)).numpy(), step


def _by_query(x: Tensor | None, like: Tensor) -> Any:
    return _flat(None if x is None else x.transpose(0, 1), like)


def _by_token(x: Tensor) -> Tensor:
    """Room for the gradient of x (H, N, D), as (N, H, D)."""
    return x.new_empty(x.shape[1], x.shape[0], x.shape[2])


def _strided(x: Tensor | None, like: Tensor) -> tuple[Any, int, int]:
    """The numbers of x (H, E), bool as bytes, and how far heads and pairs are apart."""
    if x is None:
        return _flat(None, like), 0, 0
    x = x.detach().view(torch.uint8) if x.dtype == torch.bool else x.detach()
    heads, count = x.shape
    by_head, by_pair = x.stride()
    span = (heads - 1) * by_head + (count - 1) * by_pair + 1
    return x.as_strided((span,), (1,)).numpy(), by_head, by_pair
