"""A kernel over pieces of its rows, on torch's number of threads.

numba's own parallel layer is left alone: it kills a forked child that calls a kernel after its
parent did, aborts on two Python threads, and raises torch's number of threads. Kernels that release
the GIL run on plain threads instead. How work is cut depends on the data alone, so that results are
the same bit for bit whatever the number of threads.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

#: Work units of a piece at least, and pieces at most: a call takes some 30 microseconds, and the
#: last pieces are what other threads wait for.
_PIECE, _PIECES = 16_384, 32

_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()


def cut(start: Any, piece: int = _PIECE) -> list[int]:
    """Cut rows into pieces of about equal work; return their bounds, from 0 to the number of rows.

    Args:
        start: (rows + 1,) integers, the work before each row: `start` of a `CSR`.
        piece: the least work of a piece; what is less than two is one.
    """
    rows, total = len(start) - 1, int(start[-1])
    pieces = max(1, min(_PIECES, total // piece))
    inner = (bisect_left(start, at * total / pieces) for at in range(1, pieces))
    return [0, *(min(row, rows) for row in inner), rows]


def even(rows: int, work: int, piece: int = _PIECE) -> list[int]:
    """Cut rows of the same work into pieces, as `cut` does."""
    pieces = max(1, min(_PIECES, rows, rows * work // piece))
    return [rows * at // pieces for at in range(pieces + 1)]


def over(bounds: list[int], kernel: Callable[..., None], *arguments: Any) -> None:
    """Call `kernel(piece, first, last, *arguments)` for every piece, several at a time.

    Pieces may run in any order and at the same time: each writes what no other writes or reads.

    Args:
        bounds: of the pieces, as `cut` returns them.
        kernel: a function compiled with `nogil`.
    """
    pieces = list(zip(range(len(bounds) - 1), bounds, bounds[1:], strict=False))
    helpers = min(torch.get_num_threads(), len(pieces)) - 1
    if helpers < 1:
        for piece in pieces:
            kernel(*piece, *arguments)
        return
    waiting = iter(pieces)
    turn = threading.Lock()

    def work() -> None:
        while True:
            with turn:
                piece = next(waiting, None)
            if piece is None:
                return
            kernel(*piece, *arguments)

    helping = _submit(work, helpers)
    try:
        work()
    finally:  # whatever happened, no thread may still write to memory that the caller frees
        started = [one for one in helping if not one.cancel()]
        for one in started:
            one.exception()
    for one in started:
        one.result()


def _submit(work: Callable[[], None], count: int) -> list[Future[None]]:
    """Have up to `count` threads of the pool do `work` too; none where the pool takes no more."""
    global _pool
    with _lock:
        if _pool is None:
            # Threads start when they are first needed; several callers each bring their own work
            _pool = ThreadPoolExecutor(4 * (os.cpu_count() or 1), "attention_core")
        try:
            return [_pool.submit(work) for _ in range(count)]
        except RuntimeError:  # the interpreter is shutting down, or can start no thread
            return []


def _forget() -> None:
    """In a forked child, which has none of its parent's threads and perhaps a lock they held."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_forget)
