"""A list of pairs in compressed sparse rows, and its transpose."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attention_core.checks import may_look
from attention_core.lasting import computed, lasting


class Transpose(NamedTuple):
    """The pairs sorted by key: what a gradient of keys and values sums over.

    Attributes:
        start: (keys + 1,) the first pair of each key.
        row: (E,) the query of each pair.
        pair: (E,) where the pair is in the list sorted by query.
    """

    start: Tensor
    row: Tensor
    pair: Tensor


class CSR:
    """E pairs of a query (row) and a key (column), sorted by query; a pair may come twice.

    Args:
        row, column: (E,) integers, the query and the key of each pair, in any order.
        rows, columns: number of queries and of keys.

    Attributes:
        start: (rows + 1,) the first pair of each query.
        row, column: (E,) sorted by row, and in the given order inside a row.
        item: (E,) where each sorted pair stood in what was given.

    Indices are int32 where they fit: half the traffic of int64, which is much of the time where
    heads are small.
    """

    @lasting
    def __init__(self, row: Tensor, column: Tensor, rows: int, columns: int) -> None:
        largest = max(len(row), rows, columns)
        dtype = torch.int32 if largest < torch.iinfo(torch.int32).max else torch.int64
        row, column = row.to(dtype), column.to(dtype)
        self.rows, self.columns = rows, columns
        # Elsewhere it takes less to sort once more than to wait for the answer
        if not may_look(row) or bool((row[1:] < row[:-1]).any()):
            self.row, item = row.sort(stable=True)
            self.column, self.item = column[item], item.to(dtype)
        else:
            self.row, self.column = row, column
            self.item = torch.arange(len(row), dtype=dtype, device=row.device)
        self.start = _starts(self.row, rows)

    def __len__(self) -> int:
        return len(self.row)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of the operators: start, row, column."""
        return [self.start, self.row, self.column]

    @computed
    def transpose(self) -> Transpose:
        """These pairs sorted by key, computed once, when the first gradient asks for it."""
        column, pair = self.column.sort(stable=True)
        pair = pair.to(self.row.dtype)
        return Transpose(_starts(column, self.columns), self.row[pair], pair)


def _starts(index: Tensor, count: int) -> Tensor:
    """Where each of 0 to `count` - 1 begins in what is sorted, and where the last one ends."""
    if not may_look(index):  # where bincount would wait for the largest
        ends = torch.arange(count + 1, dtype=index.dtype, device=index.device)
        return torch.searchsorted(index, ends, out_int32=index.dtype == torch.int32)
    starts = index.new_zeros(count + 1)
    starts[1:] = torch.bincount(index, minlength=count).cumsum(0)
    return starts


def count_each(index: Tensor, count: int) -> Tensor:
    """Count how often each of 0 to `count` - 1 is in `index`, (count,) int64."""
    if not may_look(index):  # where bincount's size would depend on values
        return index.new_zeros(count, dtype=torch.int64).index_add(
            0, index, torch.ones_like(index, dtype=torch.int64)
        )
    return torch.bincount(index, minlength=count)
