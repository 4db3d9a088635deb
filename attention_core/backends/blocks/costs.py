"""How long blocks are expected to take, so that the plan can choose."""

from __future__ import annotations

import math

from attention_core.backends import dense, edges, fast as switch, measured, roofline
from attention_core.backends.blocks.layout import LANES
from attention_core.backends.blocks.prepared import find
from attention_core.backends.costs import Rate, mask_cost, modify_cost
from attention_core.job import Job

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


def cost(job: Job) -> float:
    if job.device.type == "cuda":
        return roofline.blocks(job)
    measured_by = measured.factor(job, "blocks")
    rate = _TILE_PAIR if by_kernels(job) else _PAIR
    least = _CALL[job.grad] + rate.of(job) * job.count_bound + modify_cost(job, job.count_bound)
    if _scattered(job) and not by_kernels(job):
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
    prepared = find(job)
    samples = job.batch if prepared.rows == 1 else 1
    pairs = sum(group.pairs for group in prepared.groups)
    keys = sum(group.keys.numel() for group in prepared.groups)
    alike = _ALIKE if prepared.local and not prepared.differ else 1.0
    scattered = 0.0
    if _scattered(job) and not by_kernels(job):
        runs = (keys for _, (keys, run) in prepared.runs if run == 1)
        scattered = job.heads * _SCATTERED[job.grad] * sum(keys.numel() for keys in runs)
    return measured_by * (
        _CALL[job.grad]
        + samples * scattered
        + (_FAST_GROUP if by_kernels(job) else _GROUP) * len(prepared.groups)
        + _LIST * keys
        + _computing(job, samples * pairs, samples * keys, prepared.differ)
        + mask_cost(job, alike * pairs)
        + modify_cost(job, samples * pairs)
    )


def by_kernels(job: Job) -> bool:
    """Return whether kernels will compute it, as far as the plan can tell."""
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
    if not by_kernels(job):
        return _PAIR.of(job) * pairs + _KEY.of(job) * keys
    queries = job.batch * job.spaces[0].length
    # Of keys that may lie anywhere, a tile sees about all of its block
    scattered = _scattered(job)
    seen = pairs if differ and not scattered else _seen_by_tiles(job, pairs)
    seen *= _TILE_SCATTERED if scattered else 1.0
    return _TILE_PAIR.of(job) * seen + _TILE_QUERY.of(job) * queries
