"""How good the plan's choice is: `python -m benchmarks.calibrate` measures what it estimates.

The constants are in `attention_core/backends/costs.py` and at the top of each backend, or of its
`costs.py`. The choice is right as long as it takes at most 1.3 times the fastest backend: those
that take longer are said again at the end. Times are of the CPU, so that other processes hardly
count; run it on one thread (`OMP_NUM_THREADS=1`). They are of one layer of four that share a plan,
which is made anew. With the kernels, and again without.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from attention_core import (
    Additive,
    AdditiveV2,
    ALiBi,
    Bias,
    Causal,
    DenseMask,
    Dilated,
    Edges,
    GlobalTokens,
    Graph,
    Grid,
    Mask,
    Neighborhood,
    Points,
    PrefixLM,
    RelativeTable,
    Score,
    Sequence,
    Space,
    Window,
    attend,
    plan,
)
from attention_core.backends import measured as measured_costs
from attention_core.memory import keep_freed_memory
from attention_core.plan_cache import PLANS
from attention_core.planning import BACKENDS
from benchmarks.measure import in_turn, kernels, machine
from benchmarks.patterns import graphs

HEADS = 4
#: Estimated milliseconds up to which a backend is measured, the rounds, and layers of a plan.
LONGEST, ROUNDS, LAYERS = 300.0, 2, 4
#: By how much the choice may exceed the fastest.
WRONG = 1.3


class Job(NamedTuple):
    name: str
    space: Space
    mask: Mask | None = None
    bias: Bias | None = None
    dim: int = 64
    batch: int = 1
    heads: int = HEADS
    score: Score | None = None
    grad: bool = True


def jobs() -> Iterator[Job]:
    generator = torch.Generator().manual_seed(0)
    for dim in (16, 64, 128):
        yield Job(f"1,024 tokens, heads of {dim}", Sequence(1024), dim=dim)
    yield Job("16 tokens", Sequence(16))
    yield Job("causal", Sequence(1024), Causal())
    yield Job("causal, fixed bias", Sequence(1024), Causal(), ALiBi(HEADS))
    yield Job("prefix of 256", Sequence(1024), PrefixLM(256))
    yield Job("fixed bias", Sequence(1024), bias=ALiBi(HEADS))
    yield Job("learned bias", Sequence(1024), bias=RelativeTable.t5(HEADS))
    yield Job("batch of 16, learned bias", Sequence(256), bias=RelativeTable.t5(HEADS), batch=16)
    yield Job("padded", Sequence.padded([512, 100, 300, 200]), batch=4)
    yield Job("packed", Sequence.packed([512, 100, 300, 200]))
    yield Job("packed, learned bias", Sequence.packed([512, 100, 300]), None, RelativeTable.t5(4))
    sizes = torch.randint(16, 200, (32,), generator=generator)
    yield Job("32 packed texts", Sequence.packed(sizes))
    for radius in (4, 64, 300):
        yield Job(f"window ±{radius}", Sequence(2048), Neighborhood(radius))
    yield Job("window ±64, inference", Sequence(2048), Neighborhood(64), grad=False)
    yield Job("window ±64, learned bias", Sequence(2048), Neighborhood(64), RelativeTable.t5(HEADS))
    yield Job("window ±64, batch of 8", Sequence(512), Neighborhood(64), batch=8)
    yield Job("causal window 64", Sequence(2048), Causal() & Neighborhood(64))
    mask = GlobalTokens(0) | Neighborhood(64)
    yield Job("window ±64, one global token", Sequence(2048), mask, batch=2)
    yield Job("dilated by 16", Sequence(1024), Dilated(16))
    for length in (128, 256, 512):
        yield Job(f"window ±32 on {length}", Sequence(length), Neighborhood(32))
    yield Job("grid, radius 2", Grid(32, 32), Neighborhood(2))
    yield Job("grid, radius 2, table", Grid(32, 32), Neighborhood(2), RelativeTable.swin(HEADS, 3))
    yield Job("grid, radius 3, batch of 4", Grid(28, 28), Neighborhood(3), batch=4)
    yield Job("grid, shifted windows of 7", Grid(56, 56), Window(7, shift=3), dim=32)
    for share in (0.02, 0.3):
        random = torch.rand(1024, 1024, generator=generator) < share
        yield Job(f"random mask, {share:.0%}", Sequence(1024), DenseMask(random))
    for number in (1000, 4000):
        at = torch.rand(number, 3, generator=generator)
        radius = (40 / number / (4 / 3 * torch.pi)) ** (1 / 3)
        yield Job(f"{number:,} points, 40 neighbors", Points(at), Neighborhood(radius), dim=16)
    for degree in (2, 16):
        edges = torch.randint(2000, (2, 2000 * degree), generator=generator).unique(dim=1)
        name = f"graph of 2,000 nodes, {degree} edges each"
        yield Job(name, Graph(edges, 2000), Edges())
        yield Job(f"{name}, as GAT", Graph(edges, 2000), Edges(), dim=8, score=Additive(HEADS, 8))
        if degree == 16:
            v2 = AdditiveV2(HEADS, 8)
            yield Job(f"{name}, as GATv2", Graph(edges, 2000), Edges(), dim=8, score=v2)
            yield Job(f"{name}, 2 hops", Graph(edges, 2000), Neighborhood(2), dim=16)
    space = graphs()[1]
    yield Job("512 graphs, all pairs inside", space, dim=16)
    yield Job("512 graphs, hop bias", space, None, RelativeTable.hops(HEADS, 8), dim=16)
    yield Job("512 graphs, their edges", space, Edges(), dim=16)


def main() -> None:
    keep_freed_memory()
    console = Console()
    names = sys.argv[1:]
    for on in (True, False):
        with kernels(on), measured_costs.ignored():  # what is shipped is compared
            title = "with the kernels" if on else "in plain torch"
            compare([job for job in jobs() if all(n in job.name for n in names)], title, console)


def compare(chosen: list[Job], title: str, console: Console) -> None:
    """Print estimates beside what is measured, and the choices that cost too much."""
    table = Table(title=f"{title}, {machine()}: milliseconds, estimated / measured")
    for name in ("job", *BACKENDS, "chosen", "÷ fastest"):
        table.add_column(name, justify="left" if name == "job" else "right")
    wrong = []
    for job in chosen:
        estimates, found, choice = measured(job)
        over = found[choice] / min(found.values())
        if over > WRONG:
            wrong.append(f"{job.name}: {choice} takes {over:.2f} times the fastest")
        cells = [
            "" if name not in estimates
            else f"{estimates[name]:.1f} / {found[name]:.1f}" if name in found
            else f"{estimates[name]:.0f}"
            for name in BACKENDS
        ]  # fmt: skip
        table.add_row(job.name, *cells, choice, f"{over:.2f}")
    console.print(table)
    said = "\n".join(wrong) or f"No choice of {len(chosen)} exceeds {WRONG}."
    console.print(said, highlight=False)


def measured(job: Job) -> tuple[dict[str, float], dict[str, float], str]:
    """Return estimated and measured milliseconds of each backend, and the plan's choice."""
    shape = job.batch, job.space.length, job.heads, job.dim  # as projections make them
    q, k, v = (torch.randn(shape).transpose(1, 2).requires_grad_(job.grad) for _ in range(3))
    options = {
        "heads": job.heads, "head_dim": job.dim, "batch": job.batch, "grad": job.grad,
        "score": job.score,
    }  # fmt: skip
    chosen = plan(job.space, job.mask, job.bias, **options)  # type: ignore[arg-type]
    estimates = {
        name: module.cost(chosen.job) / 1e6
        for name, module in BACKENDS.items()
        if not module.unsupported(chosen.job)
    }
    names = [
        name
        for name, time in estimates.items()
        if name == chosen.backend or (time < LONGEST and name != "reference")
    ]

    def forward(name: str) -> torch.Tensor:
        PLANS.clear()
        made = plan(job.space, job.mask, job.bias, backend=name, **options)  # type: ignore[arg-type]
        x = q
        for _ in range(LAYERS):
            x = attend(x, k, v, bias=job.bias, score=job.score, plan=made)
        return x

    calls = [lambda name=name: forward(name) for name in names]  # type: ignore[misc]
    times = in_turn(calls, ROUNDS, backward=[job.grad] * len(calls))
    found = {
        name: (time.both_cpu if time.both_cpu is not None else time.forward_cpu) / LAYERS
        for name, time in zip(names, times, strict=True)
    }
    return estimates, found, chosen.backend


if __name__ == "__main__":
    main()
