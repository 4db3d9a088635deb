"""What a plan prepares: the blocks of a job, and what the mask and the bias are in them."""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable

import torch
from torch import Tensor

from attention_core.backends.blocks import fast
from attention_core.backends.blocks.chunks import Blocks
from attention_core.backends.blocks.groups import Group, Patterns, block_key_of, group, patterns
from attention_core.backends.blocks.search import reached
from attention_core.backends.blocks.tiling import choose_sizes, tile
from attention_core.backends.derivatives import refuse_transforms
from attention_core.biases import Bias, Lookup
from attention_core.finite import can_look
from attention_core.job import NO_JOB, Job
from attention_core.lasting import Memory, lasting
from attention_core.score_mods import split
from attention_core.spaces import BlockKey, Pairs
from attention_core.transfer import moved


class Prepared:
    """The blocks of a job.

    Attributes:
        rows: rows of tokens: the batch where its samples sit in different places, else 1.
        local: whether the mask allows what is near.
        groups: blocks by shape.
        runs: the queries and the keys of each group in runs of neighbors, and how many are in one.
        covers_all_queries: whether every query is in a block.
        keys_disjoint: whether every key is in exactly one.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        query, key = job.spaces
        self.rows = job.batch if query.batch is not None or key.batch is not None else 1
        mask, reach = job.mask, None
        if mask is not None:
            if job.all_pairs:
                _probe(job)
            if mask.allows_all(job.spaces):
                mask = None
            else:
                reach = job.mask_bound / max(query.length, 1)
        sizes = choose_sizes(min(query.axes, key.axes), reach)
        self.local = local = reach is not None and reach < math.inf
        queries = tile(query, self.rows, mask, sizes.query, local=local)
        keys = tile(key, self.rows, mask, sizes.key, local=local)
        self.groups: list[Group] = []
        if job.all_pairs and len(queries) and len(keys):
            self.groups = group(queries, keys, reached(job, queries, keys))
        placed = sum(int((group.queries >= 0).sum()) for group in self.groups)
        self.covers_all_queries = placed == self.rows * query.length
        self.keys_disjoint = _in_one_block(self.groups, self.rows * key.length)
        self.runs = [
            (_runs(group.queries, query.length), _runs(group.keys, key.length))
            for group in self.groups
        ]
        self._patterns: dict[tuple[int, bool, bool], Patterns] = {}
        #: Of each group and key of a lookup, the rows of its table and queries without keys.
        self._rows_of_tables: dict[tuple[int, Hashable], tuple[Tensor, Tensor | None]] = {}
        self._memory = Memory()

    def for_job(self, job: Job) -> Prepared:
        """Return what was prepared for another job of the same structure."""
        new = copy.copy(self)
        # Rows may be of types of edges, which another job of the same structure has of its own
        new.job, new._memory, new._rows_of_tables = job, Memory(), {}
        new._patterns = {key: found.in_spaces(job.spaces) for key, found in self._patterns.items()}
        return new

    @property
    def differ(self) -> bool:
        """Whether mask or bias have to be asked about every block, as they depend on anything."""
        terms = [term for term in (self.job.mask, split(self.job.bias)[1]) if term is not None]
        return any(term.block_key(space) is None for term in terms for space in self.job.spaces)

    @lasting
    def patterns(self, number: int, bias: Bias | None) -> Patterns:
        """Return the arrangements of the blocks of a group that the mask and `bias` tell apart."""
        spaces = self.job.spaces
        by_bias = bias is not None and any(bias.block_key(space) is None for space in spaces)
        key = (number, bias is None, by_bias)  # what is known of biases is always their places
        if key not in self._patterns:
            keys: list[BlockKey | None] = [None, None]
            if not by_bias:
                keys = self._memory.memo(bias is None, lambda: self._block_keys(bias))
            self._patterns[key] = patterns(self.job, self.groups[number], self.rows, keys)
        return self._patterns[key]

    def _block_keys(self, bias: Bias | None) -> list[BlockKey | None]:
        query, key = self.job.spaces
        own = block_key_of(query, self.job.mask, bias)
        return [own, own if key is query else block_key_of(key, self.job.mask, bias)]

    def inputs(self, bias: Bias | None, kv_heads: int, dtype: torch.dtype) -> list[Blocks]:
        """Return `blocks`, or blocks whose bias is looked up in a table by the kernels."""
        terms, added = split(bias)
        lookup = None if added is None or terms else self._lookup(added, dtype)
        if added is None or lookup is None:
            return self.blocks(bias, kv_heads, dtype)
        table = lookup.table.to(dtype)
        numbers = range(len(self.groups))
        return [self._looked_up(n, added, lookup, table, kv_heads) for n in numbers]

    def _lookup(self, bias: Bias, dtype: torch.dtype) -> Lookup | None:
        """The table of a bias, where blocks are so different that scores would be too many."""
        found = [self.patterns(n, bias) for n in range(len(self.groups))]
        samples = self.job.batch if self.rows == 1 else 1
        blocks = sum(len(group.queries) for group in self.groups) * samples
        pairs = sum(group.pairs for group in self.groups) * samples * self.job.heads
        if 2 * sum(len(one.pairs.query) for one in found) <= blocks:
            return None
        if torch.compiler.is_compiling() or not fast.looks_up(self.job.device, dtype, pairs):
            return None
        if any(one.by_head for one in found):  # an index is the same for all heads
            return None
        with torch.autocast(self.job.device.type, enabled=False):
            lookup = bias.lookup()
        if lookup is None or not bool(lookup.table.isfinite().all()):
            return None
        bias.check_heads(found[0].pairs)
        refuse_transforms("blocks", (lookup.table,))
        return lookup

    def _looked_up(
        self, number: int, bias: Bias, lookup: Lookup, table: Tensor, kv_heads: int
    ) -> Blocks:
        key = (number, lookup.key)
        found = self._rows_of_tables.get(key)
        if found is None:
            found = self._rows_of(self.patterns(number, bias), lookup)
            if lookup.key is not None:
                self._rows_of_tables[key] = found
        index, empty_rows = found
        return self._block(number, kv_heads, bias, table, empty_rows, index)

    @staticmethod
    @lasting
    def _rows_of(found: Patterns, lookup: Lookup) -> tuple[Tensor, Tensor | None]:
        """The rows of a table for the pairs of a group, and its queries without keys."""
        query, key = found.pairs.query, found.pairs.key
        rows = lookup.rows(found.pairs).to(torch.int32)
        rows = rows.expand(len(query), 1, query.shape[2], key.shape[-1])[:, 0]
        allowed = found.allowed
        if allowed is None:
            return rows.contiguous(), None
        allowed = allowed[:, :1]
        rows, empty = rows.masked_fill(~allowed[:, 0], -1), ~allowed.any(-1)
        return rows, empty if bool(empty.any()) else None

    def blocks(self, bias: Bias | None, kv_heads: int, dtype: torch.dtype) -> list[Blocks]:
        """Return the kernel's input for each group, differentiable in the parameters of `bias`.

        Of a bias that modifies scores, what is added after that.
        """
        bias = split(bias)[1]
        return [self._blocks(n, bias, kv_heads, dtype) for n in range(len(self.groups))]

    def _blocks(self, number: int, bias: Bias | None, kv_heads: int, dtype: torch.dtype) -> Blocks:
        group, found = self.groups[number], self.patterns(number, bias)
        added = empty_rows = None
        if bias is not None:
            full = (*found.pairs.query.shape[:3], found.pairs.key.shape[-1])
            scores = bias(found.pairs).to(dtype)
            refuse_transforms("blocks", (scores,))
            added = scores.expand(torch.broadcast_shapes(scores.shape, full))
        if found.allowed is not None:
            nothing = torch.zeros((), dtype=dtype, device=group.queries.device)
            added = (nothing if added is None else added).masked_fill(~found.allowed, -torch.inf)
        if added is not None:
            added = added.contiguous()
            if bias is None:
                empty_rows = found.empty_rows
            else:  # which may forbid by -inf
                empty = added.detach().amax(-1) == -torch.inf
                # Where nobody may look, it is taken that there may be some
                empty_rows = empty if not can_look(empty) or bool(empty.any()) else None
            if empty_rows is not None:
                added = added.masked_fill(empty_rows[..., None], 0)
        return self._block(number, kv_heads, bias, added, empty_rows)

    def _block(
        self, number: int, kv_heads: int, bias: Bias | None, added: Tensor | None,
        empty_rows: Tensor | None, index: Tensor | None = None,
    ) -> Blocks:  # fmt: skip
        query, key = self.job.spaces
        (queries, query_run), (keys, key_run) = self.runs[number]
        return Blocks(
            self._rows(queries, query.length // query_run, self.job.heads),
            self._rows(keys, key.length // key_run, kv_heads),
            query_run,
            key_run,
            self.patterns(number, bias).of_block,
            added,
            empty_rows,
            index,
        )

    def _rows(self, runs: Tensor, length: int, heads: int) -> Tensor:
        """The place of each run of the first head among those of all heads; padding stays -1."""
        if self.rows == 1:
            return runs
        places = runs + runs // length * ((heads - 1) * length)
        return places.where(runs >= 0, runs)


def prepare(job: Job) -> Prepared:
    """Find the blocks and what is allowed in them, on the host where that is known, and move both
    to the device at once."""
    prepared = find(job)
    for number in range(len(prepared.groups)):
        prepared.patterns(number, split(job.bias)[1])
    if prepared.job is job:
        return prepared
    return moved(prepared.for_job(NO_JOB), job.device).for_job(job)


def find(job: Job) -> Prepared:
    """Return the blocks of a job on the host, found once."""
    job = job.host
    if "blocks" not in job.notes:
        job.notes["blocks"] = Prepared(job)
    prepared: Prepared = job.notes["blocks"]
    return prepared


def _in_one_block(groups: list[Group], keys: int) -> bool:
    """Whether each of the keys is in one block, and no block has padding among its keys."""
    if sum(group.keys.numel() for group in groups) != keys:
        return False
    found = torch.cat([group.keys.flatten() for group in groups]) if groups else torch.zeros(0)
    return bool((found >= 0).all()) and len(found.unique()) == keys


def _probe(job: Job) -> None:
    """Asks the mask about one pair: what it cannot serve, it refuses in its own words."""
    first = torch.zeros(1, dtype=torch.long, device=job.device)
    shape = (job.batch, job.heads, job.spaces[0].length, job.spaces[1].length)
    # Distances that are searched are many to know, and no mask refuses one
    distance = first if job.spaces[1].searched else None
    job.allowed(
        Pairs(
            job.spaces,
            shape=shape,
            batch=first,
            head=first,
            query=first,
            key=first,
            distance=distance,
        )
    )


def _runs(tokens: Tensor, length: int) -> tuple[Tensor, int]:
    """Tokens (N, M) as runs of neighbors that start at a multiple of their number, and that number.

    Rows of many tokens are gathered faster than many rows.
    """
    for run in (64, 16, 4):
        if length % run == 0 and tokens.shape[1] % run == 0:
            runs = tokens.unflatten(1, (-1, run))
            first = runs[..., 0]
            steps = torch.arange(run, device=tokens.device)
            if bool((first % run == 0).all()) and bool((runs == first[..., None] + steps).all()):
                return first // run, run
    return tokens, 1
