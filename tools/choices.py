"""What the plan chooses on a GPU, as docs/devices.md shows it: `python -m tools.choices`.

On any machine, as plans are made on the host and a GPU only has to be named. The reasons are
written by people; `tests/devices/test_choices.py` holds the page to this table.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from attention_core import (
    Additive,
    ALiBi,
    Bias,
    Causal,
    ContinuousBias,
    DenseMask,
    Edges,
    GlobalTokens,
    Graph,
    Grid,
    Mask,
    Neighborhood,
    Plan,
    Points,
    RelativeTable,
    Sequence,
    Space,
    Window,
    plan,
)
from attention_core.planning import BACKENDS, _time

PAGE = Path(__file__).parents[1] / "docs" / "devices.md"
BEGIN, END = "<!-- choices: python -m tools.choices -->", "<!-- end of choices -->"
HALF, SINGLE = torch.bfloat16, torch.float32


class Job(NamedTuple):
    """A row of the table: an attention, the backend that is expected, and why."""

    name: str
    expected: str
    why: str
    make: Callable[[], tuple[Space | tuple[Space, Space], Mask | None, Bias | None]]
    dtype: torch.dtype = HALF
    heads: int = 8
    dim: int = 64
    batch: int = 1
    grad: bool = True
    more: dict[str, Any] = {}

    def plan(self, device: str = "cuda") -> Plan:
        """Plan it for a device."""
        space, mask, bias = self.make()
        return plan(
            space, mask, bias, heads=self.heads, head_dim=self.dim, batch=self.batch,
            grad=self.grad, dtype=self.dtype, device=device, **self.more,
        )  # fmt: skip


def _texts(count: int = 32) -> list[int]:
    lengths = torch.randint(100, 2000, (count,), generator=torch.Generator().manual_seed(0))
    return lengths.tolist()


def _molecules() -> Graph:
    """512 chains of 10 to 30 atoms in one row."""
    sizes = torch.randint(10, 31, (512,), generator=torch.Generator().manual_seed(0))
    segments = torch.repeat_interleave(sizes)
    node = torch.arange(len(segments) - 1)
    node = node[segments[:-1] == segments[1:]]
    edges = torch.cat([torch.stack([node, node + 1]), torch.stack([node + 1, node])], dim=1)
    return Graph(edges, len(segments), segments=segments)


@cache
def _graph(nodes: int = 50_000, edges: int = 800_000, hub: int = 0) -> Graph:
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(nodes, (2, edges), generator=generator)
    index[1, :hub] = 0
    edge = (index[0] * nodes + index[1]).unique()
    return Graph(torch.stack([edge // nodes, edge % nodes]), nodes)


def _points(count: int) -> Points:
    return Points(torch.rand(count, 3, generator=torch.Generator().manual_seed(0)))


def _random(length: int) -> DenseMask:
    return DenseMask(torch.rand(length, length, generator=torch.Generator().manual_seed(0)) < 0.3)


JOBS = [
    Job(
        "ViT-S/16 on 224², 6 heads, batch of 256", "dense",
        "Nothing restricts who attends, so the fused kernel reads no mask.",
        lambda: (Grid(14, 14, special=1), None, None), heads=6, batch=256,
    ),
    Job(
        "the same", "dense",
        "There is no flash kernel in float32; the memory-efficient one is the fastest of those "
        "that store no scores.",
        lambda: (Grid(14, 14, special=1), None, None), SINGLE, heads=6, batch=256,
    ),
    Job(
        "Swin's first stage: 56², shifted windows of 7, a table; 3 heads, batch of 64", "flex",
        "Each window sees 49 of 3,136 places, and the table's gradient is summed by offset.",
        lambda: (Grid(56, 56), Window(7, shift=3), RelativeTable.swin(3, 7)),
        heads=3, dim=32, batch=64,
    ),
    Job(
        "grid 64², radius 3, batch of 8", "flex",
        "In compact order a block of 64 places meets 7 or 8 of 64 blocks.",
        lambda: (Grid(64, 64), Neighborhood(3), None), batch=8,
    ),
    Job(
        "the same", "flex",
        "Without tensor cores the pairs that blocks compute in vain cost more, and it is still the "
        "least.",
        lambda: (Grid(64, 64), Neighborhood(3), None), SINGLE, batch=8,
    ),
    Job(
        "32 packed documents, 100 to 2,000 tokens", "dense",
        "`varlen_attn` does all samples in one kernel, without a mask.",
        lambda: (Sequence.packed(_texts()), None, None),
    ),
    Job(
        "the same, causal", "dense",
        "`varlen_attn` is causal in each sample.",
        lambda: (Sequence.packed(_texts()), Causal(), None),
    ),
    Job(
        "the same, windows of ±128", "dense",
        "`varlen_attn` has windows, too.",
        lambda: (Sequence.packed(_texts()), Neighborhood(128), None),
    ),
    Job(
        "the same, T5's table", "flex",
        "A bias needs scores of its own; dense would store those of all samples with each other.",
        lambda: (Sequence.packed(_texts()), None, RelativeTable.t5(8)),
    ),
    Job(
        "32 padded documents in 32 rows", "dense",
        "`varlen_attn` leaves padding out.",
        lambda: (Sequence.padded(_texts()), None, None), batch=32,
    ),
    Job(
        "T5's encoder on 512 tokens, batch of 16", "flex",
        "All pairs attend, but the bias is learned: dense computes it in float32, and its table's "
        "gradient over all pairs.",
        lambda: (Sequence(512), None, RelativeTable.t5(8)), batch=16,
    ),
    Job(
        "windows of ±64 on 512 tokens", "dense",
        "`varlen_attn` has windows, and is one kernel.",
        lambda: (Sequence(512), Neighborhood(64), None),
    ),
    Job(
        "windows of ±128 on 8,192 tokens", "dense",
        "`varlen_attn` leaves out what is outside of the window.",
        lambda: (Sequence(8192), Neighborhood(128), None),
    ),
    Job(
        "the same", "flex",
        "`varlen_attn` is for halves. A block meets 3 of 64.",
        lambda: (Sequence(8192), Neighborhood(128), None), dtype=torch.float32,
    ),
    Job(
        "windows of ±4 on 65,536 tokens", "dense",
        "Tiles hold many pairs for one that is allowed; on tensor cores that is less than to "
        "gather nine keys for each query.",
        lambda: (Sequence(65_536), Neighborhood(4), None),
    ),
    Job(
        "prefill of a causal model, 8,192 tokens, inference", "dense",
        "The fused kernel is causal itself and leaves half of the pairs out.",
        lambda: (Sequence(8192), Causal(), None), grad=False,
    ),
    Job(
        "causal with ALiBi, 8,192 tokens", "flex",
        "The slope is computed where it is added; dense would store 8 × 8,192² of them.",
        lambda: (Sequence(8192), Causal(), ALiBi(8)),
    ),
    Job(
        "decode step: one query, 4,096 keys", "dense",
        "One kernel; reading the cache is all there is to do.",
        lambda: ((Sequence(1, start=4095), Sequence(4096)), Causal(), None), grad=False,
    ),
    Job(
        "Gemma 2's local layer: causal windows of 1,024 on 4,096, softcap", "flex",
        "SDPA cannot cap scores.",
        lambda: (Sequence(4096), Causal() & Neighborhood(1024), None), more={"softcap": 50.0},
    ),
    Job(
        "Longformer: windows of ±256 on 4,096, one global token, batch of 2", "flex",
        "The global token adds a row and a column of blocks to the band.",
        lambda: (Sequence(4096), Neighborhood(256) | GlobalTokens(0), None), batch=2,
    ),
    Job(
        "512 molecules in one row, a bias by hops, 8 heads of 16", "flex",
        "Molecules are apart: 232 of 6,724 pairs of blocks.",
        lambda: (_molecules(), None, RelativeTable.hops(8, 8)), dim=16,
    ),
    Job(
        "their bonds alone", "edges",
        "Two keys for an atom: to gather them is all there is to do, and no blocks are searched.",
        lambda: (_molecules(), Edges(), None), dim=16,
    ),
    Job(
        "GAT on 50,000 nodes, 800,000 edges, 8 heads of 8", "edges",
        "Only `edges` and `reference` have scores other than the dot product.",
        lambda: (_graph(), Edges(), None), SINGLE, dim=8, more={"score": Additive(8, 8)},
    ),
    Job(
        "the same by dot products, with features of edges", "edges",
        "16 keys for a query, anywhere among 50,000: nearly all pairs of blocks would hold one.",
        lambda: (_graph(), Edges(), None), SINGLE, dim=8, more={"edge_features": True},
    ),
    Job(
        "a hub: one of 50,000 nodes has 100,000 of 800,000 edges", "edges",
        "As above; the hub's row is one of many, as far as bytes go.",
        lambda: (_graph(hub=100_000), Edges(), None), dim=8,
    ),
    Job(
        "two hops around each of 2,000 nodes", "edges",
        "The pairs are listed from edges; dense would have the host count the hops of all pairs.",
        lambda: (_graph(2_000, 8_000), Neighborhood(2), None),
    ),
    Job(
        "16,384 points, about 9 near each, 8 heads of 16", "edges",
        "Fewer than 32 pairs a query, scattered over space.",
        lambda: (_points(16_384), Neighborhood(0.05), None), dim=16,
    ),
    Job(
        "the same, about 70 near each", "flex",
        "Along a curve points that are near are in the same blocks, so more of each is used.",
        lambda: (_points(16_384), Neighborhood(0.1), None), dim=16,
    ),
    Job(
        "1,024 points, a continuous bias, batch of 4", "dense",
        "An MLP of each pair's distance is no score_mod, so flex refuses it.",
        lambda: (_points(1024), None, ContinuousBias(8, (1.0, 1.0, 1.0))), dim=16, batch=4,
    ),
    Job(
        "a random mask of 30 % on 1,024 tokens", "dense",
        "Every pair of blocks has an allowed pair, so none could be left out.",
        lambda: (Sequence(1024), _random(1024), None),
    ),
    Job(
        "16 tokens, windows of ±4", "dense",
        "The host's calls are all there is: the fewest win.",
        lambda: (Sequence(16), Neighborhood(4), None), heads=4,
    ),
    Job(
        "attention weights are asked for, 512 tokens, causal", "reference",
        "They come from the explicit softmax, which has the output, too.",
        lambda: (Sequence(512), Causal(), None), more={"weights": True},
    ),
]  # fmt: skip


def table() -> str:
    """Return the table in Markdown, as an sm_90 GPU is estimated."""
    lines = [
        "| attention | dtype | takes | in | why |",
        "| --- | --- | --- | --- | --- |",
    ]
    for job in JOBS:
        made = job.plan()
        time = _time(BACKENDS[made.backend].cost(made.job))
        passes = "" if job.grad else " forward"
        dtype = str(job.dtype).removeprefix("torch.")
        lines.append(f"| {job.name} | {dtype} | `{made.backend}` | {time}{passes} | {job.why} |")
    return "\n".join(lines)


def rewrite(text: str) -> str:
    """Return a page with the table as it is now."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{PAGE} has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(rewrite(PAGE.read_text()))
