"""Arguments that are of another kind than their annotation says: refused by name, in one place."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

import torch
from torch import Tensor

from attention_core.checks import is_whole

P = ParamSpec("P")
T = TypeVar("T")

#: The annotation of an argument of which the function itself says more where it is wrong.
Unchecked = Annotated[T, "by `checked`"]


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Check the arguments of each call of `function` against its annotations.

    Of what kind they are, not of what value: ranges of numbers, choices among words and shapes of
    tensors are for the function. A list may stand for a tuple, as in files. An annotation that only
    a type checker can read allows anything.

    Raises:
        TypeError: naming the argument, what was expected and what came.
    """
    names = tuple(inspect.signature(function).parameters)
    hints: dict[str, Any] = {}
    #: Of what has been seen to fit, what any other value of this type does, too
    known: set[tuple[str, type]] = set()

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():  # sizes are symbols there
            return function(*args, **kwargs)
        if not hints:
            hints.update(_hints(function))
        for given in (zip(names, args, strict=False), kwargs.items()):
            for name, value in given:
                if (name, type(value)) in known or name not in hints:
                    continue
                if not _fits(value, hints[name]):
                    what = " or ".join(dict.fromkeys(_words(hints[name])))
                    raise TypeError(f"{name} must be {what}, got {_short(value)}")
                if _is_known_by_type(value, hints[name]):
                    known.add((name, type(value)))
        return function(*args, **kwargs)

    return call


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    code, hints = inspect.unwrap(function), {}
    kinds = {name: p.kind for name, p in inspect.signature(function).parameters.items()}
    several = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    for name, hint in inspect.get_annotations(code).items():
        if name == "return" or kinds[name] in several:
            continue
        try:
            hints[name] = eval(hint, code.__globals__) if isinstance(hint, str) else hint
        except NameError:  # what only a type checker imports
            hints[name] = Any
    return hints


def _fits(value: Any, hint: Any) -> bool:
    if hint is float or hint is int:
        return isinstance(value, Real) or (hint is int and is_whole(value))
    if hint is Any:
        return True
    if inspect.isclass(hint) and get_origin(hint) is None:
        return getattr(hint, "_is_protocol", False) or isinstance(value, hint)
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Union or origin is UnionType:
        return any(_fits(value, one) for one in parts)
    if origin is Literal:
        return any(type(value) is type(one) for one in parts)
    if hint is None or hint is NoneType:
        return value is None
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return isinstance(value, origin) and all(_fits(one, parts[1]) for one in value.values())
    if origin is tuple or (inspect.isclass(origin) and issubclass(origin, Sequence)):
        several = isinstance(value, Sequence) and not isinstance(value, str)
        if not several:
            return False
        fixed = origin is tuple and parts[-1] is not ...
        each = parts if fixed else parts[:1] * len(value)  # a length is for the function to check
        return all(map(_fits, value, each))
    if inspect.isclass(origin) and issubclass(origin, Iterable):
        scalar = isinstance(value, str) or (isinstance(value, Tensor) and not value.ndim)
        return isinstance(value, origin) and not scalar
    return callable(value) if origin is Callable else True


def _is_known_by_type(value: Any, hint: Any) -> bool:
    """Whether with this value all of its type fit: not those of a list, as its elements differ."""
    if isinstance(value, Tensor):  # one that stands for a number differs, too
        return Tensor in (hint, *get_args(hint))
    return isinstance(value, str) or not isinstance(value, Iterable)


def _words(hint: Any) -> Iterator[str]:
    """What an annotation allows, in words."""
    origin, parts = get_origin(hint), get_args(hint)
    known = {int: "a whole number", float: "a number", bool: "True or False", Tensor: "a tensor"}
    if origin is Union or origin is UnionType:
        for one in sorted(parts, key=lambda part: part is NoneType):
            yield from _words(one)
    elif origin is Literal:
        yield from map(repr, parts)
    elif hint is None or hint is NoneType:
        yield "None"
    elif origin is tuple:
        yield f"({', '.join(' or '.join(_words(p)) for p in parts if p is not ...)})"
    elif inspect.isclass(origin) and issubclass(origin, Mapping):
        yield "a mapping"
    elif inspect.isclass(origin) and issubclass(origin, Iterable):
        yield f"a list (each {' or '.join(_words(parts[0]))})"
    else:
        yield known.get(hint, f"a {getattr(hint, '__name__', hint)}")


def _short(value: Any) -> str:
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        return f"{type(value).__name__} {tuple(getattr(value, 'shape', ()))}"
    if isinstance(value, str | Real | NoneType):
        return f"{value!r:.80}"
    return f"{type(value).__name__} {value!r:.60}"
