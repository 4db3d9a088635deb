"""Batches from a graph that is too large for one: how quickly they come, and what memory they take.

Run `python -m benchmarks.sampling`; with `--quick` the graph has a twentieth of the nodes and
edges. A random graph of 1,000,000 nodes and 10,000,000 edges, 64 features, fan-out 10 and 10,
batches of 1,024 seeds, float32, the threads that torch takes. Two attention layers with 8 heads of
8 train on the same batches, ours and PyG's of the same name and weights, each computing the nodes
alone that the seeds need (`trim_to_seeds`); then they are computed for all nodes, layer by layer.
Each line is measured in a process of its own.
"""

from __future__ import annotations

import itertools
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

import torch
import torch_geometric.nn
from torch import Tensor, nn
from torch_geometric.data import Data

import graph
from attention_core.memory import keep_freed_memory
from benchmarks.measure import Forward, host_peak
from graph.sampling import NeighborLoader, NeighborSampler, layerwise, partition, trim_to_seeds

DIM, HEADS, FAN_OUT, BATCH, CHUNK = 64, 8, [10, 10], 1024, 10_000
LAYERS = ("GATConv", "TransformerConv")


class Size(NamedTuple):
    """The size of a graph, how many batches are drawn from it, and with how many it trains."""

    nodes: int
    edges: int
    batches: int
    steps: int


FULL = Size(1_000_000, 10_000_000, 20, 10)
QUICK = Size(50_000, 500_000, 5, 2)


class Row(NamedTuple):
    """One line: seconds, seeds a second, MiB beyond the graph itself, and those stated."""

    what: str
    seconds: float
    seeds: float | None
    peak: float
    bound: float | None = None


def drawn_graph(size: Size) -> Data:
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(size.nodes, (2, size.edges), generator=generator)
    return Data(x=torch.randn(size.nodes, DIM, generator=generator), edge_index=edge_index)


def timed(
    what: str, work: Callable[[], object], seeds: int | None = None, bound: float | None = None
) -> Row:
    times: list[float] = []

    def measured() -> None:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)

    peak = host_peak(measured)
    return Row(what, times[0], None if seeds is None else seeds / times[0], peak, bound)


def sort_once(size: Size) -> Row:
    return timed("sort the edges, once", partial(NeighborSampler, drawn_graph(size), FAN_OUT))


def cut(size: Size) -> Row:
    edge_index, parts = drawn_graph(size).edge_index, size.nodes // 1000
    work = partial(partition, edge_index, size.nodes, parts)
    return timed(f"cut into {parts:,} clusters, once", work)


def draw(size: Size, features: bool) -> Row:
    data = drawn_graph(size)
    if not features:
        data = Data(edge_index=data.edge_index, num_nodes=size.nodes)
    batches = _batches(data, size.batches)
    what = "draw batches, with features" if features else "draw batches"
    return timed(what, lambda: sum(1 for _ in batches), BATCH * size.batches)


def train(size: Size, name: str, ours: bool) -> Row:
    batches = _batches(drawn_graph(size), size.steps)
    layers = two_layers(name, ours)
    optimizer = torch.optim.SGD(layers.parameters(), lr=1e-3)

    def work() -> None:
        for batch in batches:
            at_seeds(layers, batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    return timed(f"train two {name}, {_whose(ours)}", work, BATCH * size.steps)


def at_seeds(layers: nn.ModuleList, batch: Data) -> Tensor:
    """Compute the last layer's outputs at the seeds of a batch, and in no layer more than that."""
    trimmed = trim_to_seeds(batch.edge_index, len(batch.x), batch.batch_size, len(layers))
    x = batch.x[trimmed.node]
    for layer, part in zip(layers, trimmed.layers, strict=True):
        x = layer((x, x[: part.num_targets]), part.edge_index)
    return x  # type: ignore[no-any-return]


def step(name: str, ours: bool) -> Forward:
    """Two layers on a batch of 1,024 seeds from a graph of 300,000 nodes and 3,000,000 edges."""
    (batch,) = _batches(drawn_graph(Size(300_000, 3_000_000, 1, 1)), 1)
    return partial(at_seeds, two_layers(name, ours), batch)


def infer(size: Size, name: str, ours: bool) -> Row:
    data = drawn_graph(size)
    layers = two_layers(name, ours).eval()
    work = partial(layerwise, layers, data.x, data.edge_index, batch_size=CHUNK)
    what = f"all nodes, layer by layer, {name}, {_whose(ours)}"
    return timed(what, work, size.nodes, _bound(size))


def two_layers(name: str, ours: bool) -> nn.ModuleList:
    """Two layers, with the same weights in both libraries."""
    torch.manual_seed(0)
    options = {"add_self_loops": False} if name == "GATConv" else {}
    make = partial(getattr(torch_geometric.nn, name), DIM, DIM // HEADS, HEADS, **options)
    theirs = nn.ModuleList(make() for _ in range(2))
    if not ours:
        return theirs
    make = partial(getattr(graph, name), DIM, DIM // HEADS, HEADS, **options)
    own = nn.ModuleList(make() for _ in range(2))
    own.load_state_dict(theirs.state_dict())
    return own


def _bound(size: Size) -> float:
    """MiB that `layerwise` states, with 32 rows of a state for each node of a chunk: half of them
    are what the allocator keeps of earlier chunks."""
    state, chunk = 4 * DIM, CHUNK * (1 + size.edges // size.nodes)
    work = 8 * size.edges + (4 + 2 * state) * size.nodes + 32 * state * min(chunk, size.nodes)
    return max(35 * size.edges, work) / 2**20


def _batches(data: Data, count: int) -> Iterator[Data]:
    torch.manual_seed(0)
    loader = NeighborLoader(data, FAN_OUT, batch_size=BATCH, shuffle=True)
    return itertools.islice(loader, count)


def _whose(ours: bool) -> str:
    return "ours" if ours else "PyG's"


def rows(size: Size = FULL) -> Iterable[Row]:
    """All lines, in a quarter of an hour on two cores; of `QUICK`, in less than a minute."""
    lines = [partial(sort_once, size), partial(draw, size, False), partial(draw, size, True)]
    for work in (train, infer):
        lines += [partial(work, size, name, ours) for name in LAYERS for ours in (True, False)]
    # Of a server that has imported what they need, and nothing else
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch_geometric.nn", "graph.sampling", "benchmarks.measure"])
    for line in [*lines, partial(cut, size)]:
        with ProcessPoolExecutor(1, context) as pool:
            yield pool.submit(line).result()


def main() -> None:
    keep_freed_memory()
    from rich.console import Console
    from rich.table import Table

    size = QUICK if "--quick" in sys.argv else FULL
    title = f"{size.nodes:,} nodes, {size.edges:,} edges, {torch.get_num_threads()} threads"
    table = Table(title=title)
    for name in ("what", "seconds", "seeds a second", "peak MiB", "of at most"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for row in rows(size):
        seeds = "" if row.seeds is None else f"{row.seeds:,.0f}"
        bound = "" if row.bound is None else f"{row.bound:,.0f}"
        table.add_row(row.what, f"{row.seconds:.2f}", seeds, f"{row.peak:,.0f}", bound)
    Console().print(table)


if __name__ == "__main__":
    main()
