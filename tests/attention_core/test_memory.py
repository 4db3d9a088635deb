"""Memory that is freed stays with the process, where glibc has it and no one else decided."""

import os
import subprocess
import sys

import pytest

from attention_core.memory import keep_freed_memory

FAULTS = """
import resource, torch
from attention_core.memory import keep_freed_memory
assert keep_freed_memory()
def step():
    return [torch.ones(12 << 20) for _ in range(2)]  # 48 MiB each
for _ in range(8):  # until places for both are found
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    not (sys.platform == "linux" and "CS_GNU_LIBC_VERSION" in os.confstr_names),
    reason="needs glibc",
)
def test_a_step_finds_the_memory_of_the_last_one() -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=kept)
    pages = 3 * 2 * (48 << 20) // 4096
    assert int(done.stdout) < pages / 10


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MALLOC_ARENA_MAX", "2"),
        ("MALLOC_TRIM_THRESHOLD_", "131072"),
        ("GLIBC_TUNABLES", "glibc.malloc.arena_max=2"),
    ],
)
def test_a_malloc_that_the_environment_sets_is_left_alone(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert not keep_freed_memory()
    if sys.platform != "linux":
        return
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())  # a libc without it, as musl
    monkeypatch.delenv(name)
    assert not keep_freed_memory()
