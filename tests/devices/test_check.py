"""`attn check`: every section within its time, none lost by another, and what it keeps."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from attention_core import (
    Edges,
    Graph,
    Neighborhood,
    RelativeTable,
    Sequence,
    attend,
    explain,
    plan,
)
from attention_core.backends import dense, fast, flex, measured
from attention_core.check import cases, conformance, run, times as timing, waits
from attention_core.check.cases import CASES, Case
from attention_core.check.times import Time, factors
from attention_core.check.works import Work
from attention_core.errors import UsageError
from attention_core.job import Result
from attention_core.plan_cache import PLANS
from attention_core.planning import BACKENDS
from attention_core.training import cli
from tests.devices.counting import CUDA, CountingDevice

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a place for measured costs of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(measured.FOLDER, str(tmp_path / "costs"))
    PLANS.clear()
    yield tmp_path
    PLANS.clear()
    measured._read.cache_clear()


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cases and works of a few tokens."""
    monkeypatch.setattr(run, "CASES", [one for one in CASES if "packed" in one.name][:2])
    made = [lambda n=n: Work(f"{n} tokens", Sequence(n), heads=2, dim=8) for n in (8, 9, 10)]
    monkeypatch.setattr(run, "works", lambda device: iter(made))
    monkeypatch.setattr(timing, "_ROUNDS", 1)


def written(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("outputs/*/*-check.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_the_command_measures_and_what_it_keeps_decides(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small(monkeypatch)
    cli.main(["check", "--device", "cpu"])
    found = written(folder)
    sections = found["sections"]
    assert [section["status"] for section in sections.values()] == [
        "done", "done", "skipped", "skipped", "done", "done",
    ]  # fmt: skip
    assert sections["versions"]["results"][0]["torch"] == torch.__version__.split("+")[0]
    compared = sections["conformance"]["results"]
    assert {(one["backend"], one["dtype"]) for one in compared} == {
        (name, dtype) for name in BACKENDS for dtype in ("float32", "bfloat16")
    }
    by = {one["contestant"] for one in sections["times"]["results"]}
    assert by >= {"dense", "edges", "SDPA, all pairs"}
    (kept,) = (folder / "costs").iterdir()
    factors = json.loads(kept.read_text())["factors"]
    assert factors["dense"]["float32"][0] > 0 and factors[measured.OTHERS].keys() == {
        "float32",
        "bfloat16",
    }
    assert "as measured by `attn check` in float32 on " in explain(Sequence(4))
    assert measured.factor(plan(Sequence(4)).job, "dense") == factors["dense"]["float32"][0]
    printed = capsys.readouterr().out
    assert "conformance" in printed and str(kept.name) in printed.replace("\n", "")
    assert "-check.json" in printed.replace("\n", "")


def test_a_wrong_number_is_found_and_exits_with_1(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small(monkeypatch)
    right = dense.run

    def wrong(*args: Any) -> Result:
        found = right(*args)
        return found._replace(output=found.output * 1.001)

    monkeypatch.setattr(dense, "run", wrong)
    with pytest.raises(SystemExit) as left:
        cli.main(["check", "--device", "cpu", "--minutes", "1"])
    assert left.value.code == 1
    failed = {
        (one["backend"], one["dtype"])
        for one in written(folder)["sections"]["conformance"]["results"]
        if one["status"] == "failed"
    }
    assert failed == {("dense", "float32")}  # a thousandth is rounding in bfloat16
    assert "by dense in float32: gradient of v is off by" in capsys.readouterr().out.replace(
        "\n", " "
    )


def test_a_section_that_raises_costs_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small(monkeypatch)

    def broken(device: torch.device, until: float) -> Iterator[dict[str, Any]]:
        yield run._versions(device, until).__next__()
        raise RuntimeError("a driver is missing")

    monkeypatch.setitem(run.SECTIONS, "versions", broken)
    assert run.check(CPU, 1, folder / "outputs") == 1
    sections = written(folder)["sections"]
    assert sections["versions"]["status"] == "failed" and len(sections["versions"]["results"]) == 1
    assert sections["versions"]["said"] == "RuntimeError: a driver is missing"
    assert sections["conformance"]["status"] == sections["times"]["status"] == "done"
    assert "versions: RuntimeError: a driver is missing" in capsys.readouterr().out


def test_results_are_written_after_each_section_and_deadlines_are_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[str]] = {}

    def slow(name: str) -> Callable[[torch.device, float], Iterator[dict[str, Any]]]:
        def section(device: torch.device, until: float) -> Iterator[dict[str, Any]]:
            paths = list(folder.glob("outputs/*/*.json"))
            seen[name] = list(written(folder)["sections"]) if paths else []
            while time.monotonic() < until:
                time.sleep(0.02)
                yield {"status": "passed", "work": "", "scenario": "", "forward": 0, "backward": 0}

        return section

    names = list(run.SECTIONS)
    for name in names[1:-1]:
        monkeypatch.setitem(run.SECTIONS, name, slow(name))
    monkeypatch.setitem(run.SECTIONS, "times", lambda device, until: iter(()))
    since = time.monotonic()
    with CountingDevice():  # a CPU has fewer sections
        assert run.check(CUDA, 2 / 60, folder / "outputs") == 0
    assert time.monotonic() - since < 3
    assert seen["structures"] == ["versions", "conformance"]
    found = written(folder)["sections"]
    assert found["conformance"]["status"] == "cut short" and found["times"]["status"] == "skipped"
    assert not (folder / "costs").exists()  # of nothing there are no factors


def test_a_folder_that_cannot_be_written_is_named_before_anything_runs(folder: Path) -> None:
    (folder / "outputs").write_text("a file")
    with pytest.raises(UsageError, match=r"writes to 'outputs', and cannot: .*Not a directory"):
        cli._check(["--device", "cpu"])


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_what_is_not_reached_says_so(
    device: torch.device, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not that it is for another device; what is for another one, that alone."""
    monkeypatch.setattr(run, "SHARES", dict.fromkeys(run.SHARES, 0.0))
    with CountingDevice() if device == CUDA else nullcontext():
        assert run.check(device, 1, folder / "outputs") == 0
    found = written(folder)["sections"]
    said = {name: (one["status"], one["said"]) for name, one in found.items()}
    backends = len(BACKENDS) - (device == CUDA)
    none = "0 of {} compared, no time was left"
    assert said["conformance"] == ("cut short", none.format(2 * 28 * backends))
    assert said["times"] == ("cut short", "no time was left")
    assert said["constants"] == (
        "skipped", "too few works were timed; what was kept before stays",
    )  # fmt: skip
    if device == CUDA:
        assert said["structures"] == ("cut short", f"{none.format(56)}; each is compiled first")
        assert said["waits"] == ("cut short", "no time was left")
    else:
        assert said["structures"] == ("skipped", "flex compiles for a GPU alone")
        assert said["waits"] == ("skipped", "a CPU is not waited for")


def test_what_was_compared_and_how_long_numba_compiled(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)

    def slow(case: Case, name: str, dtype: torch.dtype, *given: Any) -> conformance.Outcome:
        if fast.available():
            from numba.core.event import trigger_event

            with trigger_event("numba:compile"):
                time.sleep(0.3)
        else:
            time.sleep(0.3)
        return conformance.Outcome(case.name, name, str(dtype), "passed")

    monkeypatch.setattr(run, "compare", slow)
    monkeypatch.setattr(run, "right_answer", lambda *given: {})
    monkeypatch.setattr(run, "_SECOND", 0.1)
    monkeypatch.setattr(run, "SHARES", {**run.SHARES, "conformance": 1 / 600, "times": 0.0})
    run.check(CPU, 10, folder / "outputs")
    found = written(folder)["sections"]["conformance"]
    number = len(found["results"])
    assert found["planned"] == 20 and found["status"] == "cut short" and 1 <= number <= 4
    said = f"{number} of 20 compared: {number} passed, 0 failed, 0 refused"
    if fast.available():
        seconds = found["compiling_seconds"]
        assert seconds >= 0.3 * number
        said += f"; {seconds:.0f} s went into compiling kernels, which are kept for next time"
    assert found["said"] == said


def test_no_factors_are_wanted_and_that_alone_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    monkeypatch.setenv(measured.FOLDER, "0")
    monkeypatch.setattr(run, "SHARES", {**run.SHARES, "conformance": 0.0})
    run.check(CPU, 1, folder / "outputs")
    found = written(folder)["sections"]["constants"]
    assert found["status"] == "skipped"
    assert found["said"] == "ATTENTION_CORE_COSTS=0: no factors are kept"


def test_a_busy_machine_and_what_is_replaced_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small(monkeypatch)
    monkeypatch.setattr(run, "SHARES", {**run.SHARES, "conformance": 0.0})
    monkeypatch.setattr(run, "_SECOND", 0.0)
    monkeypatch.setattr(time, "process_time", time.monotonic)
    name = measured.device_name(CPU)
    assert name is not None
    one = {"dense": {"float32": (1.0, 1.0)}}
    before = measured.measured_now(name, "2026-11-29", one)._replace(threads=99)
    path = measured.keep(before)
    run.check(CPU, 1, folder / "outputs")
    printed = capsys.readouterr().out
    then, now = (measured.said_of(n, before.numba) for n in (99, torch.get_num_threads()))
    assert (
        f"constants: done. factors for bfloat16 and float32 are kept in {path}, in place of those "
        f"of 2026-11-29 for float32 with {then}, now {now}\n"
    ) in printed
    assert "the CPU was busy" not in printed
    monkeypatch.setattr(time, "process_time", lambda: 0.0)
    run.check(CPU, 1, folder / "again")
    printed = capsys.readouterr().out
    assert "the CPU was busy with other work and gave 0 of " in printed
    today = json.loads(path.read_text())["date"]
    assert f"{path}, in place of those of {today} for bfloat16 and float32\n" in printed


def test_plans_follow_the_factors_that_are_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an equal one was planned before."""
    name = measured.device_name(CPU)
    assert name is not None

    def chosen() -> str:
        return plan(Sequence.packed([40, 50]), Neighborhood(3)).backend

    before = chosen()
    slow = {kernel: {"float32": (100.0, 100.0)} for kernel in (before,)}
    measured.keep(measured.measured_now(name, "2026-11-30", slow))
    assert chosen() != before
    with measured.ignored():
        assert chosen() == before
    assert chosen() != before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "cuda"], "--device cuda: torch sees no such GPU here, it sees none"),
        (["--device", "cuda:7"], "--device cuda:7: torch sees no such GPU here"),
        (["--device", "tpu"], "--device must be cpu, cuda or cuda:N, got 'tpu'"),
        (["--device", "meta"], "--device must be cpu, cuda or cuda:N, got 'meta'"),
        (["--minuts", "1"], "unrecognized arguments: --minuts 1. Did you mean --minutes?"),
        (["minutes=1"], "unrecognized arguments: minutes=1. Did you mean --minutes 1?"),
        (["now"], "unrecognized arguments: now\n"),
        (["--minutes", "0"], "--minutes must be above 0 and at most 1440, got 0"),
        (["--minutes", "nan"], "--minutes must be above 0 and at most 1440, got nan"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)  # which run_hydra sets
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as left:
        cli.main(["check", *arguments])
    assert left.value.code == 2 and said in capsys.readouterr().err


def test_devices_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert run.device_of(None) == torch.device("cuda")
    assert run.device_of("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UsageError, match="it sees 2 of them, cuda:0 to cuda:1"):
        run.device_of("cuda:2")


def test_every_case_is_made_alike_each_time_and_takes_part_in_plans() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 25
    for case in CASES:
        first, second = case.make(), case.make()
        for one, other in ((first.bias, second.bias), (first.score, second.score)):
            pairs = zip(*((() if x is None else x.parameters()) for x in (one, other)), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
    kinds = {type(case.make().mask) for case in CASES}
    assert len(kinds) >= 10


@pytest.mark.parametrize("name", ["causal window, softcap, sink", "graph, GAT", "packed, T5"])
def test_a_case_fails_by_the_part_that_differs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = (one for one in CASES if one.name == name)
    right = conformance.right_answer(case, torch.float32)
    ours = conformance.compare(case, "edges", torch.float32, CPU, right)
    assert ours.status == "passed" and ours.difference < 1e-5
    for part in right:
        if right[part].abs().max() < 1e-2:
            continue
        off = {**right, part: right[part] * 1.01}
        found = conformance.compare(case, "edges", torch.float32, CPU, off)
        assert found.status == "failed" and found.worst == part
    refused = conformance.compare(case, "dense", torch.float32, CPU, right).status
    assert refused == ("passed" if name == "packed, T5" else "refused")


def test_factors_are_medians_and_those_of_others_where_none_was_timed() -> None:
    def timed(work: str, kernel: str, ratio: float) -> Time:
        return Time(work, "float32", kernel, ratio, 6 * ratio, kernel, 1.0, 2.0)

    found = factors(
        [timed(work, kernel, ratio * times)
         for work, ratio in (("a", 2.0), ("b", 100.0), ("c", 3.0))
         for kernel, times in (("dense", 1.0), ("edges", 2.0))],
    )  # fmt: skip
    assert found["dense"]["float32"] == (3, 9) and found["edges"]["float32"] == (6, 18)
    assert found[measured.OTHERS]["float32"] == (5, 15)
    assert factors([timed("a", "dense", 2.0), timed("b", "dense", 2.0)]) == {}


def test_attend_is_what_cases_are_computed_by() -> None:
    """The right answer is that of attention written out, for the plainest case."""
    case = CASES[1]
    right = conformance.right_answer(case, torch.float32)
    given = case.make()
    assert case.name == "heads of their own" and given.kv_heads == cases.HEADS
    generator = torch.Generator().manual_seed(5)
    shape = 2, cases.HEADS, 150, cases.DIM
    q, k, v = (torch.randn(shape, generator=generator).double() for _ in range(3))
    wanted = torch.softmax(q @ k.mT / cases.DIM**0.5, -1) @ v
    torch.testing.assert_close(right["output"], wanted)
    torch.testing.assert_close(attend(q, k, v, backend="dense"), wanted)


def test_a_gpu_is_compared_counted_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that stands for one: no kernel in Triton or CUDA, but every other line runs."""

    def to(module: nn.Module, *given: Any) -> nn.Module:
        dtypes = [one for one in given if isinstance(one, torch.dtype)]
        real(module, *dtypes)
        return device.moved(module) if CUDA in given else module

    real = nn.Module.to
    monkeypatch.setattr(nn.Module, "to", to)
    monkeypatch.setattr(flex, "_EAGER", {"cpu", "cuda"})  # which would be compiled
    monkeypatch.setattr(timing, "_ROUNDS", 1)
    modes = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: None)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    works = [
        Work("window", Sequence(40), Neighborhood(4), heads=2, dim=8),
        Work("table", Sequence(40), None, RelativeTable.t5(2), heads=2, dim=8),
        Work("edges", Graph(torch.tensor([[0, 1, 2], [1, 2, 3]]), 4), Edges(), heads=2, dim=8),
    ]
    with CountingDevice() as device:
        for case in CASES[::5]:
            right = conformance.right_answer(case, torch.float32)
            for name in ("reference", "dense", "blocks"):
                found = conformance.compare(case, name, torch.float32, CUDA, right)
                assert found.status in ("passed", "refused"), found
        counted = list(waits.scenarios(CUDA))
        timed = [
            one
            for work in works
            for one in timing.times(work, torch.float32, CUDA, time.monotonic() + 60)
        ]
    assert len(counted) == 7 and {one.forward + one.backward for one in counted} == {0}
    assert modes[:2] == ["warn", 0]
    assert {one.kernel for one in timed} >= {"", "efficient", "edges", "reference"}
    by = {one.contestant for one in timed}
    assert by >= {"SDPA, all pairs", "SDPA, mask", "PyG TransformerConv", "MultiheadAttention"}


def test_waits_are_what_torch_warns_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("synchronize", "set_sync_debug_mode"):
        monkeypatch.setattr(torch.cuda, name, lambda *given: None)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)

    def step() -> None:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("another", stacklevel=1)
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    assert waits._counted("a step", step) == waits.Waits("a step", 2, 0)
