"""One value for all axes, or one for each; and some of the axes of a space."""

from __future__ import annotations

from typing import TypeVar

from attention_core.spaces import Space

T = TypeVar("T")


def listed(value: T | tuple[T, ...]) -> tuple[T, ...]:
    return value if isinstance(value, tuple) else (value,)


def per_axis(
    value: T | tuple[T, ...], axes: int, *, space: Space | None = None, name: str = "it"
) -> tuple[T, ...]:
    """Return one value for each axis.

    Raises:
        ValueError: there are values for another number of axes; it speaks of `name` and `space`.
    """
    if not isinstance(value, tuple):
        return (value,) * axes
    if len(value) != axes:
        where = "the others have" if space is None else f"{space.describe()} has"
        raise ValueError(f"{name}={value} is for {len(value)} axes, {where} {axes}")
    return value
