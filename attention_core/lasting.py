"""What is computed once and kept must serve every mode, whichever asks for it first."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from attention_core.backends.derivatives import transformed

P = ParamSpec("P")
T = TypeVar("T")


def lasting(function: Callable[P, T]) -> Callable[P, T]:
    """Have a function make tensors that last: outside inference mode, without a gradient there.

    A tensor that is made in inference mode can never be part of a backward pass.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return run


class computed(cached_property[T]):
    """An attribute that is computed, as by `lasting`, when it is first asked for, and kept.

    It is a `cached_property` without the lock that this has before Python 3.12, which breaks a
    program that is compiled in two. Such a program keeps nothing, nor does what is captured as a
    CUDA graph: it would keep what the next run overwrites.
    """

    if not TYPE_CHECKING:

        def __init__(self, func: Callable[[Any], Any]) -> None:
            super().__init__(func)
            self._lasting = lasting(func)

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            if instance is None:
                return self
            if torch.compiler.is_compiling() or capturing():
                return self.func(instance)
            value = self._lasting(instance)
            instance.__dict__[self.attrname] = value
            return value


def can_last() -> bool:
    """Return whether what is computed now may serve any later call: not in a program that is
    compiled, traced, captured or transformed, nor where a mode of torch takes part in each
    operation."""
    return not (
        torch.compiler.is_compiling()
        or capturing()
        or torch.jit.is_tracing()
        or transformed()
        or torch._C._len_torch_dispatch_stack()
    )


def capturing() -> bool:
    """Return whether a CUDA graph records what runs now, which it will repeat with no host."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def computed_names(value: object) -> list[str]:
    """Return the names of what was computed of an object and is kept in it."""
    kind = type(value)
    return [name for name in vars(value) if isinstance(getattr(kind, name, None), cached_property)]


def version(x: Tensor) -> int:
    """Return a number that is another once the tensor was written to; -1 in inference mode, whose
    tensors have none."""
    return -1 if x.is_inference() else x._version


@overload
def kept(tensor: Tensor) -> Tensor: ...
@overload
def kept(tensor: None) -> None: ...
def kept(tensor: Tensor | None) -> Tensor | None:
    """Return the tensor, or a copy that lasts if it was made in inference mode."""
    if tensor is None or torch.compiler.is_compiling() or not tensor.is_inference():
        return tensor
    with torch.inference_mode(False), torch.no_grad():
        return tensor.clone()


class Memory:
    """Values by key, computed when first asked for; differentiable for those who need it.

    Args:
        known: values that need no computing.
    """

    def __init__(self, known: Mapping[Any, Any] | None = None) -> None:
        #: The value of each key, and whether it has a gradient if it can.
        self._values: dict[Hashable, tuple[Any, bool]] = {
            key: (value, True) for key, value in (known or {}).items()
        }

    def memo(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return the value kept under `key`, calling `compute()` on a miss.

        What was computed without a gradient is computed again for those who want one.
        """
        graded = torch.is_grad_enabled()
        if key in self._values:
            value, has_gradient = self._values[key]
            if has_gradient or not graded:
                found: T = value
                return found
        value = _unhooked(compute)
        # What recomputation makes in a backward pass is used up when that block is through
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
            self._values[key] = value, graded
        return value


def _unhooked(compute: Callable[[], T]) -> T:
    """`compute()`, of which activation checkpointing takes no note.

    Others share the value, so what its gradient needs is kept and not recomputed: a checkpointed
    layer would find it known the second time, and fewer tensors than it saved the first time.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return compute()
    enabled = torch._C._autograd._saved_tensors_hooks_is_enabled  # type: ignore[attr-defined]
    if not enabled():  # as under torch.func, which knows no hooks
        return compute()
    with saved_tensors_hooks(lambda x: x, lambda x: x):
        return compute()
