"""The jobs of a sweep: what each leaves in its folder, and the table of them all.

A job may run in another process or on another machine, and may be killed there. So each writes
`job.json` into its own folder, and the table is read from the folders. With what the sweep was
asked for, in `sweep.json`, it can be started again: of a job that is done it takes the score, one
that was killed it continues. A sampler with a seed draws the same values after the same scores.
"""

import csv
import json
import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from attention_core.training.errors import UsageError, reading
from attention_core.training.escape import (
    csv_cell,
    for_terminal,
    on_one_line,
    rich_text,
    shell_word,
)
from attention_core.training.folder import RunFolder, read_results, replace_file, write_json
from attention_core.training.instantiate import locate
from attention_core.training.metrics import read_metrics

Config = dict[str, Any]

SWEEP, JOB = "sweep.json", "job.json"
DIRECTIONS = {"min": "minimize", "max": "maximize"}


@dataclass
class Job:
    """One job of a sweep, as `job.json` in its folder says."""

    job: int
    overrides: list[str]
    monitor: str = ""
    mode: str = ""
    score: float | None = None  # the best value of `monitor`, on validation data
    results: dict[str, float] = field(default_factory=dict)
    error: str = "it has not finished. To continue: attn train run=FOLDER, the folder of the sweep"

    @property
    def failed(self) -> bool:
        return self.error != ""

    def write(self, folder: Path) -> None:
        write_json(asdict(self), folder / JOB)


def begin(
    folder: Path,
    overrides: Sequence[str],
    flags: Sequence[str],
    config_dir: Path | None,
    *,
    again: bool,
) -> None:
    """Writes down what a sweep is asked for, unless it is started again.

    Raises:
        UsageError: there is another one in the folder.
    """
    if again:
        return
    if any(folder.glob(f"*/{JOB}")):
        raise UsageError(
            f"hydra.sweep.dir: {str(folder)!r} holds a sweep already. To continue it: attn train "
            f"run={shell_word(folder)}"
        )
    place = None if config_dir is None else str(config_dir.absolute())
    asked = {"overrides": [*overrides], "flags": [*flags], "config_dir": place}
    write_json(asked, folder / SWEEP)


def begun(folder: Path) -> dict[str, Any] | None:
    """What the sweep in `folder` was asked for; None where there is none.

    Raises:
        UsageError: the file that says so is damaged.
    """
    path = folder / SWEEP
    if not path.is_file():
        return None
    with reading(path, "sweep"):
        asked: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(asked, dict) or set(asked) != {"overrides", "flags", "config_dir"}:
            raise ValueError("it holds no sweep")
    return asked


def monitored(config: Mapping[str, Any]) -> tuple[str, str]:
    """Name and mode ("min" or "max") of the validation value that the task is judged by.

    Raises:
        UsageError: `task._target_` is not a class that has them.
    """
    target = config["task"]["_target_"]
    task = locate(target, "task", config.get("allow") or ())
    monitor, mode = getattr(task, "monitor", None), getattr(task, "mode", None)
    if not isinstance(monitor, str) or mode not in DIRECTIONS:
        raise UsageError(
            f"task._target_: a sweep compares jobs by the attributes `monitor` and `mode` (min or "
            f"max) of the Task class, but {target!r} has {monitor!r} and {mode!r}."
        )
    return monitor, mode


def check_direction(config: Mapping[str, Any], direction: Any) -> None:
    """Checks the direction of a sweeper that has one, as optuna's has, against the task.

    Raises:
        UsageError: it would look for the worst value.
    """
    given = getattr(direction, "name", direction)
    monitor, mode = monitored(config)
    if given is not None and given != DIRECTIONS[mode]:
        raise UsageError(
            f"hydra.sweeper.direction is {given!r}, but the task is judged by {monitor}, of which "
            f"the {mode}imum is best: {DIRECTIONS[mode]!r} is needed, and is the default of "
            "sweep=optuna."
        )


def run_job(
    train: Callable[[Config, Path], Any],
    compose: Callable[[], Config],
    folder: Path,
    *,
    number: int,
    overrides: Sequence[str],
    direction: Any = None,
) -> float | None:
    """Trains a job of a sweep, or what is left of it; returns its score, or None where it failed.

    A failure is written down and goes no further: the other jobs are trained.
    """
    job = Job(number, list(overrides))
    before = _read_job(folder) if (folder / JOB).exists() else job
    if before.overrides == job.overrides and not before.failed:
        return before.score
    if before.overrides == job.overrides:
        job.write(folder)
    values = (override.partition("=") for override in overrides)
    given = "  ".join(f"{key}={_shortened(value)}" for key, _, value in values)
    Console().print(
        rich_text(f"\njob {number}", "bold").append(f"  {on_one_line(given)}", "not bold")
    )
    try:
        if before.overrides != job.overrides:
            raise UsageError(
                f"{str(folder)!r} holds a job with {' '.join(before.overrides)}. A sweep can be "
                "continued where it draws the same again."
            )
        config = compose()
        check_direction(config, direction)
        job.monitor, job.mode = monitored(config)
        if RunFolder(folder).config.exists():
            from attention_core.training.run import resume

            resume(folder)
        else:
            train(config, folder)
        job.score = best(folder, job.monitor, job.mode)
        job.results = read_results(RunFolder(folder))
        job.error = ""
    except Exception as error:
        if isinstance(error, UsageError):
            job.error = str(error)
        else:
            job.error = f"{type(error).__name__}: {error}"
            print(for_terminal(traceback.format_exc()), end="", file=sys.stderr)
    if before.overrides == job.overrides:  # or the folder is another's
        job.write(folder)
    return job.score


def _read_job(folder: Path) -> Job:
    with reading(folder / JOB, "sweep"):
        return Job(**json.loads((folder / JOB).read_text(encoding="utf-8")))


def best(folder: Path, monitor: str, mode: str) -> float | None:
    """The best value of `monitor` in the metrics of a run, None where there is none."""
    values = [row[monitor] for row in read_metrics(RunFolder(folder).metrics) if monitor in row]
    values = [value for value in values if not math.isnan(value)]
    return {"min": min, "max": max}[mode](values) if values else None


def report(folder: Path) -> int:
    """Prints the jobs of the sweep in `folder`, the best first, and writes `sweep.csv`.

    Returns:
        How many jobs have failed or not come to an end.
    """
    jobs = {path.parent: _read_job(path.parent) for path in folder.glob(f"*/{JOB}")}
    if not jobs:
        return 0
    ranked = sorted(jobs, key=lambda path: _rank(jobs[path]))
    swept = _swept([job.overrides for job in jobs.values()])
    results = list(dict.fromkeys(name for job in jobs.values() for name in job.results))
    rows = []
    for path in ranked:
        job = jobs[path]
        values = dict(override.partition("=")[::2] for override in job.overrides)
        row: dict[str, Any] = {"job": job.job, **{key: values.get(key, "") for key in swept}}
        row |= {"monitor": job.monitor, "score": job.score}
        row |= {name: job.results.get(name) for name in results}
        rows.append({**row, "folder": path.name, "error": job.error})
    with replace_file(folder / "sweep.csv", "w") as file:
        writer = csv.writer(file)
        writer.writerow(map(csv_cell, rows[0]))
        writer.writerows(map(csv_cell, row.values()) for row in rows)
    _print(rows, swept, results, folder)
    failed = sorted((job for job in jobs.values() if job.failed), key=lambda job: job.job)
    if failed:
        print(f"attn: {len(failed)} of {len(jobs)} jobs failed.", file=sys.stderr)
    for error in dict.fromkeys(job.error for job in failed):
        numbers = ", ".join(str(job.job) for job in failed if job.error == error)
        print(f"  job {numbers}: {for_terminal(error)}".replace("\n", "\n    "), file=sys.stderr)
    return len(failed)


def _rank(job: Job) -> tuple[Any, ...]:
    score = math.inf if job.score is None else job.score * (1 if job.mode == "min" else -1)
    return (job.failed, job.monitor, score, job.job)


def _swept(overrides: list[list[str]]) -> list[str]:
    """The keys that not all jobs have the same value of, in the order they were given."""
    common = set.intersection(*map(set, overrides)) if len(overrides) > 1 else set()
    keys = (text.partition("=")[0] for job in overrides for text in job if text not in common)
    return list(dict.fromkeys(keys))


def _print(rows: list[dict[str, Any]], swept: list[str], results: list[str], folder: Path) -> None:
    console = Console()
    monitors = list(dict.fromkeys(row["monitor"] for row in rows if row["score"] is not None))
    # What the jobs are judged by, on test data; sweep.csv has the others, too
    judged = [name.replace("val/", "test/") for name in monitors]
    tests = [name for name in results if name in judged]
    table = Table(title=f"sweep of {len(rows)} jobs, the best first", title_justify="left")
    table.add_column("job", justify="right")
    for key in swept:
        last = key.rpartition(".")[2]
        alone = sum(other.rpartition(".")[2] == last for other in swept) == 1
        table.add_column(_cell(last if alone else key), overflow="fold")
    table.add_column(_cell(monitors[0] if len(monitors) == 1 else "score"), justify="right")
    for name in tests:
        table.add_column(_cell(name), justify="right")
    table.add_column("folder", overflow="fold")
    for row in rows:
        score = _number(row["score"])
        if len(monitors) > 1:
            score = f"{row['monitor']} {score}"
        said = _cell("failed", "red") if row["error"] else _cell(score)
        values = (_cell(_shortened(row[key])) for key in swept)
        numbers = (_number(row[name]) for name in tests)
        table.add_row(str(row["job"]), *values, said, *numbers, _cell(row["folder"]))
    console.print()
    console.print(table)
    place = rich_text(f"sweep folder: {on_one_line(folder)}  (sweep.csv)")
    console.print(place, soft_wrap=True)


def _cell(text: str, style: str = "") -> Text:
    return rich_text(on_one_line(text), style)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _shortened(text: str) -> str:
    # A sampler gives sixteen digits; sweep.csv has them all.
    try:
        return text if len(text) < 8 else f"{float(text):.4g}"
    except ValueError:
        return text
