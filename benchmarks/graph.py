"""Graph layers beside those of PyG: time, peak memory, and memory kept for the backward pass.

Run `python -m benchmarks.graph`; `--quick` takes a smaller graph, fewer cases and repeats less.

- `GATConv`, `GATv2Conv`, `TransformerConv`, with PyG's weights, tokens of size 64, with and without
  16 features of edges: 8 heads of 8 on a random graph of 50,000 nodes and 800,000 edges, and 8
  heads of 64 on a fifth of it, as PyG's layers would keep 10 GB on all of it.
- A batch of 128 molecule-like graphs, 12 to 38 nodes each, and the same with one of 200 nodes: all
  pairs inside a graph with a learned bias of hops, beside padded SDPA with the same bias; and
  without a bias beside PyG's GPSConv, whose global attention is padded, too.

A graph is sorted once, and hops are searched once, for all layers and passes, so neither is in the
times. Float32, the threads that torch takes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch_geometric.nn as pyg
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from attention_core import Graph, MultiheadAttention, RelativeTable
from attention_core.memory import keep_freed_memory
from benchmarks.measure import Forward, in_turn, peak
from graph import GATConv, GATv2Conv, TransformerConv

DIM, HEADS, FEATURES = 64, 8, 16
CONVS = {
    "GATConv": (GATConv, pyg.GATConv),
    "GATv2Conv": (GATv2Conv, pyg.GATv2Conv),
    "TransformerConv": (TransformerConv, pyg.TransformerConv),
}


class Row(NamedTuple):
    """Measures of one layer: milliseconds, and MiB beyond what lies there before."""

    what: str
    who: str
    forward: float
    both: float
    peak: float
    kept: float


def conv(
    name: str, ours: bool, head_dim: int, edge_dim: int | None, size: tuple[int, int]
) -> Forward:
    """A layer on a random graph of `size` nodes and edges."""
    nodes, edges = size
    torch.manual_seed(0)
    x = torch.randn(nodes, DIM, requires_grad=True)
    edge_index = torch.randint(nodes, (2, edges))
    edge_attr = None if edge_dim is None else torch.randn(edges, edge_dim)
    mine, theirs = (made(DIM, head_dim, HEADS, edge_dim=edge_dim) for made in CONVS[name])
    mine.load_state_dict(theirs.state_dict())
    layer = mine if ours else theirs
    if ours:  # sorts the graph, for the forward and the backward pass
        layer(x, edge_index, edge_attr).sum().backward()
    return lambda: layer(x, edge_index, edge_attr)  # type: ignore[no-any-return]


# -- batches of small graphs -----------------------------------------------------------------------


def molecules(largest: int | None) -> tuple[Tensor, Graph]:
    """The sizes of 128 rings, and their nodes in one row."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(12, 39, (128,), generator=generator)
    if largest is not None:
        sizes[0] = largest
    segments = torch.repeat_interleave(sizes)
    node, first = torch.arange(len(segments)), sizes.cumsum(0) - sizes
    following = torch.where(node + 1 < (first + sizes)[segments], node + 1, first[segments])
    edges = torch.stack([torch.cat([node, following]), torch.cat([following, node])])
    return sizes, Graph(edges, len(segments), segments=segments)


def packed(largest: int | None, bias: bool) -> Forward:
    _, space = molecules(largest)
    torch.manual_seed(0)
    layer = MultiheadAttention(DIM, HEADS, bias=RelativeTable.hops(HEADS, 8) if bias else None)
    x = torch.randn(space.length, DIM, requires_grad=True)
    made = layer.plan(x, space)
    return lambda: layer(x, plan=made.renewed())  # type: ignore[no-any-return]


def padded(largest: int | None, bias: bool) -> Forward:
    """Projections, SDPA with a mask of padding and the bias of every pair, and a projection."""
    sizes, space = molecules(largest)
    place = torch.arange(int(sizes.max()))
    valid = place < sizes[:, None]
    node = (sizes.cumsum(0) - sizes)[:, None] + place.where(valid, 0)
    shape = len(sizes), len(place), len(place)
    hops = space.edges.hops(node[:, :, None].expand(shape), node[:, None, :].expand(shape))
    bucket = hops.clamp(max=9).long() + hops.isinf()
    table = nn.Parameter(torch.zeros(11, HEADS))
    project, out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
    x = torch.randn(*valid.shape, DIM, requires_grad=True)

    def forward() -> Tensor:
        q, k, v = project(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mask = valid[:, None, None]
        if bias:
            scores = nn.functional.embedding(bucket, table).permute(0, 3, 1, 2)
            mask = scores.masked_fill(~mask, -torch.inf)
        attended = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    return forward


def gps(largest: int | None, ours: bool) -> Forward:
    """The global half of GPSConv: attention and MLP, each with its residual, no norms."""
    _, space = molecules(largest)
    torch.manual_seed(0)
    theirs = pyg.GPSConv(DIM, None, HEADS, norm=None)
    x = torch.randn(space.length, DIM, requires_grad=True)
    if not ours:
        edges = torch.stack([space.edges.source, space.edges.target])
        return lambda: theirs(x, edges, space.segments)  # type: ignore[no-any-return]
    layer = MultiheadAttention(DIM, HEADS)
    made = layer.plan(x, space)

    def forward() -> Tensor:
        h = x + layer(x, plan=made.renewed())
        return h + theirs.mlp(h)  # type: ignore[no-any-return]

    return forward


# -- measuring -------------------------------------------------------------------------------------


def kept(forward: Forward) -> float:
    """MiB that each forward pass keeps for its backward pass, shared structure aside."""
    seen: list[dict[int, int]] = []
    outputs = []  # that storages of both passes live side by side
    for _ in range(2):
        held: dict[int, int] = {}
        seen.append(held)

        def pack(x: Tensor, held: dict[int, int] = held) -> Tensor:
            for part in (x.crow_indices(), x.values()) if x.layout == torch.sparse_csr else (x,):
                storage = part.untyped_storage()
                held[storage.data_ptr()] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            outputs.append(forward())
    shared, own = seen
    return sum(size for at, size in own.items() if at not in shared) / 2**20


Case = tuple[str, dict[str, Callable[[], Forward]]]


def compare(case: Case, repetitions: int) -> list[Row]:
    """The contestants of a case, all of which take turns."""
    what, contestants = case
    peaks = [peak(make) for make in contestants.values()]
    made = [make() for make in contestants.values()]
    keeps = [kept(forward) for forward in made]
    times = in_turn(made, repetitions)
    return [
        Row(what, who, time.forward, time.both or 0.0, most, keep)
        for who, time, most, keep in zip(contestants, times, peaks, keeps, strict=True)
    ]


def cases(quick: bool) -> list[Case]:
    sizes = {8: (5_000, 80_000)} if quick else {8: (50_000, 800_000), 64: (10_000, 160_000)}
    found: list[Case] = []
    for head_dim, size in sizes.items():
        for edge_dim in (None,) if quick else (None, FEATURES):
            for name in CONVS:
                what = f"{name}, {HEADS} heads of {head_dim}"
                what += "" if edge_dim is None else f", {edge_dim} features"
                both = {
                    who: partial(conv, name, ours, head_dim, edge_dim, size)
                    for who, ours in (("ours", True), ("PyG", False))
                }
                found.append((what, both))
    for largest in (200,) if quick else (None, 200):
        what = "128 molecules" + ("" if largest is None else f", one of {largest}")
        biased = {
            "ours": partial(packed, largest, True),
            "SDPA, padded": partial(padded, largest, True),
        }
        found.append((f"{what}, hop bias", biased))
        both = {who: partial(gps, largest, ours) for who, ours in (("ours", True), ("PyG", False))}
        found.append((f"{what}, GPSConv", both))
    return found


def main() -> None:
    keep_freed_memory()
    quick = "--quick" in sys.argv
    console, table = Console(), Table(title=f"{torch.get_num_threads()} threads, ms and MiB")
    table.add_column("layer")
    table.add_column("of")
    for name in ("forward", "both", "÷ ours", "peak", "kept"):
        table.add_column(name, justify="right", no_wrap=True)
    for case in cases(quick):
        rows: list[Any] = compare(case, 2 if quick else 5)
        for row in rows:
            table.add_row(
                row.what if row is rows[0] else "", row.who,
                f"{row.forward:,.1f}", f"{row.both:,.1f}", f"{row.both / rows[0].both:.2f}",
                f"{row.peak:,.0f}", f"{row.kept:,.1f}",
            )  # fmt: skip
        done = ", ".join(f"{row.who} {row.both:,.1f} ms" for row in rows)
        console.print(f"{case[0]}: {done}", highlight=False)
    console.print(table)


if __name__ == "__main__":
    main()
