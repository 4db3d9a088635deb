"""Arguments that no backend is asked about: refused as they come, with what was expected."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from attention_core import (
    Additive,
    AttentionPool,
    ContinuousBias,
    EdgeBias,
    Encoder,
    FeedForward,
    GlobalTokens,
    Graph,
    Grid,
    KVCache,
    LearnedPosition,
    MultiheadAttention,
    Neighborhood,
    Points,
    PrefixLM,
    RelativeTable,
    Rotary,
    Sequence,
    Window,
    attend,
)
from tests.conformance.cases import BACKENDS
from tests.conformance.test_refusals import CLOUD, EDGE, LINE, x

#: What must raise: the error, words of its message, and the call.
WRONG: dict[str, tuple[type[Exception], str, Callable[[], object]]] = {
    "a scale that is no number": (
        ValueError,
        "scale must be a finite number, got nan",
        lambda: attend(x(), x(), x(), scale=float("nan")),
    ),
    "an infinite cap": (
        ValueError,
        "softcap must be a finite number above 0, got inf",
        lambda: attend(x(), x(), x(), softcap=float("inf")),
    ),
    "a sink of integers": (
        ValueError,
        "sink.*int64",
        lambda: attend(x(), x(), x(), sink=torch.zeros(2).long()),
    ),
    "a word for a flag": (
        TypeError,
        "return_lse must be True or False, got 'yes'",
        lambda: attend(x(), x(), x(), return_lse="yes"),
    ),
    "a list of numbers": (TypeError, "q must be a tensor.*list", lambda: attend([1.0], x(), x())),
    "a gate that is a word": (
        TypeError,
        "gate must be True or False, got 'no'",
        lambda: MultiheadAttention(8, 2, gate="no"),
    ),
    "a sink that is a word": (
        TypeError,
        "sink must be True or False, got 'no'",
        lambda: MultiheadAttention(8, 2, sink="no"),
    ),
    "half a head": (
        ValueError,
        "heads must be a whole number of at least 1, got 2.0",
        lambda: MultiheadAttention(8, 2.0),
    ),
    "tokens of size 0": (
        ValueError,
        "dim must be at least 1, got 0",
        lambda: MultiheadAttention(0, 2),
    ),
    "contexts of size 0": (
        ValueError,
        "context_dim must be at least 1, or None, got 0",
        lambda: MultiheadAttention(8, 2, context_dim=0),
    ),
    "negative features": (
        ValueError,
        "edge_dim must be at least 1",
        lambda: MultiheadAttention(8, 2, edge_dim=-1),
    ),
    "a hidden layer of nothing": (
        ValueError,
        "hidden must be at least 1, got 0",
        lambda: FeedForward(8, 0),
    ),
    "a network of nothing": (
        ValueError,
        "hidden must be at least 1, got 0",
        lambda: ContinuousBias(2, (1,), 0),
    ),
    "an endless extent": (ValueError, "extent must be", lambda: ContinuousBias(2, (float("inf"),))),
    "no edge types": (
        ValueError,
        "types must be at least 1, or None, got 0",
        lambda: EdgeBias(2, types=0),
    ),
    "half a hop": (
        ValueError,
        "max_hops must be a whole number",
        lambda: RelativeTable.hops(2, 1.5),
    ),
    "a window of nothing": (
        ValueError,
        "window must be at least 1, got 0",
        lambda: RelativeTable.swin(2, 0),
    ),
    "scores of no heads": (ValueError, "heads must be at least 1, got 0", lambda: Additive(0, 4)),
    "positions without axes": (ValueError, "axes must be at least 1, got 0", lambda: Rotary(0)),
    "a base of 0": (
        ValueError,
        "base must be a finite number above 0, got 0",
        lambda: Rotary(base=0),
    ),
    "a table of no places": (
        ValueError,
        "size must be at least 1, got 0",
        lambda: LearnedPosition(0, 8),
    ),
    "no queries": (
        ValueError,
        "queries must be at least 1, got 0",
        lambda: AttentionPool(8, 2, queries=0),
    ),
    "no depth": (ValueError, "depth must be at least 1, got 0", lambda: Encoder(8, 0, 2)),
    "an eps below 0": (
        ValueError,
        "eps must be a finite number of at least 0",
        lambda: Encoder(8, 1, 2, eps=-1.0),
    ),
    "a cache that is a word": (
        TypeError,
        "max_length must be a whole number.*got 'long'",
        lambda: KVCache("long"),
    ),
    "a sequence of nothing known": (
        TypeError,
        "length must be a whole number.*got None",
        lambda: Sequence(None),
    ),
    "half a token": (
        ValueError,
        "length must be a whole number of at least 0, got 6.0",
        lambda: Sequence(6.0),
    ),
    "less than no tokens": (ValueError, "length must be at least 0, got -1", lambda: Sequence(-1)),
    "a start between tokens": (
        ValueError,
        "start must be a whole number.*got 1.5",
        lambda: Sequence(3, start=1.5),
    ),
    "starts between tokens": (
        ValueError,
        "start must hold whole numbers, got torch.float32",
        lambda: Sequence(3, start=torch.tensor([1.5])),
    ),
    "fewer than no special tokens": (
        ValueError,
        "special must be at least 0, got -1",
        lambda: Grid(2, 2, special=-1),
    ),
    "points that are nowhere": (
        ValueError,
        "coordinates must be finite.*token",
        lambda: Points(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]])),
    ),
    "points without axes": (
        ValueError,
        r"coordinates must have an axis, got \(3, 0\)",
        lambda: Points(CLOUD[:, :0]),
    ),
    "flags of other points": (
        ValueError,
        r"valid must be for 3 points, got \(2,\)",
        lambda: Points(CLOUD, valid=torch.tensor([True, False])),
    ),
    "nodes at other places": (
        ValueError,
        r"coordinates must be \(2, A\)",
        lambda: Graph(EDGE, 2, coordinates=CLOUD),
    ),
    "nodes at no place": (
        ValueError,
        "coordinates must be finite",
        lambda: Graph(EDGE, 2, coordinates=CLOUD[:2] / 0),
    ),
    "unknown nodes": (
        TypeError,
        "num_nodes must be a whole number.*got None",
        lambda: Graph(EDGE, None),
    ),
    "half a node": (
        ValueError,
        "num_nodes must be a whole number of at least 0, got 4.0",
        lambda: Graph(EDGE, 4.0),
    ),
    "fewer than no nodes": (
        ValueError,
        "num_nodes must be at least 0, got -1",
        lambda: Graph(EDGE[:, :0], -1),
    ),
    "negative samples": (
        ValueError,
        "segments must be at least 0, got -1",
        lambda: Points(CLOUD, segments=torch.tensor([-1, 0, 1])),
    ),
    "a place before the first": (
        ValueError,
        "position must be at least 0, got -1",
        lambda: GlobalTokens(-1),
    ),
    "a place that is a word": (
        TypeError,
        "position must be a whole number.*'first'",
        lambda: GlobalTokens("first"),
    ),
    "a place that is not there": (
        ValueError,
        r"GlobalTokens\(99\) names no token of a sequence of 3",
        lambda: attend(x(), x(), x(), mask=GlobalTokens(99)),
    ),
    "a listed place that is not there": (
        ValueError,
        "names no token of a sequence of 3",
        lambda: attend(x(), x(), x(), mask=Neighborhood(1) | GlobalTokens([99])),
    ),
    "a cell that is not there": (
        ValueError,
        "names no token of a 2×2 grid",
        lambda: attend(x(4), x(4), x(4), space=Grid(2, 2), mask=GlobalTokens((0, 2))),
    ),
    "a node that is not there": (
        ValueError,
        "names no token of a graph of 3",
        lambda: attend(x(), x(), x(), space=LINE, mask=GlobalTokens(3)),
    ),
    "half a prefix": (
        ValueError,
        "n must be a whole number of at least 0, got 1.5",
        lambda: PrefixLM(1.5),
    ),
    "a negative prefix": (ValueError, "n must be at least 0, got -1", lambda: PrefixLM(-1)),
    "prefixes between tokens": (ValueError, "n must be.*float32", lambda: PrefixLM(torch.ones(2))),
    "a window that is no number": (
        ValueError,
        "size must be a whole number of at least 1, got nan",
        lambda: Window(float("nan")),
    ),
    "a shift that is a word": (
        TypeError,
        "shift must be a whole number, got '1'",
        lambda: Window(2, shift="1"),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name: str) -> None:
    error, words, call = WRONG[name]
    with pytest.raises(error, match=f"(?s){words}"):
        call()


@pytest.mark.parametrize("backend", BACKENDS)
def test_global_tokens_that_may_come_or_go(backend: str) -> None:
    """In decoding, where some are there, and where not all tokens are, none has to be."""
    q, k = x(1), x(5)
    space = Sequence(1, start=4), Sequence(5)
    attend(q, k, k, space=space, mask=GlobalTokens(9) | Neighborhood(1), backend=backend)
    attend(k, k, k, mask=GlobalTokens(9, 2), backend=backend)
    some = Sequence(9).keep(torch.arange(5))
    attend(k, k, k, space=some, mask=GlobalTokens(8), backend=backend)
    attend(x(0), x(0), x(0), mask=GlobalTokens(0), backend=backend)
    packed = Sequence.packed([2, 3])
    attend(k, k, k, space=packed, mask=GlobalTokens(4), backend=backend)
    with pytest.raises(ValueError, match="GlobalTokens.* names no token"):
        attend(k, k, k, mask=GlobalTokens(9) | Neighborhood(1), backend=backend)
