"""Odd arguments of public callables, and what may come of them.

A call with one odd argument ends in an error that names the argument, or in a result: a finite one
for finite arguments, and the one that `reference` gives. What the annotation of the argument leaves
out, such as 1.5 for an `int` or "no" for a `bool`, has to end in an error.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from numbers import Real
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attention_core import (
    ALiBi,
    BackendError,
    Neighborhood,
    ScalableSoftmax,
    Sequence as Line,
)
from attention_core.planning import BACKENDS

HEADS = torch.randn(2, 2, 3, 4)
TOKENS = torch.randn(2, 3, 8)
#: What stands for any argument, and is right for few of them.
PLAIN: list[Any] = [
    *[None, True, -1, 0, 1, 2, 1.5, float("nan"), float("inf"), "word", (), (1, 2), [1.0], {}],
    *[object(), np.zeros((2, 3, 8))],
]
#: What stands for an argument of the core: each with some that are right for one of them.
ODD: list[Any] = [
    *[*PLAIN, Line(3), Line(0), Neighborhood(1), ALiBi(2), ScalableSoftmax(2, 8)],
    *[HEADS, HEADS.double(), HEADS.half(), HEADS.long(), HEADS.to("meta"), HEADS.to_sparse()],
    *[HEADS.to(torch.complex64), HEADS[:, :, :0], HEADS.bool()],
    *[TOKENS, TOKENS.double(), TOKENS.long(), TOKENS.to("meta"), TOKENS.to_sparse()],
    *[TOKENS[:, :0], TOKENS[0], TOKENS[..., :5], torch.tensor(1.0), torch.zeros(0), torch.ones(2)],
]


#: What an error may be about instead: of two arguments that do not fit each other, the other one.
OTHER_NAMES = {
    "order": ["norm"],
    "length": ["edge_index"],
    "coordinates": ["edge_index"],
    "x": ["num_nodes", "edge_index", "laplacian"],
    "num_nodes": ["edge_index"],
    "x_dict": ["edge_index_dict"],
    "edge_label_index": ["edge_label_type"],
}


class Call(NamedTuple):
    """A call that succeeds, and what the annotations of its arguments are."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    hints: dict[str, Any]


def call(function: Callable[..., Any], *passed_on: Callable[..., Any], **arguments: Any) -> Call:
    """A `Call`; `passed_on` are the callables that take its further options."""
    hints: dict[str, Any] = {}
    for one in (*passed_on, function):
        code = one.forward if isinstance(one, nn.Module) else one
        code = code.__init__ if inspect.isclass(code) else code
        code = inspect.unwrap(getattr(code, "__func__", code))
        for name, hint in code.__annotations__.items():
            with suppress(NameError):  # what only a type checker imports
                hints[name] = eval(hint, code.__globals__) if isinstance(hint, str) else hint
    return Call(function, arguments, hints)


def faults(call: Call, odd: Sequence[Any] = PLAIN) -> list[str]:
    """What is wrong with the outcomes of a call one of whose arguments is odd, a line for each."""
    found = []
    call.function(**call.arguments)  # no odd argument may be blamed for what is wrong with it
    for name in call.arguments:
        hint = call.hints.get(name, Any)
        of_tensors = hint is Any or "Tensor" in str(hint)
        others = [value for value in odd if not isinstance(value, Tensor)]
        for value in odd if of_tensors else [*others, torch.ones(2)]:
            fault = _fault(call, name, value)
            if fault is not None:
                came = f"{value.dtype} {(*value.shape,)}" if _is_tensor(value) else repr(value)
                found.append(f"{name}={came}: {fault}"[:300])
    return found


def _fault(call: Call, name: str, value: Any) -> str | None:
    arguments = call.arguments | {name: value}
    torch.manual_seed(0)
    try:
        result = call.function(**arguments)
    except Exception as error:
        return None if is_named(error, name) else f"{type(error).__name__}: {error}"
    if not fits(value, call.hints.get(name, Any)):
        return "taken without a word"
    found = list(_tensors(result))
    if not found or inspect.isclass(call.function):
        return None
    if not all(map(_finite, found)) and all(map(_finite, _tensors(list(arguments.values())))):
        return "not finite"
    torch.manual_seed(0)
    with only("reference"):
        wanted = list(_tensors(call.function(**arguments)))
    same = zip(found, wanted, strict=True)
    if not all(
        a.is_meta or torch.allclose(a, b, rtol=2e-3, atol=2e-3, equal_nan=True) for a, b in same
    ):
        return "not what reference gives"
    return None


def is_named(error: Exception, name: str) -> bool:
    """Whether an error says which argument it is about."""
    if isinstance(error, BackendError):
        return True
    return isinstance(error, TypeError | ValueError) and bool(
        words(str(error)) & {name, *OTHER_NAMES.get(name, ())}
    )


def words(text: str) -> set[str]:
    return set("".join(c if c.isalnum() or c == "_" else " " for c in text).split())


@contextmanager
def only(backend: str) -> Iterator[None]:
    """All attention is computed by this backend."""
    with pytest.MonkeyPatch.context() as patch:
        for name in BACKENDS.keys() - {backend}:
            patch.setattr(BACKENDS[name], "unsupported", lambda job: f"{backend} alone is asked")
        yield


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation allows; a list stands for a tuple, as in files."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in arguments)
    if hint is None or hint is NoneType:
        return value is None
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool) and bool(value == value)
    if hint is int:  # numpy's are, too
        return _is_index(value) and not isinstance(value, bool)
    if origin is tuple:
        if not _is_list(value) or (arguments[-1:] != (...,) and len(value) != len(arguments)):
            return False
        each = arguments[:1] * len(value) if arguments[-1:] == (...,) else arguments
        return all(map(fits, value, each))
    if origin is not None and inspect.isclass(origin) and issubclass(origin, Iterable):
        if issubclass(origin, Mapping) or not issubclass(origin, Sequence):
            return isinstance(value, origin) and not isinstance(value, str)
        return _is_list(value) and all(fits(one, arguments[0]) for one in value)
    if hint is Any:
        return True
    if inspect.isclass(hint) and not getattr(hint, "_is_protocol", False):
        return isinstance(value, hint)
    return True


def cases(calls: Iterable[str], *slow: str) -> list[Any]:
    """The names of a table as parameters of a test, some of them slow."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in slow)) for name in calls]


def left_out(module: ModuleType, calls: Iterable[str], exempt: Iterable[str] = ()) -> list[str]:
    """The public callables of a module that a table of calls lacks: "Name" for what is called or
    made, "Name()" for the forward of a layer, "Name.maker" for another way to make it."""
    needed = set()
    for name in module.__all__:
        value = getattr(module, name)
        if not callable(value):
            continue
        needed.add(name)
        if inspect.isclass(value):
            own = vars(value)
            made = (n for n, v in own.items() if isinstance(v, classmethod) and n[0] != "_")
            needed |= {f"{name}.{n}" for n in made}
            if issubclass(value, nn.Module) and "forward" in own:
                needed.add(f"{name}()")
    return sorted(needed - set(calls) - set(exempt))


def _is_index(value: Any) -> bool:
    try:
        operator.index(value)
    except Exception:  # of tensors and arrays but those of one whole number
        return False
    return not isinstance(value, Tensor) or value.dtype != torch.bool


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one)


def _finite(x: Tensor) -> bool:
    return x.is_meta or x.is_sparse or not x.is_floating_point() or bool(x.isfinite().all())
