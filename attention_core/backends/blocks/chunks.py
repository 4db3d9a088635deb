"""Blocks a few at a time: what they gather, their scores, and where results go.

On a CPU such a chunk fits into the cache, and its tensors are written to the same memory as those
of the chunk before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

#: Numbers in a chunk, its scores and its tokens: fewer cost calls, more fall out of the cache.
_CHUNK = 1 << 20
_CHUNK_CUDA = 1 << 26
#: Units of a chunk come in multiples of this, so that threads share them out evenly.
_EVEN = 4
#: Chunks whose indices are computed together.
_AHEAD = 16


@dataclass
class Blocks:
    """One group of N blocks of Q queries and M keys, as the kernel wants it.

    Attributes:
        queries, keys: (N, Q / run), (N, M / run) runs of tokens of a head, among the (B · H · L)
            rows of all heads; a run of one is a token. -1 is padding.
        query_run, key_run: tokens of a run.
        pattern: (N,) or (samples · N,) which of `added` is a block's own; None: the only one.
        added: (P, H or 1, Q, M) added to the scores, -inf on what is forbidden; None: nothing.
        empty_rows: (P, H or 1, Q) queries that may attend to nothing; None: there are none.
        index: int32 (P, Q, M) rows of a table, which then is `added` (rows, H); -1 on what is
            forbidden. None: nothing is looked up.
    """

    queries: Tensor
    keys: Tensor
    query_run: int
    key_run: int
    pattern: Tensor | None
    added: Tensor | None
    empty_rows: Tensor | None
    index: Tensor | None = None


@dataclass(frozen=True)
class Settings:
    """Sizes that all groups share: there are `rows` of queries of all heads, `samples` share the
    blocks, a head has `lengths` queries and keys, and a token of a head `width` numbers. Where
    scores are `modified`, a chunk has all heads of its blocks, and nothing is added to them.
    Numbers are multiplied as `products`, and summed as what they are."""

    rows: int
    samples: int
    width: int
    lengths: tuple[int, int]
    softcap: float | None
    dropout_p: float
    modified: bool
    products: torch.dtype


class Chunk(NamedTuple):
    """C units, each a block of one sample with one head of keys and the G of queries that share it.

    Attributes:
        queries: (C · G · Q / run,) rows of runs, padding clamped to one that exists.
        written: the same, padding sent to the row after the last.
        keys: (C · M / run,) rows of runs; padding reads some row, and its scores are -inf.
        pattern, head: (C,) each.
    """

    queries: Tensor
    written: Tensor
    keys: Tensor
    pattern: Tensor
    head: Tensor


class Memory:
    """Memory that chunks use one after the other: the system clears all that is new, slowly."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self._tensors: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Uninitialised; the same memory whenever the name is the same."""
        size = math.prod(shape)
        if name not in self._tensors or len(self._tensors[name]) < size:
            self._tensors[name] = self.like.new_empty(size)
        return self._tensors[name][:size].view(shape)


class Work:
    """The chunks of one group, and what is done to each."""

    def __init__(
        self, blocks: Blocks, heads: tuple[int, int], settings: Settings, memory: Memory
    ) -> None:
        self.blocks, self.settings, self.memory = blocks, settings, memory
        self.kv_heads, self.groups = heads[1], heads[0] // heads[1]
        self.size = blocks.queries.shape[1] * blocks.query_run
        self.reach = blocks.keys.shape[1] * blocks.key_run
        self.rows = settings.rows // blocks.query_run
        #: Whether products are of halves; the scale then comes after them, as it may round one.
        self.halves = settings.products.itemsize < 4

    def __iter__(self) -> Iterator[Chunk]:
        blocks, settings, groups = self.blocks, self.settings, self.groups
        device, count = blocks.queries.device, len(blocks.queries)
        limit = _CHUNK if device.type == "cpu" else _CHUNK_CUDA
        scores, tokens = groups * self.size * self.reach, groups * self.size + self.reach
        step: int = max(limit // max(scores + tokens * self.settings.width, 1), 1)
        if self.settings.modified:
            step = max(step // self.kv_heads, 1) * self.kv_heads
        else:
            step = step // _EVEN * _EVEN or step
        units = settings.samples * count * self.kv_heads
        length, key_length = (
            n // run
            for n, run in zip(settings.lengths, (blocks.query_run, blocks.key_run), strict=True)
        )
        # Another device is not looked at: there all is written as if some were padding
        padded = device.type != "cpu" or bool((blocks.queries < 0).any())
        within = torch.arange(groups, device=device)[:, None] * length
        for ahead in range(0, units, step * _AHEAD):
            unit = torch.arange(ahead, min(ahead + step * _AHEAD, units), device=device)
            head = unit % self.kv_heads
            block = unit // self.kv_heads % count
            sample = unit // (self.kv_heads * count)
            row = sample * self.kv_heads + head
            queries = blocks.queries[block][:, None]
            read = (row * groups * length)[:, None, None] + within + queries.clamp(min=0)
            written = read.where(queries >= 0, self.rows) if padded else read
            keys = (row * key_length)[:, None] + blocks.keys[block].clamp(min=0)
            pattern = torch.zeros_like(block)
            if blocks.pattern is not None:
                each = len(blocks.pattern) > count  # samples differ
                pattern = blocks.pattern[sample * count + block if each else block]
            parts = (x.split(step) for x in (read, written, keys, pattern, head))
            for read, written, keys, pattern, head in zip(*parts, strict=True):
                yield Chunk(read.flatten(), written.flatten(), keys.flatten(), pattern, head)

    def inputs(
        self, chunk: Chunk, q: Tensor, k: Tensor, v: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gather scaled queries (C, G·Q, D), keys (C, M, D), values (C, M, Dv) from rows of
        heads."""
        queries = self.of_queries("query", q, chunk)
        keys, values = (self.of_keys(name, x, chunk) for name, x in (("key", k), ("value", v)))
        return queries if self.halves else queries.mul_(scale), keys, values

    def product(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        """Compute a @ b, in `out` unless products are of halves, which are summed in float32."""
        if not self.halves:
            return torch.bmm(a, b, out=out)
        a, b = a.to(self.settings.products), b.to(self.settings.products)
        if a.device.type == "cuda":  # on tensor cores
            return torch.bmm(a, b, out_dtype=out.dtype)
        return torch.bmm(a.to(out.dtype), b.to(out.dtype))

    def of_queries(self, name: str, rows: Tensor, chunk: Chunk) -> Tensor:
        """Gather rows (..., D) of all heads at the queries of a chunk, (C, G·Q, D)."""
        found = self._gather(name, rows, chunk.queries, self.blocks.query_run)
        return found.view(-1, self.groups * self.size, rows.shape[-1])

    def of_keys(self, name: str, rows: Tensor, chunk: Chunk) -> Tensor:
        """Gather rows (..., D) of all heads at the keys of a chunk, (C, M, D)."""
        found = self._gather(name, rows, chunk.keys, self.blocks.key_run)
        return found.view(-1, self.reach, rows.shape[-1])

    def _gather(self, name: str, rows: Tensor, at: Tensor, run: int) -> Tensor:
        width = rows.shape[-1] * run
        return torch.index_select(
            rows.view(-1, width), 0, at, out=self.memory(name, len(at), width)
        )

    def scores(
        self, chunk: Chunk, q: Tensor, k: Tensor, scale: float
    ) -> tuple[Tensor, Tensor | None]:
        """Compute scores (C, G·Q, M) of what `inputs` gives; and the slope of the cap, if there is
        one."""
        added, softcap = self.blocks.added, self.settings.softcap
        if self.settings.modified:
            added = None
        scores = self.memory("scores", len(q), self.groups * self.size, self.reach)
        if added is not None and softcap is None and not self.halves:  # added as they are written
            if added.shape[1] == 1:
                by_head = scores.view(len(q), self.groups, self.size, self.reach)
                by_head.copy_(self.of_pattern(chunk, added))
            else:  # as rows, which are copied once
                rows = added.view(-1, scores[0].numel())
                at = chunk.pattern * self.kv_heads + chunk.head
                torch.index_select(rows, 0, at, out=scores.view(len(q), -1))
            return scores.baddbmm_(q, k.mT), None
        scores, slope = self.product(q, k.mT, scores), None
        if self.halves:
            scores.mul_(scale)
        if softcap is not None:
            bent = scores.div_(softcap).tanh_()
            slope = 1 - bent * bent
            bent.mul_(softcap)
        if added is not None:
            by_head = scores.view(len(q), self.groups, self.size, self.reach)
            by_head.add_(self.of_pattern(chunk, added))
        return scores, slope

    def softmax(self, scores: Tensor) -> Tensor:
        weights = self.memory("weights", *scores.shape)
        return torch.softmax(scores, -1, out=weights)

    def kept(self, weights: Tensor, generator: torch.Generator) -> Tensor:
        """Draw 0 where dropout drops, else 1 / (1 - p); the same in forward and backward."""
        share = 1 - self.settings.dropout_p
        kept = self.memory("kept", *weights.shape)
        return kept.bernoulli_(share, generator=generator).div_(share)

    def of_pattern(self, chunk: Chunk, values: Tensor) -> Tensor:
        """Return the entries of `values`, (P, H or 1, ...), for a chunk: (C or 1, G or 1, ...)."""
        if values.shape[1] == 1:
            return values if self.blocks.pattern is None else values[chunk.pattern]
        return values.unflatten(1, (self.kv_heads, self.groups))[chunk.pattern, chunk.head]

    def add_to_pattern(self, chunk: Chunk, total: Tensor, values: Tensor) -> None:
        """Add `values` (C, G·Q, M) to the entries of `total` that `of_pattern` gives."""
        values = values.view(-1, self.groups, self.size, self.reach)
        if total.shape[1] == 1:
            total.index_add_(0, chunk.pattern, values.sum(1, keepdim=True))
            return
        rows = total.view(-1, *values.shape[1:])
        rows.index_add_(0, chunk.pattern * self.kv_heads + chunk.head, values)

    def silence(
        self, chunk: Chunk, values: Tensor, fill: float = 0.0, empty: Tensor | None = None
    ) -> Tensor:
        """Fill rows of `values` (C, G·Q, ...) that may attend to nothing, in place; return them.

        Args:
            empty: (C, G·Q) which they are; by default those that the blocks know of.
        """
        if empty is None:
            if self.blocks.empty_rows is None:
                return values
            empty = self.of_pattern(chunk, self.blocks.empty_rows)
            empty = empty.expand(len(values), self.groups, self.size).flatten(1)
        return values.masked_fill_(empty.view(*empty.shape, *(1,) * (values.ndim - 2)), fill)

    def left_by(self, sink: Tensor, chunk: Chunk, lse: Tensor) -> Tensor:
        """Return the share of the weight that the sink leaves to the keys, for lse (C, G·Q)."""
        logit = sink.view(-1, self.groups)[chunk.head]
        return left_by_sink(lse, logit.repeat_interleave(self.size, dim=1))


def left_by_sink(lse: Tensor, logit: Tensor) -> Tensor:
    """Return the share of the weight that a sink leaves to keys with a log-sum-exp."""
    # A sink of -inf takes nothing, not even where there are no keys either
    return torch.sigmoid(lse - logit).masked_fill(logit == -torch.inf, 1.0)


def add_rows(total: Tensor, at: Tensor, values: Tensor, run: int) -> None:
    width = total.shape[-1] * run
    total.view(-1, width).index_add_(0, at, values.view(-1, width))


def put_rows(total: Tensor, at: Tensor, values: Tensor, run: int) -> None:
    width = values.shape[-1] * run
    total.view(-1, width).index_copy_(0, at, values.view(-1, width))


def rows_like(q: Tensor, width: int, spare: int, written: bool) -> Tensor:
    """Allocate a row for every row of q (B, H, L, D), and some that take what padding computes."""
    rows = math.prod(q.shape[:-1]) + spare
    # Clearing memory that will be written anyway costs a tenth of small blocks
    return q.new_empty(rows, width) if written else q.new_zeros(rows, width)


def tokens(runs: Tensor, run: int) -> Tensor:
    """Return the rows of single tokens in runs of them."""
    return (runs[:, None] * run + torch.arange(run, device=runs.device)).flatten()
