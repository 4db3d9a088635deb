"""How one number is spelled in Python's code, and one operation on numbers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attention_core.backends.flex.tracing import Node

#: Operators that are written between two numbers.
INFIX = {
    "add": "+", "sub": "-", "mul": "*", "le": "<=", "lt": "<", "ge": ">=", "gt": ">", "eq": "==",
    "ne": "!=", "bitwise_and": "&", "bitwise_or": "|", "bitwise_xor": "^", "remainder": "%",
    "pow": "**",
}  # fmt: skip


class Coded(NamedTuple):
    """The code of each number of a value of one pair, and the value's shape, (1, ...)."""

    codes: list[str]
    shape: tuple[int, ...]

    @property
    def numbers(self) -> Tensor:
        """Which of the codes stands where."""
        return torch.arange(len(self.codes)).view(self.shape)

    def moved(self, numbers: Tensor) -> Coded:
        """Return the codes in another arrangement, as `numbers` has been brought into."""
        return Coded([self.codes[n] for n in numbers.flatten().tolist()], tuple(numbers.shape))


def spell_call(node: Node, name: str, infix: bool, given: list[str], named: list[str]) -> str:
    """Return the code of one operation.

    Args:
        node: what it computes, by the operator of this `name`.
        infix: whether it is written between its operands.
        given, named: the codes of its arguments, and of those by keyword, ``name=code``.
    """
    if infix:
        return f"({given[0]} {INFIX[name]} {given[1]})"
    if name in ("where", "masked_fill"):
        condition, first, second = given if name == "where" else (given[1], given[2], given[0])
        if condition in ("True", "False"):
            return first if condition == "True" else second
        if {first, second} <= {"True", "False"}:  # no sum, which would be no bool
            one, other = (
                f"({c} & {x})" for c, x in ((condition, first), (f"~{condition}", second))
            )
            return f"({one} | {other})"
        if not is_name(first) and not is_name(second):
            first = f"({condition} * 0 + {first})"
            return f"torch.where({condition}, {first}, {second})"
        return f"torch.where({condition}, {first}, {second})"
    if name == "_to_copy":
        dtype = node.kwargs.get("dtype")
        return given[0] if dtype is None else f"{given[0]}.to({dtype})"
    if name == "bitwise_not":
        return f"(~{given[0]})"
    overload = f"aten.{name}.{node.function._overloadname}"
    return f"{overload}({', '.join([*given, *named])})"


def spell(value: Any) -> str:
    """Return the code of a number, or of anything else that is known."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "(-inf)"
    if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
        return f"({value!r})"
    return repr(value)


def is_name(code: str) -> bool:
    """Return whether code is a name, and so that of a tensor."""
    return code.isidentifier() and code not in ("True", "False", "inf", "nan", "None")


def is_literal(coded: Coded) -> bool:
    """Return whether some of the codes are no names."""
    return not all(is_name(code) for code in coded.codes)
