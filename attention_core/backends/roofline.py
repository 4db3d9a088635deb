"""Estimates of how long an attention takes on a GPU: calls, bytes and products, by device class.

    time = calls of kernels · time of a call + max(products / their rate, bytes / bandwidth)

for forward and backward each (Williams et al., Roofline, 2009). No layer waits for its device, and
what planning takes is no part of it: a plan is made on the host, and kept. Where `attn check` has
measured a device, its factors (`measured`) go on top.

Where the numbers come from: peaks are NVIDIA's (A100 80GB SXM, H100 SXM; without sparsity); of the
shares of them that kernels reach, those said to be of a paper are published there. All others are
guesses, NOT MEASURED YET: no line of this has run on a GPU.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch

from attention_core.backends import measured
from attention_core.job import Job
from attention_core.masks import Edges
from attention_core.precision import HALVES
from attention_core.score_mods import split
from attention_core.scores import Additive, AdditiveV2


class Share(NamedTuple):
    """Hold what a kernel reaches of the peak rate of products, in a forward and a backward pass: in
    halves, and in float32 or float64; and of the bandwidth."""

    halves: tuple[float, float]
    single: tuple[float, float]
    bandwidth: float


class GPU(NamedTuple):
    """Hold a class of devices: nanoseconds of a call, bytes and products (FLOP) in a nanosecond at
    the peak, what kernels reach of these."""

    name: str
    call: float
    bandwidth: float
    halves: float
    single: float
    double: float
    shares: dict[str, Share]

    def rate(self, kernel: str, dtype: torch.dtype, backward: bool) -> float:
        """Return how many FLOP a kernel does in a nanosecond."""
        share = self.shares[kernel]
        if dtype in HALVES:
            return self.halves * share.halves[backward]
        peak = self.double if dtype == torch.float64 else self.single
        return peak * share.single[backward]


#: 4 µs for the host to call a kernel: a usual number, not measured yet.
_CALL = 4_000.0
#: Guesses alike for both classes: products of plain torch on materialised scores, small ones in
#: `blocks`, which gathers besides; and of `edges`, whose threads multiply without tensor cores and
#: whose rows lie apart in memory.
_PLAIN = {
    "reference": Share((0.4, 0.4), (0.6, 0.6), 0.7),
    "blocks": Share((0.2, 0.2), (0.2, 0.2), 0.35),
    "edges": Share((0.03, 0.03), (0.4, 0.4), 0.4),
}

#: Newest last. bfloat16 312 and 989 TFLOP/s, float32 19.5 and 67 (without TF32, as torch is set by
#: default), float64 19.5 and 67 on tensor cores, 2.04 and 3.35 TB/s: NVIDIA's data sheets. An H200
#: is an H100 with 4.8 TB/s, which `attn check` tells.
GPUS = {
    (8, 0): GPU(
        "sm_80", _CALL, 2_039.0, 312_000.0, 19_500.0, 19_500.0,
        {
            # Forward 73 % and backward 63 % at most (Dao, FlashAttention-2, 2023): a bit less
            "flash": Share((0.65, 0.55), (0.5, 0.5), 0.8),
            "varlen": Share((0.6, 0.5), (0.5, 0.5), 0.8),
            "efficient": Share((0.35, 0.25), (0.5, 0.35), 0.7),  # guess
            # 90 % of FlashAttention-2 forward, 85 % backward (PyTorch's blog, FlexAttention, 2024)
            "flex": Share((0.58, 0.46), (0.5, 0.4), 0.8),
            **_PLAIN,
        },
    ),
    (9, 0): GPU(
        "sm_90", _CALL, 3_350.0, 989_000.0, 67_000.0, 67_000.0,
        {
            # FlashAttention-2 reaches 35 % of an H100 (Shah et al., FlashAttention-3, 2024)
            "flash": Share((0.35, 0.3), (0.5, 0.5), 0.8),
            "varlen": Share((0.33, 0.28), (0.5, 0.5), 0.8),
            "efficient": Share((0.15, 0.1), (0.5, 0.35), 0.7),  # guess: made for sm_80
            "flex": Share((0.32, 0.25), (0.5, 0.4), 0.8),  # as on sm_80
            **_PLAIN,
        },
    ),
}  # fmt: skip

#: Kernels of a pass: forward, backward. Counted on the device of the tests that stands for a GPU
#: (of `blocks`, for one group of three), but for `varlen` and `flex`, which are guesses.
CALLS = {
    "flash": (1, 3),
    "efficient": (3, 4),
    "varlen": (2, 4),
    "flex": (12, 24),
    "edges": (6, 20),
    "blocks": (48, 58),
    "reference": (20, 20),
}
_GROUPS = 3
#: What makes the mask of `dense`, and its tensor of biases: calls, and bytes for a pair; a mask is
#: shared by layers, of which four are taken, a bias is of a head. Backward of a learned bias: its
#: table's gradient sorts all pairs. Guesses.
_LAYERS = 4
_MASK = (10, 16.0)
_BIAS, _TABLE = (12, 30.0), (15, 60.0)
#: Bytes for a pair of a head: of scores that are written and read again, forward and backward; of
#: what a score mod makes of them. Guesses.
_SCORES, _MODS = (32.0, 64.0), (40.0, 120.0)
#: How much more flex takes for its products with a bias, and backward for one that learns, whose
#: gradient is added up by atomics. Guesses.
_FLEX_BIAS, _FLEX_LEARNED = 1.5, 2.5
#: Of the tiles of flex and of the queries of `blocks`, tokens.
TILE, _BLOCK, _RUN = 128, 64, 16
#: Bytes of keys and values that stay in the second cache (40 and 50 MB), and how much faster they
#: are gathered then. A guess.
_CACHE, _CACHED = 20_000_000, 2.0


#: Nanoseconds of the host for a pair of a graph whose blocks are found, or whose hops are counted,
#: as measured for `blocks` and for 2,000 nodes.
_SEARCH = 2_000.0


class Pass(NamedTuple):
    """Hold what a forward or a backward pass asks of a device."""

    calls: float
    flops: float = 0.0
    bytes: float = 0.0


@cache
def _capability(index: int | None) -> tuple[int, int] | None:
    return torch.cuda.get_device_capability(index)


def gpu_of(device: torch.device) -> GPU:
    """Return the class of a device: the newest one that is not newer than it; the newest of all
    where it is not there, the oldest for those that are older yet."""
    found = max(GPUS)
    if torch.cuda.is_available() and not torch.cuda._is_in_bad_fork():
        found = _capability(device.index) or found
    return GPUS[max((one for one in GPUS if one <= found), default=min(GPUS))]


def _time(job: Job, kernel: str, forward: Pass, backward: Pass) -> float:
    """Nanoseconds of a forward pass, or of both where the job needs a gradient."""
    gpu = gpu_of(job.device)
    total = 0.0
    for is_backward, one in enumerate((forward, backward)[: 1 + job.grad]):
        products = one.flops / gpu.rate(kernel, job.dtype, bool(is_backward))
        moving = one.bytes / (gpu.bandwidth * gpu.shares[kernel].bandwidth)
        total += gpu.call * one.calls + max(products, moving)
    return total


def _flops(job: Job, pairs: float, dim: int) -> tuple[float, float]:
    """Products of pairs of all heads: two matrices forward, five backward."""
    return 4 * dim * job.heads * pairs, 10 * dim * job.heads * pairs


def _rows(job: Job) -> tuple[float, float]:
    """Bytes of queries, keys, values and outputs; backward, their gradients too."""
    tokens = job.batch * sum(space.length for space in job.spaces)
    size = 2.0 * tokens * job.heads * job.head_dim * job.dtype.itemsize
    return size, 3 * size


def _fused_dim(job: Job, power: bool = False) -> int:
    """The size of a head that a kernel computes: whole fragments of tensor cores."""
    if power:
        return max(16, 1 << (job.head_dim - 1).bit_length())
    return max(32, -(-job.head_dim // 32) * 32)


def dense(job: Job, kernel: str, pairs: float, *, calls: int = 1, masked: bool = False) -> float:
    """Estimate the nanoseconds of `scaled_dot_product_attention` or `varlen_attn`.

    Args:
        kernel: "flash", "efficient" or "varlen".
        pairs: that are computed, for one head.
        calls: how often it is called, once for each packed sample.
        masked: it reads a tensor of masks or biases.
    """
    given = job
    if job.bias is not None and job.dtype in HALVES:  # which are computed in float32 then
        job = replace(job, dtype=torch.float32)
    flops, rows, size = _flops(job, pairs, _fused_dim(job)), _rows(job), job.dtype.itemsize
    read = size * job.heads * pairs if masked else 0.0
    learned = job.bias is not None and job.bias.learned
    first, second = CALLS[kernel]
    forward = Pass(calls * first, flops[0], rows[0] + read)
    backward = Pass(calls * second, flops[1], rows[1] + read * (2 if learned else 1))
    time = _time(job, kernel, forward, backward)
    if masked:
        time += _tensor(job)
    return time * measured.factor(given, kernel) + _explicit(given)


def _tensor(job: Job) -> float:
    """What it takes to make the mask and the biases of all pairs."""
    gpu, pairs = gpu_of(job.device), job.row_pairs

    def passes(calls: float, size: float) -> float:
        return calls * gpu.call + size * pairs / (gpu.bandwidth * gpu.shares["reference"].bandwidth)

    time = 0.0
    if job.spaces[1].searched and job.mask is not None and not isinstance(job.mask, Edges):
        time += _SEARCH * pairs  # hops between all nodes, on the host
    if not job.allows_all or job.spaces[1].valid is not None:
        time += passes(*_MASK) / _LAYERS
    if job.bias is not None:
        time += passes(_BIAS[0], _BIAS[1] * job.heads)
        if job.bias.learned and job.grad:
            time += passes(_TABLE[0], _TABLE[1] * job.heads)
    return time


def reference(job: Job) -> float:
    """Estimate the nanoseconds of explicit scores of all pairs."""
    pairs, (calls, more) = job.all_pairs, CALLS["reference"]
    flops, of_pairs = _flops(job, pairs, job.head_dim), job.heads * pairs
    modified = _MODS if job.modifies else (0.0, 0.0)
    forward = Pass(calls, flops[0], of_pairs * (_SCORES[0] + modified[0]))
    backward = Pass(more, flops[1], of_pairs * (_SCORES[1] + modified[1]))
    # Its products are in float32, and scores lie between them: none is done meanwhile
    time = _time(job, "reference", forward, backward)
    time += _tensor(job) if job.mask is not None or job.bias is not None else 0.0
    return time * measured.factor(job, "reference")


def edges(job: Job) -> float:
    """Estimate the nanoseconds of one score for each allowed pair: what it gathers."""
    pairs, size = job.count_bound, job.dtype.itemsize
    flops, rows = _flops(job, pairs, job.head_dim), _rows(job)
    row = job.heads * job.head_dim * size
    # Scores of sums need a number of each key, or its row alone, which is the value too
    read = 1 if isinstance(job.score, Additive | AdditiveV2) else 2
    keys = 2 * job.batch * job.spaces[1].length * row
    gathered = row * read * pairs / (_CACHED if keys < _CACHE else 1.0)
    per_pair, learned = 8.0, 0.0
    if split(job.bias)[1] is not None:
        per_pair += 4.0 * job.heads
        learned = 8.0 * job.heads
    if job.edge_features:
        per_pair += job.head_dim * size
    mods = [job.heads * one if job.modifies else 0.0 for one in _MODS]
    calls, more = CALLS["edges"]
    forward = Pass(calls, flops[0], rows[0] + gathered + (per_pair + mods[0]) * pairs)
    # Keys and values for the queries' gradients, and queries and outputs for those of the keys
    both = rows[1] + 2 * gathered + (2 * per_pair + learned + mods[1]) * pairs
    time = _time(job, "edges", forward, Pass(more, flops[1], both))
    return time * measured.factor(job, "edges") + _explicit(job)


def blocks(job: Job) -> float:
    """Estimate the nanoseconds of blocks that are gathered, their scores materialised."""
    pairs = around(job, _BLOCK, _RUN if job.spaces[1].axes <= 1 else 1)
    keys = pairs / _BLOCK * job.heads * job.head_dim * 4
    flops, of_pairs = _flops(job, pairs, job.head_dim), job.heads * pairs
    mods = _MODS if job.modifies else (0.0, 0.0)
    calls, more = (_GROUPS * number for number in CALLS["blocks"])
    forward = Pass(calls, flops[0], 4 * keys + of_pairs * (_SCORES[0] + mods[0]))
    backward = Pass(more, flops[1], 8 * keys + of_pairs * (_SCORES[1] + mods[1]))
    single = torch.float64 if job.dtype == torch.float64 else torch.float32
    time = _time(replace(job, dtype=single), "blocks", forward, backward) + _search(job)
    return time * measured.factor(job, "blocks") + _explicit(job)


def flex(job: Job, pairs: float | None = None) -> float:
    """Estimate the nanoseconds of FlexAttention.

    Args:
        pairs: those in all tiles that are computed, for one head; without it, about how many.
    """
    pairs = around(job, TILE, TILE) if pairs is None else pairs
    flops, rows = _flops(job, pairs, _fused_dim(job, power=True)), _rows(job)
    more = _FLEX_BIAS if job.bias is not None else 1.0
    backward = more * (_FLEX_LEARNED if job.bias is not None and job.bias.learned else 1.0)
    passes = [
        Pass(calls, of * slower, moved)
        for calls, of, slower, moved in zip(
            CALLS["flex"], flops, (more, backward), rows, strict=True
        )
    ]
    time = _time(job, "flex", *passes) * measured.factor(job, "flex")
    return time + _search(job) + _explicit(job)


def _search(job: Job) -> float:
    """What the host takes to find the blocks of a graph, which it asks edge by edge."""
    searched = job.mask is not None and job.spaces[1].searched
    return _SEARCH * job.count_bound if searched else 0.0


def _explicit(job: Job) -> float:
    """What weights take that are asked for: they come from `reference`."""
    return reference(job) if job.weights else 0.0


def around(job: Job, queries: int, keys: int) -> float:
    """About how many pairs there are in tiles of so many queries and keys that hold an allowed one.

    Around a tile of compact queries lies a box of keys that reaches as far as each query does, and
    as whole tiles do; what lies anywhere, as nodes of a graph do, meets tiles by chance.
    """
    count, length = job.batch * job.spaces[0].length, job.spaces[1].length
    if not count or not length:
        return 0.0
    reach = job.count_bound / count

    def box(reach: float, axes: int) -> float:
        return float((queries ** (1 / axes) + keys ** (1 / axes) + reach ** (1 / axes) - 2) ** axes)

    tiles = max(length / keys, 1.0)
    found = [tiles * keys]
    if job.count_bound < job.all_pairs:
        found.append(tiles * (1 - (1 - 1 / tiles) ** (reach * queries)) * keys)
    if job.sample_pairs < job.all_pairs:  # samples lie end to end
        found.append(box(job.sample_pairs / count, 1))
    if job.mask is not None and job.count_bound < job.sample_pairs and job.spaces[1].axes:
        found.append(box(reach, job.spaces[1].axes))
    return -(-count // queries) * queries * min(found)
