"""Sums and products over pairs in compressed sparse rows, none of them with a feature per pair.

Chosen by measurement (800,000 pairs, 50,000 tokens, heads of 8, one core, per head): products
sampled at the pairs take 2.7 ms, where gather, multiply and sum in chunks take 6.6; weighted sums
by `embedding_bag` take 1.5 ms, and a gather alone would take 2.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

#: Numbers of a chunk (4 MiB of float32). Smaller ones stay in cache but start more parallel
#: regions, and with another process on the machine each of those waits for the slowest thread.
_CHUNK = 1 << 20


class Pairs(NamedTuple):
    """The tensors of a `CSR`, and of its transpose where a gradient is needed.

    Attributes:
        start, row, column, item: as in `CSR`.
        columns: number of keys.
        key_start, key_row, pair: start, row and pair of the `Transpose`.
    """

    start: Tensor
    row: Tensor
    column: Tensor
    item: Tensor
    columns: int
    key_start: Tensor | None = None
    key_row: Tensor | None = None
    pair: Tensor | None = None

    @property
    def rows(self) -> int:
        return len(self.start) - 1

    def _sample(self, a: Tensor, b: Tensor, column: Tensor, total: Tensor) -> None:
        """Add to total (E,) the products of the rows of a and those of b (M, D) at `column` (E,).

        A pair that comes twice is two products: only the check of invariants, which is off, knows
        that it does not belong in a sparse tensor.
        """
        if len(column) > len(a) * len(b):  # more than torch lets such a tensor hold
            total += (a @ b.mT).flatten().index_select(0, self.row * len(b) + column)
            return
        _hush()
        with torch.sparse.check_sparse_tensor_invariants(False):
            out = torch.sparse_csr_tensor(self.start, column, total, (len(a), len(b)))
            torch.sparse.sampled_addmm(out, a, b.mT, out=out)

    def products(self, a: Tensor, b: Tensor, edge: Tensor | None) -> Tensor:
        """(H, E) products of a (H, rows, D) with b (Hkv, columns, D) plus edge (E, Hkv, D)."""
        found = a.new_zeros(len(a), len(self.row))
        for head, products in enumerate(found):
            group = head * len(b) // len(a)
            self._sample(a[head], b[group], self.column, products)
            if edge is not None:
                self._sample(a[head], edge[:, group].contiguous(), self.item, products)
        return found

    def sums(self, weight: Tensor, x: Tensor, edge: Tensor | None) -> Tensor:
        """(rows, H, D) sums over the pairs of each query.

        Of weight (H, E) times the key's row in x (Hkv, columns, D) plus edge (E, Hkv, D).
        """
        found = []
        for head, weights in enumerate(weight):
            group = head * len(x) // len(weight)
            found.append(bag(self.column, x[group], self.start, weights))
            if edge is not None:
                found[-1] += bag(self.item, edge[:, group].contiguous(), self.start, weights)
        return torch.stack(found, dim=1)

    def outer(self, weight: Tensor, x: Tensor, like: Tensor) -> Tensor:
        """(E, Hkv, D) as `like`: weight (H, E) times the query's row in x (H, rows, D), by item.

        The heads that share a key are summed.
        """
        total = torch.zeros_like(like)
        for head, weights in enumerate(weight):
            of_group = total[:, head * like.shape[1] // len(x)]
            for chunk in self.chunks(x.shape[-1]):
                some = x[head].index_select(0, self.row[chunk]).mul_(weights[chunk, None])
                of_group.index_add_(0, self.item[chunk], some)
        return total

    def sum_by_key(self, weight: Tensor, x: Tensor, groups: int) -> Tensor:
        """(columns, groups, D) sums over the pairs of each key: weight (H, E) times x (H, rows, D).

        The heads that share a key are summed.
        """
        assert self.key_start is not None and self.key_row is not None
        sums: list[Tensor] = []
        weight = self.by_key(weight)
        for head in range(len(x)):
            found = bag(self.key_row, x[head], self.key_start, weight[head])
            if head % (len(x) // groups):
                sums[-1] += found
            else:
                sums.append(found)
        return torch.stack(sums, dim=1)

    def total(self, x: Tensor) -> Tensor:
        """(H, rows) sums of x (H, E)."""
        return _reduce(x, self.start, "sum")

    def top(self, x: Tensor) -> Tensor:
        """(H, rows) maxima of x (H, E); -inf where a query has no pair."""
        return _reduce(x, self.start, "max")

    def total_by_key(self, x: Tensor) -> Tensor:
        """(H, columns) sums of x (H, E)."""
        assert self.key_start is not None
        return _reduce(self.by_key(x), self.key_start, "sum")

    def by_key(self, x: Tensor) -> Tensor:
        """x (H, E) in the order of the keys."""
        assert self.pair is not None
        return x.index_select(1, self.pair)

    def of_rows(self, x: Tensor) -> Tensor:
        """(H, E) from x (H, rows), the number of each pair's query."""
        return x.index_select(1, self.row)

    @staticmethod
    def chunk_length(width: int) -> int:
        """How many pairs of `width` numbers are a chunk."""
        return max(_CHUNK // max(width, 1), 1)

    def chunks(self, width: int) -> Iterator[slice]:
        """The pairs, a chunk at a time."""
        step = self.chunk_length(width)
        for first in range(0, len(self.row), step):
            yield slice(first, min(first + step, len(self.row)))


def _reduce(x: Tensor, start: Tensor, how: str) -> Tensor:
    offsets = start.expand(len(x), -1).contiguous()
    return torch.segment_reduce(x, how, offsets=offsets, axis=1, unsafe=True)


@cache
def _hush() -> None:
    """Have torch say its one warning, that sparse CSR tensors are in beta, to no one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.eye(1).to_sparse_csr()


def bag(index: Tensor, x: Tensor, start: Tensor, weight: Tensor) -> Tensor:
    """Sums of the rows of x that `index` names, weighted, from each `start` to the next."""
    return embedding_bag(
        index, x, start, mode="sum", per_sample_weights=weight, include_last_offset=True
    )


def by_token(x: Tensor) -> Tensor:
    """Room for x (H, N, D), laid out as (N, H, D): as the projections around attention have it."""
    return x.new_empty(x.shape[1], x.shape[0], x.shape[2])
