"""The kernels' ground: vectors, threads, the cache, and plain torch where there is no numba."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from attention_core.backends import fast

pytest.importorskip("numba")

from numba import njit

from attention_core.backends.fast import compiled, loads as m, threads, vectors as v

KERNEL = f"{__package__}.fast_kernel"
ROOT = Path(__file__).resolve().parents[2]


def in_a_process(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- Vectors ---------------------------------------------------------------------------------------

SPECIAL = [0.0, -0.0, 1.0, -np.inf, np.inf, np.nan, -86.8, -200.0, 88.5, 88.72, 88.8, 1e-6]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp_of_any_number(dtype: type) -> None:
    @njit
    def exp(x, out):
        for i in range(0, len(x), 12):
            m.store(out, i, v.vexp(m.load(x, i, 12)))

    x = np.concatenate([np.array(SPECIAL), np.linspace(-86.8, 88.7, 12 * 999)]).astype(dtype)
    out = np.full_like(x, 7)
    exp(x, out)
    with np.errstate(over="ignore"):
        expected = np.exp(x.astype(np.float64)).astype(dtype)
    tolerance = {"rtol": 2e-7 if dtype is np.float32 else 4e-16, "atol": 1e-37}
    np.testing.assert_allclose(out, expected, **tolerance)


def test_vectors_as_numpy_has_them() -> None:
    @njit
    def all_of_them(x, bytes_, bits, out):
        a = m.load(x, 0, 10)
        m.store_positive(bits, 1, a)
        m.store(out, 0, m.where_bits(bits, 1, a, a * 2))
        m.store(out, 10, v.vlog(v.vmax(a, 0.001)))
        m.store(out, 20, v.vtanh(v.vmin(a, 0.5)))
        m.store(out, 30, m.broadcast(x, 1, 2, 5, 2))
        m.store(out, 40, m.where_bytes(bytes_, 9, -1, a, 1 - a))
        m.store(out, 50, m.broadcast_at(x, bytes_, 0, 1, 5, 2))
        m.store(out, 60, v.repeat(v.part(a, 1, 5), 1, 2))
        m.store(out, 70, v.where_positive(a, a / 3, a + v.full(out[0], 10)))
        m.store(out, 80, v.full(v.get(a, 3), 10))
        m.scatter(out, 109, -2, v.part(a, 0, 5))

    x, bits, out = np.random.default_rng(0).normal(size=12), np.zeros(4, np.uint8), np.zeros(110)
    bytes_ = np.array([0, 1, 2, 0, 7, 0, 1, 0, 3, 0], np.uint8)
    all_of_them(x, bytes_, bits, out)
    a = x[:10]
    expected = [
        np.where(a > 0, a, a * 2), np.log(np.maximum(a, 0.001)), np.tanh(np.minimum(a, 0.5)),
        np.repeat(x[1:11:2], 2), np.where(bytes_[::-1] != 0, a, 1 - a),
        np.repeat(x[bytes_[:5].astype(int) + 1], 2), np.repeat(a[5:], 2),
        np.where(a > 0, a / 3, a + np.where(a > 0, a, a * 2)[0]), np.full(10, a[3]),
        np.zeros(10), np.stack([np.zeros(5), a[4::-1]], 1).ravel(),
    ]  # fmt: skip
    np.testing.assert_allclose(out, np.concatenate(expected), rtol=1e-14)
    assert bits[0] == bits[3] == 0  # ten bits are two bytes, and no other is touched


@pytest.mark.parametrize(("width", "times", "sums"), [(1, 7, 3), (2, 3, 4), (3, 1, 2), (1, 11, 1)])
def test_fold_sums_what_repeat_repeats(width: int, times: int, sums: int) -> None:
    few, many = width * sums, width * times * sums

    @njit
    def both(x, out):
        m.store(out, 0, v.fold(m.load(x, 0, many), width, times))
        m.store(out, few, v.repeat(m.load(x, 0, few), width, times))

    x, out = np.random.default_rng(0).normal(size=many), np.zeros(few + many)
    both(x, out)
    np.testing.assert_allclose(out[:few], x.reshape(sums, times, width).sum(1).ravel())
    again = np.broadcast_to(x[:few].reshape(sums, 1, width), (sums, times, width))
    assert np.array_equal(out[few:], again.ravel())


# -- Threads ---------------------------------------------------------------------------------------


def test_pieces_are_of_the_data_alone() -> None:
    start = np.concatenate([[0], np.cumsum(np.full(1000, 100))])
    bounds = threads.cut(start)
    assert bounds == [0, 167, 334, 500, 667, 834, 1000]
    assert threads.cut(start[:1]) == [0, 0]
    assert threads.cut(np.array([0, 10**6])) == [0] + [1] * 32  # one row is never cut
    assert threads.even(100, 1000) == [0, 16, 33, 50, 66, 83, 100]


@pytest.mark.parametrize("count", [1, 3])
def test_every_piece_is_done_once_by_several_callers(count: int) -> None:
    before = torch.get_num_threads()
    wrong: list[int] = []

    def call() -> None:
        torch.set_num_threads(count)
        done = np.zeros(50, np.int64)

        def piece(which: int, first: int, last: int) -> None:
            done[first:last] += 1

        for _ in range(20):
            threads.over(list(range(51)), piece)
        wrong.extend(done[done != 20])

    callers = [threading.Thread(target=call) for _ in range(4)]
    try:
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    finally:
        torch.set_num_threads(before)
    assert not wrong


def test_an_error_in_a_piece_is_the_callers() -> None:
    def fail(which: int, first: int, last: int) -> None:
        raise ZeroDivisionError(which)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            threads.over([0, 1, 2, 3], fail)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    done = np.zeros(50, np.int64)

    def piece(which: int, first: int, last: int) -> None:
        time.sleep(0.001)  # so that the other thread takes some
        done[first:last] += 1

    threads.over(list(range(51)), piece)
    child = os.fork()
    if not child:
        signal.alarm(20)  # a child that waits for its parent's threads waits forever
        threads.over(list(range(51)), piece)
        os._exit(int((done != 2).any()))
    assert os.waitpid(child, 0)[1] == 0


# -- The cache -------------------------------------------------------------------------------------

RUN = f"""
import numpy as np
from attention_core.backends.fast import compiled
module = compiled.kernel({KERNEL!r}, N=8)
x, out = np.arange(16.0), np.zeros(16)
module.double(0, 0, 2, x, out)
assert (out == 2 * x).all()
print(sum(module.double.stats.cache_hits.values()), module.CACHED)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "attention_core"


def run(n: int) -> bool:
    """Compile for this process, as if it were the first, and return whether there is a cache."""
    module = compiled._load(KERNEL, {"N": n})
    x, out = np.arange(2.0 * n), np.zeros(2 * n)
    module.double(0, 0, 2, x, out)
    assert np.array_equal(out, 2 * x)
    return module.CACHED


@pytest.mark.skipif(sys.platform != "linux", reason="where caches are is the platform's")
def test_a_kernel_is_compiled_once_for_all_processes(cache: Path) -> None:
    assert in_a_process(RUN).split() == ["0", "True"]
    # The machine code is the CPU's: another one compiles its own, and the first keeps it
    other = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    assert in_a_process(RUN, **other).split() == ["0", "True"]
    assert in_a_process(RUN).split() == ["1", "True"]
    for folder in (cache, *cache.iterdir()):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows has its own lists of who may write")
def test_a_folder_that_others_may_write_to_runs_no_code(cache: Path) -> None:
    assert run(2)
    cache.chmod(0o777)
    (folder,) = cache.iterdir()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert not run(2) and not run(3)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "NUMBA_CACHE_DIR"])
def test_where_nothing_can_be_written_it_is_compiled_anew(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    file = tmp_path / "file"
    file.touch()  # no folder can be made in a file, whoever asks
    monkeypatch.setenv(variable, str(file))
    assert not run(2)


def test_a_disk_that_fills_up_costs_the_cache_alone(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", full)
    assert run(2)


def test_constants_are_those_of_the_file(cache: Path) -> None:
    with pytest.raises(TypeError, match=r"constants are \['CACHED', 'N'\], got \['CACHED', 'M'\]"):
        compiled.kernel(KERNEL, M=1)


# -- With and without ------------------------------------------------------------------------------


def test_what_kernels_take(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(2)
    monkeypatch.setenv(fast.SWITCH, "1")
    assert fast.usable(x, None, x.double(), x.long())
    assert not fast.usable(x, pays=False)
    assert not fast.usable(x.half()) and not fast.usable(x.to("meta"))
    monkeypatch.setenv(fast.SWITCH, "always")
    assert fast.usable(x, pays=False)
    monkeypatch.setenv(fast.SWITCH, "0")
    assert not fast.usable(x) and not fast.installed()
    monkeypatch.setenv(fast.SWITCH, "yes")
    with pytest.raises(ValueError, match="ATTENTION_CORE_FAST must be 1, 0 or always, got 'yes'"):
        fast.usable(x)


def test_a_numba_that_does_not_import_is_told_of_once(tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 2.5 or less')")
    code = """
import warnings, torch
from attention_core.backends import fast
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    assert not fast.usable(torch.zeros(1)) and not fast.usable(torch.zeros(1))
print(*(x.message for x in said), sep="\\n")
"""
    said = in_a_process(code, PYTHONPATH=str(tmp_path)).strip()
    assert said == (
        "numba is installed but does not work here, so attention runs in plain torch: "
        "ImportError: Numba needs NumPy 2.5 or less"
    )
