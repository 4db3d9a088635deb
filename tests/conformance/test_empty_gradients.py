"""Rule 14 for what is learned: without a token or a pair its gradient is 0, never missing.

A process with an empty batch waits for the others, and they for its gradient of every parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_core import (
    Additive,
    AdditiveV2,
    Causal,
    ContinuousBias,
    Decoder,
    DenseBias,
    EdgeBias,
    Edges,
    Encoder,
    Graph,
    Grid,
    Mask,
    MultiheadAttention,
    RelativeTable,
    Rotary,
    Sequence,
    Space,
    attend,
)
from tests.conformance.cases import BACKENDS, REFUSALS

H, DIM = 2, 8
NO_EDGES = torch.zeros(2, 0, dtype=torch.long)


def _graph(nodes: int, attr: Tensor | None = None) -> Graph:
    segments = torch.zeros(nodes, dtype=torch.long)
    attr = torch.zeros(0, 3) if attr is None else attr
    return Graph(NO_EDGES, nodes, edge_attr=attr, segments=segments, num_graphs=min(nodes, 1))


#: tokens, where they sit, and who may attend
NOBODY: dict[str, tuple[tuple[int, ...], Callable[[], Space], Mask | None]] = {
    "no samples": ((0, 5, DIM), lambda: Sequence(5), None),
    "no tokens": ((2, 0, DIM), lambda: Sequence(0), None),
    "no tokens, causal": ((2, 0, DIM), lambda: Sequence(0), Causal()),
    "no tokens, packed": ((0, DIM), lambda: Sequence.packed([]), None),
    "only padding": ((2, 3, DIM), lambda: Sequence.padded([0, 0], 3), None),
    "no pairs": ((2, 3, DIM), lambda: Sequence(3), Causal() & ~Causal()),
    "no cells": ((1, 0, DIM), lambda: Grid(0, 3), None),
    "no nodes": ((0, DIM), lambda: _graph(0), Edges()),
    "no nodes, all pairs": ((0, DIM), lambda: _graph(0), None),
    "no edges": ((3, DIM), lambda: _graph(3), Edges()),
    "no edges, all pairs": ((3, DIM), lambda: _graph(3), None),
}

#: what of attention is learned, and a space that it needs, if any
LEARNED: dict[str, tuple[Callable[[], dict[str, Any]], type[Space]]] = {
    "sink": (lambda: {"sink": True, "gate": True}, Space),
    "layer norm": (lambda: {"qk_norm": "layer", "key_bias": False, "kv_heads": 1}, Space),
    "rms norm": (lambda: {"qk_norm": "rms", "projection_bias": False}, Space),
    "temperature": (lambda: {"qk_norm": "cosine", "sink": True}, Space),
    "t5": (lambda: {"bias": RelativeTable.t5(H), "sink": True, "rotary": Rotary()}, Sequence),
    "special": (lambda: {"bias": RelativeTable.hops(H, 2, special=True)}, Space),
    "sum": (lambda: {"bias": RelativeTable.t5(H) + RelativeTable.hops(H, 2)}, Sequence),
    "window": (lambda: {"bias": RelativeTable.swin(H, 2)}, Grid),
    "continuous": (lambda: {"bias": ContinuousBias(H, (2, 2), hidden=4)}, Grid),
    "hops": (lambda: {"bias": RelativeTable.hops(H, 2)}, Graph),
    "edge types": (lambda: {"bias": EdgeBias(H, types=3)}, Graph),
    "edge features": (lambda: {"bias": EdgeBias(H, features=3), "edge_dim": 3}, Graph),
    "additive": (lambda: {"score": Additive(H, DIM // H, edge=True), "edge_dim": 3}, Graph),
    "additive 2": (lambda: {"score": AdditiveV2(H, DIM // H), "sink": True}, Space),
}


def _cases() -> list[tuple[str, str, str]]:
    features = {"score": "score", "edge_dim": "edge features"}
    found = []
    for case, (_, make, _) in NOBODY.items():
        for name, (make_options, needs) in LEARNED.items():
            space, options = make(), make_options()
            # Rows of special tokens are of no use to tokens that have none among them
            if isinstance(space, needs) and not (name == "special" and space.length):
                lacks = {features[key] for key in options if key in features}
                backends = [b for b in BACKENDS if not any((b, f) in REFUSALS for f in lacks)]
                found += [(case, name, backend) for backend in backends]
    return found


def _missing(module: nn.Module) -> list[str]:
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
    return [name for name, p in module.named_parameters() if p.grad is None]


@pytest.mark.parametrize(("case", "learned", "backend"), _cases())
def test_what_attention_learns(case: str, learned: str, backend: str) -> None:
    shape, make, mask = NOBODY[case]
    space = make()
    if learned == "edge types":
        space = _graph(space.length, torch.zeros(0, dtype=torch.long))
    layer = MultiheadAttention(DIM, H, **LEARNED[learned][0]())
    x = torch.randn(shape, requires_grad=True)
    layer(x, space=space, mask=mask, backend=backend).sum().backward()
    assert not _missing(layer)
    assert x.grad is not None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("queries", "keys"), [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("batch", [0, 2])
def test_what_a_stack_learns(batch: int, queries: int, keys: int, backend: str) -> None:
    x, context = (torch.randn(batch, n, DIM, requires_grad=True) for n in (queries, keys))
    bias, more = RelativeTable.t5(H), {"layer_scale": 0.1, "sink": True, "gate": True}
    encoder = Encoder(DIM, 1, H, bias=bias, rotary=Rotary(), feed_forward_norm=True, **more)
    decoder = Decoder(DIM, 1, H, cross=True, qk_norm="cosine", key_bias=False, **more)
    encoded = encoder(context, backend=backend)
    decoder(x, context=encoded, backend=backend).sum().backward()
    assert not _missing(encoder)
    assert not _missing(decoder)
    assert x.grad is not None
    assert context.grad is not None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("queries", "keys"), [(0, 3), (3, 0), (0, 0)])
def test_biases_that_are_tensors(queries: int, keys: int, backend: str) -> None:
    given, parameter = (torch.randn(queries, keys, requires_grad=True) for _ in range(2))
    bias = DenseBias(given) + DenseBias(nn.Parameter(parameter))
    q, k = torch.randn(1, H, queries, 4), torch.randn(1, H, keys, 4)
    space = Sequence(queries), Sequence(keys)
    attend(q, k, k, space=space, bias=bias, backend=backend).sum().backward()
    assert given.grad is not None
    assert not _missing(bias)
