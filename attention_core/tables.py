"""Scores of pairs that are numbers of a learned table, and how its gradient is added up.

There are as many pairs as tokens squared, and few rows: what each row gets is a long sum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from attention_core.backends.derivatives import transformed
from attention_core.spaces import Pairs


def by_head(table: Tensor, row: Tensor, head: Tensor) -> Tensor:
    """Return ``table[row, head]`` for a table (rows, H) and indices that broadcast to each other.

    Where heads have a dimension of their own, whole rows are taken: as is their gradient, at a
    fraction of the cost of one number at a time.
    """
    axis = [n for n in range(head.ndim) if head.shape[n] == head.numel()]
    if not axis or head.numel() == 1:
        return table[row, head]
    place = axis[0] - head.ndim  # counted from the end, as indices broadcast
    if row.ndim >= -place:
        if row.shape[place] != 1:
            return table[row, head]
        row = row.squeeze(place)
    else:
        row = row[(None,) * (-place - 1 - row.ndim)]
    table = table.index_select(1, head.flatten())
    if transformed():  # torch.compile takes no `_Rows` that would know tangents and vmap
        return nn.functional.embedding(row, table).movedim(-1, place)
    rows: Tensor = _Rows.apply(table, row)
    return rows.movedim(-1, place)


class _Rows(torch.autograd.Function):
    """Rows (..., H) of a table (rows, H), whose gradient is added up in one order, always.

    On a CPU it is added up head by head, which is ten times as fast as row by row: rows are short,
    and there are as many as pairs. On a GPU as that of an embedding is, where many threads share
    the pairs of one row; `index_put` adds those up one after the other.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, row: Tensor) -> Tensor:
        ctx.save_for_backward(row)
        ctx.rows = table.shape[0]  # may be a symbol of an exported program
        return nn.functional.embedding(row, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (row,) = ctx.saved_tensors
        if grad.device.type != "cpu":
            of_rows = torch.ops.aten.embedding_dense_backward(grad, row, ctx.rows, -1, False)
            return of_rows, None
        row, by_head = row.flatten(), grad.flatten(0, -2).unbind(-1)
        totals = [grad.new_zeros(ctx.rows).index_add(0, row, of_head) for of_head in by_head]
        return torch.stack(totals, dim=-1), None


def by_offset(table: Tensor, row: Tensor, pairs: Pairs) -> Tensor:
    """Return ``table[row of their offset, head]`` for all pairs, (1, H, Lq, Lk).

    The gradient of a row is that of the diagonals that it is on: a sum of whole rows of numbers,
    in one order, always.

    Args:
        table: (rows, H).
        row: (Lq + Lk - 1,) the row of each offset, as those of `pairs.by_offset`.
        pairs: all pairs of two rows of tokens.
    """
    _, _, queries, keys = pairs.shape
    table = table.index_select(1, pairs.head.flatten())
    values: Tensor = _Rows.apply(table, row)
    on_diagonals: Tensor = _Diagonals.apply(values.mT, queries, keys)
    return on_diagonals[None]


class _Diagonals(torch.autograd.Function):
    """A matrix (H, Lq, Lk) with one of the values (H, Lq + Lk - 1) along each diagonal."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, queries: int, keys: int) -> Tensor:
        return values.unfold(-1, keys, 1).flip(-2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        heads, queries, keys = grad.shape
        width = queries + keys - 1
        # Each row one place further to the left than the one above: diagonals become columns
        if torch.is_grad_enabled():  # for second derivatives
            shifted = pad(pad(grad, (0, queries - 2)).flatten(1), (queries - 1, 1))
            return shifted.unflatten(1, (queries, width)).sum(1), None, None
        # One head after the other in the same memory on a CPU, where it then stays in the cache
        together = 1 if grad.device.type == "cpu" else heads
        memory = grad.new_zeros(together, queries, width)
        rows = memory.as_strided(
            (together, queries, keys), (queries * width, width - 1, 1), queries - 1
        )
        sums = []
        for part in grad.split(together):
            rows.copy_(part)
            sums.append(memory.sum(1))
        return torch.cat(sums), None, None
