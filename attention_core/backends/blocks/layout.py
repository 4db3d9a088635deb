"""Blocks as tiles of 16 queries, laid out for the kernels, and kept as long as the blocks are."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attention_core.backends.blocks.chunks import Blocks
from attention_core.lasting import version

#: Queries of a tile.
LANES = 16


@dataclass
class Layout:
    """Tiles of all groups, sorted by their first query.

    Attributes:
        tiles: (tiles * 16,) int32, the queries of each, among the rows of the first head; -1
            padding.
        starts, members: (tiles + 1,) and (members,) the keys of each tile.
        units: (tiles,) which unit, a tile of a pattern, each is; -1 where nothing is added.
        unit_starts, unit_members: the keys of each unit, among those of its block.
        floors, packed, index: as `trimming` lays them out; empty where there is nothing.
        heads: of what is added: 1 where all share it.
        first_unit: of each group, -1 where nothing is added.
        most: keys of a tile at most, and what rounding up takes.
        samples: how many samples share the tiles.
        own: whether no two tiles, of any sample, share a unit.
        firsts: (tiles,) which are the first of their block.
        disjoint: whether every key is in one block alone, and in the first tile of it.
    """

    tiles: Any
    starts: Any
    members: Any
    units: Any
    unit_starts: Any
    unit_members: Any
    floors: Any
    packed: Any
    index: Any
    heads: int
    first_unit: list[int]
    most: int
    samples: int
    own: bool
    firsts: Any
    disjoint: bool


_layouts: dict[tuple[Any, ...], tuple[list[Any], list[int], Layout]] = {}
_KEPT = 16


def layout_of(
    groups: list[Blocks], entries: int, samples: int, heads: tuple[int, int],
    lengths: tuple[int, int], rows_of_keys: int, dtype: Any,
) -> Layout:  # fmt: skip
    """Return the layout of these tensors, which is kept as long as they are, unchanged."""
    tensors = [
        x
        for one in groups
        for x in (
            one.queries,
            one.keys,
            one.pattern,
            one.added if one.index is None else one.index,
            one.empty_rows,
        )
        if x is not None
    ]
    key = (*(id(x) for x in tensors), entries, samples, heads, lengths, rows_of_keys, dtype)
    versions = [version(x) for x in tensors]
    found = _layouts.get(key)
    if found is not None:
        known, then, layout = found
        if then == versions and all(a() is b for a, b in zip(known, tensors, strict=True)):
            return layout
    layout = _laid_out(groups, entries, samples, heads, lengths, rows_of_keys, dtype)

    def forget(_: Any) -> None:
        _layouts.pop(key, None)

    # Each of these steps is whole by itself, so threads and forks need no lock
    _layouts[key] = [weakref.ref(x, forget) for x in tensors], versions, layout
    for oldest in list(_layouts)[:-_KEPT]:
        _layouts.pop(oldest, None)
    return layout


def _laid_out(
    groups: list[Blocks], entries: int, samples: int, heads: tuple[int, int],
    lengths: tuple[int, int], rows_of_keys: int, dtype: Any,
) -> Layout:  # fmt: skip
    import numpy as np

    from attention_core.backends.fast.compiled import kernel

    trimming = kernel("attention_core.backends.blocks.trimming")
    each = samples > 1 and any(
        one.pattern is not None and len(one.pattern) > len(one.queries) for one in groups
    )
    nothing = np.zeros(0, np.int64)
    found: list[dict[str, Any]] = []
    for one in groups:
        index, queries, keys = one.index, one.queries, one.keys
        pattern = one.pattern
        if each:
            queries = _of_samples(queries, samples, heads[0] * lengths[0] // one.query_run)
            keys = _of_samples(keys, samples, heads[1] * lengths[1] // one.key_run)
            if pattern is not None and len(pattern) < len(queries):
                pattern = pattern.repeat(samples)
        blocks = len(queries)
        own: dict[str, Any] = {
            "queries": queries.reshape(-1).numpy(), "keys": keys.reshape(-1).numpy(),
            "pattern": np.zeros(blocks, np.int64) if pattern is None else pattern.numpy(),
            "size": queries.shape[1] * one.query_run, "reach": keys.shape[1] * one.key_run,
            "first": (queries[:, 0] * one.query_run).numpy(), "blocks": blocks,
        }  # fmt: skip
        own["tiles"] = -(-own["size"] // LANES)
        given = one.added if index is None else index
        if given is None:
            own["counts"] = np.full((blocks, own["tiles"]), own["reach"], np.int64)
        else:
            own["patterns"], own["heads"] = len(given), given.shape[1] if index is None else 1
            own["given"] = given.detach().reshape(-1).numpy()
            own["empty"] = (
                np.zeros(0, np.bool_) if one.empty_rows is None
                else one.empty_rows.reshape(-1).numpy()
            )  # fmt: skip
            counts = np.empty(own["patterns"] * own["tiles"], np.int64)
            members = np.empty(counts.size * own["reach"], np.int32)
            added, looked_up = (
                (own["given"], nothing)
                if index is None
                else (np.zeros(0, np.float32), own["given"])
            )
            total = trimming.trim(
                added, looked_up, own["empty"], own["patterns"], own["heads"], own["size"],
                own["reach"], counts, members,
            )  # fmt: skip
            own["unit_counts"], own["members"] = counts, members[:total]
            own["counts"] = counts.reshape(-1, own["tiles"])[own["pattern"]]
        found.append(own)
    with_units = [own for own in found if "given" in own]
    unit_starts = np.zeros(1 + sum(len(own["unit_counts"]) for own in with_units), np.int64)
    if with_units:
        np.cumsum(np.concatenate([own["unit_counts"] for own in with_units]), out=unit_starts[1:])
    unit_members = np.concatenate(
        [np.zeros(0, np.int32), *(own["members"] for own in with_units)], dtype=np.int32
    )
    first_unit, unit = [], 0
    for own in found:
        first_unit.append(unit if "given" in own else -1)
        unit += len(own["unit_counts"]) if "given" in own else 0
    # Tiles of neighbors one after the other, whichever group they are of
    order = np.argsort(np.concatenate([own["first"] for own in found]), kind="stable")
    per_block = np.concatenate([np.full(own["blocks"], own["tiles"]) for own in found])
    first_tile = np.empty(len(order), np.int64)
    first_tile[order] = np.cumsum(per_block[order]) - per_block[order]
    total_tiles = int(per_block.sum())
    counts = np.empty(total_tiles, np.int64)
    firsts = np.zeros(total_tiles, np.bool_)
    firsts[first_tile] = True
    block = 0
    for own in found:
        own["first_tile"] = first_tile[block : block + own["blocks"]]
        at = own["first_tile"][:, None] + np.arange(own["tiles"])
        counts[at] = own["counts"]
        block += own["blocks"]
    starts = np.zeros(total_tiles + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    tiles = np.empty(total_tiles * LANES, np.int32)
    units = np.empty(total_tiles, np.int64)
    members = np.empty(int(starts[-1]), np.int32)
    for own, one, unit in zip(found, groups, first_unit, strict=True):
        trimming.lay_out(
            own["queries"], own["keys"], one.query_run, one.key_run, own["blocks"], own["pattern"],
            unit, unit_starts, unit_members, own["first_tile"], tiles, starts, members, units,
        )  # fmt: skip
    shared = max([own["heads"] for own in with_units], default=1)
    rows, number = int(unit_starts[-1]), len(unit_starts) - 1
    looks_up = any(one.index is not None for one in groups)
    floors = np.empty(shared * number * LANES, dtype)
    packed = np.empty(0 if looks_up else shared * rows * LANES, dtype)
    index_packed = np.empty(rows * LANES if looks_up else 0, np.int32)
    for own, unit in zip(found, first_unit, strict=True):
        if unit < 0:
            continue
        where = unit_starts, unit_members, unit
        if looks_up:
            trimming.pack_index(
                own["given"], own["empty"], own["patterns"], own["size"], own["reach"], *where,
                entries, floors, index_packed,
            )  # fmt: skip
        else:
            if own["heads"] < shared:
                raise AssertionError("groups differ in the heads of what is added")
            trimming.pack(
                own["given"], own["empty"], own["patterns"], shared, own["size"], own["reach"],
                *where, number, rows, floors, packed,
            )  # fmt: skip
    return Layout(
        tiles, starts, members, units, unit_starts, unit_members, floors, packed, index_packed,
        shared, first_unit, int(counts.max(initial=0)) + LANES, 1 if each else samples,
        all(own["patterns"] == own["blocks"] * (1 if each else samples) for own in with_units),
        firsts, _disjoint(starts, members, firsts, rows_of_keys // (1 if each else samples)),
    )  # fmt: skip


def _disjoint(starts: Any, members: Any, firsts: Any, count: int) -> bool:
    """Whether each of `count` keys is in the first tile of one block, and in no other block."""
    import numpy as np

    counts = np.diff(starts)
    if int(counts[firsts].sum()) != count:
        return False
    block = np.repeat(np.cumsum(firsts), counts)
    of_first = np.repeat(firsts, counts)
    owner = np.zeros(int(members.max(initial=-1)) + 1, block.dtype)
    owner[members[of_first]] = block[of_first]
    return int((owner > 0).sum()) == count and bool((owner[members] == block).all())


def _of_samples(runs: Tensor, samples: int, step: int) -> Tensor:
    """Runs (N, M) of the first sample as those of all, (samples · N, M)."""
    shift = torch.arange(samples, device=runs.device)[:, None, None] * step
    return (runs + shift).where(runs >= 0, runs).flatten(0, 1)
