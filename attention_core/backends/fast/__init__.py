"""Kernels for CPUs in numba, which needs no compiler: whether they are there, and wanted.

They stand behind the operators that there are, which do the same in plain torch where numba is not
installed. numba is found without importing it, and imported when a kernel is first needed.

``vectors``   LLVM's vectors of any length, of which kernels are written (``llvm``: its words)
``loads``     from memory and to it
``tiles``     more of them: rows as columns, tables, dropout
``compiled``  the text of a kernel with its constants, compiled once a machine
``threads``   a kernel over pieces of its rows, on torch's number of threads
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

#: The environment variable that turns kernels off, or on for work of any size.
SWITCH = "ATTENTION_CORE_FAST"
_SETTINGS = {"": "auto", "1": "auto", "auto": "auto", "0": "off", "off": "off", "always": "always"}
_DTYPES = (torch.float32, torch.float64)
_FOUND = find_spec("numba") is not None


def usable(*tensors: Tensor | None, pays: bool = True) -> bool:
    """Return whether kernels take these tensors: float32 or float64 on a CPU, with numba there.

    Args:
        tensors: what a kernel would read, None among them for what is not given.
        pays: whether the work is large enough to be worth a call; `ATTENTION_CORE_FAST=always`
            takes any.
    """
    how = setting()
    if how == "off" or (how == "auto" and not pays):
        return False
    known = all(
        x is None or (x.device.type == "cpu" and (x.dtype in _DTYPES or not x.is_floating_point()))
        for x in tensors
    )
    return known and available()


def setting() -> str:
    """Return "auto", "off" or "always", as `ATTENTION_CORE_FAST` has it.

    Raises:
        ValueError: if it is set to something else.
    """
    given = os.environ.get(SWITCH, "")
    if (how := _SETTINGS.get(given.lower())) is None:
        raise ValueError(f"{SWITCH} must be 1, 0 or always, got {given!r}")
    return how


def installed() -> bool:
    """Return whether kernels would be tried, without importing numba: what costs are told from."""
    return setting() != "off" and _FOUND


def available() -> bool:
    """Return whether kernels run here. Imports numba, the first time."""
    return installed() and _imports()


@contextmanager
def timed_compiling(tell: Callable[[float], object]) -> Iterator[None]:
    """Tell how many seconds numba has compiled meanwhile; nothing where it is not there."""
    if not available():
        yield
        return
    from numba.core.event import install_timer

    with install_timer("numba:compile", tell):
        yield


@cache
def _imports() -> bool:
    try:
        import_module("attention_core.backends.fast.compiled")
        return True
    except Exception as error:  # numba refuses numpy's version, a library is missing, ...
        warnings.warn(
            f"numba is installed but does not work here, so attention runs in plain torch: "
            f"{type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
