"""What is compared on a device: small attentions of every kind that the package has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attention_core.biases import (
    ALiBi,
    Bias,
    ContinuousBias,
    DenseBias,
    EdgeBias,
    RelativeTable,
)
from attention_core.masks import (
    Causal,
    DenseMask,
    Dilated,
    Edges,
    GlobalTokens,
    Mask,
    Nearest,
    Neighborhood,
    PrefixLM,
    Window,
)
from attention_core.scores import Additive, AdditiveV2, Score
from attention_core.spaces import Graph, Grid, Points, Sequence, Space

HEADS, KV_HEADS, DIM = 4, 2, 16


class Given(NamedTuple):
    """One attention: where its tokens sit, what they may attend to, and the options of `attend`.

    `score` has a head of its own for each query head; `edge_features` are drawn for a Graph."""

    space: Space | tuple[Space, Space]
    mask: Mask | None = None
    bias: Bias | None = None
    score: Score | None = None
    softcap: float | None = None
    sink: bool = False
    edge_features: bool = False
    kv_heads: int = KV_HEADS
    batch: int = 2


class Case(NamedTuple):
    """A named attention, made anew on the host by `make`; the same one each time."""

    name: str
    make: Callable[[], Given]


def _graph(**options: Any) -> Graph:
    """60 nodes: edges at random, a hub, a node without any."""
    generator = torch.Generator().manual_seed(1)
    edges = torch.randint(59, (2, 240), generator=generator).unique(dim=1)
    hub = torch.stack([torch.arange(1, 50), torch.zeros(49, dtype=torch.long)])
    edges = torch.cat([edges[:, edges[1] != 0], hub], dim=1)
    return Graph(edges, 60, edge_attr=torch.arange(edges.shape[1]) % 3, **options)


def _graphs() -> Graph:
    """Molecule-like graphs of 1 to 30 nodes in one row, a chain each."""
    sizes = torch.tensor([30, 1, 17, 25, 8, 29])
    segments = torch.repeat_interleave(sizes)
    node = torch.arange(int(sizes.sum()) - 1)
    node = node[segments[:-1] == segments[1:]]
    edges = torch.cat([torch.stack([node, node + 1]), torch.stack([node + 1, node])], dim=1)
    return Graph(edges, int(sizes.sum()), segments=segments)


def _points() -> Points:
    return Points(torch.rand(100, 3, generator=torch.Generator().manual_seed(2)))


def _some(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3)) < 0.2


def _seeded(make: Callable[[], Given]) -> Callable[[], Given]:
    def seeded() -> Given:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            given = make()
            for module in (given.bias, given.score):
                for parameter in () if module is None else module.parameters():
                    torch.nn.init.normal_(parameter, std=0.5)
            return given

    return seeded


_MADE: dict[str, Callable[[], Given]] = {
    "all pairs": lambda: Given(Sequence(150)),
    "heads of their own": lambda: Given(Sequence(150), kv_heads=HEADS),
    "causal": lambda: Given(Sequence(150), Causal()),
    "decode step": lambda: Given((Sequence(1, start=149), Sequence(150)), Causal()),
    "padded": lambda: Given(Sequence.padded([150, 40])),
    "padded, causal, ALiBi": lambda: Given(
        Sequence.padded([150, 40], side="left"), Causal(), ALiBi(HEADS)
    ),
    "packed": lambda: Given(Sequence.packed([70, 1, 90]), batch=1),
    "packed, causal": lambda: Given(Sequence.packed([70, 1, 90]), Causal(), batch=1),
    "packed, T5": lambda: Given(
        Sequence.packed([70, 1, 90]), None, RelativeTable.t5(HEADS), batch=1
    ),
    "window": lambda: Given(Sequence(300), Neighborhood(20)),
    "causal window, softcap, sink": lambda: Given(
        Sequence(300), Causal() & Neighborhood(30), softcap=3.0, sink=True
    ),
    "window or global, packed": lambda: Given(
        Sequence.packed([100, 60]), Neighborhood(10) | GlobalTokens(0), batch=1
    ),
    "dilated, sink": lambda: Given(Sequence(150), Dilated(4) & ~Neighborhood(1), sink=True),
    "prefix": lambda: Given(Sequence(150), PrefixLM(torch.tensor([40, 90]))),
    "a mask for each head, empty rows": lambda: Given(
        Sequence(100), DenseMask(_some(2, HEADS, 100, 100) & (torch.arange(100) % 7 > 0)[:, None])
    ),
    "a bias for each pair": lambda: Given(
        Sequence(100), None, DenseBias(torch.nn.Parameter(torch.zeros(1, HEADS, 100, 100)))
    ),
    "grid, neighborhood": lambda: Given(Grid(14, 14, special=1), Neighborhood(3)),
    "grid, shifted windows, table": lambda: Given(
        Grid(14, 14), Window(7, shift=3), RelativeTable.swin(HEADS, 7)
    ),
    "grid, continuous bias": lambda: Given(Grid(10, 10), None, ContinuousBias(HEADS, (10.0, 10.0))),
    "points, ball": lambda: Given(_points(), Neighborhood(0.3)),
    "points, nearest": lambda: Given(_points(), Nearest(8)),
    "graph, edges": lambda: Given(_graph(), Edges(), batch=1),
    "graph, edge types": lambda: Given(_graph(), Edges(), EdgeBias(HEADS, types=3), batch=1),
    "graph, GAT": lambda: Given(
        _graph(), Edges(), score=Additive(HEADS, DIM), kv_heads=HEADS, batch=1
    ),
    "graph, GATv2": lambda: Given(
        _graph(), Edges(), score=AdditiveV2(HEADS, DIM), kv_heads=HEADS, batch=1
    ),
    "graph, features of edges": lambda: Given(_graph(), Edges(), edge_features=True, batch=1),
    "graphs, hops, virtual node": lambda: Given(
        _graph(special=1), None, RelativeTable.hops(HEADS, 4, special=True), batch=1
    ),
    "graphs in a row, hops": lambda: Given(
        _graphs(), None, RelativeTable.hops(HEADS, 6), batch=1
    ),
}  # fmt: skip

#: The most telling ones first: a short time goes to these.
CASES = [Case(name, _seeded(make)) for name, make in _MADE.items()]
