"""Tiles of 16 queries with the keys that any of them may attend to: what the kernels go through.

The text of a kernel, as `kernels` is. Blocks are cut into tiles, and of the keys of a block each
tile keeps those that one of its queries sees. What is added to scores, or looked up, is laid out as
the kernels read it: for each pattern, tile and key 16 numbers, one for each query.
"""

# numba compiles functions that are written without types, and mypy knows none of its own
# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import njit

CACHED = False  # constant

OPTIONS = {"nogil": True, "error_model": "numpy", "cache": CACHED}


@njit(**OPTIONS)
def trim(added, index, empty, patterns, heads, queries, keys, counts, members):
    """Find which keys each tile of each pattern sees, and return how many there are in all.

    Args:
        added: (patterns, heads, queries, keys) flat, or empty where `index` is given.
        index: (patterns, queries, keys) flat, -1 on what is forbidden.
        empty: bool (patterns, heads, queries), queries that may attend to nothing; or no elements.
        counts: (patterns * tiles,) is filled.
        members: int32, large enough, is filled: the keys of one tile after the other.
    """
    tiles, total = -(-queries // 16), 0
    seen = np.empty(keys, np.bool_)
    for p in range(patterns):
        for t in range(tiles):
            seen[:] = False
            for h in range(heads):
                for query in range(t * 16, min(queries, t * 16 + 16)):
                    row = (p * heads + h) * queries + query
                    if len(empty) and empty[row]:
                        continue
                    if len(index):
                        for key in range(keys):
                            seen[key] |= index[row * keys + key] >= 0
                    else:
                        for key in range(keys):
                            seen[key] |= added[row * keys + key] != -np.inf
            first = total
            for key in range(keys):
                if seen[key]:
                    members[total] = key
                    total += 1
            counts[p * tiles + t] = total - first
    return total


@njit(**OPTIONS)
def pack(
    added, empty, patterns, heads, queries, keys, starts, members, unit, units, rows, floors, packed
):
    """Lay out what is added: packed (heads, rows, 16), and floors (heads, units, 16).

    A floor is the least that the maximum of a row may be: 0 where it may attend to nothing.

    Args:
        starts, members: of all units, of which those of this group begin at `unit`.
        units, rows: how many units, and members, there are in all groups.
    """
    tiles = -(-queries // 16)
    for p in range(patterns):
        for h in range(heads):
            for t in range(tiles):
                u = unit + p * tiles + t
                for j in range(16):
                    query = t * 16 + j
                    row = (p * heads + h) * queries + query
                    none = query >= queries or (len(empty) > 0 and empty[row])
                    floors[(h * units + u) * 16 + j] = 0 if none else -np.inf
                    for i in range(starts[u], starts[u + 1]):
                        value = -np.inf if none else added[row * keys + members[i]]
                        packed[(h * rows + i) * 16 + j] = value


@njit(**OPTIONS)
def pack_index(
    index, empty, patterns, queries, keys, starts, members, unit, nothing, floors, packed
):
    """Lay out an index as `pack` does, with `nothing` for what is forbidden."""
    tiles = -(-queries // 16)
    for p in range(patterns):
        for t in range(tiles):
            u = unit + p * tiles + t
            for j in range(16):
                query = t * 16 + j
                row = p * queries + query
                none = query >= queries or (len(empty) > 0 and empty[row])
                floors[u * 16 + j] = 0 if none else -np.inf
                for i in range(starts[u], starts[u + 1]):
                    value = -1 if none else index[row * keys + members[i]]
                    packed[i * 16 + j] = nothing if value < 0 else value


@njit(**OPTIONS)
def unpack(packed, empty, patterns, heads, queries, keys, starts, members, unit, rows, to):
    """Add what was laid out back to its places in `to` (patterns, heads, queries, keys)."""
    tiles = -(-queries // 16)
    for p in range(patterns):
        for h in range(heads):
            for t in range(tiles):
                u = unit + p * tiles + t
                for j in range(min(16, queries - t * 16)):
                    row = (p * heads + h) * queries + t * 16 + j
                    if len(empty) and empty[row]:
                        continue
                    for i in range(starts[u], starts[u + 1]):
                        to[row * keys + members[i]] += packed[(h * rows + i) * 16 + j]


@njit(**OPTIONS)
def lay_out(
    queries,
    keys,
    query_run,
    key_run,
    blocks,
    pattern,
    unit,
    unit_starts,
    unit_members,
    first_tile,
    tiles,
    starts,
    members,
    units,
):
    """Write the tiles of a group's blocks; `starts` (tiles + 1,) is known.

    Args:
        queries, keys: (blocks, runs) flat, runs of tokens; -1 is padding.
        pattern: (blocks,) which each block has.
        unit: the first of this group's units, -1 where all keys are seen and nothing is added.
        first_tile: (blocks,) the number of the first tile of each.
        tiles, members, units: are filled: 16 queries a tile, its keys, and its unit.
    """
    query_runs, key_runs = len(queries) // blocks, len(keys) // blocks
    size = query_runs * query_run
    for block in range(blocks):
        for t in range(-(-size // 16)):
            tile = first_tile[block] + t
            for j in range(16):
                at = t * 16 + j
                token = np.int64(-1)
                if at < size:
                    run = queries[block * query_runs + at // query_run]
                    token = run * query_run + at % query_run if run >= 0 else token
                tiles[tile * 16 + j] = token
            u = unit + pattern[block] * (-(-size // 16)) + t if unit >= 0 else -1
            units[tile] = u
            first = unit_starts[u] if unit >= 0 else 0
            for i in range(starts[tile + 1] - starts[tile]):
                key = unit_members[first + i] if unit >= 0 else i
                run = keys[block * key_runs + key // key_run]
                members[starts[tile] + i] = max(run, 0) * key_run + key % key_run
