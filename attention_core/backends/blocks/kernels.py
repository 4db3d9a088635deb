"""Forward and backward over tiles of 16 queries with the keys that any of them sees.

The text of a kernel: `compiled.kernel` fills in the constants. A tile's scores are kept as (keys,
16), a row a key, so that a vector is 16 queries: no key is packed or gathered, the softmax needs no
sums across a vector, and the numbers of `KEYS` keys are multiplied with one load of the queries.
"""

# numba compiles functions that are written without types, and mypy knows none of its own
# mypy: ignore-errors

from __future__ import annotations

import math

import numpy as np
from numba import njit

from attention_core.backends.fast.loads import broadcast, broadcast_at, load, store
from attention_core.backends.fast.tiles import drawn, look_up, transpose
from attention_core.backends.fast.vectors import full, repeat, vexp, vmax, vtanh, where_positive

CACHED = False  # constant
DTYPE = "float32"  # constant
#: Keys (or queries) in registers together, and numbers of a row of values.
KEYS = 8  # constant
WIDE = 32  # constant

OPTIONS = {"nogil": True, "error_model": "numpy", "cache": CACHED}
#: Of functions that allocate nothing: without counting who holds the arrays, for each tile anew and
#: by instructions that threads wait for.
INNER = OPTIONS | {"_nrt": False}
NUMBER = np.float32 if DTYPE == "float32" else np.float64
ZERO, ONE, INF = NUMBER(0), NUMBER(1), NUMBER(np.inf)
FAR = NUMBER(1e30)
#: Numbers of so many keys, one for each of 16 queries, and of so many rows.
COLUMNS, ROWS = KEYS * 16, KEYS * WIDE


# -- Products --------------------------------------------------------------------------------------


@njit(forceinline=True, **INNER)
def products(rows, offsets, first, columns, size):
    """Products of `KEYS` rows with 16 queries: (KEYS, 16); `columns` (size, 16) the queries."""
    total = full(ZERO, COLUMNS)
    for d in range(size):
        left = broadcast_at(rows, offsets, first, d, KEYS, 16)
        total = total + left * repeat(load(columns, d * 16, 16), 16, KEYS)
    return total


@njit(forceinline=True, **INNER)
def over_keys(weights, j, rows, offsets, d, count):
    """Sums over `count` keys for queries j, j + 1, ...: (KEYS, WIDE), from number d of a row."""
    total = full(ZERO, ROWS)
    for i in range(count):
        left = broadcast(weights, i * 16 + j, 1, KEYS, WIDE)
        total = total + left * repeat(load(rows, offsets[i] + d, WIDE), WIDE, KEYS)
    return total


@njit(forceinline=True, **INNER)
def over_keys_rest(weights, j, rows, offsets, d, count):
    """Do the same for 16 numbers, as a vector's length is part of its type."""
    total = full(ZERO, COLUMNS)
    for i in range(count):
        left = broadcast(weights, i * 16 + j, 1, KEYS, 16)
        total = total + left * repeat(load(rows, offsets[i] + d, 16), 16, KEYS)
    return total


@njit(forceinline=True, **INNER)
def over_queries(weights, i, rows, offsets, d):
    """Sums over 16 queries for keys i, i + 1, ...: (KEYS, WIDE), from number d of a row."""
    total = full(ZERO, ROWS)
    for j in range(16):
        left = broadcast(weights, i * 16 + j, 16, KEYS, WIDE)
        total = total + left * repeat(load(rows, offsets[j] + d, WIDE), WIDE, KEYS)
    return total


@njit(forceinline=True, **INNER)
def over_queries_rest(weights, i, rows, offsets, d):
    """Do the same for 16 numbers."""
    total = full(ZERO, COLUMNS)
    for j in range(16):
        left = broadcast(weights, i * 16 + j, 16, KEYS, 16)
        total = total + left * repeat(load(rows, offsets[j] + d, 16), 16, KEYS)
    return total


@njit(forceinline=True, **INNER)
def bent(x):
    """tanh of each number."""
    if DTYPE == "float32":
        size = vmax(x, x * -ONE)
        e = vexp(size * NUMBER(-2))
        one = full(ONE, 16)
        far = (one - e) / (one + e)
        far = where_positive(x, far, far * -ONE)
        # 1 - e loses what is small, for which there is the series
        y = x * x
        near = y * NUMBER(62 / 2835) - full(NUMBER(17 / 315), 16)
        near = near * y + full(NUMBER(2 / 15), 16)
        near = near * y - full(NUMBER(1 / 3), 16)
        near = x + x * (near * y)
        return where_positive(full(NUMBER(0.35), 16) - size, near, far)
    return vtanh(x)


# -- What a tile is --------------------------------------------------------------------------------


@njit(**INNER)
def mixed(x):
    """Compute a hash of a number, uint32."""
    x = np.uint32(x)
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))


@njit(**INNER)
def find_keys(members, first, count, base, size, value_size, key_at, value_at):
    """Write where keys and values of a tile begin, the last again up to a multiple of `KEYS`."""
    for i in range(-(-count // KEYS) * KEYS):
        row = base + members[first + min(i, count - 1)]
        key_at[i] = row * size
        value_at[i] = row * value_size


@njit(**INNER)
def turn(rows, offsets, size, to, scale, block):
    """Write 16 rows as columns (size, 16), times `scale`; by way of `block` (256,)."""
    for d in range(0, size, 16):
        transpose(rows, offsets, d, block, 16)
        for i in range(16):
            store(to, (d + i) * 16, load(block, i * 16, 16) * scale)


# -- Forward ---------------------------------------------------------------------------------------


@njit(**OPTIONS)
def forward(piece, first, last, pieces, sizes, numbers, seeds, given, plan, out, lse):
    """Write output and log-sum-exp of the queries of pieces; arguments as in `fast.Call`."""
    heads, kv_heads, _, keys, size, value_size, most, _, _ = sizes
    groups = heads // kv_heads
    room = (
        np.empty(size * 16, NUMBER),
        np.empty(most * 16, NUMBER),
        np.empty(ROWS, NUMBER),
        np.empty(256, NUMBER),
        np.empty(16, NUMBER),
        np.empty(16, NUMBER),
    )
    key_at, value_at = np.empty(most, np.int64), np.empty(most, np.int64)
    row, row_at, hashes = np.empty(16, np.int64), np.empty(16, np.int64), np.empty(16, np.uint32)
    starts, members = plan[1], plan[2]
    for number in range(first, last):
        kv_head = pieces[number, 0]
        for sample in range(pieces[number, 1], pieces[number, 2]):
            base = (sample * kv_heads + kv_head) * keys
            for tile in range(pieces[number, 3], pieces[number, 4]):
                start = starts[tile]
                count = starts[tile + 1] - start
                find_keys(members, start, count, base, size, value_size, key_at, value_at)
                for head in range(kv_head * groups, (kv_head + 1) * groups):
                    forward_tile(
                        sample, head, tile, base, sizes, numbers, seeds, given, plan, out, lse,
                        room, key_at, value_at, row, row_at, hashes,
                    )  # fmt: skip


@njit(**INNER)
def forward_tile(
    sample, head, tile, base, sizes, numbers, seeds, given, plan, out, lse,
    room, key_at, value_at, row, row_at, hashes,
):  # fmt: skip
    """Write output and log-sum-exp of one head's queries of a tile."""
    heads, _, queries, _, size, value_size, _, shared, entries = sizes
    scale, cap, factor = numbers
    limit, row_seed, key_seed = seeds
    q, k, v, sink = given
    tiles, starts, members, units, unit_starts, floors, added, index, table = plan
    columns, scores, rows, block, tops, left = room
    count = starts[tile + 1] - starts[tile]
    for j in range(16):
        at = tiles[tile * 16 + j]
        row[j] = (sample * heads + head) * queries + at if at >= 0 else -1
        row_at[j] = (row[j] if row[j] >= 0 else row[0]) * size  # the first is never padding
        if limit:
            hashes[j] = mixed(np.uint32(row[j]) ^ row_seed)
    if count == 0:
        for j in range(16):
            if row[j] >= 0:
                lse[row[j]] = -INF
                for d in range(value_size):
                    out[row[j] * value_size + d] = ZERO
        return
    turn(q, row_at, size, columns, scale, block)
    unit, u, top = units[tile], np.int64(-1), full(-INF, 16)
    if unit >= 0:
        h = 0 if shared else head
        u = h * unit_starts[-1] + unit_starts[unit]
        top = load(floors, (h * (len(unit_starts) - 1) + unit) * 16, 16)
    for g in range(0, count, KEYS):
        store(scores, g * 16, products(k, key_at, g, columns, size))
        for i in range(g, min(g + KEYS, count)):
            x = load(scores, i * 16, 16)
            if cap > ZERO:
                x = bent(x / cap) * cap
            if u >= 0:
                if entries:
                    x = x + look_up(table, head * entries, index, (u + i) * 16, 16)
                else:
                    x = x + load(added, (u + i) * 16, 16)
            top = vmax(x, top)
            store(scores, i * 16, x)
    total = full(ZERO, 16)
    for i in range(count):
        x = vexp(load(scores, i * 16, 16) - top)
        total = total + x
        if limit:
            key = mixed(np.uint32(base + members[starts[tile] + i]) ^ key_seed)
            x = drawn(hashes, key, limit, x * factor)
        store(scores, i * 16, x)
    store(left, 0, total)
    store(tops, 0, top)
    for j in range(16):
        total_j = left[j]
        if total_j == ZERO:  # NaN is not
            tops[j] = -INF
        else:
            tops[j] += math.log(total_j)
            left[j] = ONE / total_j
            if len(sink) and sink[head] != -INF:
                left[j] /= ONE + math.exp(sink[head] - tops[j])
        if row[j] >= 0:
            lse[row[j]] = tops[j]
    for j in range(0, 16, KEYS):
        d = 0
        while d + WIDE <= value_size:
            store(rows, 0, over_keys(scores, j, v, value_at, d, count))
            for i in range(KEYS):
                if row[j + i] >= 0:
                    x = load(rows, i * WIDE, WIDE) * left[j + i]
                    store(out, row[j + i] * value_size + d, x)
            d += WIDE
        if d < value_size:
            store(rows, 0, over_keys_rest(scores, j, v, value_at, d, count))
            for i in range(KEYS):
                if row[j + i] >= 0:
                    x = load(rows, i * 16, 16) * left[j + i]
                    store(out, row[j + i] * value_size + d, x)


# -- Backward --------------------------------------------------------------------------------------


@njit(**OPTIONS)
def backward(piece, first, last, pieces, sizes, numbers, seeds, given, plan, lse, grads, to, parts):
    """Write the gradients of pieces; arguments as in `fast.Call`."""
    heads, kv_heads, _, keys, size, value_size, most, _, _ = sizes
    groups = heads // kv_heads
    room = (
        np.empty(size * 16, NUMBER),
        np.empty(value_size * 16, NUMBER),
        np.empty(most * 16, NUMBER),
        np.empty(most * 16, NUMBER),
        np.empty(most * 16 if numbers[1] > ZERO else 0, NUMBER),
        np.empty(most * 16 if seeds[0] else 0, NUMBER),
        np.empty(ROWS, NUMBER),
        np.empty(256, NUMBER),
        np.empty(16, NUMBER),
    )
    key_at, value_at = np.empty(most, np.int64), np.empty(most, np.int64)
    row, row_at, grad_at = np.empty(16, np.int64), np.empty(16, np.int64), np.empty(16, np.int64)
    hashes = np.empty(16, np.uint32)
    starts, members = plan[1], plan[2]
    for number in range(first, last):
        kv_head, apart = pieces[number, 0], pieces[number, 7] > 0
        for sample in range(pieces[number, 1], pieces[number, 2]):
            base = (sample * kv_heads + kv_head) * keys
            # From where a key is to where its gradient is, where a piece has rows of its own
            shift = pieces[number, 5] - base if apart else 0
            for tile in range(pieces[number, 3], pieces[number, 4]):
                start = starts[tile]
                count = starts[tile + 1] - start
                find_keys(members, start, count, base, size, value_size, key_at, value_at)
                for head in range(kv_head * groups, (kv_head + 1) * groups):
                    backward_tile(
                        number, pieces[number, 6], sample, head, tile, base, shift, apart, sizes,
                        numbers, seeds, given, plan, lse, grads, to, parts, room, key_at, value_at,
                        row, row_at, grad_at, hashes,
                    )  # fmt: skip


@njit(**INNER)
def backward_tile(
    number, sums, sample, head, tile, base, shift, apart, sizes, numbers, seeds, given, plan, lse,
    grads, to, parts, room, key_at, value_at, row, row_at, grad_at, hashes,
):  # fmt: skip
    """Write the gradients of one head's queries of a tile, add those of its keys."""
    heads, kv_heads, queries, _, size, value_size, _, shared, entries = sizes
    scale, cap, factor = numbers
    limit, row_seed, key_seed = seeds
    q, k, v, sink = given
    tiles, starts, members, units, unit_starts, _, added, index, table = plan
    grad_out, grad_lse = grads
    grad_q, grad_k, grad_v, part_k, part_v = to
    of_sink, of_added, of_table, fresh = parts
    columns, turned, weights, slopes, bends, draws, rows, block, lane = room
    to_k, to_v = (part_k, part_v) if apart else (grad_k, grad_v)
    groups = heads // kv_heads
    count = starts[tile + 1] - starts[tile]
    # Whether this is the first that the gradients of its keys hear of
    new = len(fresh) > 0 and fresh[tile] and head % groups == 0
    seen = np.int64(-1)
    for j in range(16):
        at = tiles[tile * 16 + j]
        row[j] = (sample * heads + head) * queries + at if at >= 0 else -1
        if limit:
            hashes[j] = mixed(np.uint32(row[j]) ^ row_seed)
        if row[j] >= 0:
            if lse[row[j]] == -INF:  # it may attend to nothing
                for d in range(size):
                    grad_q[row[j] * size + d] = ZERO
                row[j] = -1
            elif seen < 0:
                seen = row[j]
    if seen < 0:
        if new:
            for i in range(count):
                to_k[key_at[i] : key_at[i] + size] = ZERO
                to_v[value_at[i] : value_at[i] + value_size] = ZERO
        return
    for j in range(16):
        at = row[j] if row[j] >= 0 else seen
        row_at[j], grad_at[j] = at * size, at * value_size
        lane[j] = lse[row[j]] if row[j] >= 0 else FAR
    top = load(lane, 0, 16)
    left = full(ONE, 16)
    if len(sink) and sink[head] != -INF:
        for j in range(16):
            if row[j] >= 0:
                lane[j] = ONE / (ONE + math.exp(sink[head] - lane[j]))
        left = load(lane, 0, 16)
    for j in range(16):
        lane[j] = grad_lse[row[j]] if len(grad_lse) and row[j] >= 0 else ZERO
    of_lse = load(lane, 0, 16)
    turn(q, row_at, size, columns, scale, block)
    turn(grad_out, grad_at, value_size, turned, ONE, block)
    unit, u, of_u = units[tile], np.int64(-1), np.int64(-1)
    if unit >= 0:
        u = (0 if shared else head) * unit_starts[-1] + unit_starts[unit]
        h = sums if shared else sums + head
        of_u = h * unit_starts[-1] + unit_starts[unit]
    mean, total = full(ZERO, 16), full(ZERO, 16)
    for g in range(0, count, KEYS):
        store(weights, g * 16, products(k, key_at, g, columns, size))
        store(slopes, g * 16, products(v, value_at, g, turned, value_size))
        for i in range(g, min(g + KEYS, count)):
            x = load(weights, i * 16, 16)
            if cap > ZERO:
                x = bent(x / cap)
                store(bends, i * 16, full(ONE, 16) - x * x)
                x = x * cap
            if u >= 0:
                if entries:
                    x = x + look_up(table, head * entries, index, (u + i) * 16, 16)
                else:
                    x = x + load(added, (u + i) * 16, 16)
            x = vexp(x - top)
            store(weights, i * 16, x)
            y = load(slopes, i * 16, 16)
            if limit:
                key = mixed(np.uint32(base + members[starts[tile] + i]) ^ key_seed)
                z = drawn(hashes, key, limit, full(factor, 16))
                store(draws, i * 16, z)
                y = y * z
                store(slopes, i * 16, y)
            mean = mean + x * y
            total = total + x
    # 1, but where a log-sum-exp is so large that it holds no sum of its own any more
    total = where_positive(total, full(ONE, 16) / total, full(ZERO, 16))
    of_lse = of_lse * total
    mean = mean * total * left
    if len(sink):
        store(lane, 0, (left - full(ONE, 16)) * mean)
        for j in range(16):
            if row[j] >= 0:
                of_sink[number * groups + head % groups] += lane[j]
    left = left * total
    for i in range(count):
        x = load(weights, i * 16, 16)
        y = x * (left * (load(slopes, i * 16, 16) - mean) + of_lse)
        if u >= 0:
            if len(of_added):
                at = (of_u + i) * 16
                store(of_added, at, load(of_added, at, 16) + y)
            if len(of_table):
                store(lane, 0, y)
                for j in range(16):
                    at = (number * groups + head % groups) * entries + index[(u + i) * 16 + j]
                    of_table[at * 16 + j] += lane[j]
        if cap > ZERO:
            y = y * load(bends, i * 16, 16)
        store(slopes, i * 16, y)
        x = x * left
        if limit:
            x = x * load(draws, i * 16, 16)
        store(weights, i * 16, x)
    for i in range(count, -(-count // KEYS) * KEYS):
        store(weights, i * 16, full(ZERO, 16))
        store(slopes, i * 16, full(ZERO, 16))
    for j in range(0, 16, KEYS):
        d = 0
        while d + WIDE <= size:
            store(rows, 0, over_keys(slopes, j, k, key_at, d, count))
            for i in range(KEYS):
                if row[j + i] >= 0:
                    store(grad_q, row[j + i] * size + d, load(rows, i * WIDE, WIDE) * scale)
            d += WIDE
        if d < size:
            store(rows, 0, over_keys_rest(slopes, j, k, key_at, d, count))
            for i in range(KEYS):
                if row[j + i] >= 0:
                    store(grad_q, row[j + i] * size + d, load(rows, i * 16, 16) * scale)
    add_over_queries(
        weights, count, grad_out, grad_at, value_size, ONE, rows, to_v, value_at,
        shift * value_size, new,
    )  # fmt: skip
    add_over_queries(slopes, count, q, row_at, size, scale, rows, to_k, key_at, shift * size, new)


@njit(**INNER)
def add_over_queries(weights, count, given, given_at, size, scale, rows, to, to_at, shift, new):
    """Add to row i of `to`, or write if it is new, the sum over 16 queries of weights (count, 16)
    times rows `given`."""
    for g in range(0, count, KEYS):
        d = 0
        while d + WIDE <= size:
            store(rows, 0, over_queries(weights, g, given, given_at, d))
            for i in range(min(KEYS, count - g)):
                at = to_at[g + i] + shift + d
                x = load(rows, i * WIDE, WIDE) * scale
                store(to, at, x if new else load(to, at, WIDE) + x)
            d += WIDE
        if d < size:
            store(rows, 0, over_queries_rest(weights, g, given, given_at, d))
            for i in range(min(KEYS, count - g)):
                at = to_at[g + i] + shift + d
                x = load(rows, i * 16, 16) * scale
                store(to, at, x if new else load(to, at, 16) + x)
