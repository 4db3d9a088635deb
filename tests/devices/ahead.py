"""Compile Triton kernels for a GPU that is not there, and read what its assembler says of them.

Whatever is launched within `compiling` is compiled, with the signature that its own arguments give
it, and not run: so it is the code that a GPU of that kind would be given, up to the machine code
that ptxas makes, which comes with triton.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver


class Compiled(NamedTuple):
    """Hold what ptxas says of a kernel.

    Attributes:
        name: the function.
        warps: of a program, of 32 threads.
        registers: of a thread, of 255.
        spilled: bytes of a thread that are written to memory since registers are too few.
        shared: bytes of shared memory.
    """

    name: str
    warps: int
    registers: int
    spilled: int
    shared: int


class _Device:
    """What triton asks of a device before it compiles."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # which kernels are kept by

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        """Triton's autotuner: the first that it tries takes 1 ms, the next 2, and so on."""
        taken = itertools.count(1)

        def measure(call: Any, quantiles: Any) -> list[float]:
            call()
            return [float(next(taken))] * len(quantiles)

        return measure


@contextmanager
def compiling(capability: int, cache: Path) -> Iterator[list[Compiled]]:
    """Compile kernels for compute capability `capability`, as 90, in place of running them.

    Args:
        cache: a folder to keep nothing in that was compiled before.

    Yields: what was compiled, as it is.
    """
    found: list[Compiled] = []
    launch = triton.JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        log = io.StringIO()
        with redirect_stdout(log):
            kernel = launch(self, *args, grid=grid, warmup=True, **options)
        if log.getvalue():  # not compiled before
            said, of = numbers(log.getvalue()), kernel.metadata
            found.append(Compiled(of.name, of.num_warps, *said, of.shared))
        return kernel

    with standing_in(capability, cache), mock.patch.object(triton.JITFunction, "run", compile_only):
        yield found


@contextmanager
def standing_in(capability: int, cache: Path) -> Iterator[None]:
    """Have triton compile for a GPU that is not there, into a folder, and print ptxas' log."""
    before = driver._active
    with triton.knobs.cache.scope(), triton.knobs.nvidia.scope():
        triton.knobs.cache.dir = str(cache)
        triton.knobs.nvidia.dump_ptxas_log = True
        driver.set_active(_Device(capability))
        try:
            yield
        finally:
            driver.set_active(before)


def numbers(log: str) -> tuple[int, int]:
    """Return the registers, and the bytes that are spilled, of the kernels in ptxas' log."""
    patterns = r"Used (\d+) registers", r"(\d+) bytes spill stores"
    registers, spilled = (sum(map(int, re.findall(pattern, log))) for pattern in patterns)
    return registers, spilled
