"""Vectors of any length in numba, of which kernels are written: LLVM's own vector types.

LLVM does not turn short inner loops into vector code well, but it lowers a vector of any length to
the registers that the CPU has: one source serves AVX2, AVX-512 and NEON. A vector of 16 to 64
floats keeps any of them busy; longer ones spill where registers are few.

All functions here are for use inside `njit` functions. Where an argument is called `n`, `width`,
`times` or `part`, it is a constant: vectors of other lengths are other types. They come from memory
and go there by those of `loads`.

Flags stand on single instructions, never `fastmath=` on a function, which would rewrite `exp` too:
the one that is used lets a product and a sum be one instruction. NaN and infinity pass through all
of them as the standard has it.
"""

# numba ships no types, and compiles functions that are written without
# mypy: disable-error-code="no-untyped-def, call-arg"

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import intrinsic, lower_builtin

from attention_core.backends.fast import llvm as ll
from attention_core.backends.fast.llvm import Vec

# -- Arithmetic ------------------------------------------------------------------------------------


def _both(emit: Callable[..., ir.Value], kind: Vec) -> Callable[..., ir.Value]:
    """The code of a function of two vectors of a type, one of which may be a number."""

    def code(context, b, signature, args):
        u, v = (
            a if isinstance(t, Vec) else ll.all_same(b, context.cast(b, a, t, kind.dtype), kind.n)
            for t, a in zip(signature.args, args, strict=True)
        )
        return emit(b, u, v)

    return code


def _kind(x: Any, y: Any) -> Vec | None:
    """The type of what two vectors of a type, or a vector and a number, make; None of others."""
    kind = x if isinstance(x, Vec) else y
    fine = all(t == kind or isinstance(t, types.Number) for t in (x, y))
    return kind if isinstance(kind, Vec) and fine else None


def _operator(symbol: Any, emit: Callable[..., ir.Value]) -> None:
    # As numba's own numbers have it: `overload` would compile a function for each pair of types
    @infer_global(symbol)
    class _(AbstractTemplate):
        def generic(self, args, keywords):
            kind = _kind(*args) if len(args) == 2 else None
            return None if kind is None else kind(*args)

    def code(context, b, signature, args):
        return _both(emit, signature.return_type)(context, b, signature, args)

    for kinds in ((Vec, Vec), (Vec, types.Number), (types.Number, Vec)):
        lower_builtin(symbol, *kinds)(code)


def _binary(emit: Callable[..., ir.Value]) -> Any:
    @intrinsic(prefer_literal=True)
    def function(typing, x, y):
        kind = _kind(x, y)
        return None if kind is None else (kind(x, y), _both(emit, kind))

    return function


_operator(operator.add, lambda b, x, y: b.fadd(x, y, flags=ll.FUSED))
_operator(operator.sub, lambda b, x, y: b.fsub(x, y, flags=ll.FUSED))
_operator(operator.mul, lambda b, x, y: b.fmul(x, y, flags=ll.FUSED))
_operator(operator.truediv, lambda b, x, y: b.fdiv(x, y, flags=ll.FUSED))

#: The larger, number by number. Of a number and NaN the second argument: one instruction, where
#: NaN that stays would take three. What it is for, the maximum of a softmax, shows NaN in the sum.
vmax = _binary(lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y))
#: The smaller, likewise.
vmin = _binary(lambda b, x, y: b.select(b.fcmp_ordered("<", x, y), x, y))


@intrinsic(prefer_literal=True)
def where_positive(typing, z, x, y):
    """x where z > 0, else y; y where z is NaN."""

    def emit(context, b, signature, args):
        positive = b.fcmp_ordered(">", args[0], ll.constant(args[0].type, 0.0))
        return b.select(positive, args[1], args[2])

    return x(z, x, y), emit


@intrinsic(prefer_literal=True)
def vexp(typing, x):
    """exp of each number: 0 of -inf, and of float32 below -86.9, whose exp is next to nothing.

    float32: as in Cephes (Moshier), a polynomial on half an octave; relative error below 2e-7.
    """

    def emit(context, b, signature, args):
        (given,) = args
        if x.dtype != types.float32:
            number = ll.number(x.dtype)
            kind = ir.FunctionType(number, [number])
            return ll.each(b, given, b.module.declare_intrinsic("llvm.exp", [number], kind))
        kind = given.type
        whole = ir.VectorType(ll.I32, x.n)
        value, at = (
            (lambda v: ll.constant(kind, float(np.float32(v)))),
            (lambda i: ll.constant(whole, i)),
        )
        none = b.fcmp_ordered("<", given, value(-86.9))
        # No number that 2^k cannot be made of; NaN stays, as it compares with none
        r = b.select(none, value(-86.9), given)
        r = b.select(b.fcmp_ordered(">", r, value(89.0)), value(89.0), r)
        # Adding 1.5 * 2^23 rounds to a whole number, and leaves it in the lowest bits
        shifted = ll.fma(b, r, value(1.44269504), value(12582912.0))
        k = b.sub(b.bitcast(shifted, whole), at(int(np.float32(12582912.0).view(np.int32))))
        octaves = b.fsub(shifted, value(12582912.0))
        r = ll.fma(b, octaves, value(-0.693359375), r)  # ln 2 in two parts, the first exact
        r = ll.fma(b, octaves, value(2.12194440e-4), r)
        p = ll.polynomial(
            b, r,
            [1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2,
             1.6666665459e-1, 5.0000001201e-1],
        )  # fmt: skip
        p = b.fadd(ll.fma(b, b.fmul(p, r, flags=ll.FUSED), r, r), value(1.0))
        # 2^(k-1) and then twice, as 2^128 has no float of its own: above 88.72 that is infinity
        power = b.bitcast(b.shl(b.add(k, at(126)), at(23)), kind)
        p = b.fmul(p, power)
        return b.select(none, value(0.0), b.fadd(p, p))

    return x(x), emit


def _by_library(name: str, doc: str) -> Any:
    @intrinsic(prefer_literal=True)
    def function(typing, x):
        def emit(context, b, signature, args):
            # In double precision, so that there is one function of the C library to find
            wide = ir.DoubleType()
            kind = ir.FunctionType(wide, [wide])
            function = cgutils.get_or_insert_function(b.module, kind, name)
            if x.dtype != types.float32:
                return ll.each(b, args[0], function)
            many = ir.VectorType(wide, x.n)
            return b.fptrunc(ll.each(b, b.fpext(args[0], many), function), args[0].type)

        return x(x), emit

    function.__doc__ = doc
    return function


vlog = _by_library("log", "The natural logarithm of each number, one at a time.")
vtanh = _by_library("tanh", "tanh of each number, one at a time.")


# -- Shapes ----------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def full(typing, x, n):
    """n times the number x, whose type the vector has."""
    count = n.literal_value
    return Vec(count, x)(x, n), lambda context, b, signature, args: ll.all_same(b, args[0], count)


@intrinsic(prefer_literal=True)
def repeat(typing, x, width, times):
    """Each run of `width` numbers `times` times over: (n,) to (n * times,).

    `repeat(x, 1, d)` spreads a number per head over its d features; `repeat(x, n, g)` is x as a
    whole, g times.
    """
    run, count = width.literal_value, times.literal_value
    at = [i + j for i in range(0, x.n, run) for _ in range(count) for j in range(run)]
    return Vec(len(at), x.dtype)(x, width, times), lambda context, b, signature, args: ll.shuffle(
        b, args[0], at
    )


@intrinsic(prefer_literal=True)
def fold(typing, x, width, times):
    """Sum each `times` runs of `width` numbers: (n,) to (n / times,); `repeat` backwards.

    `fold(x, 1, d)` sums the d features of each head; `fold(x, n / g, g)` the g parts of x. In
    halves, the same for all sums, so that no order depends on the length of the vector.
    """
    run, count = width.literal_value, times.literal_value
    sums = x.n // (run * count)

    def emit(context, b, signature, args):
        found, left = args[0], count
        while left > 1:
            half = left // 2
            firsts = [(s * left + t) * run + j for s in range(sums) for t in range(half)
                      for j in range(run)]  # fmt: skip
            added = b.fadd(
                ll.shuffle(b, found, firsts),
                ll.shuffle(b, found, [i + half * run for i in firsts]),
                flags=ll.FUSED,
            )
            if left % 2:  # the last stays for the next round
                rest = [(s * left + left - 1) * run + j for s in range(sums) for j in range(run)]
                last = ll.shuffle(b, found, rest)
                wide = [min(i, last.type.count - 1) for i in range(added.type.count)]
                last = last if half == 1 else ll.shuffle(b, last, wide)
                kept = [
                    (s * half + t) * run + j if t < half else half * run * sums + s * run + j
                    for s in range(sums) for t in range(half + 1) for j in range(run)
                ]  # fmt: skip
                found = ll.shuffle(b, added, kept, last)
            else:
                found = added
            left -= half
        return found

    return Vec(x.n // count, x.dtype)(x, width, times), emit


@intrinsic(prefer_literal=True)
def part(typing, x, at, n):
    """x[at * n : (at + 1) * n], for a constant `at`."""
    first, count = at.literal_value * n.literal_value, n.literal_value
    return Vec(count, x.dtype)(x, at, n), lambda context, b, signature, args: ll.shuffle(
        b, args[0], list(range(first, first + count))
    )


@intrinsic(prefer_literal=True)
def get(typing, x, at):
    """Return the number x[at]."""

    def emit(context, b, signature, args):
        at = ll.index(context, b, args[1], signature.args[1])
        return b.extract_element(args[0], b.trunc(at, ll.I32))

    return x.dtype(x, at), emit
