"""The sections of a check, in turn: none runs longer than its share of the time that is left, and
one that raises costs no other."""

from __future__ import annotations

import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from attention_core.backends import fast, measured
from attention_core.check.cases import CASES
from attention_core.check.conformance import Outcome, compare, right_answer
from attention_core.check.report import Report
from attention_core.check.times import Time, factors, times
from attention_core.check.waits import scenarios
from attention_core.check.works import works
from attention_core.checks import gpus
from attention_core.errors import UsageError
from attention_core.packages import is_installed
from attention_core.planning import BACKENDS

DTYPES = (torch.float32, torch.bfloat16)
#: Of the time that is left when a section begins, its share; what it leaves goes to the next ones.
SHARES = {"versions": 0.1, "conformance": 0.3, "structures": 0.35, "waits": 0.15, "times": 0.95}
#: Sections that are for a GPU, and why.
GPU_ALONE = {
    "structures": "flex compiles for a GPU alone",
    "waits": "a CPU is not waited for",
}
#: A CPU that works for others meanwhile: this share of the time at most was ours, of a second or
#: more.
_OURS, _SECOND = 0.8, 1.0
_PACKAGES = ("torch", "triton", "numba", "torch_geometric", "torchvision", "lightning")

#: What a section yields: results, one by one, each a dict. It stops by itself at its deadline.
Section = Callable[[torch.device, float], Iterator[dict[str, Any]]]


def device_of(name: str | None) -> torch.device:
    """Return the device to check: that of the name, or a GPU where there is one, or the CPU.

    Raises:
        UsageError: torch knows no such device, or this machine has none.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device must be cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device must be cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda":
        count, has = gpus()
        if (device.index or 0) >= count:
            raise UsageError(f"--device {name}: torch sees no such GPU here, it sees {has}")
    return device


def check(device: torch.device, minutes: float, folder: Path) -> int:
    """Run all sections on a device, write what they find, and show it.

    Args:
        minutes: for all of them.
        folder: where the JSON file goes.

    Returns: how many cases and sections failed.

    Raises:
        UsageError: nothing can be written there.
    """
    now = datetime.now()
    name = measured.device_name(device) or str(device)
    about = {"device": f"{name} ({device})", "date": now.isoformat(" ", "seconds")}
    report = Report(folder / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}-check.json", about)
    try:
        report.write()
    except OSError as error:
        raise UsageError(f"attn check writes to {str(folder)!r}, and cannot: {error}") from error
    console = Console()
    end = time.monotonic() + 60 * minutes
    with measured.ignored():  # what is estimated is what is shipped
        for section, run in SECTIONS.items():
            _run(section, run, device, end, report, console)
    _run("constants", _constants(report), device, end, report, console)
    report.show(console)
    return len(report.failed())


def _run(
    name: str, section: Section, device: torch.device, end: float, report: Report, console: Console
) -> None:
    began, cpu_began = time.monotonic(), time.process_time()
    until = began + SHARES.get(name, 1.0) * (end - began)
    results: list[dict[str, Any]] = []
    found: dict[str, Any] = {"status": "done", "results": results, "error": ""}
    names = _compared_by(name, device)
    if names:
        found["planned"] = len(names) * len(CASES) * len(DTYPES)
    try:
        if name in GPU_ALONE and device.type != "cuda":
            found["status"] = "skipped"
        else:
            with _compiling(found):
                # A loop of its own: what was found before an exception stays
                for one in section(device, until):
                    results.append(one)
            late = time.monotonic() >= until and name not in ("versions", "constants")
            if late and len(results) != found.get("planned"):
                found["status"] = "cut short"
            elif not results:
                found["status"] = "skipped"
    except Exception as error:
        found |= {"status": "failed", "error": "".join(traceback.format_exception(error))}
    found["seconds"] = time.monotonic() - began
    found["cpu_seconds"] = time.process_time() - cpu_began
    raised = found["error"].strip()
    found["said"] = raised.splitlines()[-1] if raised else _said(name, found, device)
    report.sections[name] = found
    try:
        report.write()
    except OSError as error:  # a disk that is full: the tables are still shown
        console.print(f"not written: {error}", markup=False, highlight=False)
    line = f"{name}: {found['status']}. {found['said']}"
    console.print(line, markup=False, highlight=False, soft_wrap=True)  # names of files stay whole


@contextmanager
def _compiling(found: dict[str, Any]) -> Iterator[None]:
    """Tell how many seconds numba compiles meanwhile, where it is there."""
    if fast.available():
        found["compiling_seconds"] = 0.0
    with fast.timed_compiling(lambda taken: found.update(compiling_seconds=taken)):
        yield


def _said(name: str, found: dict[str, Any], device: torch.device) -> str:
    """The results of a section in a sentence."""
    results = found["results"]
    if name in GPU_ALONE and device.type != "cuda":
        return GPU_ALONE[name]
    if name == "constants" and not results:
        if os.environ.get(measured.FOLDER) == "0":
            return f"{measured.FOLDER}=0: no factors are kept"
        return "too few works were timed; what was kept before stays"
    if not results and "planned" not in found:
        return "no time was left"
    if name == "versions":
        return ", ".join(f"{key} {value}" for key, value in results[0].items() if value)
    if name in ("conformance", "structures"):
        count = {kind: sum(one["status"] == kind for one in results) for kind in
                 ("passed", "failed", "refused")}  # fmt: skip
        of = ", ".join(f"{number} {kind}" for kind, number in count.items())
        said = f"{len(results)} of {found['planned']} compared"
        said += f": {of}" if results else ", no time was left"
        taken = found.get("compiling_seconds", 0.0)
        if found["status"] == "cut short" and name == "structures":
            said += "; each is compiled first"
        elif found["status"] == "cut short" and taken > _SECOND:
            said += f"; {taken:.0f} s went into compiling kernels, which are kept for next time"
        return said
    if name == "waits":
        return "; ".join(
            f"{one['scenario']} {one['forward']} + {one['backward']}" for one in results
        )
    if name == "times":
        said, seconds, ours = f"{len(results)} measured", found["seconds"], found["cpu_seconds"]
        if device.type == "cpu" and seconds > _SECOND and ours < _OURS * seconds:
            said += (
                f"; the CPU was busy with other work and gave {ours:.0f} of {seconds:.0f} s to "
                "this, so times and factors are too high: run it again alone"
            )
        return said
    (kept,) = results
    said = f"factors for {_dtypes(kept['factors'])} are kept in {kept['path']}"
    return f"{said}, in place of {kept['replaced']}" if kept["replaced"] else said


def _dtypes(factors: dict[str, dict[str, Any]]) -> str:
    return " and ".join(sorted({dtype for of_kernel in factors.values() for dtype in of_kernel}))


# -- The sections ----------------------------------------------------------------------------------


def _versions(device: torch.device, until: float) -> Iterator[dict[str, Any]]:
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Any] = {"python": platform.python_version(), "system": sys.platform}
    for package in _PACKAGES:
        if is_installed(package):
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                found[package] = "?"
    found["threads"] = torch.get_num_threads()
    if device.type == "cuda":
        found["capability"] = ".".join(map(str, torch.cuda.get_device_capability(device)))
        found["cuda"], found["hip"] = torch.version.cuda, torch.version.hip
        found["cudnn"] = torch.backends.cudnn.version()
    else:
        found["instructions"] = torch.backends.cpu.get_cpu_capability()
    yield found


def _compared_by(section: str, device: torch.device) -> list[str]:
    """The backends that a section compares: on a GPU every structure of flex is compiled, which
    has a section of its own."""
    gpu = device.type == "cuda"
    if section == "structures":
        return ["flex"] if gpu else []
    return [one for one in BACKENDS if not (one == "flex" and gpu)] * (section == "conformance")


def _conformance(device: torch.device, until: float) -> Iterator[dict[str, Any]]:
    yield from _compared(_compared_by("conformance", device), device, until)


def _structures(device: torch.device, until: float) -> Iterator[dict[str, Any]]:
    yield from _compared(_compared_by("structures", device), device, until)


def _compared(names: list[str], device: torch.device, until: float) -> Iterator[dict[str, Any]]:
    for dtype in DTYPES:
        for case in CASES:
            right: dict[str, Any] | None = None
            for name in names:
                if time.monotonic() >= until:
                    return
                right = right_answer(case, dtype) if right is None else right
                outcome: Outcome = compare(case, name, dtype, device, right)
                yield outcome._asdict()


def _waits(device: torch.device, until: float) -> Iterator[dict[str, Any]]:
    found = scenarios(device)
    while time.monotonic() < until and (one := next(found, None)) is not None:
        yield one._asdict()


def _times(device: torch.device, until: float) -> Iterator[dict[str, Any]]:
    wrong = []
    # First what people train in there, lest none of it be timed to the end
    for dtype in DTYPES if device.type == "cpu" else reversed(DTYPES):
        for make in works(device):
            if time.monotonic() >= until:
                break
            try:  # one work costs no other
                for found in times(make(), dtype, device, until):
                    yield found._asdict()
            except Exception as error:
                wrong.append(f"{make().name} in {dtype}: {type(error).__name__}: {error}")
    if wrong:
        raise RuntimeError("; ".join(wrong))


def _constants(report: Report) -> Section:
    """Keep the factors that times give, for `plan`."""

    def section(device: torch.device, until: float) -> Iterator[dict[str, Any]]:
        timed = [Time(**one) for one in report.sections["times"]["results"]]
        name = measured.device_name(device)
        found = factors(timed)
        if found and name is not None and os.environ.get(measured.FOLDER) != "0":
            before = measured.of_device(device)
            kept = measured.measured_now(name, report.about["date"][:10], found)
            path = measured.keep(kept)
            yield {**kept._asdict(), "path": str(path), "replaced": _replaced(before, kept)}

    return section


def _replaced(before: measured.Measured | None, kept: measured.Measured) -> str:
    """What was kept of a device until now, and what differed then."""
    if before is None:
        return ""
    then, now = (measured.said_of(one.threads, one.numba) for one in (before, kept))
    differs = "" if then == now else f" with {then}, now {now}"
    return f"those of {before.date} for {_dtypes(before.factors) or 'none'}{differs}"


SECTIONS: dict[str, Section] = {
    "versions": _versions,
    "conformance": _conformance,
    "structures": _structures,
    "waits": _waits,
    "times": _times,
}
