"""Trains the experiments again, and compares with what they state; rewrites README's table.

Run it through `make experiments`. What is finished is not trained again, and what was begun is
continued: interrupted, the same command goes on.
"""

import argparse
import hashlib
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from rich.console import Console
from rich.table import Table

from attention_core.errors import UsageError, did_you_mean
from tools.claims import ROOT, Claim, Experiment, Run, experiments, rewrite

README = ROOT / "README.md"
CODE = ("attention_core", "vision", "graph", "nlp", "conf", "examples")


@dataclass(frozen=True)
class Outcome:
    """The measures of a run, none where it failed; None for seconds where it was only read."""

    results: dict[str, float]
    seconds: float | None


@dataclass(frozen=True)
class Figure:
    """A figure beside the stated one; None where there is none."""

    experiment: str
    of: str
    claim: Claim
    stated: float | None
    measured: float | None
    seconds: float | None

    @property
    def verdict(self) -> str:
        """The result of the comparison, in words."""
        claim, measured = self.claim, self.measured
        if measured is None:
            return "not measured"
        # A difference of decimals is a little more or less than it looks
        if self.stated is not None and abs(measured - self.stated) > claim.tolerance + 1e-9:
            return "differs"
        if measured < claim.least:
            return f"less than {claim.least}"
        if measured > claim.most:
            return f"more than {claim.most}"
        return "ok" if claim.bounded or self.stated is not None else "not stated"

    @property
    def wrong(self) -> bool:
        return self.verdict not in ("ok", "not stated")


def train(run: Run, folder: Path) -> Outcome:
    """Trains in a process with one thread; continues what was begun, and reads what is finished."""
    path, log = folder / run.name, folder / f"{run.name}.log"
    results = path / "results.json"
    if results.exists():
        return Outcome(read(results), None)
    if (path / "config.yaml").exists():
        what = [f"run={path}"]
    else:
        what = [f"experiment={run.experiment}", *run.overrides, f"hydra.run.dir={path}"]
        what += [f"init.run={folder / Run(run.after).name}"] if run.after else []
    what += ["--config-dir", str(run.config_dir)] if run.config_dir else []
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with log.open("a") as printed:
        subprocess.run(
            [sys.executable, "-m", "attention_core.training", "train", *what],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # more would sum in another order
            stdout=printed,
            stderr=printed,
        )
    seconds = time.monotonic() - start
    done = results.exists()
    print(f"{run.name}: {f'{seconds:.0f} s' if done else f'failed, see {log}'}", flush=True)
    return Outcome(read(results) if done else {}, seconds)


def read(results: Path) -> dict[str, float]:
    found = json.loads(results.read_text())
    return {name: value for name, value in found.items() if not math.isnan(value)}


def train_all(runs: list[Run], folder: Path, workers: int) -> dict[Run, Outcome]:
    """Trains them, those first that others start from."""
    outcomes: dict[Run, Outcome] = {}
    with ThreadPoolExecutor(workers) as pool:
        for part in ([Run(run.after) for run in runs if run.after], runs):
            different = [*dict.fromkeys(part)]
            done = pool.map(train, different, [folder] * len(different))
            outcomes |= zip(different, done, strict=True)
    return outcomes


def compare(name: str, claim: Claim, outcomes: Mapping[str, Outcome]) -> list[Figure]:
    """The figures of a claim: one of each run, or the one of their mean.

    Args:
        outcomes: by the override of each run.
    """
    measured = {run: outcome.results.get(claim.metric) for run, outcome in outcomes.items()}
    if not claim.averaged:
        stated = dict(zip(claim.runs, claim.values, strict=False))
        return [
            Figure(name, run, claim, stated.get(run), value, outcomes[run].seconds)
            for run, value in measured.items()
        ]
    known = [value for value in measured.values() if value is not None]
    mean = statistics.mean(known) if len(known) == len(measured) else None
    of = f"mean of {len(measured)} {'folds' if claim.folds else 'seeds'}"
    of += f" after {claim.after}" if claim.after else ""
    trained = [each.seconds for each in outcomes.values() if each.seconds is not None]
    seconds = sum(trained) if trained else None
    return [
        Figure(name, of, claim, claim.mean if [*measured] == claim.runs else None, mean, seconds)
    ]


def show(figures: list[Figure]) -> None:
    table = Table(header_style="bold")
    for column in ("experiment", "of", "metric"):
        table.add_column(column, overflow="fold")
    for column in ("stated", "measured", "difference", "tolerance", "", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in figures:
        stated, measured = (math.nan if x is None else x for x in (each.stated, each.measured))
        numbers = f"{stated:.4f}", f"{measured:.4f}", f"{measured - stated:+.4f}"
        table.add_row(
            *(each.experiment, each.of, each.claim.metric),
            *("" if "nan" in number else number for number in numbers),
            "" if each.stated is None else f"{each.claim.tolerance:g}",
            f"[red]{each.verdict}[/]" if each.wrong else each.verdict,
            "read" if each.seconds is None else f"{each.seconds:.0f} s",
        )
    Console().print(table)


def choose(globs: list[str]) -> list[Experiment]:
    """The experiments of those names whose data is there; says of the others what they need.

    Raises:
        UsageError: nothing is called so.
    """
    found = experiments()
    for glob in globs:
        if not any(fnmatch(each.name, glob) for each in found):
            near = did_you_mean(glob, [each.name for each in found])
            raise UsageError(f"--only: nothing that states a figure is called {glob!r}.{near}")
    chosen = [each for each in found if any(fnmatch(each.name, glob) for glob in globs)]
    complete = []
    for each in chosen:
        missing = [p for p in each.about.get("needs", []) if importlib.util.find_spec(p) is None]
        if missing:
            install = f"pip install 'attention-core[{each.about.get('extra', 'data')}]'"
            print(f"{each.name} is skipped, it needs {', '.join(missing)}: {install}")
        else:
            complete.append(each)
    return complete


def update(rows: Mapping[str, str]) -> None:
    """Writes these rows into README, and says whose figures are other ones now."""
    before = README.read_text()
    README.write_text(rewrite(before, rows))
    changed = [name for name, row in rows.items() if f"{row}\n" not in before]
    if changed:
        print(f"README.md has other figures now: {', '.join(changed)}. If they are to stay, write")
        print("them into about.states and about.gives of the experiment's file, too.")


def version() -> str:
    """The commit, and a digest of what was changed since: figures of other code prove nothing."""

    def git(*command: str) -> str:
        return subprocess.check_output(["git", *command], cwd=ROOT, text=True)

    changes = git("diff", "HEAD", "--", *CODE)
    digest = hashlib.sha256(changes.encode()).hexdigest()[:8]
    return git("rev-parse", "--short", "HEAD").strip() + (f"-{digest}" if changes else "")


def main(arguments: list[str] | None = None) -> int:
    """Returns 1 where something differs, or failed."""
    parser = argparse.ArgumentParser("experiments", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="GLOB", default=["*"], help="as 'graph/*'")
    parser.add_argument("--seeds", type=int, nargs="+", help="in place of those that are stated")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="runs at a time")
    parser.add_argument("--folder", type=Path, help="of the runs; default: outputs/..., by version")
    given = parser.parse_args(arguments)
    rewrite(README.read_text(), {})  # that it can be, before any work is lost
    chosen = choose(given.only)
    folder = (given.folder or ROOT / "outputs" / "experiments" / version()).resolve()
    print(f"The runs are in {folder}", flush=True)
    wanted = {
        (each.name, claim): {key: each.run(claim, key) for key in claim.asked(given.seeds)}
        for each in chosen
        for claim in each.claims
    }
    runs = [run for by_override in wanted.values() for run in by_override.values()]
    trained = train_all(runs, folder, given.workers)

    figures: list[Figure] = []
    rows: dict[str, str] = {}
    for each in chosen:
        measured = []
        for claim in each.claims:
            outcomes = {key: trained[run] for key, run in wanted[each.name, claim].items()}
            figures += compare(each.name, claim, outcomes)
            measured.append({run: of.results.get(claim.metric) for run, of in outcomes.items()})
        row = each.row(measured)
        if row is not None:
            rows[each.name] = row
    show(figures)
    update(rows)
    wrong = [figure for figure in figures if figure.wrong]
    for figure in wrong:
        print(f"{figure.experiment}, {figure.of}, {figure.claim.metric}: {figure.verdict}")
    print(f"{len(wrong)} of {len(figures)} figures are wrong.")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UsageError as error:
        sys.exit(f"experiments: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the same command goes on")
