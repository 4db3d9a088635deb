"""Models put into evaluation mode for a while, in one thread or in several."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

_lock = threading.Lock()
#: How many hold a module in evaluation mode, and the mode that it had before the first of them
_held: dict[nn.Module, tuple[int, bool]] = {}


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Hold modules in evaluation mode, as those of ``model.modules()``.

    Where several threads hold a module at the same time, the last to end puts it back into the mode
    that it had before the first; each module into its own, as a part may be in another than the
    whole.
    """
    each = list(modules)
    with _lock:
        for module in each:
            count, mode = _held.get(module, (0, module.training))
            _held[module] = count + 1, mode
            module.training = False
    try:
        yield
    finally:
        with _lock:
            for module in each:
                count, mode = _held.pop(module)
                if count > 1:
                    _held[module] = count - 1, mode
                else:
                    module.training = mode
