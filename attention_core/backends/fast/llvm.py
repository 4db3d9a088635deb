"""The type of vectors, and what `vectors` writes of LLVM's instructions."""

# numba ships no types, and compiles functions that are written without
# mypy: disable-error-code="no-untyped-def, call-arg"

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import models, register_model

#: A product and a sum may be one instruction.
FUSED = ("contract",)
I32, I64 = ir.IntType(32), ir.IntType(64)


class Vec(types.Type):
    """The type of a vector of n float32 or float64."""

    def __init__(self, n: int, dtype: Any) -> None:
        self.n, self.dtype = n, dtype
        super().__init__(f"Vec({n}, {dtype})")


@register_model(Vec)
class _VecModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vec) -> None:
        super().__init__(manager, kind, vector(kind.n, kind.dtype))


def number(dtype: Any) -> ir.Type:
    return ir.FloatType() if dtype == types.float32 else ir.DoubleType()


def vector(n: int, dtype: Any) -> ir.VectorType:
    return ir.VectorType(number(dtype), n)


def constant(like: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(like, [value] * like.count)


def shuffle(b: ir.IRBuilder, x: ir.Value, at: list[int], y: ir.Value | None = None) -> ir.Value:
    """Take the numbers of x, and of y behind them, that `at` names."""
    y = ir.Constant(x.type, ir.Undefined) if y is None else y
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(at)), at))


def all_same(b: ir.IRBuilder, x: ir.Value, n: int) -> ir.Value:
    nothing = ir.Constant(ir.VectorType(x.type, n), ir.Undefined)
    return shuffle(b, b.insert_element(nothing, x, I32(0)), [0] * n)


def joined(b: ir.IRBuilder, parts: list[ir.Value]) -> ir.Value:
    """One vector of several, in halves."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    x, y = joined(b, parts[:middle]), joined(b, parts[middle:])
    first, second = x.type.count, y.type.count
    # A shuffle takes two vectors of one type
    wide = max(first, second)
    x, y = (
        v
        if v.type.count == wide
        else shuffle(b, v, [*range(v.type.count)] + [0] * (wide - v.type.count))
        for v in (x, y)
    )
    return shuffle(b, x, [*range(first), *range(wide, wide + second)], y)


def index(context: Any, b: ir.IRBuilder, value: ir.Value, kind: Any) -> ir.Value:
    return context.cast(b, value, kind, types.int64)


def data(context: Any, b: ir.IRBuilder, kind: Any, array: ir.Value) -> ir.Value:
    return context.make_array(kind)(context, b, array).data


def pointer(
    context: Any, b: ir.IRBuilder, kind: Any, array: ir.Value, at: ir.Value, to: ir.Type
) -> ir.Value:
    return b.bitcast(b.gep(data(context, b, kind, array), [at]), to.as_pointer())


def each(b: ir.IRBuilder, x: ir.Value, function: Any) -> ir.Value:
    """Apply a function of one number to each of a vector."""
    found = x
    for at in range(x.type.count):
        one = b.call(function, [b.extract_element(x, I32(at))])
        found = b.insert_element(found, one, I32(at))
    return found


def fma(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    return b.fadd(b.fmul(x, y, flags=FUSED), z, flags=FUSED)


def polynomial(b: ir.IRBuilder, x: ir.Value, coefficients: list[float]) -> ir.Value:
    first, *rest = (constant(x.type, float(np.float32(c))) for c in coefficients)
    for c in rest:
        first = fma(b, first, x, c)
    return first
