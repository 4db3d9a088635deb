"""Arguments that are of another kind than their annotation says: refused by name, in one place."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    ParamSpec,
    TypeVar,
    Union,
    Unpack,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

import torch
from torch import Tensor

from attention_core.checks import is_whole
from attention_core.errors import did_you_mean

P = ParamSpec("P")
T = TypeVar("T")

#: The annotation of an argument of which the function itself says more where it is wrong.
Unchecked = Annotated[T, "by `checked`"]


#: So many kinds of calls of a function are remembered as right.
_MOST_SEEN = 256


class Takes(NamedTuple):
    """Arguments that a function takes by name.

    Attributes:
        hints: the annotation of each argument, also of those in ``**options: Unpack[...]``.
        more: whether it takes any other, too.
    """

    hints: dict[str, Any]
    more: bool

    def nearest(self, name: str) -> str:
        """Return " Did you mean a or b?" for a name that is not taken, or what is taken."""
        return did_you_mean(name, self.hints) or self.listed()

    def listed(self) -> str:
        """Return " It takes a, b and c." where these are few, else ""."""
        names = [name for name in self.hints if name != "self"]
        return f" It takes {', '.join(names)}." if 0 < len(names) <= 12 else ""


def takes(function: Callable[..., Any]) -> Takes:
    """Return what a function or a class takes by name.

    Raises:
        TypeError, ValueError: it is written in C, and does not say so.
    """
    code = inspect.unwrap(function.__init__ if inspect.isclass(function) else function)
    scope = getattr(code, "__globals__", {})
    hints: dict[str, Any] = {}
    more = False
    for name, parameter in inspect.signature(function).parameters.items():
        hint = parameter.annotation
        if isinstance(hint, str):
            try:
                hint = eval(hint, scope)
            except NameError:  # what only a type checker imports
                hint = Any
        if parameter.kind is parameter.VAR_KEYWORD:
            if get_origin(hint) is Unpack:
                hints |= get_type_hints(get_args(hint)[0])
            else:
                more = True
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            hints[name] = Any if hint is parameter.empty else hint
    return Takes(hints, more)


@overload
def checked(function: Callable[P, T], /) -> Callable[P, T]: ...
@overload
def checked(**reasons: str) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
def checked(function: Callable[..., Any] | None = None, /, **reasons: str) -> Any:
    """Check the arguments of each call of `function` against its annotations.

    Of what kind they are, not of what value: ranges of numbers, choices among words and shapes of
    tensors are for the function. A list may stand for a tuple, as in files. An annotation that only
    a type checker can read allows anything. An option that there is not is answered with the
    nearest one that there is.

    Args:
        reasons: why an option that is passed on elsewhere is not taken here, and what to give.

    Raises:
        TypeError: naming the argument, what was expected and what came.
    """
    if function is None:
        return functools.partial(_checked, reasons=reasons)
    return _checked(function, reasons)


def _checked(function: Callable[P, T], reasons: Mapping[str, str]) -> Callable[P, T]:
    parameters = inspect.signature(function).parameters.values()
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = tuple(one.name for one in parameters if one.kind in by_place)
    taken: list[Takes] = []
    #: Of what has been seen to fit, what any other value of this type does, too
    known: set[tuple[str, type]] = set()
    #: Kinds of arguments of whole calls that fit, by place and by name
    seen: set[tuple[Any, ...]] = set()

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():  # sizes are symbols there
            return function(*args, **kwargs)
        kinds = (*map(type, args), *kwargs, *map(type, kwargs.values()))
        if kinds in seen:
            return function(*args, **kwargs)
        if not taken:  # not before the modules that annotations name are complete
            taken.append(takes(function))
        hints, more = taken[0]
        by_type = True
        for name in kwargs:
            if name not in hints and not more:
                raise TypeError(_not_taken(function, args, name, reasons))
        for given in (zip(names, args, strict=False), kwargs.items()):
            for name, value in given:
                if (name, type(value)) in known or name not in hints:
                    continue
                if not _fits(value, hints[name]):
                    what = " or ".join(dict.fromkeys(_words(hints[name])))
                    raise TypeError(f"{name} must be {what}, got {_short(value)}")
                if _is_known_by_type(value, hints[name]):
                    known.add((name, type(value)))
                else:
                    by_type = False
        if by_type and len(seen) < _MOST_SEEN:
            seen.add(kinds)
        return function(*args, **kwargs)

    # What is compiled is counted by code, up to a limit, which all functions would share
    call.__code__ = call.__code__.replace(co_name=function.__name__)  # type: ignore[attr-defined]
    return call


def _not_taken(
    function: Callable[..., Any], args: tuple[Any, ...], name: str, reasons: Mapping[str, str]
) -> str:
    # Of a subclass, which passes on what it does not know, all that it takes is near
    owner = type(args[0]) if function.__name__ == "__init__" else function
    if name in reasons:
        return f"{owner.__name__} takes no {name}=: {reasons[name]}"
    return f"{owner.__name__} takes no argument {name!r}.{takes(owner).nearest(name)}"


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
    """Yield what an annotation allows, in words."""
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
