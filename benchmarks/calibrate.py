"""How good the plan's estimates are: `python -m benchmarks.calibrate` measures what it estimates.

The constants are in `attention_core/backends/costs.py` and at the top of each backend. The choice
is right as long as the order of the backends is. Measured times include the plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from attention_core import (
    ALiBi,
    Bias,
    Causal,
    Edges,
    Graph,
    Grid,
    Mask,
    Neighborhood,
    RelativeTable,
    Sequence,
    Space,
    attend,
    plan,
)
from attention_core.planning import BACKENDS
from benchmarks.measure import in_turn

HEADS = 4
#: Estimated milliseconds up to which a backend is measured.
LONGEST = 3000.0


class Job(NamedTuple):
    name: str
    space: Space
    mask: Mask | None = None
    bias: Bias | None = None
    dim: int = 64
    batch: int = 1


def jobs() -> Iterator[Job]:
    for dim in (16, 64, 128):
        yield Job(f"1,024 tokens, heads of {dim}", Sequence(1024), dim=dim)
    yield Job("causal", Sequence(1024), Causal())
    yield Job("fixed bias", Sequence(1024), bias=ALiBi(HEADS))
    yield Job("learned bias", Sequence(1024), bias=RelativeTable.t5(HEADS))
    yield Job("batch of 16, learned bias", Sequence(256), bias=RelativeTable.t5(HEADS), batch=16)
    yield Job("padded", Sequence.padded([512, 100, 300, 200]), batch=4)
    yield Job("packed", Sequence.packed([512, 100, 300, 200]))
    for radius in (4, 64, 300):
        yield Job(f"window ±{radius}", Sequence(2048), Neighborhood(radius))
    for length in (128, 256, 512):
        yield Job(f"window ±32 on {length}", Sequence(length), Neighborhood(32))
    yield Job("grid, radius 2", Grid(32, 32), Neighborhood(2))
    yield Job("grid, radius 2, table", Grid(32, 32), Neighborhood(2), RelativeTable.swin(HEADS, 3))
    for degree in (2, 16):
        generator = torch.Generator().manual_seed(0)
        edges = torch.randint(2000, (2, 2000 * degree), generator=generator).unique(dim=1)
        yield Job(f"graph of 2,000 nodes, {degree} edges each", Graph(edges, 2000), Edges())


def main() -> None:
    table = Table(title="forward and backward, milliseconds: estimated / measured")
    for name in ("job", *BACKENDS, "chosen", "fastest"):
        table.add_column(name, justify="left" if name == "job" else "right")
    for job in jobs():
        table.add_row(job.name, *_measured(job))
    Console().print(table)


def _measured(job: Job) -> list[str]:
    q, k, v = (
        torch.randn(job.batch, HEADS, job.space.length, job.dim, requires_grad=True)
        for _ in range(3)
    )
    options = {"heads": HEADS, "head_dim": job.dim, "batch": job.batch, "grad": True}
    chosen = plan(job.space, job.mask, job.bias, **options)  # type: ignore[arg-type]
    estimates = {name: module.cost(chosen.job) / 1e6 for name, module in BACKENDS.items()}
    names = [name for name, estimate in estimates.items() if estimate < LONGEST]

    def forward(name: str) -> torch.Tensor:
        made = plan(job.space, job.mask, job.bias, backend=name, **options)  # type: ignore[arg-type]
        out: torch.Tensor = attend(q, k, v, bias=job.bias, plan=made)  # type: ignore[assignment]
        return out

    times = in_turn([lambda name=name: forward(name) for name in names], 5)  # type: ignore[misc]
    found = {name: time.both or 0.0 for name, time in zip(names, times, strict=True)}
    cells = [
        f"{estimates[name]:.1f} / {found[name]:.1f}" if name in found else f"{estimates[name]:.0f}"
        for name in BACKENDS
    ]
    return [*cells, chosen.backend, min(found, key=lambda name: found[name])]


if __name__ == "__main__":
    main()
