"""Where a space on a device was made: the host, which then answers what plans ask of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from attention_core.lasting import computed_names, lasting, version
from attention_core.transfer import indexed, moved


def made_elsewhere(device: torch.device | str) -> bool:
    """Return whether what is for this device is made on the host and moved: not where it is for the
    host, nor in a program that is compiled, which makes it itself."""
    if device == "cpu":
        return False
    return torch.device(device).type not in ("cpu", "meta") and not (
        torch.compiler.is_compiling() or torch.compiler.is_exporting()
    )


class _Origin(NamedTuple):
    """The space on the host, or what makes it; what the one on the device held by then; and what
    that on the host did, as it may be the user's own, who writes to it."""

    space: Any
    state: tuple[Any, ...]
    state_here: tuple[Any, ...] | None

    def holds(self, state: tuple[Any, ...]) -> bool:
        """Return whether neither space was changed since, of which that on the device is `state`
        now."""
        here = None if self.state_here is None else self.space._state()
        return _equal(self.state, state) and _equal(self.state_here, here)


class OnHost:
    """Tokens on a device that were made on the host, and keep the original.

    Plans look at numbers: how many samples there are, which tiles reach which. On a GPU each look
    would be waited for, so they look at the original.
    """

    _origin: _Origin | None = None

    @property
    def host(self) -> Self:
        """This space on the CPU: itself, or what it was moved from. Where that is not known, as of
        one made of tensors on a device, it is copied, once, and that is waited for. In a program
        that is compiled, itself."""
        if not self._is_away() or torch.compiler.is_compiling():
            return self
        known = self._known_host()
        if known is None:
            own = type(self).to is not OnHost.to
            known = self.to("cpu") if own else moved(self._looked_at(), "cpu")
            self.keep_host(known)
        return known

    def _looked_at(self) -> Self:
        """This space with no more than plans look at."""
        return self

    @property
    def _made_on_host(self) -> bool:
        """Whether this is on a device, and what is made of it is better made on the host."""
        return self._is_away() and not torch.compiler.is_compiling() and self.has_host

    @property
    def has_host(self) -> bool:
        """Whether `host` is known, so that nobody waits for it."""
        origin = self._origin
        known = origin is not None and origin.holds(self._state())
        return known or not self._is_away()

    def _is_away(self) -> bool:
        device: torch.device = self.device  # type: ignore[attr-defined]
        return device.type not in ("cpu", "meta")

    def _known_host(self) -> Self | None:
        origin = self._origin
        if origin is None or not origin.holds(self._state()):
            return None
        if not callable(origin.space):
            return origin.space
        made: Self = origin.space()
        self.keep_host(made)
        return made

    def keep_host(self, space: Self | Callable[[], Self]) -> None:
        """Keep the original of this space, or what makes it."""
        here = None if callable(space) else space._state()
        self._origin = _Origin(space, self._state(), here)

    def _state(self) -> tuple[Any, ...]:
        """What this space holds: objects, and the version of each tensor. It is another space once
        one of them is another, or was written to."""
        left_out = {*self.left_behind(), "zeroed", "tokenwise"}
        held = [x for name, x in vars(self).items() if name not in left_out and x is not None]
        held += self.tokenwise.values()  # type: ignore[attr-defined]
        return tuple((x, version(x)) if isinstance(x, Tensor) else x for x in held)

    @lasting
    def to(self, device: torch.device | str) -> Self:
        """Return the space with its tensors on `device`, those that a subclass holds included.

        To a GPU they go in one copy, for which the host does not wait. What is moved from the host
        keeps the original, as its `host`.
        """
        device = indexed(device)
        if self.device == device:  # type: ignore[attr-defined]
            return self
        if device.type == "cpu" and self._is_away():
            known = self._known_host()
            if known is not None:
                return known
        return moved(self, device)

    def left_behind(self) -> set[str]:
        """Return names of what does not follow to another device."""
        return {*computed_names(self), "_origin"}

    def arrived(self, origin: Self) -> None:
        """Remember what this is a copy of."""
        if self._is_away() and not origin._is_away():
            self.keep_host(origin)

    def __copy__(self) -> Self:
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        new.__dict__.pop("_origin", None)  # a copy is made to be another space
        return new

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in vars(self).items() if name != "_origin"}


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, tuple) and isinstance(two, tuple):
        return len(one) == len(two) and all(map(_equal, one, two))
    return one is two or (isinstance(one, int | float | str) and bool(one == two))
