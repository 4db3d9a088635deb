"""Attention along the edges of a graph, beside the layers of PyG that do the same work.

Run `python -m benchmarks.edges`: a random graph of 50,000 nodes and 800,000 edges, tokens of size
64, 8 heads of 8 and of 64, float32, the threads that torch takes. Every pair computes equal work:
the same projections around the same attention, without the skip connection. A graph is sorted once,
however many layers and passes use it, so sorting is in neither times nor memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GATv2Conv, TransformerConv

from attention_core import Additive, AdditiveV2, Edges, Graph, Plan, Score, attend, plan
from benchmarks.measure import Forward, in_turn, peak

NODES, EDGES, DIM, HEADS = 50_000, 800_000, 64, 8


class Layer(nn.Module):
    """The attention of a PyG layer: projections for those that it has, and no output projection.

    Args:
        sources: for query, key and value, which of the projections it is.
    """

    def __init__(self, head_dim: int, sources: tuple[int, int, int], score: Score | None) -> None:
        super().__init__()
        self.sources, self.score = sources, score
        self.projections = nn.ModuleList(
            nn.Linear(DIM, HEADS * head_dim) for _ in range(max(sources) + 1)
        )

    def plan(self, graph: Graph, head_dim: int) -> Plan:
        return plan(
            graph, Edges(), score=self.score, heads=HEADS, head_dim=head_dim, grad=True,
            backend="edges",
        )  # fmt: skip

    def forward(self, x: Tensor, plan: Plan) -> Tensor:
        projected = [p(x).view(1, len(x), HEADS, -1).transpose(1, 2) for p in self.projections]
        q, k, v = (projected[source] for source in self.sources)
        return attend(q, k, v, score=self.score, plan=plan.renewed())[0].transpose(0, 1).flatten(1)


class Peer(NamedTuple):
    """A layer of PyG, and the layer of equal work."""

    theirs: Callable[[int], nn.Module]
    ours: Callable[[int], Layer]


PEERS = {
    "TransformerConv": Peer(
        lambda d: TransformerConv(DIM, d, HEADS, root_weight=False),
        lambda d: Layer(d, (0, 1, 2), None),
    ),
    "GATConv": Peer(
        lambda d: GATConv(DIM, d, HEADS, add_self_loops=False),
        lambda d: Layer(d, (0, 0, 0), Additive(HEADS, d)),
    ),
    "GATv2Conv": Peer(
        lambda d: GATv2Conv(DIM, d, HEADS, add_self_loops=False),
        lambda d: Layer(d, (0, 1, 1), AdditiveV2(HEADS, d)),
    ),
}


class Row(NamedTuple):
    """Milliseconds and MiB of one comparison."""

    pattern: str
    forward: float
    peer_forward: float
    both: float
    peer_both: float
    peak: float
    peer_peak: float

    @property
    def times_faster(self) -> float:
        """Forward and backward of the peer by ours."""
        return self.peer_both / self.both

    @property
    def share_of_memory(self) -> float:
        return self.peak / self.peer_peak


def drawn(nodes: int = NODES, edges: int = EDGES) -> tuple[Tensor, Tensor]:
    """Tokens (nodes, 64) and edges (2, edges)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(nodes, DIM, generator=generator)
    return x.requires_grad_(), torch.randint(nodes, (2, edges), generator=generator)


def make(peer: str, ours: bool, head_dim: int) -> Forward:
    """The layer, as a function of nothing."""
    x, edge_index = drawn()
    if not ours:
        theirs = PEERS[peer].theirs(head_dim)
        return lambda: theirs(x, edge_index)
    layer = PEERS[peer].ours(head_dim)
    made = layer.plan(Graph(edge_index, len(x)), head_dim)
    return lambda: layer(x, made)


def measure(peer: str, head_dim: int, repetitions: int) -> Row:
    """One comparison."""
    peaks = [peak(make, peer, ours, head_dim) for ours in (True, False)]
    own, theirs = in_turn([make(peer, ours, head_dim) for ours in (True, False)], repetitions)
    pattern = f"edges as {peer}, {HEADS} heads of {head_dim}"
    return Row(pattern, own.forward, theirs.forward, own.both, theirs.both, *peaks)


def rows() -> list[Row]:
    """All comparisons, in about four minutes on two cores, most of which the peers take."""
    return [measure(peer, d, n) for d, n in ((8, 5), (64, 1)) for peer in PEERS]


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Ours / PyG, milliseconds and MiB")
    for name in ("pattern", "forward", "forward + backward", "times faster", "peak", "of its peak"):
        table.add_column(name, justify="left" if name == "pattern" else "right")
    for row in rows():
        table.add_row(
            row.pattern,
            f"{row.forward:,.0f} / {row.peer_forward:,.0f}",
            f"{row.both:,.0f} / {row.peer_both:,.0f}",
            f"{row.times_faster:.1f}",
            f"{row.peak:,.0f} / {row.peer_peak:,.0f}",
            f"{row.share_of_memory:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
