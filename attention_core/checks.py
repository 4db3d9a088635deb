"""What an argument must be: errors name it, what came and what was expected."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real

import torch


def check_whole(least: int = 1, *, or_none: bool = False, **arguments: object) -> None:
    """Raise unless each argument is a whole number of at least `least`.

    Args:
        least: the smallest that is allowed.
        or_none: whether None is, too.
        arguments: by name.

    Raises:
        TypeError: an argument is no number.
        ValueError: it is a number, but not a whole one, or a smaller one.
    """
    if torch.compiler.is_compiling():  # sizes are symbols there
        return
    alternative = ", or None" if or_none else ""
    for name, value in arguments.items():
        # A size that an exported program leaves open is not looked at either
        if isinstance(value, torch.SymInt) or (or_none and value is None):
            continue
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            error = ValueError if isinstance(value, float) else TypeError
            what = f"a whole number of at least {least}{alternative}"
            raise error(f"{name} must be {what}, got {value!r}")
        if int(value) < least:
            raise ValueError(f"{name} must be at least {least}{alternative}, got {value!r}")


def check_number(
    *,
    above: float | None = None,
    least: float | None = None,
    or_none: bool = False,
    **arguments: object,
) -> None:
    """Raise unless each argument is a finite number, above or at least a bound where one is given.

    Raises:
        TypeError: an argument is no number.
        ValueError: it is NaN or infinite, or out of bounds.
    """
    if torch.compiler.is_compiling():
        return
    for name, value in arguments.items():
        if or_none and value is None:
            continue
        what = "a finite number"
        what += "" if above is None else f" above {above:g}"
        what += "" if least is None else f" of at least {least:g}"
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be {what}, got {value!r}")
        low = (above is not None and value <= above) or (least is not None and value < least)
        if low or value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"{name} must be {what}, got {value!r}")


def check_flag(**arguments: object) -> None:
    """Raise unless each argument is True or False: any text but "" would be taken for True.

    Raises:
        TypeError: naming the argument.
    """
    for name, value in arguments.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {value!r}")


def check_options(owner: object, options: Mapping[str, object], **reasons: str) -> None:
    """Raise where options that are passed on hold one that `owner` sets itself.

    Args:
        owner: what is made of them.
        options: by name.
        reasons: of each name that is taken, what to give instead.

    Raises:
        TypeError: naming the option.
    """
    for name, reason in reasons.items():
        if name in options:
            raise TypeError(f"{type(owner).__name__} takes no {name}=: {reason}")
