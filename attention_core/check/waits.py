"""How often a layer waits for a GPU, as torch counts it (`torch.cuda.set_sync_debug_mode`)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from attention_core.biases import RelativeTable
from attention_core.cache import KVCache
from attention_core.layers import Decoder, Encoder
from attention_core.masks import Edges, Neighborhood
from attention_core.spaces import Graph, Grid, Sequence, Space

DIM, HEADS, DEPTH = 64, 4, 4


class Waits(NamedTuple):
    """Waits of one step of four layers: with a plan, forward, and backward."""

    scenario: str
    forward: int
    backward: int


def _graph() -> Graph:
    edges = torch.randint(500, (2, 4000), generator=torch.Generator().manual_seed(0))
    return Graph(edges, 500)


#: Scenario: the space, the options of an Encoder, and whether tokens are in one row.
SCENARIOS: dict[str, tuple[Callable[[], Space], dict[str, object]]] = {
    "grid, all pairs": (lambda: Grid(14, 14), {}),
    "padded texts": (lambda: Sequence.padded([100, 30, 70]), {}),
    "packed texts": (lambda: Sequence.packed([100, 30, 70]), {}),
    "packed texts, windows, T5": (
        lambda: Sequence.packed([900, 300, 700]),
        {"mask": Neighborhood(64), "bias": RelativeTable.t5(HEADS)},
    ),
    "graph, edges": (_graph, {"mask": Edges()}),
    "graph, edges, GAT's score": (_graph, {"mask": Edges(), "score": "additive"}),
}


def scenarios(device: torch.device) -> Iterator[Waits]:
    """Yield the waits of each scenario on a GPU, of its second step."""
    for name, (make, options) in SCENARIOS.items():
        torch.manual_seed(0)
        encoder = Encoder(DIM, DEPTH, HEADS, **options).to(device)  # type: ignore[arg-type]
        space = make()
        shape = (DIM,) if space.batch is None else (space.batch, space.length, DIM)
        x = torch.randn(*((space.length, DIM) if space.batch is None else shape), device=device)

        def step(encoder: Encoder = encoder, x: torch.Tensor = x, space: Space = space) -> object:
            return encoder(x, space)

        yield _counted(name, step)
    yield _decode(device)


def _decode(device: torch.device) -> Waits:
    """A token of a decoder with a cache."""
    decoder = Decoder(DIM, DEPTH, HEADS).to(device).eval()
    cache: KVCache = decoder.new_cache()
    x = torch.randn(1, 8, DIM, device=device)
    with torch.no_grad():
        decoder(x, cache=cache)
        return _counted("decode step", lambda: decoder(x[:, :1], cache=cache))


def _counted(name: str, step: Callable[[], object]) -> Waits:
    def run() -> tuple[int, int]:
        with _counting() as forward:
            out = step()
        with _counting() as backward:
            if isinstance(out, torch.Tensor) and out.requires_grad:
                out.sum().backward()
        return len(forward), len(backward)

    run()  # what is made once a process is no wait of a step
    torch.cuda.synchronize()
    return Waits(name, *run())


@contextmanager
def _counting() -> Iterator[list[warnings.WarningMessage]]:
    before = torch.cuda.get_sync_debug_mode()
    found: list[warnings.WarningMessage] = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
            found += [one for one in told if "synchroniz" in str(one.message)]
