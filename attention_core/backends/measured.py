"""What `attn check` has measured on this machine: factors on the estimates, kept for the user.

One file for each device and minor version of torch, in the user's cache. What a file says is data:
it is checked, and a file that is not what was written is ignored, with one warning.
"""

from __future__ import annotations

import json
import os
import platform
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from attention_core.backends import fast
from attention_core.errors import counted
from attention_core.escape import on_one_line
from attention_core.files import replace_file, user_cache
from attention_core.job import Job

#: The environment variable that names another folder than the user's cache, or 0 for no factors.
FOLDER = "ATTENTION_CORE_COSTS"
#: Of the estimates that factors belong to: raise it where one of their constants changes, or what
#: a file holds.
EDITION = 2
#: In place of a kernel: the factor of those that were not timed, the median of those that were.
OTHERS = "others"
#: Factors beyond these are a mistake.
LEAST, MOST = 1e-3, 1e3
#: How often this process has kept factors.
_times_kept = 0
_DTYPES = {torch.float16: "bfloat16", torch.bfloat16: "bfloat16"}


class Measured(NamedTuple):
    """Hold factors (forward; forward and backward) by kernel, or `OTHERS`, and dtype, what they are
    of, and the day of measuring, such as "2026-11-30".

    Attributes:
        threads: that torch had then.
        numba: whether kernels in numba took part, as they do where it is installed and wanted.
    """

    device: str
    date: str
    factors: dict[str, dict[str, tuple[float, float]]]
    threads: int
    numba: bool

    def of(self, kernel: str, dtype: torch.dtype) -> tuple[float, float] | None:
        """Return the factors of a kernel that was timed in a dtype, or in one that stands for it;
        None if it was not."""
        return self.factors.get(kernel, {}).get(dtype_of(dtype))


def measured_now(device: str, date: str, factors: dict[str, dict[str, Any]]) -> Measured:
    """Return factors with the threads and kernels that there are."""
    return Measured(device, date, factors, *_conditions())


def _conditions() -> tuple[int, bool]:
    return torch.get_num_threads(), fast.installed()


def said_of(threads: int, numba: bool) -> str:
    """Return such as "2 threads, kernels in numba"."""
    kernels = "kernels in numba" if numba else "no kernels in numba"
    return f"{counted(threads, 'thread')}, {kernels}"


def dtype_of(dtype: torch.dtype) -> str:
    """Return in which of the dtypes that are timed a kernel takes about as long, or the nearest."""
    return _DTYPES.get(dtype, "float32")


def factor(job: Job, kernel: str) -> float:
    """Return measured ÷ estimated time of a kernel on the device of `job`; 1 if none is known."""
    return _factor(job.device, job.dtype, job.grad, kernel)


def _factor(device: torch.device, dtype: torch.dtype, grad: bool, kernel: str) -> float:
    found = of_device(device)
    known = None if found is None else found.of(kernel, dtype) or found.of(OTHERS, dtype)
    return 1.0 if known is None else known[grad]


# In a program that is compiled a constant, rather than files that are read in a graph. As by
# torch.compiler.assume_constant_result, for which all of torch._dynamo would be imported
_factor._dynamo_marked_constant = True  # type: ignore[attr-defined]


def of_device(device: torch.device) -> Measured | None:
    """Return what was measured on a device of this machine, None where nothing was."""
    given = os.environ.get(FOLDER, "")
    if given == "0" or (name := device_name(device)) is None:
        return None
    return _read(given, name)


def source(found: Measured, job: Job, kernels: dict[str, str]) -> str | None:
    """Say where estimates come from, to follow "Estimated"; None: no factor is in any of them.

    Args:
        kernels: by the name that is shown.
    """
    timed = [name for name, kernel in kernels.items() if found.of(kernel, job.dtype)]
    rest = [name for name in kernels if name not in timed]
    others = found.of(OTHERS, job.dtype) is not None
    if not timed and not (rest and others):
        return None
    notes = []
    if rest:
        how = "with the median factor of what was" if others else "estimated"
        notes.append(f"{', '.join(rest)} not timed: {how}")
    then, now = (found.threads, found.numba), _conditions()
    if job.device.type == "cpu" and then != now:
        notes.append(f"it had {said_of(*then)}, now there are {said_of(*now)}")
    said = f"as measured by `attn check` in {dtype_of(job.dtype)} on {found.date} on "
    return said + on_one_line(found.device) + (f" ({'; '.join(notes)})" if notes else "")


def setting() -> tuple[str, int]:
    """Return what is another one where other factors may be found: plans are kept by it."""
    return os.environ.get(FOLDER, ""), _times_kept


@contextmanager
def ignored() -> Iterator[None]:
    """Have costs be estimated as they are shipped, whatever was measured."""
    before = os.environ.get(FOLDER)
    os.environ[FOLDER] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FOLDER]
        else:
            os.environ[FOLDER] = before


@cache
def device_name(device: torch.device) -> str | None:
    """Return what the maker calls a device; None where it is not there, or of another kind."""
    if device.type == "cpu":
        return _processor()
    if device.type != "cuda" or not torch.cuda.is_available() or torch.cuda._is_in_bad_fork():
        return None
    return torch.cuda.get_device_name(device)


def _processor() -> str:
    try:
        known = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        known = ""
    found = re.search(r"^model name\s*:\s*(.+)$", known, re.MULTILINE)
    name = found[1] if found else platform.processor() or platform.machine()
    return name.strip() or "a CPU"


def path_of(name: str) -> Path:
    """Return the file of a device by its name, with this minor version of torch."""
    given = os.environ.get(FOLDER, "")
    folder = Path(given) if given else user_cache() / "attention_core" / "costs"
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")[:80]
    return folder / f"{plain}-torch{'.'.join(torch.__version__.split('.')[:2])}.json"


def keep(found: Measured) -> Path:
    """Write factors to the file of their device, whole or not at all; return its path."""
    global _times_kept
    path = path_of(found.device)
    with replace_file(path, "w") as file:
        json.dump({"edition": EDITION, **found._asdict()}, file, indent=2)
        file.write("\n")
    _read.cache_clear()
    _times_kept += 1
    return path


@cache
def _read(folder: str, name: str) -> Measured | None:
    try:
        path = path_of(name)
    except RuntimeError:  # no home
        return None
    wrong: Exception
    try:
        return _checked(json.loads(path.read_bytes().decode()), name)
    except (FileNotFoundError, PermissionError):  # none, or another user's
        return None
    except OSError as error:  # a folder in its place, say
        wrong, then = error, "Remove it"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        wrong, then = error, "`attn check` writes it anew"
    warnings.warn(
        f"{str(path)!r} is not what `attn check` writes, so costs are estimated: "
        f"{type(wrong).__name__}: {on_one_line(wrong)}. {then}",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def _checked(given: Any, name: str) -> Measured | None:
    if given["edition"] != EDITION:
        return None  # of another version of the package
    if given["device"] != name:
        raise ValueError(f"it is of {given['device']!r:.80}")
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", given["date"]):
        raise ValueError(f"date is {given['date']!r:.80}")
    factors: dict[str, dict[str, tuple[float, float]]] = {}
    for kernel, of_kernel in given["factors"].items():
        factors[kernel] = {}
        for dtype, both in of_kernel.items():
            if len(both) != 2 or not all(type(one) in (int, float) for one in both):
                raise ValueError(f"factors of {kernel!r:.40} are {both!r:.80}")
            if not all(LEAST <= one <= MOST for one in both):  # nor is NaN
                raise ValueError(f"factors of {kernel!r:.40} are {both!r:.80}")
            factors[kernel][dtype] = (float(both[0]), float(both[1]))
    threads, numba = given["threads"], given["numba"]
    if type(threads) is not int or threads < 1 or type(numba) is not bool:
        raise ValueError(f"threads are {threads!r:.40}, numba is {numba!r:.40}")
    return Measured(name, given["date"], factors, threads, numba)
