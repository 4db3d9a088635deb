"""Attention over pairs in compressed sparse rows: the kernels, as `fast` has numba compile them.

This text is compiled, with other constants, by `attention_core.backends.fast.compiled`; the module
itself is never imported. Tokens are rows of all heads, (N, H · D), and all heads of a pair that fit
into a vector are computed at once, so a pair costs one row of keys and one of values. Forward keeps
the log-sum-exp (Dao et al., FlashAttention, 2022). Backward is a pass over queries, which leaves
two numbers per pair and head, and one over keys, so that no sum needs an atomic.

Arrays are one number after another, and arguments called `_step` are the distance from one token,
head or pair to the next; an array of no numbers stands for what is not given. `column`, `item`,
`key_row` and `pair` are as in `Pairs`. H is `heads`, F `FEATURES`.
"""

# numba ships no types, and compiles functions that are written without
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"
# ruff: noqa: SIM102
# An `if` of its own where a constant decides: numba leaves out what that rules out

import math

import numpy as np
from numba import njit

from attention_core.backends.fast.loads import (
    broadcast,
    load,
    prefetch,
    scatter,
    store,
    store_positive,
    where_bits,
    where_bytes,
)
from attention_core.backends.fast.vectors import (
    fold,
    full,
    get,
    repeat,
    vexp,
    vmax,
    vtanh,
    where_positive,
)

KIND = "dot"  # constant
DIM = 8  # constant
VALUE_DIM = 8  # constant
HEADS = 8  # constant
KEY_SHARE = 1  # constant
VALUE_SHARE = 1  # constant
FEATURES = 0  # constant
TERM = False  # constant
SUMS = False  # constant
CAPPED = False  # constant
BIASED = False  # constant
MASKED = False  # constant
DROPS = False  # constant
DTYPE = "float32"  # constant
CACHED = False  # constant
# The score; features of a head in queries and keys, and in values; heads of a vector, and how many
# of them share a key, and a value; features of an edge, whether the score has a term of them, and
# whether their weighted sums are asked for; whether softcap, bias, allowed and keep are given, as
# to ask at every pair takes a third of the time

DOT, ADDITIVE, ADDITIVE_V2 = KIND == "dot", KIND == "additive", KIND == "additive_v2"
LEAKY = ADDITIVE or ADDITIVE_V2
DOT_TERM, HIDDEN_TERM = DOT and TERM, ADDITIVE_V2 and TERM
SCORED = KIND != "none"
Q, V, S = HEADS * DIM, HEADS * VALUE_DIM, HEADS * FEATURES
K, KV = Q // KEY_SHARE, V // VALUE_SHARE
BYTES = (Q + 7) // 8
ZERO, ONE = np.dtype(DTYPE).type(0), np.dtype(DTYPE).type(1)
LOWEST, NEVER = np.finfo(DTYPE).min, np.dtype(DTYPE).type(-np.inf)
LINE = 64 // np.dtype(DTYPE).itemsize
AHEAD = 4

kernel = njit(cache=CACHED, nogil=True, error_model="numpy")
inner = njit(forceinline=True, nogil=True, error_model="numpy")


@inner
def _key(k, at):
    """The key of each head of a vector."""
    return repeat(load(k, at, K), DIM, KEY_SHARE)


@inner
def _value(v, at):
    return repeat(load(v, at, KV), VALUE_DIM, VALUE_SHARE)


@inner
def _features(features, at):
    """The features of an edge, for each head of a vector."""
    return repeat(load(features, at, FEATURES), FEATURES, HEADS)


@inner
def _hidden(query, k, k_at, block, heads, item, features, edge_weight, edge_number):
    """What goes into a LeakyReLU."""
    z = query + _key(k, k_at)
    if HIDDEN_TERM:
        at = np.int64(item) * FEATURES
        for f in range(FEATURES):
            z = z + load(edge_weight, f * heads * DIM + block * Q, Q) * features[at + f]
    if ADDITIVE:
        if edge_number.shape[0] > 0:
            z = z + load(edge_number, np.int64(item) * heads + block * HEADS, HEADS)
    return z


@inner
def _leaky(z, slope):
    return where_positive(z, z, z * slope)


@inner
def _score(
    query, k, k_at, block, heads, item, features, edge_query, edge_weight, edge_number, weight,
    slope,
):  # fmt: skip
    """The score of each head of a vector. `edge_query` is of the query; what is not used is 0."""
    if DOT:
        s = fold(query * _key(k, k_at), 1, DIM)
        if DOT_TERM:
            s = s + fold(edge_query * _features(features, np.int64(item) * FEATURES), 1, FEATURES)
        return s
    elif ADDITIVE_V2:
        z = _hidden(query, k, k_at, block, heads, item, features, edge_weight, edge_number)
        return fold(_leaky(z, slope) * weight, 1, DIM)
    elif ADDITIVE:
        z = _hidden(query, k, k_at, block, heads, item, features, edge_weight, edge_number)
        return _leaky(z, slope)
    else:
        return full(ZERO, HEADS)


@inner
def _masked(s, block, pair, bias, bias_head, bias_pair, allowed, allowed_head, allowed_pair):
    """Scores with their bias, -inf where a head does not allow the pair."""
    head = block * HEADS
    if BIASED:
        s = s + broadcast(bias, head * bias_head + pair * bias_pair, bias_head, HEADS, 1)
    if MASKED:
        at = head * allowed_head + pair * allowed_pair
        s = where_bytes(allowed, at, allowed_head, s, full(NEVER, HEADS))
    return s


@inner
def _ahead(array, at, width):
    """Fetch a row of numbers into the cache."""
    for x in range(0, width, LINE):
        prefetch(array, at + x)


@kernel
def forward(
    piece, first, last, block, heads, start, column, item, q, q_step, k, k_step, v, v_step, weight,
    slope,
    features, edge_query, edge_weight, edge_number, bias, bias_head, bias_pair, allowed,
    allowed_head, allowed_pair, keep, keep_head, keep_pair, sink, scale, softcap, grow,
    key_share, value_share, out, lse, highest, totals, edge_sum,
):  # fmt: skip
    """Write `Outputs` of some queries; `highest` is its `top`."""
    rows = start.shape[0] - 1
    room = 256
    scores = np.empty(room * HEADS, v.dtype)
    zero = full(ZERO, HEADS)
    for i in range(first, last):
        begin = np.int64(start[i])
        count = np.int64(start[i + 1]) - begin
        if count > room:
            room = 2 * count
            scores = np.empty(room * HEADS, scores.dtype)
        head = block * HEADS
        k_head, v_head = head // key_share * DIM, head // value_share * VALUE_DIM
        query, w, u = zero, zero, zero
        if SCORED:
            query = load(q, i * q_step + block * Q, Q)
        if ADDITIVE_V2:
            w = load(weight, block * Q, Q)
        if DOT_TERM:
            u = load(edge_query, (i * heads + head) * FEATURES, S)
        top = full(LOWEST, HEADS)
        for t in range(count):
            pair = begin + t
            c = np.int64(column[pair])
            if pair + AHEAD < column.shape[0]:
                ahead = np.int64(column[pair + AHEAD])
                _ahead(v, ahead * v_step + v_head, KV)
                if SCORED:
                    _ahead(k, ahead * k_step + k_head, K)
                if FEATURES > 0:
                    _ahead(features, np.int64(item[pair + AHEAD]) * FEATURES, FEATURES)
            s = _score(
                query, k, c * k_step + k_head, block, heads, item[pair], features, u,
                edge_weight, edge_number, w, slope,
            ) * scale  # fmt: skip
            if CAPPED:
                s = vtanh(s / softcap) * softcap
            s = _masked(
                s, block, pair, bias, bias_head, bias_pair, allowed, allowed_head, allowed_pair
            )
            store(scores, t * HEADS, s)
            top = vmax(top, s)
        total = zero
        sums = full(ZERO, V)
        if SUMS:
            of_features = full(ZERO, S)
        for t in range(count):
            pair = begin + t
            p = vexp(load(scores, t * HEADS, HEADS) - top)
            total = total + p
            if DROPS:
                at = head * keep_head + pair * keep_pair
                p = where_bytes(keep, at, keep_head, p, zero)
            c = np.int64(column[pair])
            sums = sums + repeat(p, 1, VALUE_DIM) * _value(v, c * v_step + v_head)
            if SUMS:
                at = np.int64(item[pair]) * FEATURES
                of_features = of_features + repeat(p, 1, FEATURES) * _features(features, at)
        for h in range(HEADS):
            at = (head + h) * rows + i
            alone, most = get(total, h), get(top, h)
            lse[at] = math.log(alone) + most  # of an empty row -inf
            if alone == 0:
                alone = ONE
            highest[at], totals[at] = most, alone
            if sink.shape[0] > 0:
                alone = alone + math.exp(sink[head + h] - most)
            scores[h] = grow / alone
        factor = load(scores, 0, HEADS)
        store(out, i * heads * VALUE_DIM + block * V, sums * repeat(factor, 1, VALUE_DIM))
        if SUMS:
            at = (i * heads + head) * FEATURES
            store(edge_sum, at, of_features * repeat(factor, 1, FEATURES))


@kernel
def backward_queries(
    piece, first, last, block, heads, start, column, item, q, q_step, k, k_step, v, v_step, weight,
    slope,
    features, edge_query, edge_weight, edge_number, bias, bias_head, bias_pair, allowed,
    allowed_head, allowed_pair, keep, keep_head, keep_pair, scale, softcap, grow, key_share,
    value_share, out, highest, share, edge_sum, mean, of_out, of_edge_sum, weighted, pairs, signs,
    of_q,
    of_edge_query, of_bias, of_bias_head, of_bias_pair, of_features, of_weight, of_edge_weight,
):  # fmt: skip
    """Write the gradients of some queries, and what the pass over keys asks of their pairs.

    Args:
        highest: (H, Lq), `top` of `Outputs`.
        share, mean: (H, Lq), of `per_query`; `mean` of no numbers where it is `share` times the
            product of `out` and its gradient.
        weighted: (H · D, F) `edge_weight` times `weight`, where `of_features` is asked for.
        pairs: (E, 2, H), for each pair its weight, as its value has it, and its score's gradient.
        signs: (E, H · D) bits, where a LeakyReLU is on its positive side.
        of_weight, of_edge_weight: (pieces, H · D) and (pieces, F, H · D), zeros; the sums of a
            piece, without the factor `weight` in the latter.
    """
    rows = start.shape[0] - 1
    room = 256
    hidden = np.empty(room * Q if HIDDEN_TERM else 0, v.dtype)
    zero = full(ZERO, HEADS)
    for i in range(first, last):
        begin = np.int64(start[i])
        count = np.int64(start[i + 1]) - begin
        if HIDDEN_TERM and count > room:
            room = 2 * count
            hidden = np.empty(room * Q, v.dtype)
        head = block * HEADS
        k_head, v_head = head // key_share * DIM, head // value_share * VALUE_DIM
        query, w, u = zero, zero, zero
        if SCORED:
            query = load(q, i * q_step + block * Q, Q)
        if ADDITIVE_V2:
            w = load(weight, block * Q, Q)
        at_sums = (i * heads + head) * FEATURES
        if DOT_TERM:
            u = load(edge_query, at_sums, S)
            of_u = full(ZERO, S)
        at_out = i * heads * VALUE_DIM + block * V
        gradient = load(of_out, at_out, V)
        if SUMS:
            of_sums = load(of_edge_sum, at_sums, S)
        factor = broadcast(share, head * rows + i, rows, HEADS, 1)
        if mean.shape[0] > 0:
            shared = broadcast(mean, head * rows + i, rows, HEADS, 1)
        else:
            shared = fold(load(out, at_out, V) * gradient, 1, VALUE_DIM)
            if SUMS:
                shared = shared + fold(load(edge_sum, at_sums, S) * of_sums, 1, FEATURES)
            shared = shared * factor
        top = broadcast(highest, head * rows + i, rows, HEADS, 1)
        total = full(ZERO, Q)
        for t in range(count):
            pair = begin + t
            c = np.int64(column[pair])
            if pair + AHEAD < column.shape[0]:
                ahead = np.int64(column[pair + AHEAD])
                _ahead(v, ahead * v_step + v_head, KV)
                if SCORED:
                    _ahead(k, ahead * k_step + k_head, K)
                if FEATURES > 0:
                    _ahead(features, np.int64(item[pair + AHEAD]) * FEATURES, FEATURES)
            s = _score(
                query, k, c * k_step + k_head, block, heads, item[pair], features, u,
                edge_weight, edge_number, w, slope,
            ) * scale  # fmt: skip
            slope_of_cap = full(ONE, HEADS)
            if CAPPED:
                tanh = vtanh(s / softcap)
                s, slope_of_cap = tanh * softcap, 1 - tanh * tanh
            s = _masked(
                s, block, pair, bias, bias_head, bias_pair, allowed, allowed_head, allowed_pair
            )
            p = vexp(s - top)
            of_p = fold(gradient * _value(v, c * v_step + v_head), 1, VALUE_DIM)
            if SUMS:
                known = _features(features, np.int64(item[pair]) * FEATURES)
                of_p = of_p + fold(of_sums * known, 1, FEATURES)
            of_p, kept = of_p * factor, p * factor
            if DROPS:
                at = head * keep_head + pair * keep_pair
                kept = where_bytes(keep, at, keep_head, kept * grow, zero)
                of_p = where_bytes(keep, at, keep_head, of_p * grow, zero)
            of_s = p * (of_p - shared)
            if BIASED and of_bias.shape[0] > 0:
                at = head * of_bias_head + pair * of_bias_pair
                scatter(of_bias, at, of_bias_head, of_s)
            if CAPPED:
                of_s = of_s * slope_of_cap
            of_s = of_s * scale
            if DOT:
                total = total + repeat(of_s, 1, DIM) * _key(k, c * k_step + k_head)
            if LEAKY:
                z = _hidden(
                    query, k, c * k_step + k_head, block, heads, item[pair], features,
                    edge_weight, edge_number,
                )  # fmt: skip
                x = repeat(of_s, 1, DIM)
                x = where_positive(z, x, x * slope)
                total = total + x
                if ADDITIVE:
                    of_s = x
                else:
                    store_positive(signs, (pair * (heads // HEADS) + block) * BYTES, z)
                if HIDDEN_TERM:
                    store(hidden, t * Q, x)
            store(pairs, pair * 2 * heads + head, kept)
            store(pairs, (pair * 2 + 1) * heads + head, of_s)
            if DOT_TERM:
                known = _features(features, np.int64(item[pair]) * FEATURES)
                of_u = of_u + repeat(of_s, 1, FEATURES) * known
            if FEATURES > 0:
                if of_features.shape[0] > 0:
                    one = full(ZERO, FEATURES)
                    if block > 0:
                        one = load(of_features, pair * FEATURES, FEATURES)
                    if DOT_TERM:
                        one = one + fold(repeat(of_s, 1, FEATURES) * u, FEATURES, HEADS)
                    if SUMS:
                        one = one + fold(repeat(kept, 1, FEATURES) * of_sums, FEATURES, HEADS)
                    if HIDDEN_TERM:
                        for j in range(Q):
                            at = (block * Q + j) * FEATURES
                            one = one + load(weighted, at, FEATURES) * hidden[t * Q + j]
                    store(of_features, pair * FEATURES, one)
        if HIDDEN_TERM:
            for f in range(FEATURES):
                at = (piece * FEATURES + f) * heads * DIM + block * Q
                by_feature = load(of_edge_weight, at, Q)
                for t in range(count):
                    number = features[np.int64(item[begin + t]) * FEATURES + f]
                    by_feature = by_feature + load(hidden, t * Q, Q) * number
                store(of_edge_weight, at, by_feature)
        if ADDITIVE_V2:
            # LeakyReLU(z) is its slope times z, so its sums over pairs give the weight's
            # gradient too: times what was added to z
            at = piece * heads * DIM + block * Q
            store(of_weight, at, load(of_weight, at, Q) + total * query)
            total = total * w
        if SCORED:
            store(of_q, i * heads * DIM + block * Q, total)
        if DOT_TERM:
            store(of_edge_query, at_sums, of_u)


@kernel
def backward_keys(
    piece, first, last, block, heads, key_start, key_row, pair, q, q_step, k, k_step, weight, slope,
    key_share, value_share, of_out, pairs, signs, of_k, of_v, of_weight,
):  # fmt: skip
    """Write the gradients of some keys and their values; arguments as in `backward_queries`."""
    for j in range(first, last):
        begin, end = np.int64(key_start[j]), np.int64(key_start[j + 1])
        head = block * HEADS
        k_head, v_head = head // key_share * DIM, head // value_share * VALUE_DIM
        of_key, of_value = full(ZERO, Q), full(ZERO, V)
        for t in range(begin, end):
            row, at = np.int64(key_row[t]), np.int64(pair[t])
            if t + AHEAD < key_row.shape[0]:
                ahead = np.int64(key_row[t + AHEAD])
                _ahead(pairs, np.int64(pair[t + AHEAD]) * 2 * heads, 2 * heads)
                _ahead(of_out, ahead * heads * VALUE_DIM + block * V, V)
                if DOT:
                    _ahead(q, ahead * q_step + block * Q, Q)
            p = load(pairs, at * 2 * heads + head, HEADS)
            of_s = load(pairs, (at * 2 + 1) * heads + head, HEADS)
            gradient = load(of_out, row * heads * VALUE_DIM + block * V, V)
            of_value = of_value + repeat(p, 1, VALUE_DIM) * gradient
            if DOT:
                query = load(q, row * q_step + block * Q, Q)
                of_key = of_key + repeat(of_s, 1, DIM) * query
            if ADDITIVE:
                of_key = of_key + of_s
            if ADDITIVE_V2:
                x = repeat(of_s, 1, DIM)
                bits = (at * (heads // HEADS) + block) * BYTES
                of_key = of_key + where_bits(signs, bits, x, x * slope)
        if ADDITIVE_V2:
            at = piece * heads * DIM + block * Q
            key = _key(k, j * k_step + k_head)
            store(of_weight, at, load(of_weight, at, Q) + of_key * key)
            of_key = of_key * load(weight, block * Q, Q)
        if SCORED:
            _add(of_k, j * (heads // key_share) * DIM + k_head, head % key_share,
                 fold(of_key, DIM, KEY_SHARE), K)  # fmt: skip
        _add(of_v, j * (heads // value_share) * VALUE_DIM + v_head, head % value_share,
             fold(of_value, VALUE_DIM, VALUE_SHARE), KV)  # fmt: skip


@inner
def _add(array, at, later, x, width):
    """Store x, or add it where other heads that share a key were stored before."""
    if later > 0:
        store(array, at, load(array, at, width) + x)
    else:
        store(array, at, x)
