"""Memory that is freed stays with the process: steps ask for the same again and again."""

from __future__ import annotations

import ctypes
import os
import sys

#: Options of glibc's `mallopt`, and values: from which size memory is asked of the system for
#: itself, and from how much that is free it is handed back. Before glibc 2.35 the former was
#: limited to the last value.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_LARGE, _LARGE_BEFORE = 1 << 30, 1 << 25
_NEVER = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Have this process keep the memory that a step frees for the next step.

    glibc hands it back to the system, which then has to map and clear it again: a tenth of the
    time of a step on grids. For all that runs on a CPU in this process and in those forked from it;
    `attn train`, `evaluate` and `predict` call it. Nothing happens where there is no glibc, and
    where the environment sets its malloc (`MALLOC_...`, `GLIBC_TUNABLES`).

    Returns: whether it does.
    """
    if sys.platform != "linux" or _is_set_by_user():
        return False
    library = ctypes.CDLL(None)
    if not (hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt")):
        return False
    kept = library.mallopt(_TRIM_THRESHOLD, _NEVER)
    sizes = (_LARGE, _LARGE_BEFORE)
    return bool(kept) and any(library.mallopt(_MMAP_THRESHOLD, size) for size in sizes)


def _is_set_by_user() -> bool:
    return "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "") or any(
        name.startswith("MALLOC_") for name in os.environ
    )
