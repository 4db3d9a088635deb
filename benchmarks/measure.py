"""How everything here is measured: in turn, as medians, and memory in processes of their own."""

from __future__ import annotations

import multiprocessing
import platform
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: One forward pass; what it returns is differentiated by the tensors that need a gradient.
Forward = Callable[[], Tensor]


class Times(NamedTuple):
    """Milliseconds."""

    forward: float
    both: float | None


def once(forward: Forward, backward: bool) -> Times:
    """Times of one forward pass, and with its backward pass."""
    _finish()
    start = time.perf_counter()
    if not backward:
        with torch.no_grad():
            forward()
        _finish()
        return Times(1e3 * (time.perf_counter() - start), None)
    out = forward()
    _finish()
    middle = time.perf_counter()
    out.backward(torch.ones_like(out))
    _finish()
    return Times(1e3 * (middle - start), 1e3 * (time.perf_counter() - start))


def in_turn(
    contestants: Sequence[Forward], repetitions: int, *, backward: Sequence[bool] | None = None
) -> list[Times]:
    """The medians of each contestant, all of which take turns, after one round unmeasured."""
    directions = backward or [True] * len(contestants)
    found: list[list[Times]] = [[] for _ in contestants]
    for repetition in range(repetitions + 1):
        for contestant, direction, times in zip(contestants, directions, found, strict=True):
            taken = once(contestant, direction)
            if repetition:
                times.append(taken)
    return [
        Times(
            median(one.forward for one in times),
            median(one.both for one in times) if direction else None,  # type: ignore[type-var]
        )
        for times, direction in zip(found, directions, strict=True)
    ]


def milliseconds(call: Callable[[], object]) -> float:
    """Measure the milliseconds of one call, such as a training step or a generation."""
    _finish()
    start = time.perf_counter()
    call()
    _finish()
    return 1e3 * (time.perf_counter() - start)


def peak(make: Callable[..., Forward], *arguments: Any) -> float:
    """MiB that forward and backward of `make(*arguments)` take beyond what lies there before, in a
    fresh process. Linux only; on CUDA the memory of the device."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, make, arguments).result()


def _peak(make: Callable[..., Forward], arguments: tuple[Any, ...]) -> float:
    forward = make(*arguments)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once(forward, True)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    return host_peak(lambda: once(forward, True))


def host_peak(call: Callable[[], object]) -> float:
    """MiB of the machine's memory that `call()` takes beyond what this process had. Linux only."""
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    call()
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def machine() -> str:
    """Return the device that measures, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} threads, {torch.backends.cpu.get_cpu_capability()}"


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
