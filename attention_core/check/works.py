"""What is timed: attentions of the sizes that people train, for a GPU and for a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from attention_core.biases import Bias, RelativeTable
from attention_core.masks import Causal, Edges, Mask, Neighborhood, Window
from attention_core.spaces import Graph, Grid, Points, Sequence, Space


class Work(NamedTuple):
    """One attention to time.

    Attributes:
        lengths: of packed samples, where they are what there is; for `varlen_attn`.
    """

    name: str
    space: Space
    mask: Mask | None = None
    bias: Bias | None = None
    heads: int = 8
    dim: int = 64
    batch: int = 1
    lengths: tuple[int, ...] = ()

    def tensors(self, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """Make queries, keys and values (B, H, L, D) as projections do, which need a gradient."""
        shape = self.batch, self.space.length, self.heads, self.dim
        made = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))
        return [x.transpose(1, 2).requires_grad_() for x in made]


def works(device: torch.device) -> Iterator[Callable[[], Work]]:
    """Yield what makes each work, on the host; the shortest first, so that some of all kinds are
    timed whatever the time."""
    gpu = device.type == "cuda"
    n = 16 if gpu else 1  # tokens beside those of a CPU

    def texts() -> tuple[int, ...]:
        generator = torch.Generator().manual_seed(0)
        return tuple(torch.randint(30, 40 * n + 100, (16,), generator=generator).tolist())

    def graph() -> Graph:
        nodes, generator = 3000 * n, torch.Generator().manual_seed(0)
        edge = torch.randint(nodes**2, (16 * nodes,), generator=generator).unique()
        return Graph(torch.stack([edge // nodes, edge % nodes]), nodes)

    def graphs() -> Graph:
        sizes = torch.full((16 * n,), 20)
        segments = torch.repeat_interleave(sizes)
        node = torch.arange(len(segments))[:-1]
        node = node[segments[:-1] == segments[1:]]
        edges = torch.cat([torch.stack([node, node + 1]), torch.stack([node + 1, node])], 1)
        return Graph(edges, len(segments), segments=segments)

    def points() -> Points:
        return Points(torch.rand(1000 * n, 3, generator=torch.Generator().manual_seed(0)))

    radius = (40 / (1000 * n) / 4.19) ** (1 / 3)  # about 40 neighbors in the unit cube
    side, length = (64, 4096) if gpu else (28, 512)
    yield lambda: Work("all pairs", Sequence(length), batch=4 if gpu else 1)
    yield lambda: Work("causal", Sequence(length), Causal(), batch=4 if gpu else 1)
    yield lambda: Work("graph, edges", graph(), Edges(), dim=16)
    yield lambda: Work("packed texts", Sequence.packed(texts()), lengths=texts())
    yield lambda: Work("window ±64", Sequence(4 * length), Neighborhood(64))
    yield lambda: Work("grid, radius 3", Grid(side, side), Neighborhood(3))
    yield lambda: Work("T5 bias", Sequence(length), None, RelativeTable.t5(8))
    yield lambda: Work(
        "Swin windows", Grid(side - side % 7, side - side % 7), Window(7, shift=3),
        RelativeTable.swin(8, 7), dim=32,
    )  # fmt: skip
    yield lambda: Work("graphs, hop bias", graphs(), None, RelativeTable.hops(8, 8), dim=16)
    yield lambda: Work("points, ball", points(), Neighborhood(radius), dim=16)
    yield lambda: Work("few tokens", Sequence(64), batch=4)
