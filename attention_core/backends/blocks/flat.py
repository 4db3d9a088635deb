"""Blocks as a few tensors, whatever their number, for programs that are compiled.

An operator that takes lists is compiled for their length and for the sizes of what is in them, and
the next batch has other blocks. Here the tensors of all groups lie end to end, and their sizes are
numbers in one more tensor.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attention_core.backends.blocks.chunks import Blocks
from attention_core.backends.blocks.operator import block_attention, block_attention_backward
from attention_core.lasting import version

#: What groups hold, in the order of the arguments of `block_attention`.
_NAMES = ("added", "empty_rows", "pattern", "index", "queries", "keys")
#: Sizes that are written of each tensor: how many there are, and at most four.
_SIZES = 5
#: Numbers, and rows of the layout, that mean nothing: torch.compile makes programs of their own for
#: tensors of no or one number.
_FRONT = 2


@dataclass
class Flat:
    """Hold all groups of an attention.

    Attributes:
        tensors: one for each name, 1-D, after two numbers that mean nothing.
        layout: (2 + groups, 6 · 5 + 2) on the CPU: of each group the sizes of its tensors and both
            runs, after two rows that mean nothing.
    """

    tensors: tuple[Tensor, ...]
    layout: Tensor

    @classmethod
    def of(cls, groups: Sequence[Blocks], like: Tensor) -> Flat:
        """Lay the groups out; what is added has the dtype and device of `like`."""
        dtypes = (like.dtype, torch.bool, torch.int64, torch.int32, torch.int64, torch.int64)
        tensors = []
        for name, dtype in zip(_NAMES, dtypes, strict=True):
            given = [getattr(one, name) for one in groups]
            parts = [x.flatten() for x in given if x is not None]
            tensors.append(torch.cat([like.new_zeros(_FRONT, dtype=dtype), *parts]))
        rows = [[0] * (len(_NAMES) * _SIZES + 2)] * _FRONT
        rows += [[*_sizes(one), one.query_run, one.key_run] for one in groups]
        return cls(tuple(tensors), torch.tensor(rows))


def _sizes(blocks: Blocks) -> list[int]:
    found: list[int] = []
    for name in _NAMES:
        x = getattr(blocks, name)
        shape = [-1] if x is None else [x.ndim, *x.shape]
        found += shape + [0] * (_SIZES - len(shape))
    return found


_groups: dict[int, tuple[weakref.ref[Tensor], tuple[Any, ...]]] = {}
_KEPT = 16


def _unpacked(layout: Tensor, *tensors: Tensor) -> tuple[Any, ...]:
    """The lists of `block_attention`: six of tensors, and the runs. They are the same objects each
    time, as long as the layout is, since what kernels lay out is kept for objects."""
    found = _groups.get(id(layout))
    versions = map(version, tensors)
    pointers = tuple(zip((x.data_ptr() for x in tensors), versions, strict=True))
    if found is not None and found[0]() is layout and found[1][0] == pointers:
        return found[1][1]
    rows = layout.tolist()[_FRONT:]
    lists: list[list[Tensor]] = []
    for n, flat in enumerate(tensors):
        own, start = [], _FRONT
        for row in rows:
            ndim, *shape = row[n * _SIZES : (n + 1) * _SIZES]
            if ndim < 0:
                own.append(flat.new_empty(0))
                continue
            size = math.prod(shape[:ndim])
            own.append(flat[start : start + size].view(shape[:ndim]))
            start += size
        lists.append(own)
    groups = (*lists, [run for row in rows for run in row[-2:]])
    key = id(layout)
    _groups[key] = weakref.ref(layout, lambda _: _groups.pop(key, None)), (pointers, groups)
    for oldest in list(_groups)[:-_KEPT]:
        _groups.pop(oldest, None)
    return groups


@torch.library.custom_op("attention_core::flat_block_attention", mutates_args=())
def flat_block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None,
    added: Tensor,
    empty_rows: Tensor,
    pattern: Tensor,
    index: Tensor,
    queries: Tensor,
    keys: Tensor,
    layout: Tensor,
    seed: Tensor,
    samples: int,
    scale: float,
    softcap: float | None,
    dropout_p: float,
    lse: bool,
    covers_all_queries: bool,
    keys_disjoint: bool,
    products: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Compute what `block_attention` does, of groups as `Flat` lays them out."""
    groups = _unpacked(layout, added, empty_rows, pattern, index, queries, keys)
    out, all_lse = block_attention(
        q, k, v, sink, *groups, seed, samples, scale, softcap, dropout_p, lse, covers_all_queries,
        keys_disjoint, products,
    )  # fmt: skip
    return out.contiguous(), all_lse.contiguous()


@flat_block_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:3], v.shape[-1]), q.new_empty(q.shape[:3])


@torch.library.custom_op("attention_core::flat_block_attention_backward", mutates_args=())
def flat_block_attention_backward(
    grad: Tensor,
    grad_lse: Tensor | None,
    all_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None,
    added: Tensor,
    empty_rows: Tensor,
    pattern: Tensor,
    index: Tensor,
    queries: Tensor,
    keys: Tensor,
    layout: Tensor,
    seed: Tensor,
    samples: int,
    scale: float,
    softcap: float | None,
    dropout_p: float,
    covers_all_queries: bool,
    keys_disjoint: bool,
    products: torch.dtype,
    learned: bool,
) -> list[Tensor]:
    """Compute the gradients of q, k, v, the sink and `added`; empty where there is none."""
    groups = _unpacked(layout, added, empty_rows, pattern, index, queries, keys)
    learn = [learned and one.numel() > 0 for one in groups[0]]
    *first, grad_sink, of_added = _split(
        block_attention_backward(
            grad, grad_lse, all_lse, q, k, v, sink, *groups, seed, samples, scale, softcap,
            dropout_p, covers_all_queries, keys_disjoint, products, learn,
        )
    )  # fmt: skip
    parts = [x.flatten() for x, learns in zip(of_added, learn, strict=True) if learns]
    flat = torch.cat([added.new_zeros(_FRONT), *parts]) if learned else added.new_empty(0)
    return [*(x.contiguous() for x in first), grad_sink, flat]


def _split(found: list[Tensor]) -> tuple[Any, ...]:
    return (*found[:4], found[4:])


@flat_block_attention_backward.register_fake
def _(grad: Tensor, grad_lse: Any, all_lse: Any, q: Tensor, k: Tensor, v: Tensor,
      sink: Tensor | None, added: Tensor, *rest: Any) -> list[Tensor]:  # fmt: skip
    like = [q.new_empty(x.shape) for x in (q, k, v)]
    of_sink = q.new_empty(0 if sink is None else sink.shape)
    return [*like, of_sink, q.new_empty(added.shape if rest[-1] else 0)]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, samples, scale, softcap, dropout_p, _, covers, disjoint, products = inputs
    ctx.save_for_backward(output[1], *tensors)
    ctx.numbers = samples, scale, softcap, dropout_p, covers, disjoint, products
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    lse, q, k, v, sink, added, *rest = ctx.saved_tensors
    if grad is None:
        grad = q.new_zeros(*q.shape[:3], v.shape[-1])
    learned = ctx.needs_input_grad[4]
    of_q, of_k, of_v, of_sink, of_added = flat_block_attention_backward(
        grad, grad_lse, lse, q, k, v, sink, added, *rest, *ctx.numbers, learned
    )
    gradients = of_q, of_k, of_v, None if sink is None else of_sink
    return *gradients, of_added if learned else None, *(None,) * 15


flat_block_attention.register_autograd(_differentiate, setup_context=_remember)
