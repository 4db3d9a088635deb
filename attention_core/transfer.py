"""From the host to a device: what was found there goes over in one copy that nobody waits for."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from attention_core.lasting import can_last, capturing, lasting, version

T = TypeVar("T")

#: Tensors start at multiples of this in the memory that they share, as CUDA's own do at 512: any
#: dtype can be read there, and whole cache lines.
_ALIGNED = 128


class Movable(Protocol):
    """An object that says itself what of it goes over to a device; others go with all they hold."""

    def left_behind(self) -> set[str]:
        """Return names of attributes that the copy on the device has not, such as what was
        computed of the others."""
        ...

    def arrived(self, origin: Any) -> None:
        """Be told, on the device, of which object this is the copy."""
        ...


def indexed(device: torch.device | str) -> torch.device:
    """Return a device with its index, as tensors there have it: "cuda" is "cuda:0", or whichever
    is current."""
    device = torch.device(device)
    if device.type == "cpu" or device.type == "meta" or device.index is not None:
        return device
    current = device.type == "cuda" and torch.cuda.is_initialized()
    return torch.device(device.type, torch.cuda.current_device() if current else 0)


def is_there(device: torch.device) -> bool:
    """Return whether this machine has a device."""
    if device.type == "cpu" or device.type == "meta":
        return True
    if device.type == "cuda" and torch.cuda.is_available():
        return True
    try:  # one of another maker, or that stands for a GPU, as in tests
        torch.empty(0, device=device)
        return True
    except (RuntimeError, AssertionError):
        return False


@lasting
def moved(tree: T, device: torch.device | str) -> T:
    """Return a nested structure with all its tensors on `device`; those there already stay.

    It goes through tuples, lists, dicts, dataclasses and objects of this package, modules aside.
    What is shared stays shared, and what holds no tensor is not copied. To a GPU all tensors go in
    one copy from pinned memory, for which the host does not wait, and share that memory there; from
    a device to the host in one, too, for which it waits once.

    Raises:
        RuntimeError: while a CUDA graph is captured, which would repeat the copy of memory that is
            another's by then.
    """
    device = indexed(device)
    if isinstance(tree, Tensor) and (tree.device == device or torch.compiler.is_compiling()):
        return tree.to(device)  # type: ignore[return-value]
    away = {id(x): x for x in tensors_in(tree) if x.device != device}
    if not away:
        return tree
    if capturing():
        raise RuntimeError(
            "what plans and spaces are made of cannot be copied while a CUDA graph is captured: "
            "make them before, and hand the plan over (plan=)"
        )
    arrived: T = _replaced(tree, _copied(away, device), {})
    return arrived


def tensors_in(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """Yield the tensors that `moved` would move, each once."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
        return
    for part in _parts(value):
        yield from tensors_in(part, seen)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, tuple | list):
        return list(value)
    return [x for _, x in _attributes(value)] if _is_ours(value) else []


def _attributes(value: Any) -> list[tuple[str, Any]]:
    behind = value.left_behind() if _is_movable(value) else ()
    return [(name, x) for name, x in vars(value).items() if name not in behind]


def _is_ours(value: Any) -> bool:
    if isinstance(value, type | nn.Module) or not hasattr(value, "__dict__"):
        return False
    return is_dataclass(value) or _is_movable(value) or is_of_package(type(value))


def _is_movable(value: Any) -> bool:
    return hasattr(type(value), "left_behind")


def is_of_package(kind: type) -> bool:
    """Return whether a class is of this package, and not of a user's own."""
    return kind.__module__.partition(".")[0] == __name__.partition(".")[0]


def _replaced(value: Any, arrived: dict[int, Tensor], made: dict[int, Any]) -> Any:
    """`value` with tensors that have arrived, by the id of what they are copies of."""
    if isinstance(value, Tensor):
        return arrived.get(id(value), value)
    if id(value) in made:
        return made[id(value)]
    if isinstance(value, dict):
        new: Any = copy.copy(value)
        made[id(value)] = new
        found: Any = {key: _replaced(x, arrived, made) for key, x in value.items()}
        changed = any(found[key] is not x for key, x in value.items())
        new.update(found)
    elif isinstance(value, tuple | list):
        rows = [_replaced(x, arrived, made) for x in value]
        changed = any(a is not b for a, b in zip(rows, value, strict=True))
        new = type(value)(*rows) if hasattr(value, "_fields") else type(value)(rows)
    elif _is_ours(value):
        new = copy.copy(value)
        made[id(value)] = new  # before its parts, which may hold it
        kept = {name: _replaced(x, arrived, made) for name, x in _attributes(value)}
        changed = any(kept[name] is not x for name, x in _attributes(value))
        new.__dict__.clear()
        new.__dict__.update(kept)
        if changed and _is_movable(value):
            new.arrived(value)
    else:
        return value
    made[id(value)] = new if changed else value
    return made[id(value)]


def _copied(away: dict[int, Tensor], device: torch.device) -> dict[int, Tensor]:
    """The tensors on the device, by the id of each here."""
    packed = device.type == "cuda" and not torch.compiler.is_compiling()
    if device.type == "cpu":
        return _fetched(away)
    together = {
        key: x
        for key, x in away.items()
        if packed and x.device.type == "cpu" and x.layout == torch.strided and not x.requires_grad
    }
    found = {key: x.to(device) for key, x in away.items() if key not in together}
    # What is expanded goes over as it is in memory
    bases = {key: _unexpanded(x) for key, x in together.items()}
    sizes = [-(-x.numel() * x.itemsize // _ALIGNED) * _ALIGNED for x in bases.values()]
    if not sum(sizes):
        return found | {key: torch.empty_like(x, device=device) for key, x in together.items()}
    buffer = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=True)
    rooms = buffer.split(sizes)
    for x, room in zip(bases.values(), rooms, strict=True):
        _shaped(room, x).copy_(x)
    # The allocator of pinned memory gives it to no one else before the copy is done
    rooms = buffer.to(device, non_blocking=True).split(sizes)
    for (key, x), room in zip(bases.items(), rooms, strict=True):
        found[key] = _shaped(room, x).expand(together[key].shape)
    return found


def _fetched(away: dict[int, Tensor]) -> dict[int, Tensor]:
    """The tensors on the host, by the id of each on the device."""
    together = {
        key: x
        for key, x in away.items()
        if x.layout == torch.strided and not x.requires_grad and not x.is_meta
    }
    found = {key: x.to("cpu") for key, x in away.items() if key not in together}
    # The widest first, so that each starts at a multiple of its own width
    bases = sorted(together.items(), key=lambda item: -item[1].itemsize)
    flat = [_unexpanded(x).contiguous().view(-1).view(torch.uint8) for _, x in bases]
    if not flat:
        return found
    rooms = torch.cat(flat).to("cpu").split([len(x) for x in flat])
    for (key, x), room in zip(bases, rooms, strict=True):
        found[key] = _shaped(room, _unexpanded(x)).expand(x.shape)
    return found


def _shaped(room: Tensor, like: Tensor) -> Tensor:
    return room[: like.numel() * like.itemsize].view(like.dtype).view(like.shape)


def _unexpanded(x: Tensor) -> Tensor:
    """x with one of the equal entries along each axis that is expanded."""
    for axis, stride in enumerate(x.stride()):
        if not stride and x.shape[axis] > 1:
            x = x.narrow(axis, 0, 1)
    return x


_ORIGINAL = "_attention_core_original"


def remember_original(there: Tensor, here: Tensor) -> None:
    """Have `original` and `on_host` answer for a tensor on a device with one on the CPU."""
    setattr(there, _ORIGINAL, (here, version(there)))


def original(x: Tensor) -> Tensor | None:
    """Return a tensor on the CPU: itself, or what is remembered of it; None: nothing is."""
    if x.is_cpu:
        return x
    here, then = getattr(x, _ORIGINAL, (None, None))
    return here if here is not None and then == version(x) else None


def on_host(x: Tensor) -> Tensor:
    """Return a tensor on the CPU: itself, what is remembered of it, or a copy, which is waited
    for. In a program that is compiled, and of one without numbers (meta), itself."""
    if x.is_cpu or x.is_meta or torch.compiler.is_compiling():
        return x
    here = original(x)
    return x.to("cpu") if here is None else here


def constant(
    values: float | Sequence[Any], device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """Return `torch.tensor(values)`, which on other devices than the CPU is made once, by a copy
    that nobody waits for. It must not be written to."""
    values = tuple(values) if isinstance(values, list) else values
    host = torch.tensor(values, dtype=dtype)
    if device.type == "cpu":
        return host
    if not (can_last() or capturing()):  # a graph is captured after a call that made it
        return host.to(device)
    return _constant(values, device, host.dtype)  # 1, 1.0 and True are one key, dtypes are not


@lru_cache(maxsize=1024)
@lasting
def _constant(values: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
    return moved(torch.tensor(values, dtype=dtype), device)
