"""How time and memory grow: `python -m benchmarks.growth` draws `docs/pictures/growth.png`.

Windows, points, edges, batches and heads, each over a range of sizes: the plan, and a forward and
backward pass with it, float32, one thread, in a process of its own for each size. What is linear in
the allowed pairs is a straight line of slope one beside the gray ones.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from attention_core import (
    Edges,
    Graph,
    Mask,
    Neighborhood,
    Points,
    Sequence,
    Space,
    attend,
    plan,
)
from attention_core.memory import keep_freed_memory
from attention_core.plan_cache import PLANS
from benchmarks.measure import host_peak

FOLDER = Path(__file__).parent
PICTURE = FOLDER.parent / "docs" / "pictures" / "growth.png"
#: Passes of each size, and the seconds after which no more are begun.
PASSES, SECONDS = 5, 20.0


class Size(NamedTuple):
    """One attention: what it attends to, over which pairs, and rows and heads of what size."""

    make: Callable[[], tuple[Space, Mask]]
    pairs: int
    batch: int = 1
    heads: int = 4
    dim: int = 64


class Line(NamedTuple):
    """Sizes of one kind; `of` is what grows."""

    name: str
    of: str
    sizes: dict[int, Size]


def window(length: int) -> tuple[Space, Mask]:
    return Sequence(length), Neighborhood(128)


def points(number: int) -> tuple[Space, Mask]:
    """Points in a cube with 40 neighbors each, themselves included, on average."""
    generator = torch.Generator().manual_seed(0)
    radius = (40 / number / (4 / 3 * torch.pi)) ** (1 / 3)
    return Points(torch.rand(number, 3, generator=generator)), Neighborhood(radius)


def edges(number: int) -> tuple[Space, Mask]:
    """Random edges, 16 to a node."""
    generator = torch.Generator().manual_seed(0)
    nodes = max(number // 16, 1)
    return Graph(torch.randint(nodes, (2, number), generator=generator), nodes), Edges()


def lines() -> list[Line]:
    def powers(first: int, last: int, step: int = 2) -> list[int]:
        return [first * step**n for n in range(64) if first * step**n <= last]

    def seen(length: int) -> int:
        return length * 257 - 128 * 129

    return [
        Line(
            "window ±128", "tokens",
            {n: Size(partial(window, n), 4 * seen(n)) for n in powers(1024, 65536)},
        ),
        Line(
            "points, 40 neighbors", "points",
            {n: Size(partial(points, n), 8 * 40 * n, heads=8, dim=8)
             for n in powers(1024, 262_144, 4)},
        ),
        Line(
            "edges, 16 to a node", "edges",
            {n: Size(partial(edges, n), 8 * n, heads=8, dim=8)
             for n in (10_000, 50_000, 200_000, 1_000_000, 5_000_000)},
        ),
        Line(
            "window ±128 on 1,024", "samples",
            {n: Size(partial(window, 1024), 4 * n * seen(1024), batch=n) for n in powers(1, 64)},
        ),
        Line(
            "window ±128 on 1,024", "heads of 64",
            {n: Size(partial(window, 1024), n * seen(1024), heads=n) for n in powers(1, 64)},
        ),
    ]  # fmt: skip


def measured(size: Size, smallest: Size) -> dict[str, Any]:
    """Milliseconds of the plan and of forward and backward, and MiB beyond the inputs.

    The smallest size goes before, unmeasured: it loads what is loaded once.
    """
    torch.set_num_threads(1)
    stepped(smallest)
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    keep_freed_memory()
    return stepped(size)


def stepped(size: Size) -> dict[str, Any]:
    space, mask = size.make()
    q, k, v = (
        torch.randn(size.batch, size.heads, space.length, size.dim, requires_grad=True)
        for _ in range(3)
    )
    options: Any = {"heads": size.heads, "head_dim": size.dim, "batch": size.batch, "grad": True}
    made = []

    def step() -> None:
        attend(q, k, v, plan=made[0].renewed()).sum().backward()

    def first() -> None:
        made.append(plan(space, mask, **options))
        step()

    start = time.perf_counter()
    peak = host_peak(first)
    PLANS.clear()
    planning = spent(lambda: plan(*size.make(), **options))
    steps = [spent(step)]
    while len(steps) < PASSES and time.perf_counter() - start < SECONDS:
        steps.append(spent(step))
    found = {"plan": planning, "step": median(steps), "peak MiB": peak}
    return {**found, "backend": made[0].backend}


def spent(call: Callable[[], object]) -> float:
    """Milliseconds of the CPU that a call takes."""
    start = time.process_time()
    call()
    return 1e3 * (time.process_time() - start)


def main() -> None:
    results = []
    for line in lines():
        smallest = next(iter(line.sizes.values()))
        for number, size in line.sizes.items():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                found = pool.submit(measured, size, smallest).result()
            row = {"line": line.name, "of": line.of, "n": number, "pairs": size.pairs}
            results.append({**row, **found})
            print(*(f"{name} {value}" for name, value in results[-1].items()), sep=", ", flush=True)
    file = FOLDER / "results" / "growth.json"
    file.write_text(json.dumps(results, indent=1) + "\n")
    draw(results, PICTURE)


def draw(results: list[dict[str, Any]], picture: Path) -> None:
    """Draw milliseconds and MiB over the pairs of all heads, a line for each kind."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    kinds = dict.fromkeys((row["line"], row["of"]) for row in results)
    for axis, names, unit in (
        (axes[0], ("plan", "step"), "milliseconds of CPU: plan, forward and backward"),
        (axes[1], ("peak MiB",), "MiB beyond queries, keys and values"),
    ):
        for kind in kinds:
            rows = [row for row in results if (row["line"], row["of"]) == kind]
            pairs = [row["pairs"] for row in rows]
            values = [sum(row[name] for name in names) for row in rows]
            low, high = (f"{rows[end]['n']:,}" for end in (0, -1))
            label = f"{kind[0]}: {low} to {high} {kind[1]}"
            axis.loglog(pairs, values, "o-", label=label, linewidth=1.5, markersize=4)
        left, right = axis.get_xlim()
        bottom, top = axis.get_ylim()
        for start in (10.0**n for n in range(-12, 4)):
            axis.plot(
                [left, right], [start * left, start * right], color="0.85", linewidth=0.8, zorder=0
            )
        axis.set(
            xlim=(left, right), ylim=(bottom, top), xlabel="allowed pairs, all heads", ylabel=unit
        )
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle("Cost follows the allowed pairs; gray: exactly in proportion")
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    main()
