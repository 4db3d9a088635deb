"""What is wrong with parts of a user's own, said in one sentence rather than in a traceback."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import attention_core
from attention_core.errors import UsageError

_OURS = Path(attention_core.__file__).parent
#: What Python says where a batch and the arguments of a `forward` are not the same.
_ARGUMENTS = re.compile(r"forward\(\) (got an unexpected keyword|missing \d+ required)")


@contextmanager
def refusals_of(model: nn.Module) -> Iterator[None]:
    """Raise a UsageError for what this package refuses while `model` runs, or Python does of the
    names of its inputs; an error of the model's own code stays one, with its traceback."""
    try:
        yield
    except UsageError:
        raise
    except (TypeError, ValueError, NotImplementedError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        if not (Path(last.filename).is_relative_to(_OURS) or _ARGUMENTS.search(str(error))):
            raise
        raise UsageError(f"model: {error}") from error


def checked_batch(batch: Any, whose: str) -> dict[str, Any]:
    """Return a batch that `whose` collate has made.

    Raises:
        UsageError: it is no dict of values by name.
    """
    if not isinstance(batch, Mapping) or not all(isinstance(name, str) for name in batch):
        raise UsageError(
            f"{whose}.collate must return a dict, 'target' and the model's arguments by name, got "
            f"{type(batch).__name__}."
        )
    return batch  # type: ignore[return-value]


def shapes_of(samples: Sequence[Any]) -> dict[str, list[tuple[int, ...]]]:
    """Return the shapes of each tensor of samples that are dicts, every shape once."""
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for sample in samples:
        for name, value in sample.items() if isinstance(sample, Mapping) else ():
            known = shapes.setdefault(name, [])
            if isinstance(value, Tensor) and tuple(value.shape) not in known:
                known.append(tuple(value.shape))
    return shapes


def target_of(batch: Mapping[str, Any]) -> Tensor:
    """Return the target of a batch.

    Raises:
        UsageError: there is none, or it is no tensor.
    """
    target = batch.get("target")
    if not isinstance(target, Tensor):
        names = ", ".join(map(str, batch)) or "nothing"
        came = f"no target, but {names}" if target is None else f"a {type(target).__name__}"
        raise UsageError(f"data: a batch must have 'target', a tensor, and has {came}.")
    return target


@contextmanager
def refusals_of_classes(target: Tensor, wanted: tuple[int, ...], count: int) -> Iterator[None]:
    """Raise a UsageError where a cross-entropy refuses `target`, class indices of a `wanted`
    shape."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        shown = f"{str(target.dtype).removeprefix('torch.')} of shape {tuple(target.shape)}"
        if target.numel() and target.device.type == "cpu":
            shown += f" from {target.min().item():g} to {target.max().item():g}"
        right = not target.is_floating_point() and tuple(target.shape) == wanted
        if right and not isinstance(error, IndexError):
            raise  # of something else
        raise UsageError(
            f"data: a target must hold indices of {count} classes, int64 of shape {wanted} from 0 "
            f"to {count - 1}, got {shown}."
        ) from error
