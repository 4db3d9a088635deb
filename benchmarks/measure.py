"""How everything here is measured: in turn, as medians, and memory in processes of their own.

All contestants of a comparison share one process, hence one allocator, one number of threads and
one instruction set, and take turns, so that what else the machine does hits all of them. Two clocks
run: the wall's, and the CPU's, which adds up all threads and hardly sees other processes.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attention_core.backends.fast import SWITCH
from attention_core.memory import keep_freed_memory

#: One forward pass; what it returns is differentiated by the tensors that need a gradient.
Forward = Callable[[], Tensor]


class Times(NamedTuple):
    """Milliseconds of a forward pass, and with its backward pass where there is one; both also on
    the CPU's clock, which is the wall's on other devices."""

    forward: float
    both: float | None
    forward_cpu: float
    both_cpu: float | None


def once(forward: Forward, backward: bool) -> Times:
    """Times of one forward pass, and with its backward pass."""
    since = _clocks()
    if not backward:
        with torch.no_grad():
            forward()
        wall, cpu = _passed(since)
        return Times(wall, None, cpu, None)
    out = forward()
    half_wall, half_cpu = _passed(since)
    out.backward(torch.ones_like(out))
    wall, cpu = _passed(since)
    return Times(half_wall, wall, half_cpu, cpu)


def in_turn(
    contestants: Sequence[Forward],
    repetitions: int,
    *,
    backward: Sequence[bool] | None = None,
    settings: Sequence[Callable[[], AbstractContextManager[Any]]] | None = None,
) -> list[Times]:
    """The medians of each contestant, all of which take turns, after one round unmeasured.

    Args:
        settings: make what holds while a contestant runs, backward pass included.
    """
    directions = backward or [True] * len(contestants)
    settings = settings or [nullcontext] * len(contestants)
    found: list[list[Times]] = [[] for _ in contestants]
    for repetition in range(repetitions + 1):
        rows = zip(contestants, directions, settings, found, strict=True)
        for contestant, direction, setting, times in rows:
            with setting():
                taken = once(contestant, direction)
            if repetition:
                times.append(taken)
    return [_medians(times) for times in found]


def _medians(times: Sequence[Times]) -> Times:
    columns = zip(*times, strict=True)
    return Times(*(None if None in column else median(column) for column in columns))


@contextmanager
def kernels(on: bool) -> Iterator[None]:
    """Have attention on CPUs use its kernels in numba, where that is installed, or plain torch."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "1" if on else "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SWITCH]
        else:
            os.environ[SWITCH] = before


def milliseconds(call: Callable[[], object]) -> float:
    """Measure the milliseconds of one call, such as a training step or a generation."""
    since = _clocks()
    call()
    return _passed(since)[0]


def peak(make: Callable[..., Forward], *arguments: Any, fast: bool = True) -> float:
    """MiB that forward and backward of `make(*arguments)` take beyond what lies there before, in a
    fresh process, which may use the kernels or not. Linux only; on CUDA the device's memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, make, arguments, fast).result()


def _peak(make: Callable[..., Forward], arguments: tuple[Any, ...], fast: bool) -> float:
    os.environ[SWITCH] = "1" if fast else "0"
    keep_freed_memory()
    forward = make(*arguments)
    once(forward, True)  # what only the first call takes: kernels and their compiler
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once(forward, True)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    return host_peak(lambda: once(forward, True))


def host_peak(call: Callable[[], object]) -> float:
    """MiB of memory that `call()` takes beyond what this process uses. Linux with glibc only."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is there, but not in use
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    call()
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def machine() -> str:
    """Return the device that measures, in words: on a CPU its threads and instruction set."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} CPU, {threads} thread{'s' * (threads > 1)}, {instructions}"


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _clocks() -> tuple[float, float]:
    _finish()
    return time.perf_counter(), time.process_time()


def _passed(since: tuple[float, float]) -> tuple[float, float]:
    """Milliseconds by the wall's clock and the CPU's; a device has but the one."""
    wall, cpu = (1e3 * (now - then) for now, then in zip(_clocks(), since, strict=True))
    return wall, wall if torch.cuda.is_available() else cpu
