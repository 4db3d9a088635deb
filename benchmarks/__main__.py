"""`make bench`: measures all comparisons on one and two threads, and writes the tables anew.

`python -m benchmarks [NAME ...]` measures those whose work has a name in it and prints them;
without names it measures all, in about half an hour, writes `results/cpu.json` and the tables in
`README.md`. Each number of threads has a process of its own, in which ours with the kernels, ours
in plain torch and the peer take turns.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from attention_core.memory import keep_freed_memory
from benchmarks import tables
from benchmarks.comparisons import Comparison, comparisons
from benchmarks.measure import in_turn, kernels, machine, once, peak

FOLDER = Path(__file__).parent
THREADS = (1, 2)
PACKAGES = (
    "torch", "torchvision", "torch-geometric", "timm", "transformers", "numba", "attention-core",
)  # fmt: skip
#: Seconds that a comparison may take, and the rounds it gets at most and at least within them.
SECONDS, MOST, LEAST = 20.0, 9, 2


def measured(comparison: Comparison) -> dict[str, Any]:
    """Measure ours with the kernels, ours in plain torch and the peer; memory on one thread."""
    settings = [partial(kernels, on) for on in (True, False, False)]
    made = []
    start = time.perf_counter()
    for setting, make in zip(
        settings, (comparison.ours, comparison.ours, comparison.peer), strict=True
    ):
        with setting():
            made.append(make())
            once(made[-1], comparison.backward)
    rounds = int(SECONDS // max(time.perf_counter() - start, 1e-9))
    backward = [comparison.backward] * 3
    rounds = min(max(rounds, LEAST), MOST)
    times = in_turn(made, rounds, backward=backward, settings=settings)
    row: dict[str, Any] = {
        "work": comparison.work,
        "peer name": comparison.peer_name,
        "target": comparison.target,
        "factor": comparison.factor,
        "backward": comparison.backward,
        "rounds": rounds,
    }
    row |= {
        who: {name: value for name, value in one._asdict().items() if value is not None}
        for who, one in zip(("kernels", "plain", "peer"), times, strict=True)
    }
    if torch.get_num_threads() == 1 and comparison.backward:
        row["peak MiB"] = peaks(comparison)
    return row


def peaks(comparison: Comparison) -> dict[str, float]:
    """Measure the MiB of a step of each contestant."""
    contestants = {
        "kernels": (comparison.ours, True),
        "plain": (comparison.ours, False),
        "peer": (comparison.peer, False),
    }
    return {who: peak(make, fast=on) for who, (make, on) in contestants.items()}


def measure_here(names: list[str]) -> dict[str, Any]:
    """Measure what has one of the names in it, or everything, on the threads of this process."""
    keep_freed_memory()
    rows = []
    for comparison in comparisons():
        if not names or any(name in comparison.work for name in names):
            rows.append(measured(comparison))
            print(f"  {comparison.work}: {tables.ratios(rows[-1])}", file=sys.stderr, flush=True)
    return {"machine": machine(), "rows": rows}


def main() -> None:
    names = [name for name in sys.argv[1:] if not name.startswith("--")]
    if "--here" in sys.argv:
        json.dump(measure_here(names), sys.stdout)
        return
    works = [comparison.work for comparison in comparisons()]
    if unknown := [name for name in names if not any(name in work for work in works)]:
        raise SystemExit(f"no work has {unknown[0]!r} in its name; there are:\n" + "\n".join(works))
    runs = []
    for threads in THREADS:
        print(f"{threads} thread{'s' * (threads > 1)}:", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "benchmarks", "--here", *names]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]) | {"threads": threads})
    results = {
        "date": datetime.date.today().isoformat(),
        "versions": {package: version(package) for package in PACKAGES},
        "runs": runs,
    }
    print(tables.speed(results))
    if not names:
        file = FOLDER / "results" / "cpu.json"
        file.write_text(json.dumps(results, indent=1) + "\n")
        tables.rewrite(FOLDER / "README.md", {"speed": tables.speed(results)})


if __name__ == "__main__":
    main()
