"""What `passes` does, by kernels in numba on a CPU: the same arguments, the same results.

Blocks are cut into tiles of 16 queries, each with the keys that one of them may attend to
(`trimming`), and the kernels (`kernels`) go from tile to tile. No score leaves the cache. The work
is cut into pieces that depend on the data alone, and what several pieces add to is added up in
their order, so results are the same bit for bit on any number of threads.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_core.backends import fast
from attention_core.backends.blocks.chunks import Blocks, Chunk, Work, tokens
from attention_core.backends.blocks.layout import LANES, Layout, layout_of

_BITS = 0xFFFFFFFF
#: Pairs of one head in a piece of work at least, and pieces at most where there are that many.
_PIECE, _PIECES = 1 << 18, 16
#: Pairs times heads for which a call of the kernels pays.
_PAYS = 1 << 15
#: Numbers that pieces may take for gradients of a bias, each its own.
_ROOM = 1 << 26


def looks_up(device: torch.device, dtype: torch.dtype, pairs: int) -> bool:
    """Return whether the kernels would look up what is added to so many pairs of all heads."""
    return fast.usable(torch.empty(0, dtype=dtype, device=device), pays=pairs >= _PAYS)


def serves(q: Tensor, k: Tensor, v: Tensor, groups: list[Blocks], samples: int) -> bool:
    """Return whether the kernels are there, and worth a call for these blocks."""
    pairs = sum(
        one.queries.numel() * one.query_run * one.keys.shape[1] * one.key_run for one in groups
    )
    if not pairs or not samples or max(q.shape[:3].numel(), k.shape[:3].numel()) >= 2**31:
        return False
    pays = pairs * samples * q.shape[1] >= _PAYS
    return fast.usable(q, k, v, pays=pays)


class Call:
    """Hold what both passes hand to the kernels."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sink: Tensor | None,
        groups: list[Blocks],
        seed: Tensor,
        samples: int,
        scale: float,
        softcap: float | None,
        dropout_p: float,
    ) -> None:
        import numpy as np

        from attention_core.backends.fast.compiled import kernel

        (_, heads, queries, _), (_, kv_heads, keys, _) = q.shape, k.shape
        self.number = np.float32 if q.dtype == torch.float32 else np.float64
        self.kernels = kernel(
            "attention_core.backends.blocks.kernels", **_constants(str(q.dtype).split(".")[1])
        )
        self.heads, self.kv_heads = heads, kv_heads
        tables = [x.added for x in groups if x.added is not None and x.index is not None]
        entries = 0 if not tables else len(tables[0]) + 1
        self.layout = layout = layout_of(
            groups, max(entries - 1, 0), samples, (heads, kv_heads), (queries, keys),
            k.shape[0] * keys, self.number,
        )  # fmt: skip
        self.q, self.k, self.v = (_wide(x) for x in (q, k, v))
        self.sizes = (
            heads, kv_heads, queries, keys, self.q.shape[-1], self.v.shape[-1], layout.most,
            int(layout.heads == 1), entries,
        )  # fmt: skip
        number = self.number
        share = 1 - dropout_p
        self.numbers = number(scale), number(softcap or 0), number(1 / share)
        limit = _limit(share) if dropout_p else 0
        self.seeds = (np.uint32(limit), *(np.uint32(x) for x in _seeds(seed)))
        self.given = tuple(_flat(x, number) for x in (self.q, self.k, self.v, sink))
        by_head = np.zeros(0, number)
        if tables:
            by_head = _flat(pad(tables[0].detach().mT, (0, 1), value=-torch.inf), number)
        self.plan = (
            layout.tiles, layout.starts, layout.members, layout.units, layout.unit_starts,
            layout.floors, layout.packed, layout.index, by_head,
        )  # fmt: skip
        self.pieces = self._pieces()

    def _pieces(self) -> Any:
        """(pieces, 8): head of keys, first and last sample, first and last tile, then three numbers
        that the backward pass sets."""
        import numpy as np

        layout = self.layout
        starts, samples, kv_heads = layout.starts, layout.samples, self.kv_heads
        work = int(starts[-1]) * LANES * (self.heads // kv_heads)
        most = max(1, min(_PIECES, work * samples * kv_heads // _PIECE))
        of_samples = min(samples, -(-most // kv_heads))
        of_tiles = max(1, -(-most // (kv_heads * of_samples)))
        bounds = np.searchsorted(starts, np.arange(1, of_tiles) * (int(starts[-1]) / of_tiles))
        # Between blocks: tiles of one have the same keys
        blocks = np.append(np.flatnonzero(layout.firsts), len(starts) - 1)
        cuts = [0, *(int(blocks[n]) for n in np.searchsorted(blocks, bounds)), len(starts) - 1]
        return np.array(
            [
                (head, samples * n // of_samples, samples * (n + 1) // of_samples, a, b, 0, 0, 0)
                for head in range(kv_heads)
                for n in range(of_samples)
                for a, b in pairwise(cuts)
                if b > a
            ],
            np.int64,
        ).reshape(-1, 8)

    def over(self, kernel: Any, *arguments: Any, serial: bool = False) -> None:
        """Call a kernel for all pieces, on torch's number of threads unless it is `serial`."""
        from attention_core.backends.fast import threads

        count = len(self.pieces)
        alone = serial or torch.get_num_threads() == 1
        bounds = [0, count] if alone else list(range(count + 1))
        common = self.pieces, self.sizes, self.numbers, self.seeds, self.given, self.plan
        threads.over(bounds, kernel, *common, *arguments)


def forward(call: Call, q: Tensor, v: Tensor, covers_all_queries: bool) -> tuple[Tensor, Tensor]:
    """Compute the output (B, H, Lq, Dv) and log-sum-exp (B, H, Lq), as `block_attention` does."""
    allocate = q.new_empty if covers_all_queries else q.new_zeros
    out, lse = allocate(*q.shape[:3], call.v.shape[-1]), q.new_full(q.shape[:3], -torch.inf)
    call.over(call.kernels.forward, *(_flat(x, call.number) for x in (out, lse)))
    return _narrow(out, v.shape[-1]), lse


def backward(
    call: Call,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None,
    groups: list[Blocks],
    learned: list[bool],
    covers_all_queries: bool,
) -> list[Tensor]:
    """Compute the gradients of q, k, v, the sink and each of `added`, empty where there is none.

    That of a table that all groups look into is the first group's; others have zeros.
    """
    import numpy as np

    layout, number = call.layout, call.number
    groups_of_heads, entries = call.heads // call.kv_heads, call.sizes[-1]
    allocate = torch.empty_like if covers_all_queries else torch.zeros_like
    grad_q = allocate(call.q)
    pieces = call.pieces
    rows, spans = _own_rows(call)
    fresh, start = np.zeros(0, np.bool_), torch.zeros_like
    if layout.disjoint and not rows:  # then first tiles write, and only others add
        fresh, start = layout.firsts, torch.empty_like
    grad_k, grad_v = start(call.k), start(call.v)
    part_k, part_v = (x.new_zeros(rows * x.shape[-1]) for x in (call.k, call.v))
    of_sink = np.zeros(0 if sink is None else len(pieces) * groups_of_heads, number)
    shared = layout.heads == 1
    size = len(layout.unit_members) * LANES
    of_added, of_table, serial = np.zeros(0, number), np.zeros(0, number), False
    if any(learned) and not entries:
        heads = 1 if shared else groups_of_heads
        serial = size * len(pieces) * heads > _ROOM  # one after the other into one place
        own = serial or (layout.own and (not shared or call.kv_heads == 1))
        for n, piece in enumerate(pieces):
            piece[6] = 0 if own else n if shared else n * heads - piece[0] * heads
        of_added = np.zeros(size * (layout.heads if own else len(pieces) * heads), number)
    if any(learned) and entries:
        of_table = np.zeros(len(pieces) * groups_of_heads * entries * LANES, number)
    call.over(
        call.kernels.backward,
        _flat(lse, number),
        tuple(_flat(x, number) for x in (_wide(grad_out), grad_lse)),
        tuple(_flat(x, number) for x in (grad_q, grad_k, grad_v, part_k, part_v)),
        (of_sink, of_added, of_table, fresh),
        serial=serial,
    )
    for first, last, low in spans:
        for total, part in ((grad_k, part_k), (grad_v, part_v)):
            width = total.shape[-1]
            total.view(-1, width)[low : low + last - first] += part.view(-1, width)[first:last]
    grad_sink = q.new_zeros(0)
    if sink is not None:
        grad_sink = torch.zeros_like(sink)
        by_head = grad_sink.view(call.kv_heads, groups_of_heads)
        for piece, one in zip(pieces, torch.from_numpy(of_sink).view(len(pieces), -1), strict=True):
            by_head[int(piece[0])] += one
    grads = [q.new_zeros(0) for _ in groups]
    if len(of_table):
        sums = q.new_zeros(call.kv_heads, groups_of_heads, entries, LANES)
        parts = torch.from_numpy(of_table).view(len(pieces), *sums.shape[1:])
        for piece, one in zip(pieces, parts, strict=True):
            sums[int(piece[0])] += one
        grad = sums.sum(-1).flatten(0, 1)[:, :-1].mT
        grads = [
            grad.contiguous() if n == 0 else torch.zeros_like(grad) for n in range(len(groups))
        ]
    elif any(learned):
        total = torch.from_numpy(of_added)
        if not own:
            sums = total.new_zeros(1 if shared else call.kv_heads, heads, size)
            for piece, one in zip(pieces, total.view(len(pieces), heads, size), strict=True):
                sums[0 if shared else int(piece[0])] += one
            total = sums
        grads = _unpacked(layout, total.reshape(-1).numpy(), groups, learned, q)
    return [
        _narrow(grad_q, q.shape[-1]),
        _narrow(grad_k, k.shape[-1]),
        _narrow(grad_v, v.shape[-1]),
        grad_sink,
        *grads,
    ]


def _own_rows(call: Call) -> tuple[int, list[tuple[int, int, int]]]:
    """Give pieces that share keys with others rows of their own for the gradients of keys.

    Returns: how many rows in all, and of each such piece its first and last row, and the key that
    the first belongs to.
    """
    pieces, layout = call.pieces, call.layout
    keys = call.sizes[3]
    ranges = {}
    for first, last in {(int(p[3]), int(p[4])) for p in pieces}:
        members = layout.members[layout.starts[first] : layout.starts[last]]
        ranges[first, last] = (
            (int(members.min()), int(members.max()) + 1) if len(members) else (0, 0)
        )
    # Those that share none with one before them write to the gradient itself
    direct, end = set(), 0
    for piece, (low, high) in sorted(ranges.items()):
        if low >= end or low == high:
            direct.add(piece)
            end = max(end, high)
    total, spans = 0, []
    for piece in pieces:
        where = int(piece[3]), int(piece[4])
        if where in direct:
            continue
        low, high = ranges[where]
        base = (int(piece[1]) * call.kv_heads + int(piece[0])) * keys
        piece[5], piece[7] = total - low, 1
        spans.append((total, total + high - low, base + low))
        total += high - low
    return total, spans


def _unpacked(
    layout: Layout, total: Any, groups: list[Blocks], learned: list[bool], q: Tensor
) -> list[Tensor]:
    import numpy as np

    from attention_core.backends.fast.compiled import kernel

    trimming = kernel("attention_core.backends.blocks.trimming")
    grads = []
    for one, learns, unit in zip(groups, learned, layout.first_unit, strict=True):
        grad = q.new_zeros(one.added.shape if learns and one.added is not None else 0)
        if learns and one.added is not None:
            empty = one.empty_rows
            trimming.unpack(
                total, np.zeros(0, np.bool_) if empty is None else empty.reshape(-1).numpy(),
                *grad.shape, layout.unit_starts, layout.unit_members, unit,
                len(layout.unit_members), grad.view(-1).numpy(),
            )  # fmt: skip
        grads.append(grad)
    return grads


def _seeds(seed: Tensor) -> tuple[int, int]:
    """Two numbers of 32 bits, for queries and for keys."""
    return int(seed) & _BITS, int(seed) >> 32 & _BITS ^ 0x9E3779B9


def kept(work: Work, chunk: Chunk, like: Tensor, *, seed: Tensor) -> Tensor:
    """Return what the kernels multiply the weights (C, G·Q, M) of a chunk with in dropout.

    That is 1 / (1 - p) where a hash of seed, query and key is below the share that is kept, else 0.
    """
    queries = tokens(chunk.queries, work.blocks.query_run).view(len(like), -1, 1)
    keys = tokens(chunk.keys, work.blocks.key_run).view(len(like), 1, -1)
    of_query, of_key = _seeds(seed)
    share = 1 - work.settings.dropout_p
    hashed = _mixed(_mixed(queries ^ of_query) ^ _mixed(keys ^ of_key))
    return (hashed < _limit(share)).to(like.dtype) / share


def _limit(share: float) -> int:
    """Numbers of 32 bits below this are about the `share` of all."""
    return min(max(round(share * 2**32), 1), _BITS)


def _mixed(x: Tensor) -> Tensor:
    """The hash of `kernels.mixed`, in int64."""
    x = (x ^ x >> 16) * 0x7FEB352D & _BITS
    x = (x ^ x >> 15) * 0x846CA68B & _BITS
    return x ^ x >> 16


@cache
def _constants(dtype: str) -> dict[str, Any]:
    """How much fits into the registers of the CPU that numba compiles for."""
    import llvmlite.binding as llvm
    from numba.core import config

    name, features = (getattr(config, f"CPU_{word}") for word in ("NAME", "FEATURES"))
    if name is None:
        wide = bool(llvm.get_host_cpu_features().get("avx512f"))
    else:
        wide = "+avx512f" in (features or "")
    double = dtype == "float64"
    if wide:
        keys, width = 8, 16 if double else 32
    else:
        keys, width = 2 if double else 4, 16
    return {"DTYPE": dtype, "KEYS": keys, "WIDE": width}


def _wide(x: Tensor) -> Tensor:
    """x (..., D) with zeros up to the next multiple of 16, contiguous."""
    missing = -x.shape[-1] % LANES
    return pad(x, (0, missing)) if missing else x.contiguous()


def _narrow(x: Tensor, size: int) -> Tensor:
    return x if x.shape[-1] == size else x[..., :size].contiguous()


def _flat(x: Tensor | None, number: Any) -> Any:
    import numpy as np

    return np.zeros(0, number) if x is None else x.detach().reshape(-1).numpy()
