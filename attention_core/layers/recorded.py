"""Layers whose attention weights can be recorded from outside."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from attention_core.attention import attend
from attention_core.job import Plan
from attention_core.spaces import Space
from attention_core.weights import PairWeights


class Recorder(Protocol):
    """The listener that `record_attention` sets, which layers tell what they compute."""

    @property
    def pairs(self) -> bool: ...
    def wants(self, module: nn.Module) -> bool: ...
    def add(
        self, module: nn.Module, weights: Tensor | PairWeights, spaces: tuple[Space, Space]
    ) -> None: ...


recorders: ContextVar[tuple[Recorder, ...]] = ContextVar("recorders", default=())

#: Where it is set, it is called in place of every layer's attention, with that as its first
#: argument: so an explanation changes messages.
around: ContextVar[Callable[..., Any] | None] = ContextVar("around", default=None)


_lock = threading.Lock()
_listeners, _stance = 0, ExitStack()


@contextmanager
def uncompiled() -> Iterator[None]:
    """Have what is compiled run as it is written, in every thread, while somebody listens.

    Compiled blocks share one program, which cannot tell the layer that is listened to from others.
    """
    global _listeners
    if "torch._dynamo" not in sys.modules or torch.compiler.is_compiling():  # nothing is compiled
        yield
        return
    with _lock:
        if not _listeners:
            _stance.enter_context(torch.compiler.set_stance("force_eager"))
        _listeners += 1
    try:
        yield
    finally:
        with _lock:
            _listeners -= 1
            if not _listeners:
                _stance.close()


class RecordedAttention(nn.Module):
    """A layer whose attention weights `record_attention` sees: it attends through `attend`."""

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, plan: Plan, weights: bool = False, **options: Any
    ) -> tuple[Tensor, PairWeights | None]:
        """Call `attention_core.attend` with this plan and options, and show them to a recorder.

        Args:
            weights: also return the weights.
        """
        if not weights and not recorders.get() and around.get() is None:
            return attend(q, k, v, plan=plan, **options), None
        changed = around.get()
        if changed is None:
            return self._attend(q, k, v, plan=plan, weights=weights, **options)
        out: tuple[Tensor, PairWeights | None]
        out = changed(self._attend, q, k, v, plan=plan, weights=weights, **options)
        return out

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, plan: Plan, weights: bool, **options: Any
    ) -> tuple[Tensor, PairWeights | None]:
        recording = [one for one in recorders.get() if one.wants(self)]
        form: bool | Literal["pairs"] = bool(recording)
        if weights or any(one.pairs for one in recording):
            form = "pairs"
        if not form:
            return attend(q, k, v, plan=plan, **options), None
        out, found = attend(q, k, v, plan=plan, return_weights=form, **options)
        for one in recording:
            one.add(self, found, plan.job.spaces)
        return out, found if weights else None
