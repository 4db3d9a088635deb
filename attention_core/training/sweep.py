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

from attention_core.errors import Damaged, UsageError, reading
from attention_core.escape import csv_cell, for_terminal, on_one_line
from attention_core.files import replace_file
from attention_core.training.console import rich_text
from attention_core.training.folder import RunFolder, read_results, write_json
from attention_core.training.instantiate import locate
from attention_core.training.metrics import read_metrics
from attention_core.training.overrides import shell_override

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
    error: str = (
        "it has not finished. To continue: the same command again, with hydra.sweep.dir=FOLDER, "
        "the folder of the sweep"
    )

    @property
    def failed(self) -> bool:
        return self.error != ""

    def write(self, folder: Path) -> None:
        write_json(asdict(self), folder / JOB)


def begin(folder: Path, overrides: Sequence[str], flags: Sequence[str]) -> None:
    """Write down what a sweep is asked for, or compare with it where a sweep is begun there.

    Nothing of the file is used but to compare: it may be somebody else's.

    Raises:
        UsageError: there is another sweep in the folder.
    """
    asked = {
        "overrides": [each for each in overrides if not each.startswith("hydra.sweep.dir=")],
        "flags": [*flags],
    }
    path = folder / SWEEP
    if path.is_file():
        with reading(path, "sweep"):
            before = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(before, dict) or set(before) != set(asked):
                raise ValueError("it holds no sweep")
        if before != asked:
            raise UsageError(
                f"hydra.sweep.dir: {str(folder)!r} holds another sweep already, begun with "
                f"{before['overrides']}."
            )
    elif any(folder.glob(f"*/{JOB}")):
        raise UsageError(f"hydra.sweep.dir: {str(folder)!r} holds a sweep already.")
    else:
        write_json(asked, path)


def refuse_sweep(folder: Path) -> None:
    """Say how a sweep is continued.

    Raises:
        UsageError: `folder` is that of a sweep, and not of a run.
    """
    if (folder / SWEEP).is_file():
        raise UsageError(
            f"run: {str(folder)!r} is the folder of a sweep. To continue it, give the command that "
            f"began it again, with {shell_override('hydra.sweep.dir', str(folder))}"
        )


def read_job(path: Path) -> Job:
    """Read the job that a `job.json` tells of; one that has failed, where the file is damaged."""
    try:
        with reading(path, "sweep"):
            job = Job(**json.loads(path.read_text(encoding="utf-8")))
            for name, kinds in (
                ("job", int),
                ("monitor", str),
                ("mode", str),
                ("error", str),
                ("score", int | float | None),
                ("overrides", list),
                ("results", dict),
            ):
                if not isinstance(getattr(job, name), kinds):
                    raise ValueError(f"{name} is {getattr(job, name)!r:.60}")
            if not all(isinstance(override, str) for override in job.overrides):
                raise ValueError(f"overrides is {job.overrides!r:.60}")
            if not all(isinstance(value, int | float | None) for value in job.results.values()):
                raise ValueError(f"results is {job.results!r:.60}")
    except Damaged as error:
        name = path.parent.name
        return Job(int(name) if name.isdecimal() else -1, [], error=str(error))
    return job


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
    """Check the direction of a sweeper that has one, as optuna's has, against the task.

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
    """Train a job of a sweep, or what is left of it; return its score, or None where it failed.

    A failure is written down and goes no further: the other jobs are trained.
    """
    job = Job(number, list(overrides))
    before = read_job(folder / JOB) if (folder / JOB).exists() else job
    own = before.overrides == job.overrides  # or the folder is another job's
    if own and not before.failed:
        return before.score
    if own:
        job.write(folder)
    values = (override.partition("=") for override in overrides)
    given = "  ".join(f"{key}={_shortened(value)}" for key, _, value in values)
    Console().print(
        rich_text(f"\njob {number}", "bold").append(f"  {on_one_line(given)}", "not bold")
    )
    try:
        if not own:
            raise UsageError(
                f"{str(folder)!r} holds a job with {before.overrides}. A sweep can be continued "
                "where it draws the same again."
            )
        config = compose()
        check_direction(config, direction)
        job.monitor, job.mode = monitored(config)
        if RunFolder(folder).config.exists():
            from attention_core.training.run import resume

            resume(folder, config.get("allow") or ())
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
    if own:
        job.write(folder)
    return job.score


def best(folder: Path, monitor: str, mode: str) -> float | None:
    """Return the best value of `monitor` in the metrics of a run, None where there is none."""
    values = [row[monitor] for row in read_metrics(RunFolder(folder).metrics) if monitor in row]
    values = [value for value in values if not math.isnan(value)]
    return {"min": min, "max": max}[mode](values) if values else None


def report(folder: Path) -> int:
    """Print the jobs of the sweep in `folder`, the best first, and write `sweep.csv`.

    Returns:
        How many jobs have failed or not come to an end.
    """
    jobs = {path.parent: read_job(path) for path in folder.glob(f"*/{JOB}")}
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
