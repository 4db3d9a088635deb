"""Blocks of queries, each with the keys that it can reach: cost follows the allowed pairs.

The plan cuts the tokens into compact tiles (`tiling`), finds which tiles of keys each tile of
queries can reach (`search`), puts blocks of one shape together (`groups`), and looks at the mask
and the bias once for all blocks that are arranged alike. No tensor of all pairs is ever built.

An example, `Sequence(256)` under `Causal() & Neighborhood(32)`, for which 7,920 of the 65,536 pairs
are allowed. Tiles hold 32 tokens. The first tile of queries reaches one tile of keys, each other
one its own and that before it, so there are two shapes of blocks:

    group       queries     keys        pairs     allowed, for all blocks of the group
    1 block     (1, 32)     (1, 32)      1,024    (1, 1, 32, 32)
    7 blocks    (7, 32)     (7, 64)     14,336    (1, 1, 32, 64)

The seven are arranged alike, so the mask is asked about one of them. The kernel gathers runs of 16
neighbors, the queries of the seven as (7, 2) and the keys as (7, 4), and computes scores (32, 64)
for each head of each block: 15,360 pairs where `dense` has 65,536.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable

import torch
from torch import Tensor

from attention_core.backends import (
    dense,
    edges,
    fast as switch,
    measured,
    reference,
    roofline,
)
from attention_core.backends.blocks import fast
from attention_core.backends.blocks.chunks import Blocks
from attention_core.backends.blocks.flat import Flat, flat_block_attention
from attention_core.backends.blocks.groups import (
    Group,
    Listed,
    Patterns,
    block_key_of,
    group,
    patterns,
)
from attention_core.backends.blocks.layout import LANES
from attention_core.backends.blocks.modified import Call, modified_attention
from attention_core.backends.blocks.mods import Mods
from attention_core.backends.blocks.operator import block_attention
from attention_core.backends.blocks.search import reached
from attention_core.backends.blocks.tiling import choose_sizes, tile
from attention_core.backends.costs import Rate, mask_cost, modify_cost
from attention_core.backends.derivatives import refuse_transforms, untouched
from attention_core.biases import Bias, Lookup
from attention_core.finite import can_look
from attention_core.job import NO_JOB, Job, Options, Plan, Result
from attention_core.lasting import Memory, lasting
from attention_core.precision import HALVES
from attention_core.score_mods import split
from attention_core.spaces import BlockKey, Pairs
from attention_core.transfer import moved

#: Of a pair in a block, and of a key that a block gathers.
_PAIR = Rate(1.6, 0.060, 4.6, 0.21)
_KEY = Rate(4.0, 0.25, 16.0, 1.1)
#: With kernels, of a pair of a key and a tile of 16 queries that sees it, and of a query.
_TILE_PAIR = Rate(0.45, 0.046, 1.5, 0.17)
_TILE_QUERY = Rate(50.0, 2.9, 120.0, 7.5)
#: How much more a pair takes where the keys of a tile lie apart in memory, as those of points do.
_TILE_SCATTERED = 2.2
#: Finding the blocks and calling the kernel, more for each group of blocks, and for each key that a
#: block is found to reach.
_CALL = (1_200_000.0, 2_300_000.0)
_GROUP, _FAST_GROUP = 400_000.0, 100_000.0
_LIST = 80.0
#: To find the blocks of a graph, for each of its pairs, once for all layers.
_SEARCH = 2000.0
#: More for each key of one head that a block of scattered points gathers and gives its gradient by
#: itself, in a forward pass and in both (4,000 and 16,000 points, 40 near each, heads of 8 to 64,
#: one thread of a Xeon with AVX-512); and how many such queries share it at most.
_SCATTERED, _SHARING = (32.0, 480.0), 32
#: About the share of blocks that are arranged in a way of their own, where places repeat.
_ALIKE = 0.1


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
    prepared = _found(job)
    for number in range(len(prepared.groups)):
        prepared.patterns(number, split(job.bias)[1])
    if prepared.job is job:
        return prepared
    return moved(prepared.for_job(NO_JOB), job.device).for_job(job)


def _found(job: Job) -> Prepared:
    """The blocks of a job, found once, on the host."""
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


_OPTIONAL = ("added", "empty_rows", "pattern", "index")


def _given(tensor: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if tensor is None else tensor


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


def unsupported(job: Job) -> str | None:
    if job.score is not None:
        return f"blocks compute dot products, no {type(job.score).__name__} score"
    if job.edge_features:
        return "blocks take keys and values of tokens, no edge features"
    return None


def _by_kernels(job: Job) -> bool:
    """Whether kernels will compute it, as far as the plan can tell."""
    return job.device.type == "cpu" and not job.modifies and switch.installed()


def _seen_by_tiles(job: Job, pairs: float) -> float:
    """About how many of the pairs in blocks are of a key and a tile of 16 queries that sees it."""
    axes, queries = job.spaces[1].axes, job.batch * job.spaces[0].length
    reach = job.count_bound / max(queries, 1)
    if job.mask is None or not axes or not reach:
        return pairs
    # A box of keys around each query, one longer by its side around a tile
    around = (reach ** (1 / axes) + LANES ** (1 / axes) - 1) ** axes
    return min(pairs, queries * around)


def cost(job: Job) -> float:
    if job.device.type == "cuda":
        return roofline.blocks(job)
    measured_by = measured.factor(job, "blocks")
    rate = _TILE_PAIR if _by_kernels(job) else _PAIR
    least = _CALL[job.grad] + rate.of(job) * job.count_bound + modify_cost(job, job.count_bound)
    if _scattered(job) and not _by_kernels(job):
        pairs = _around_tiles(job)
        each = _PAIR.of(job) + job.heads * _SCATTERED[job.grad] / _SHARING
        least = _CALL[job.grad] + each * pairs + modify_cost(job, pairs)
    if job.repeats_edges:
        return measured_by * least  # which is refused when pairs are computed all together
    if job.mask is not None and job.spaces[1].searched:
        least += _SEARCH * job.count_bound  # a graph is searched edge by edge
    others = (other.cost(job) for other in (dense, edges) if not other.unsupported(job))
    if measured_by * least > min(others, default=math.inf):
        return measured_by * least  # finding the blocks would take longer than it could ever save
    prepared = _found(job)
    samples = job.batch if prepared.rows == 1 else 1
    pairs = sum(group.pairs for group in prepared.groups)
    keys = sum(group.keys.numel() for group in prepared.groups)
    alike = _ALIKE if prepared.local and not prepared.differ else 1.0
    scattered = 0.0
    if _scattered(job) and not _by_kernels(job):
        runs = (keys for _, (keys, run) in prepared.runs if run == 1)
        scattered = job.heads * _SCATTERED[job.grad] * sum(keys.numel() for keys in runs)
    return measured_by * (
        _CALL[job.grad]
        + samples * scattered
        + (_FAST_GROUP if _by_kernels(job) else _GROUP) * len(prepared.groups)
        + _LIST * keys
        + _computing(job, samples * pairs, samples * keys, prepared.differ)
        + mask_cost(job, alike * pairs)
        + modify_cost(job, samples * pairs)
    )


def _scattered(job: Job) -> bool:
    """Whether tokens sit anywhere, and each attends to what is near: no two tiles of them have
    pairs alike, and a tile's keys are not next to each other in memory."""
    query = job.spaces[0].coordinates
    local = job.mask is not None and job.count_bound < job.sample_pairs
    return local and query is not None and query.is_floating_point()


def _around_tiles(job: Job) -> float:
    """About how many pairs blocks of scattered points compute at least, of which most are
    forbidden: what is near to one of a compact tile's queries is around all of the tile."""
    query, key = job.spaces
    count, axes = max(job.batch * query.length, 1), max(key.axes, 1)
    width = max(job.count_bound / count, 1.0) ** (1 / axes) - 1
    around = (_SHARING ** (1 / axes) + width) ** axes
    return min(max(count * around, job.count_bound), job.sample_pairs)


def _computing(job: Job, pairs: float, keys: float, differ: bool) -> float:
    if not _by_kernels(job):
        return _PAIR.of(job) * pairs + _KEY.of(job) * keys
    queries = job.batch * job.spaces[0].length
    # Of keys that may lie anywhere, a tile sees about all of its block
    scattered = _scattered(job)
    seen = pairs if differ and not scattered else _seen_by_tiles(job, pairs)
    seen *= _TILE_SCATTERED if scattered else 1.0
    return _TILE_PAIR.of(job) * seen + _TILE_QUERY.of(job) * queries


def describe(job: Job, prepared: Prepared) -> str:
    pairs = sum(group.pairs for group in prepared.groups)
    count = sum(len(group.queries) for group in prepared.groups)
    text = f"{count:,} blocks of queries with the keys that each can reach, {pairs:,} pairs in all"
    return f"{text}{', by kernels in numba' if _by_kernels(job) else ''}."


def share(plan: Plan, bias: Bias | None, kv_heads: int, dtype: torch.dtype) -> None:
    """Compute what calls by a plan share, for programs that are compiled."""
    dtype = torch.promote_types(dtype, torch.float32)
    blocks = _inputs(plan, bias, kv_heads, dtype)
    if not split(bias)[0]:
        like = torch.empty(0, dtype=dtype, device=plan.job.device)
        plan.memo(("flat", bias, kv_heads, dtype), lambda: Flat.of(blocks, like))


def _in_halves(q: Tensor) -> bool:
    """Whether halves are multiplied as they are, and summed in float32, as tensor cores do. A CPU
    without those takes longer so."""
    return q.device.type == "cuda" and q.dtype in HALVES


def _inputs(plan: Plan, bias: Bias | None, kv_heads: int, dtype: torch.dtype) -> list[Blocks]:
    """What the kernel takes of each group, which layers share."""
    prepared: Prepared = plan.prepared
    with torch.autocast(plan.job.device.type, enabled=False):
        return plan.memo(
            ("blocks", bias, kv_heads, dtype), lambda: prepared.inputs(bias, kv_heads, dtype)
        )


def run(plan: Plan, q: Tensor, k: Tensor, v: Tensor, options: Options) -> Result:
    refuse_transforms("blocks", (q, k, v, *(() if options.sink is None else (options.sink,))))
    prepared: Prepared = plan.prepared
    job, bias, kv_heads = plan.job, options.bias, k.shape[1]
    with torch.autocast(q.device.type, enabled=False):
        dtype = torch.promote_types(q.dtype, torch.float32)
        flat: Flat | None = None
        if torch.compiler.is_compiling():
            flat = plan.memo(("flat", bias, kv_heads, dtype), lambda: None)
        blocks = _inputs(plan, bias, kv_heads, dtype) if flat is None else []
        q_own, k_own, v_own = (x.to(dtype) for x in (q, k, v))
        sink = None if options.sink is None else options.sink.to(dtype)
        seed = torch.randint(2**62, ()) if options.dropout_p else torch.zeros((), dtype=torch.long)
        numbers = (
            job.batch if prepared.rows == 1 else 1,
            options.scale,
            options.softcap,
            options.dropout_p,
            options.lse,
            prepared.covers_all_queries,
            prepared.keys_disjoint,
            q.dtype if _in_halves(q) else dtype,
        )
        terms, rest = split(bias)
        if terms:
            refuse_transforms("blocks", (x for term in terms for x in term.tensors()))
            listed = plan.memo("listed", lambda: moved(Listed.of(job.host), job.device))
            mods = Mods(job, terms, listed, adds=rest is not None)
            call = Call(mods, blocks, seed, *numbers)
            output, lse = modified_attention(call, q_own, k_own, v_own, sink)
        elif flat is not None:
            output, lse = flat_block_attention(
                q_own, k_own, v_own, sink, *flat.tensors, flat.layout, seed, *numbers
            )
        else:
            output, lse = block_attention(
                q_own,
                k_own,
                v_own,
                sink,
                *([_given(getattr(group, name), q) for group in blocks] for name in _OPTIONAL),
                [group.queries for group in blocks],
                [group.keys for group in blocks],
                [run for group in blocks for run in (group.query_run, group.key_run)],
                seed,
                *numbers,
            )
        if bias is not None and flat is None and not blocks:
            output = untouched(output, *bias.tensors())
        weights = None
        if options.weights:
            explicit = reference.explicit(plan)
            weights = reference.weigh(plan, explicit, q, k, options)[0].to(q.dtype)
    return Result(output.to(q.dtype), weights, lse)
