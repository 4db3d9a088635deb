"""Sums and products over pairs in compressed sparse rows, none of them with a feature per pair.

Chosen by measurement (800,000 pairs, 50,000 tokens, heads of 8, one core, per head): products
sampled at the pairs take 2.7 ms, where gather, multiply and sum in chunks take 6.6; weighted sums
by `embedding_bag` take 1.5 ms, and a gather alone would take 2. For features of edges, which no two
pairs share, it is the other way round: chunks of all heads together, since gathering a row of H·D
numbers is far faster than H rows of D, take a half of it, and their gradient a seventh.
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
#: On a GPU, which has caches of its own and takes a while to start anything (128 MiB).
_GPU_CHUNK = 1 << 25


class Pairs(NamedTuple):
    """The tensors of a `CSR`, and of its transpose where a gradient is needed.

    Attributes:
        start, row, column: as in `CSR`.
        item: (E,) the row of each pair in features of edges.
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

    def products(self, a: Tensor, b: Tensor, edge: Tensor | None) -> Tensor:
        """Compute (H, E) products of a (H, rows, D) with b (Hkv, columns, D) plus edge (M, Hkv,
        D)."""
        found = a.new_zeros(len(a), len(self.row))
        for head, products in enumerate(found):
            sample(self.start, self.column, a[head], b[head * len(b) // len(a)], products, self.row)
        if edge is not None:
            tokens = a.transpose(0, 1).contiguous()
            for chunk in self.chunks(tokens[0].numel()):
                some = tokens.index_select(0, self.row[chunk]).unflatten(1, (len(b), -1))
                some *= edge.index_select(0, self.item[chunk])[:, :, None]
                found[:, chunk] += some.sum(-1).flatten(1).T
        return found

    def sums(self, weight: Tensor, x: Tensor, edge: Tensor | None) -> Tensor:
        """Compute (rows, H, D) sums over the pairs of each query.

        Of weight (H, E) times the key's row in x (Hkv, columns, D) plus edge (M, Hkv, D).
        """
        share = len(weight) // len(x)
        found = torch.stack(
            [bag(self.column, x[h // share], self.start, w) for h, w in enumerate(weight)], dim=1
        )
        if edge is not None:
            for chunk in self.chunks(found[0].numel()):
                factor = weight[:, chunk].T.unflatten(1, (-1, share, 1))
                some = edge.index_select(0, self.item[chunk])[:, :, None] * factor
                add_rows(found, self.row[chunk], some)
        return found

    def outer(self, weight: Tensor, x: Tensor, like: Tensor) -> Tensor:
        """Compute (M, Hkv, D) as `like`: weight (H, E) times the query's row in x (H, rows, D), by
        item.

        The heads that share a key are summed.
        """
        total = like.new_zeros(like.shape)
        tokens = x.transpose(0, 1).contiguous()
        for chunk in self.chunks(tokens[0].numel()):
            some = tokens.index_select(0, self.row[chunk]).mul_(weight[:, chunk].T[..., None])
            add_rows(total, self.item[chunk], some.unflatten(1, (like.shape[1], -1)).sum(2))
        return total

    def sum_by_key(self, weight: Tensor, x: Tensor, groups: int) -> Tensor:
        """Compute (columns, groups, D) sums over pairs of each key: weight (H, E) times x (H, rows,
        D).

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
        """Sum x (H, E) by query, (H, rows)."""
        return _reduce(x, self.start, "sum")

    def top(self, x: Tensor) -> Tensor:
        """Return (H, rows) maxima of x (H, E); -inf where a query has no pair."""
        return _reduce(x, self.start, "max")

    def total_by_key(self, x: Tensor) -> Tensor:
        """Sum x (H, E) by key, (H, columns)."""
        assert self.key_start is not None
        return _reduce(self.by_key(x), self.key_start, "sum")

    def by_key(self, x: Tensor) -> Tensor:
        """Put x (H, E) in the order of the keys."""
        assert self.pair is not None
        return x.index_select(1, self.pair)

    def of_rows(self, x: Tensor) -> Tensor:
        """Return (H, E) from x (H, rows), the number of each pair's query."""
        return x.index_select(1, self.row)

    def chunk_length(self, width: int) -> int:
        """Return how many pairs of `width` numbers are a chunk."""
        return max((_GPU_CHUNK if self.row.is_cuda else _CHUNK) // max(width, 1), 1)

    def chunks(self, width: int) -> Iterator[slice]:
        """Yield the pairs, a chunk at a time."""
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


def sample(
    start: Tensor, column: Tensor, a: Tensor, b: Tensor, total: Tensor, row: Tensor | None = None
) -> None:
    """Add to total (E,) the products of the rows of a (rows, D) and of b (columns, D).

    A pair that comes twice is two products: only the check of invariants, which is off, knows that
    it does not belong in a sparse tensor.

    Args:
        start, column, row: of the pairs, as in `Pairs`.
    """
    if row is not None and len(row) > len(a) * len(b):  # more than torch lets such a tensor hold
        total += (a @ b.mT).flatten().index_select(0, row * len(b) + column)
        return
    _hush()
    with torch.sparse.check_sparse_tensor_invariants(False):
        out = torch.sparse_csr_tensor(start, column, total, (len(a), len(b)))
        torch.sparse.sampled_addmm(out, a, b.mT, out=out)


def bag(index: Tensor, x: Tensor, start: Tensor, weight: Tensor | None = None) -> Tensor:
    """Sum the rows of x that `index` names, weighted, from each `start` to the next."""
    return embedding_bag(
        index, x, start, mode="sum", per_sample_weights=weight, include_last_offset=True
    )


def add_rows(total: Tensor, index: Tensor, rows: Tensor) -> None:
    """Add rows (C, ...) to those of total (N, ...) that `index` names, which may come twice."""
    if total.is_cuda:  # where this one is deterministic if that is asked for
        total.index_add_(0, index, rows.reshape(-1, *total.shape[1:]))
        return
    # Twice as fast as index_add_
    at = index.long()[:, None].expand(-1, total[0].numel())
    total.view(len(total), -1).scatter_add_(0, at, rows.flatten(1))


def by_token(x: Tensor) -> Tensor:
    """Allocate room for x (H, N, D), laid out as (N, H, D): as projections around attention."""
    return x.new_empty(x.shape[1], x.shape[0], x.shape[2])
