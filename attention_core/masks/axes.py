"""One value for all axes, or one for each; and some of the axes of a space."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

from attention_core.checks import check_whole_each
from attention_core.spaces import Grid, Space
from attention_core.transfer import constant

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


def check_axes(axes: int | tuple[int, ...] | None) -> None:
    """Raise unless these are axes, each once; negative ones are counted from the last.

    Raises:
        TypeError, ValueError: naming `axes`.
    """
    if axes is None:
        return
    check_whole_each(None, axes=listed(axes))
    if len(set(listed(axes))) < len(listed(axes)):
        raise ValueError(f"axes must be different ones, got {axes}")


def chosen_axes(axes: int | tuple[int, ...] | None, space: Space) -> list[int]:
    """Return the numbers of some axes of a space, counted from the first; None chooses all.

    Raises:
        ValueError: the space has not so many.
    """
    if axes is None:
        return list(range(space.axes))
    if any(not -space.axes <= axis < space.axes for axis in listed(axes)):
        raise ValueError(f"axes={axes} is out of range: {space.describe()} has {space.axes} axes")
    return [axis % space.axes for axis in listed(axes)]


def along(values: Tensor, axes: list[int]) -> Tensor:
    """Return values (..., A) along some of the axes, counted from the first, (..., len(axes))."""
    if axes == list(range(values.shape[-1])):
        return values
    return values.index_select(-1, constant(axes, values.device))


def check_fits(
    space: Space, name: str, value: int | tuple[int, ...], axes: list[int] | None = None
) -> None:
    """Raise unless an axis that wraps has a multiple of `value` places, so that it meets itself.

    Args:
        axes: which axes `value` is for; all of them, if not given.

    Raises:
        ValueError: it speaks of `name` and `space`.
    """
    if not isinstance(space, Grid) or not any(space.wrap):
        return
    axes = list(range(space.axes)) if axes is None else axes
    for axis, each in zip(axes, per_axis(value, len(axes)), strict=True):
        for size in space.sizes:
            if space.wrap[axis] and size[axis] % each:
                raise ValueError(
                    f"{name}={value} must fit an axis that wraps a whole number of times, but axis "
                    f"{axis} of {space.describe()} has {size[axis]} places"
                )
