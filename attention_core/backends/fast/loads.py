"""Vectors from memory and to it; those of numbers, and of a bit or a byte for each number.

All functions here are for use inside `njit` functions. Arrays are contiguous, and indices count
numbers from their beginning, whatever their shape; no bounds are checked. An argument that is
called `n` or `width` is a constant, as in `vectors`.
"""

# numba ships no types, and compiles functions that are written without
# mypy: disable-error-code="no-untyped-def, call-arg"

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from attention_core.backends.fast import llvm as ll
from attention_core.backends.fast.llvm import Vec


@intrinsic(prefer_literal=True)
def load(typing, array, at, n):
    """array[at : at + n], as a vector."""
    count = n.literal_value

    def emit(context, b, signature, args):
        at = ll.index(context, b, args[1], signature.args[1])
        found = b.load(ll.pointer(context, b, array, args[0], at, ll.vector(count, array.dtype)))
        found.align = array.dtype.bitwidth // 8
        return found

    return Vec(count, array.dtype)(array, at, n), emit


@intrinsic(prefer_literal=True)
def store(typing, array, at, x):
    """array[at : at + n] = x, of n numbers."""

    def emit(context, b, signature, args):
        at = ll.index(context, b, args[1], signature.args[1])
        to = ll.pointer(context, b, array, args[0], at, ll.vector(x.n, x.dtype))
        b.store(args[2], to).align = x.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.none(array, at, x), emit


@intrinsic(prefer_literal=True)
def scatter(typing, array, at, step, x):
    """Store the numbers of x at `at`, `step` apart; `broadcast` with width 1 loads them so."""

    def emit(context, b, signature, args):
        first, step = (ll.index(context, b, args[i], signature.args[i]) for i in (1, 2))
        data = ll.data(context, b, array, args[0])
        for i in range(x.n):
            to = b.gep(data, [b.add(first, b.mul(step, ll.I64(i)))])
            b.store(b.extract_element(args[3], ll.I32(i)), to)
        return context.get_dummy_value()

    return types.none(array, at, step, x), emit


@intrinsic(prefer_literal=True)
def prefetch(typing, array, at):
    """Ask for the line of cache that array[at] is in, for reading soon. `at` may be anywhere."""

    def emit(context, b, signature, args):
        at = ll.index(context, b, args[1], signature.args[1])
        to = ll.pointer(context, b, array, args[0], at, ir.IntType(8))
        kind = ir.FunctionType(ir.VoidType(), [to.type, ll.I32, ll.I32, ll.I32])
        function = b.module.declare_intrinsic("llvm.prefetch", [to.type], kind)
        b.call(function, [to, ll.I32(0), ll.I32(3), ll.I32(1)])  # to read, in all caches, data
        return context.get_dummy_value()

    return types.none(array, at), emit


@intrinsic(prefer_literal=True)
def broadcast(typing, array, at, step, n, width):
    """n numbers of an array from `at` on, `step` apart, each `width` times: (n * width,)."""
    count, each = n.literal_value, width.literal_value

    def emit(context, b, signature, args):
        first, step = (ll.index(context, b, args[i], signature.args[i]) for i in (1, 2))
        data = ll.data(context, b, array, args[0])
        found = (b.load(b.gep(data, [b.add(first, b.mul(step, ll.I64(i)))])) for i in range(count))
        return ll.joined(b, [ll.all_same(b, x, each) for x in found])

    return Vec(count * each, array.dtype)(array, at, step, n, width), emit


@intrinsic(prefer_literal=True)
def broadcast_at(typing, array, offsets, first, shift, n, width):
    """array[offsets[first + i] + shift] for i < n, each `width` times: (n * width,)."""
    count, each = n.literal_value, width.literal_value

    def emit(context, b, signature, args):
        first, shift = (ll.index(context, b, args[i], signature.args[i]) for i in (2, 3))
        data, at = (
            ll.data(context, b, kind, x) for kind, x in zip((array, offsets), args[:2], strict=True)
        )
        found = []
        for i in range(count):
            offset = b.load(b.gep(at, [b.add(first, ll.I64(i))]))
            offset = ll.index(context, b, offset, offsets.dtype)
            found.append(b.load(b.gep(data, [b.add(offset, shift)])))
        return ll.joined(b, [ll.all_same(b, x, each) for x in found])

    return Vec(count * each, array.dtype)(array, offsets, first, shift, n, width), emit


# -- One bit a number ------------------------------------------------------------------------------


def _room(n: int) -> ir.IntType:
    return ir.IntType((n + 7) // 8 * 8)


@intrinsic(prefer_literal=True)
def store_positive(typing, array, at, x):
    """Store x > 0 as a bit a number, in (n + 7) // 8 bytes of an array of uint8 from `at` on."""

    def emit(context, b, signature, args):
        at = ll.index(context, b, args[1], signature.args[1])
        bits = b.fcmp_ordered(">", args[2], ll.constant(args[2].type, 0.0))
        bits = b.bitcast(bits, ir.IntType(x.n))
        bits = b.zext(bits, _room(x.n)) if x.n % 8 else bits
        b.store(bits, ll.pointer(context, b, array, args[0], at, _room(x.n))).align = 1
        return context.get_dummy_value()

    return types.none(array, at, x), emit


@intrinsic(prefer_literal=True)
def where_bits(typing, array, at, x, y):
    """x where the bits that `store_positive` stored at `at` are set, else y."""

    def emit(context, b, signature, args):
        at = ll.index(context, b, args[1], signature.args[1])
        bits = b.load(ll.pointer(context, b, array, args[0], at, _room(x.n)))
        bits.align = 1
        bits = b.trunc(bits, ir.IntType(x.n)) if x.n % 8 else bits
        return b.select(b.bitcast(bits, ir.VectorType(ir.IntType(1), x.n)), args[2], args[3])

    return x(array, at, x, y), emit


@intrinsic(prefer_literal=True)
def where_bytes(typing, array, at, step, x, y):
    """x where the bytes of an array from `at` on, `step` apart, are not 0, else y."""

    def emit(context, b, signature, args):
        first, step = (ll.index(context, b, args[i], signature.args[i]) for i in (1, 2))
        data = ll.data(context, b, array, args[0])
        given = ir.Constant(ir.VectorType(ir.IntType(8), x.n), ir.Undefined)
        for i in range(x.n):
            one = b.load(b.gep(data, [b.add(first, b.mul(step, ll.I64(i)))]))
            given = b.insert_element(given, one, ll.I32(i))
        return b.select(
            b.icmp_unsigned("!=", given, ir.Constant(given.type, [0] * x.n)), args[3], args[4]
        )

    return x(array, at, step, x, y), emit
