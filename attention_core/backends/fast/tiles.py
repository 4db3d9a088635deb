"""More of `vectors`: rows as columns, numbers looked up in a table, and dropout by a hash."""

# numba ships no types, and compiles functions that are written without
# mypy: disable-error-code="no-untyped-def, call-arg"

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from attention_core.backends.fast import llvm as ll
from attention_core.backends.fast.llvm import I32, I64, Vec


@intrinsic(prefer_literal=True)
def transpose(typing, array, offsets, shift, to, n):
    """to[i * n + j] = array[offsets[j] + shift + i] for i, j < n: n rows as n columns.

    n is a power of two.
    """
    count = n.literal_value

    def emit(context, b, signature, args):
        kind = ll.vector(count, array.dtype)
        at = ll.data(context, b, offsets, args[1])
        shift = ll.index(context, b, args[2], signature.args[2])
        rows = []
        for j in range(count):
            first = ll.index(context, b, b.load(b.gep(at, [I64(j)])), offsets.dtype)
            first = b.add(first, shift)
            rows.append(b.load(ll.pointer(context, b, array, args[0], first, kind)))
            rows[-1].align = array.dtype.bitwidth // 8
        # Each round deals the rows of the first half and those of the second out in turns
        deal = [i // 2 + count * (i % 2) for i in range(2 * count)]
        halves = [deal[:count], [i + count // 2 for i in deal[:count]]]
        for _ in range(count.bit_length() - 1):
            pairs = zip(rows[: count // 2], rows[count // 2 :], strict=True)
            rows = [ll.shuffle(b, x, half, y) for x, y in pairs for half in halves]
        for i, row in enumerate(rows):
            b.store(row, ll.pointer(context, b, to, args[3], I64(i * count), kind)).align = (
                array.dtype.bitwidth // 8
            )
        return context.get_dummy_value()

    return types.none(array, offsets, shift, to, n), emit


@intrinsic(prefer_literal=True)
def look_up(typing, array, first, index, at, n):
    """array[first + index[at + i]] for i < n, as a vector; one number at a time."""
    count = n.literal_value

    def emit(context, b, signature, args):
        first, at = (ll.index(context, b, args[i], signature.args[i]) for i in (1, 3))
        table = b.gep(ll.data(context, b, array, args[0]), [first])
        places = ll.data(context, b, index, args[2])
        found = ir.Constant(ll.vector(count, array.dtype), ir.Undefined)
        for i in range(count):
            place = b.load(b.gep(places, [b.add(at, I64(i))]))
            place = ll.index(context, b, place, index.dtype)
            found = b.insert_element(found, b.load(b.gep(table, [place])), I32(i))
        return found

    return Vec(count, array.dtype)(array, first, index, at, n), emit


@intrinsic(prefer_literal=True)
def drawn(typing, numbers, number, limit, x):
    """x where a hash of numbers[i] and `number` is below `limit`, else 0; all of them uint32.

    The hash is the finalizer of murmur3 (Appleby, 2008) with Wellons's constants (lowbias32, 2018).
    """

    def emit(context, b, signature, args):
        whole = ir.VectorType(I32, x.n)
        given, limit = (
            ll.all_same(b, context.cast(b, args[i], signature.args[i], types.uint32), x.n)
            for i in (1, 2)
        )
        h = b.load(ll.pointer(context, b, numbers, args[0], I64(0), whole))
        h.align = 4
        h = b.xor(h, given)
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            h = b.mul(b.xor(h, b.lshr(h, ll.constant(whole, shift))), ll.constant(whole, factor))
        h = b.xor(h, b.lshr(h, ll.constant(whole, 16)))
        below = b.icmp_unsigned("<", h, limit)
        return b.select(below, args[3], ll.constant(args[3].type, 0.0))

    return x(numbers, number, limit, x), emit
