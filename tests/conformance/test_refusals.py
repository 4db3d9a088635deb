"""What is refused, and that the message says what came and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from attention_core import (
    Additive,
    ALiBi,
    BackendError,
    Causal,
    ContinuousBias,
    DenseBias,
    Dilated,
    EdgeBias,
    EdgeProjection,
    Edges,
    GlobalTokens,
    Graph,
    Grid,
    Mask,
    MultiheadAttention,
    Neighborhood,
    Points,
    PrefixLM,
    RelativeTable,
    ScalableSoftmax,
    Sequence,
    Space,
    Window,
    attend,
    plan,
)
from tests.conformance.cases import BACKENDS, REFUSALS, can

LINE = Graph(torch.tensor([[0, 1], [1, 2]]), 3, edge_attr=torch.randn(2, 5))

FEATURES: dict[str, Callable[[], dict[str, Any]]] = {
    "softcap": lambda: {"softcap": 3.0},
    "score": lambda: {"score": Additive(2, 4)},
    "sink": lambda: {"sink": torch.zeros(2)},
    "bias": lambda: {"bias": RelativeTable.t5(2)},
    "weights": lambda: {"return_weights": True},
    "lse": lambda: {"return_lse": True},
    "dropout": lambda: {"dropout_p": 0.5},
    "score mod": lambda: {"bias": ALiBi(2) + ScalableSoftmax(2, 8)},
    "edge features": lambda: {"space": LINE, "edge_key": torch.randn(2, 2, 4)},
    "network": lambda: {"space": Points(torch.randn(3, 2)), "bias": ContinuousBias(2, (1.0, 1.0))},
}
#: How a plan is told of it, where not in the same words.
PLANNED: dict[str, dict[str, Any]] = {"edge features": {"space": LINE, "edge_features": True}}


def x(length: int = 3, heads: int = 2, batch: int = 1, dim: int = 4) -> torch.Tensor:
    return torch.randn(batch, heads, length, dim)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("feature", FEATURES)
def test_refusals_are_exactly_those_listed(feature: str, backend: str) -> None:
    """What the table lists is refused by name, and nothing else is; the plan never chooses it."""
    options = FEATURES[feature]()
    if (backend, feature) not in REFUSALS:
        attend(x(), x(), x(), backend=backend, **options)
        return
    with pytest.raises(BackendError, match=f"backend='{backend}'.*{feature}"):
        attend(x(), x(), x(), backend=backend, **options)
    attend(x(), x(), x(), **options)
    assert plan(**{"space": Sequence(3)} | PLANNED.get(feature, options)).backend != backend


def test_every_refusal_is_of_a_backend_and_a_feature() -> None:
    assert all(b in BACKENDS and f in FEATURES for b, f in REFUSALS)


EDGE = torch.tensor([[0], [1]])
CLOUD = torch.zeros(3, 2)

#: What must raise: the error, words of its message, and the call.
WRONG: dict[str, tuple[type[Exception], str, Callable[[], object]]] = {
    "heads that do not divide": (
        ValueError, "heads of q must be a multiple.*got 3 and 2",
        lambda: attend(x(heads=3), x(), x()),
    ),
    "more key heads": (ValueError, "got 2 and 4", lambda: attend(x(), x(heads=4), x(heads=4))),
    "three dimensions": (ValueError, r"q must be float \(B, H, L, D\)", lambda: attend(
        x()[0], x(), x())),
    "integers": (ValueError, "k must be float.*int64", lambda: attend(x(), x().long(), x())),
    "sizes of heads": (ValueError, r"\(1, 2, 3, 4\).*\(1, 2, 3, 5\)", lambda: attend(
        x(), x(dim=5), x())),
    "batches": (ValueError, r"\(2, 2, 3, 4\)", lambda: attend(x(batch=2), x(), x())),
    "lengths of k and v": (ValueError, r"\(1, 2, 4, 4\)", lambda: attend(x(), x(), x(4))),
    "heads of k and v": (ValueError, r"\(1, 1, 3, 4\)", lambda: attend(x(), x(), x(heads=1))),
    "sink": (ValueError, r"sink must have shape \(2,\), got \(3,\)", lambda: attend(
        x(), x(), x(), sink=torch.zeros(3))),
    "dropout": (ValueError, r"dropout_p must be in \[0, 1\), got 1", lambda: attend(
        x(), x(), x(), dropout_p=1)),
    "unknown backend": (ValueError, "reference, dense.*edges.*got 'flash'", lambda: attend(
        x(), x(), x(), backend="flash")),
    "length of the space": (ValueError, "4 queries and 4 keys.*q is", lambda: attend(
        x(), x(), x(), space=Sequence(4))),
    "batch of the space": (ValueError, "batch size 1.*2", lambda: attend(
        x(), x(), x(), space=Sequence.padded([3, 1]))),
    "batches of two spaces": (ValueError, "2 and 3", lambda: plan(
        (Sequence.padded([1, 2]), Sequence.padded([1, 2, 2])))),
    "more queries than keys": (ValueError, r"more queries \(3\) than keys \(2\).*space", lambda:
        attend(x(), x(2), x(2), mask=Causal())),
    "a list as mask": (TypeError, "mask must be a Mask.*list", lambda: attend(
        x(), x(), x(), mask=[[True] * 3] * 3)),
    "a number as bias": (TypeError, "bias must be a Bias.*float", lambda: attend(
        x(), x(), x(), bias=1.0)),
    "a bool bias": (TypeError, "bias must be float.*bool", lambda: DenseBias(
        torch.ones(3, 3, dtype=torch.bool))),
    "a bias of another shape": (ValueError, r"bias.*\(3, 4\).*\(1, 2, 3, 3\)", lambda: attend(
        x(), x(), x(), bias=torch.zeros(3, 4))),
    "an ambiguous bias": (ValueError, r"\(2, 3, 3\).*ambiguous", lambda: attend(
        x(), x(), x(), bias=torch.zeros(2, 3, 3))),
    "a mask with a tensor": (TypeError, "compose with masks, got Tensor", lambda: Causal()
        & torch.ones(3, 3, dtype=torch.bool)),
    "biases of other heads": (ValueError, r"bias.*\(1, 3, 3, 3\)", lambda: attend(
        x(), x(), x(), bias=torch.zeros(1, 3, 3, 3))),
    "slopes of fewer heads": (
        ValueError,
        "(?i)heads.*2.*4|4.*heads.*2",
        lambda: attend(x(heads=4), x(heads=4), x(heads=4), bias=ALiBi(2)),
    ),
    "slopes of more heads": (
        ValueError,
        "(?i)heads.*8.*4|4.*heads.*8",
        lambda: attend(x(heads=4), x(heads=4), x(heads=4), bias=ALiBi(8)),
    ),
    "a table of more heads": (
        ValueError,
        "(?i)heads.*8.*4|4.*heads.*8",
        lambda: attend(x(heads=4), x(heads=4), x(heads=4), bias=RelativeTable.t5(8)),
    ),
    "prefixes of fewer samples": (
        ValueError,
        "(?i)samples",
        lambda: attend(x(batch=2), x(batch=2), x(batch=2), mask=PrefixLM(torch.tensor([1]))),
    ),
    "edge features nowhere": (TypeError, "edge_key=.*need edges: .*got a sequence",
        lambda: attend(x(), x(), x(), edge_key=torch.randn(2, 2, 4))),
    "edge features of fewer edges": (
        ValueError, r"edge_key must be float \(E, Hkv, D\) = \(2, 2, 4\) for a graph.*\(1, 2, 4\)",
        lambda: attend(x(), x(), x(), space=LINE, edge_key=torch.randn(1, 2, 4)),
    ),
    "edge features of other heads": (
        ValueError, r"edge_value must be float \(E, Hkv, Dv\) = \(2, 2, 4\).*\(2, 8\)",
        lambda: attend(x(), x(), x(), space=LINE, edge_value=torch.randn(2, 8)),
    ),
    "edge features of integers": (ValueError, "edge_key must be float.*int64", lambda: attend(
        x(), x(), x(), space=LINE, edge_key=torch.zeros(2, 2, 4).long())),
    "edge features of another dtype": (
        ValueError, "edge_value must have the dtype of q, torch.float32, got torch.float64",
        lambda: attend(x(), x(), x(), space=LINE, edge_value=torch.zeros(2, 2, 4).double()),
    ),
    "edge features of another kind": (
        TypeError, r"edge_key must be a tensor \(E, Hkv, D\) or an EdgeProjection, got str",
        lambda: attend(x(), x(), x(), space=LINE, edge_key="features"),  # type: ignore[arg-type]
    ),
    "a projection of other features": (
        ValueError, r"edge_value must be EdgeProjection\(attr \(E, F\).*\(2, 3\) and .*\(2, 4, 5\)",
        lambda: attend(x(), x(), x(), space=LINE,
                       edge_value=EdgeProjection(torch.randn(2, 3), torch.randn(2, 4, 5))),
    ),
    "a projection to other heads": (
        ValueError, r"edge_key must be float \(E, Hkv, D\) = \(2, 2, 4\) for.*\(2, 1, 4\)",
        lambda: attend(x(), x(), x(), space=LINE,
                       edge_key=EdgeProjection(torch.randn(2, 3), torch.randn(1, 4, 3))),
    ),
    "a projection of two dtypes": (
        ValueError, "edge_key must have one dtype, got attr torch.float64 and weight torch.float32",
        lambda: attend(x(), x(), x(), space=LINE,
                       edge_key=EdgeProjection(torch.randn(2, 3).double(), torch.randn(2, 4, 3))),
    ),
    "a plan without edge features": (
        ValueError, "made without edge_features.*called with edge_key=",
        lambda: attend(x(), x(), x(), edge_key=torch.randn(2, 2, 4), plan=plan(LINE, heads=2)),
    ),
    "a plan with edge features": (
        ValueError, "made with edge_features.*called without edge_key=",
        lambda: attend(x(), x(), x(), plan=plan(LINE, heads=2, edge_features=True)),
    ),
    "edge features for a score without a weight": (
        ValueError, r"Additive\(..., edge=True\).*EdgeBias", lambda: attend(
            x(), x(), x(), space=LINE, score=Additive(2, 4), edge_key=torch.randn(2, 2, 4)),
    ),
    "a layer for edges on a sequence": (
        TypeError, "edge_dim=.*need edges: .*got a sequence",
        lambda: MultiheadAttention(8, 2, edge_dim=5)(torch.randn(3, 8))),
    "a layer for edges without features": (
        TypeError, r"edge_dim=5 asks for Graph\(..., edge_attr=...\).*\(E, 5\), got a graph of 2",
        lambda: MultiheadAttention(8, 2, edge_dim=5)(torch.randn(2, 8), space=Graph(EDGE, 2)),
    ),
    "a layer for wider edges": (
        ValueError, r"edge_attr must be float \(E, 4\) for edge_dim=4, got torch.float32 \(2, 5\)",
        lambda: MultiheadAttention(8, 2, edge_dim=4)(torch.randn(3, 8), space=LINE),
    ),
    "a layer for float edges": (
        ValueError, r"edge_attr must be float \(E, 1\).*got torch.int64 \(1, 1\)",
        lambda: MultiheadAttention(8, 2, edge_dim=1)(
            torch.randn(2, 8), space=Graph(EDGE, 2, edge_attr=torch.tensor([[0]]))),
    ),
    "float edges": (TypeError, "edge_index must hold integers, got torch.float32", lambda: Graph(
        EDGE.float(), 2)),
    "edges of another shape": (ValueError, r"edge_index must have shape \(2, E\), got \(1, 2\)",
        lambda: Graph(EDGE.T, 2)),
    "a graph's batch": (TypeError, "Graph takes no batch=: the graph of each node is segments=",
        lambda: Graph(EDGE, 2, batch=torch.zeros(2).long())),
    "edges beyond the nodes": (ValueError, "names node 1, but num_nodes=1", lambda: Graph(EDGE, 1)),
    "negative nodes": (ValueError, "names node -1", lambda: Graph(-EDGE, 2)),
    "features of other edges": (ValueError, "edge_attr has 2 rows for 1 edges", lambda: Graph(
        EDGE, 2, edge_attr=torch.zeros(2))),
    "edges between graphs": (ValueError, "different graphs", lambda: Graph(
        EDGE, 2, segments=torch.tensor([0, 1]))),
    "graphs in disorder": (ValueError, "must not decrease", lambda: Graph(
        EDGE, 3, segments=torch.tensor([1, 1, 0]))),
    "an axis twice": (ValueError, "axes must be different", lambda: Causal(axes=(0, 0))),
    "a stride above the window": (
        ValueError, "stride must be at most", lambda: Neighborhood(1, "shift", stride=4)
    ),
    "a third of a radius": (
        ValueError, r"radius must be \(kernel size - 1\) / 2", lambda: Neighborhood(1.3, "shift")
    ),
    "dilation of a border that is cut": (
        ValueError, "dilation=2.*need border='shift'", lambda: Neighborhood(1, dilation=2)
    ),
    "options for other axes": (
        ValueError, "one number of axes",
        lambda: Neighborhood((1, 1), "shift", is_causal=(True, False, True)),
    ),
    "negative radius": (ValueError, "radius must be at least 0, got -1", lambda: Neighborhood(-1)),
    "negative radius of an axis": (ValueError, "radius", lambda: Neighborhood((1, -1))),
    "no number as radius": (ValueError, "radius", lambda: Neighborhood(float("nan"))),
    "windows of nothing": (ValueError, "size must be at least 1", lambda: Window(0)),
    "steps of nothing": (ValueError, "step must be at least 1", lambda: Dilated(0)),
    "no heads": (ValueError, "heads must be at least 1", lambda: ALiBi(0)),
    "few buckets": (ValueError, "T5 needs", lambda: RelativeTable.t5(2, buckets=2)),
    "no edge types and no features": (ValueError, "one of types= and features=", lambda: EdgeBias(
        2)),
    "integer points": (ValueError, "coordinates must be float", lambda: Points(CLOUD.long())),
    "a flat cloud": (ValueError, r"\(N, A\)", lambda: Points(CLOUD[0])),
    "negative lengths": (ValueError, "lengths must be whole", lambda: Sequence.packed([2, -1])),
    "float lengths": (ValueError, "lengths must be whole", lambda: Sequence.padded([1.5])),
    "too short": (ValueError, "length=2 is shorter than the longest sample, 3", lambda:
        Sequence.padded([3], 2)),
    "a wrong side": (ValueError, "side must be 'left' or 'right'", lambda: Sequence.padded(
        [3], side="up")),
    "grids of different axes": (ValueError, "one number of axes", lambda: Grid.packed(
        [(2, 2), (1, 2, 3)])),
    "a float grid": (ValueError, "whole numbers", lambda: Grid(2.0, 2)),
    "a float index": (ValueError, "index must hold integers", lambda: Sequence(3).keep(
        torch.zeros(2))),
    "flags of another length": (ValueError, r"\(3,\), got \(2,\)", lambda: Sequence(3).keep(
        torch.tensor([True, False]))),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_refused_in_words(name: str) -> None:
    error, words, call = WRONG[name]
    with pytest.raises(error, match=f"(?s){words}"):
        call()


GRAPH, PACKED = Graph(EDGE, 2, edge_attr=torch.tensor([0])), Sequence.packed([1, 2])

GLOBE = Grid(2, 4, wrap=(False, True))

#: What a space cannot serve: space, mask, bias, and words of the message.
CANNOT: dict[str, tuple[Any, Mask | None, Any, str]] = {
    "Causal on Points": (Points(CLOUD), Causal(), None, "no order"),
    "Causal on a Graph": (GRAPH, Causal(), None, "no order"),
    "Causal along an axis of a Graph": (GRAPH, Causal(axes=0), None, "no coordinates"),
    "Causal along an axis that is not there": (
        Grid(2, 2), Causal(axes=2), None, "axes=2 is out of range: a 2×2 grid, .* has 2 axes"
    ),
    "Dilated along an axis that is not there": (
        Sequence(3), Dilated(2, axes=(0, -2)), None, "axes=.*out of range: a sequence .* has 1"
    ),
    "two steps along one axis": (Grid(2, 2), Dilated((2, 1), axes=0), None, "step=.*of axes=0"),
    "Causal where nothing ends": (GLOBE, Causal(), None, "wraps along axis 1, .* has no order"),
    "Causal along an axis that wraps": (GLOBE, Causal(axes=-1), None, "no order .* along axis 1"),
    "windows that do not come round": (GLOBE, Window((1, 3)), None, "size=.*fit.* has 4 places"),
    "a step that does not come round": (GLOBE, Dilated(3, axes=1), None, "step=3 must fit"),
    "strides where nothing begins": (
        GLOBE, Neighborhood(1, "shift", stride=2), None, "stride=2 .*begin at an end"
    ),
    "another globe": (
        (GLOBE, Grid(2, 6, wrap=(False, True))), Neighborhood(1), None, "wrap at different places"
    ),
    "a globe and a map": ((GLOBE, Grid(2, 4)), None, ALiBi(2), "wrap differ"),
    "Edges on a Sequence": (Sequence(3), Edges(), None, "no edges"),
    "Edges on a Grid": (Grid(2, 2), Edges(), None, "no edges"),
    "PrefixLM on a Grid": (Grid(2, 2), PrefixLM(1), None, "PrefixLM needs a Sequence"),
    "PrefixLM on a Graph": (GRAPH, PrefixLM(1), None, "Sequence|no order"),
    "Window on a Graph": (GRAPH, Window(2), None, "no coordinates"),
    "Dilated on a Graph": (GRAPH, Dilated(2), None, "no coordinates"),
    "Neighborhood nowhere": (Space(3), Neighborhood(1), None, "no distance"),
    "a radius of two axes on a Sequence": (Sequence(3), Neighborhood((1, 1)), None, "axes"),
    "a far radius of two axes on a Sequence": (Sequence(3), Neighborhood((9, 9)), None, "axes"),
    "a radius of two axes on a Graph": (GRAPH, Neighborhood((1, 1)), None, "axes|no coordinates"),
    "a window of three axes on a Grid": (Grid(2, 2), Window((1, 1, 1)), None, "per axis"),
    "a global place of two axes": (Sequence(3), GlobalTokens((0, 1)), None, "1 coordinates"),
    "a global cell without its axes": (Grid(2, 2), GlobalTokens(1), None, "2 coordinates"),
    "T5 on a Grid": (Grid(2, 2), None, RelativeTable.t5(2), "Sequence"),
    "Swin of two axes on a Sequence": (Sequence(3), None, RelativeTable.swin(2, 2), "Grid with 2"),
    "Swin on Points": (Points(CLOUD), None, RelativeTable.swin(2, 2), "Grid with 2"),
    "hops nowhere": (Space(3), None, RelativeTable.hops(2, 2), "no distance"),
    "edge features of a Sequence": (Sequence(3), None, EdgeBias(2, types=1), "no edge"),
    "edge features not given": (Graph(EDGE, 2), None, EdgeBias(2, types=1), "edge_attr"),
    "types for features": (GRAPH, None, EdgeBias(2, features=1), "float features"),
    "an offset of other axes": (Grid(2, 2), None, ContinuousBias(2, (1,)), "axes"),
    "shift on Points": (Points(CLOUD), Neighborhood(1, "shift"), None, "needs a Sequence or Grid"),
    "shift on a Graph": (GRAPH, Neighborhood(1, "shift"), None, "needs a Sequence or Grid"),
    "shift without an end": (PACKED, Neighborhood(1, "shift"), None, "where .* ends; .*packed"),
    "shift where tokens went": (
        Sequence(3).keep(torch.tensor([0, 2])), Neighborhood(1, "shift"), None, "where .* ends"
    ),
    "shift to another end": (
        (Grid(2, 2), Grid(3, 3)), Neighborhood(1, "shift"), None, "queries and keys of one grid"
    ),
    "a dilation of three axes": (
        Grid(2, 2), Neighborhood(1, "shift", dilation=(1, 2, 1)), None, "dilation=.*3 axes.*has 2"
    ),
    "two kinds of space": ((Sequence(2), Grid(2, 2)), Neighborhood(1), None, "distance between"),
    "order across kinds": ((Sequence(4), Grid(2, 2)), Causal(), None, "order between"),
    "samples on one side": ((Sequence(2), PACKED), None, None, "both be in segments"),
}  # fmt: skip


@pytest.mark.parametrize("backend", [None, *BACKENDS])
@pytest.mark.parametrize("name", CANNOT)
def test_what_a_space_cannot_serve(name: str, backend: str | None) -> None:
    """In every backend alike: TypeError for the wrong kind, ValueError for the wrong numbers."""
    space, mask, bias, words = CANNOT[name]
    query, key = space if isinstance(space, tuple) else (space, space)
    q, k = x(query.length), x(key.length)
    with pytest.raises((TypeError, ValueError), match=words) as error:
        attend(q, k, k, space=space, mask=mask, bias=bias, backend=backend)
    assert not isinstance(error.value, BackendError)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_edge_listed_twice(backend: str) -> None:
    """`edges` gives each its own score; elsewhere a pair has one, so it is refused in words."""
    twice = Graph(torch.tensor([[0, 0, 1], [1, 1, 0]]), 2, edge_attr=torch.tensor([0, 1, 0]))
    q, k, v = x(2), x(2), x(2)
    bias = EdgeBias(2, types=2)
    with torch.no_grad():
        bias.table.copy_(torch.tensor([[0.0, 1.0], [2.0, -1.0]]))
    if backend == "edges":
        once = Graph(torch.tensor([[0, 1], [1, 0]]), 2)
        summed = torch.zeros(1, 2, 2, 2)  # two edges of scores a and b weigh as one of log(eᵃ + eᵇ)
        summed[0, :, 1, 0] = bias.table.logsumexp(0).detach()
        summed[0, :, 0, 1] = bias.table[0].detach()
        expected = attend(q, k, v, space=once, mask=Edges(), bias=summed, backend="reference")
        found = attend(q, k, v, space=twice, mask=Edges(), bias=bias, backend=backend)
        torch.testing.assert_close(found, expected)
        return
    with pytest.raises(ValueError, match="0 → 1 more than once"):
        attend(q, k, v, space=twice, mask=Edges(), bias=bias, backend=backend)


@pytest.mark.parametrize("mask", [Edges(), Edges() & ~Neighborhood(0), Neighborhood(1)])
@pytest.mark.parametrize("backend", can("edge features"))
def test_features_of_an_edge_listed_twice(backend: str, mask: Mask) -> None:
    """As with a bias: what the mask lists by edge are keys and values of their own in `edges`;
    elsewhere a pair has one edge, so it is refused in words."""
    twice = Graph(torch.tensor([[0, 0, 1], [1, 1, 0]]), 2)
    q, k, v, edge_key, edge_value = x(2), x(2), x(2), *torch.randn(2, 3, 2, 4).unbind()

    def run() -> torch.Tensor:
        return attend(q, k, v, space=twice, mask=mask, edge_key=edge_key, edge_value=edge_value,
                      backend=backend)  # fmt: skip

    if backend == "edges" and mask != Neighborhood(1):
        key, value = (t[0, :, 0] + e[:2] for t, e in ((k, edge_key), (v, edge_value)))  # (2, H, D)
        weights = torch.einsum("hd,ehd->he", q[0, :, 1], key).div(2).softmax(-1)
        torch.testing.assert_close(run()[0, :, 1], torch.einsum("he,ehd->hd", weights, value))
        torch.testing.assert_close(run()[0, :, 0], v[0, :, 1] + edge_value[2])
        return
    with pytest.raises(ValueError, match="0 → 1 more than once"):
        run()
