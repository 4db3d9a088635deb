"""Features of edges with their projection are what the tensor of both is, in every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attention_core import (
    Additive,
    AdditiveV2,
    Bias,
    EdgeProjection,
    Pairs,
    Score,
    ScoreMod,
    attend,
)
from attention_core.backends.edges import features, pairs
from tests.conformance.cases import (
    DIM,
    HEADS,
    KV_HEADS,
    PLACES,
    VALUE_DIM,
    biases_of,
    can,
    gradients,
    masks_of,
    tensors,
)


class Cosine(Score):
    """A score of the user's own."""

    def forward(self, query: Tensor, key: Tensor, head: Tensor) -> Tensor:
        return torch.cosine_similarity(query, key, dim=-1)


class Shrunk(ScoreMod):
    def modify(self, score: Tensor, pairs: Pairs) -> Tensor:
        return 0.7 * score


SCORES: dict[str, Any] = {
    "dot": lambda: None,
    "additive": lambda: Additive(HEADS, DIM, edge=True).double(),
    "additive_v2": lambda: AdditiveV2(HEADS, DIM).double(),
    "own": Cosine,
}
#: Pairs with an edge each; of which some have none; a batch that shares the edges; two sets.
WHERE = [
    ("graph", "edges", "both", "few"),
    ("graph", "edges", "key", "many"),
    ("graph+virtual", "near-2", "others", "few"),
    ("graph+virtual", "near-2", "value", "few"),
    ("graphs", "none", "both", "few"),
    ("bipartite", "edges", "both", "few"),
]
SIZES = {"few": 3, "many": 6 * DIM + 1}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that begin and end inside of rows."""
    for module in (features, pairs):
        monkeypatch.setattr(module, "_CHUNK", 64)


def projections(edges: int, size: int, which: str) -> tuple[dict[str, Any], list[Tensor]]:
    """Keys and values of edges, and what of them is to be learned."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    key = EdgeProjection(normal(edges, size), normal(KV_HEADS, DIM, size))
    value = EdgeProjection(key.attr, normal(KV_HEADS, VALUE_DIM, size))
    if which == "others":  # values have features of their own
        value = EdgeProjection(normal(edges, 2), normal(KV_HEADS, VALUE_DIM, 2))
    given: dict[str, Any] = {"edge_key": key, "edge_value": value}
    if which == "key":
        del given["edge_value"]
    if which == "value":
        given["edge_key"] = normal(edges, KV_HEADS, DIM)  # a tensor beside it
    learned = [x for one in given.values() for x in ([one] if isinstance(one, Tensor) else one)]
    return given, learned


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("place", "mask", "which", "size"), WHERE)
def test_they_are_what_their_product_is(
    place: str, mask: str, score: str, which: str, size: str
) -> None:
    """Outputs, weights, log-sum-exp and all gradients, beside every option."""
    torch.manual_seed(0)
    where = PLACES[place]
    edges = where.space[1] if isinstance(where.space, tuple) else where.space
    given, learned = projections(edges.edges.num_edges, SIZES[size], which)
    made = SCORES[score]()
    sink = torch.randn(HEADS, dtype=torch.float64, requires_grad=True)
    bias: Bias = Shrunk()
    if which in ("both", "key"):
        bias = biases_of(place)["edge-types"].bias
    options: dict[str, Any] = {"score": made, "softcap": 0.9, "sink": sink, "bias": bias}
    q, k, v = tensors(where)
    learned += [q, k, v, sink, *bias.parameters(), *(() if made is None else made.parameters())]

    def results(backend: str, dropout_p: float = 0.0, **features: Any) -> list[Tensor]:
        torch.manual_seed(1)
        out, weights, lse = attend(
            q, k, v, space=where.space, mask=masks_of(place)[mask].mask, backend=backend,
            dropout_p=dropout_p, return_weights=True, return_lse=True, **options, **features,
        )  # fmt: skip
        both = torch.cat([out.flatten(), lse.masked_fill(lse.isinf(), 0).flatten()])
        return [out, weights, lse, *gradients(both, learned)]

    def product() -> dict[str, Tensor]:
        return {n: x if isinstance(x, Tensor) else x.tensor() for n, x in given.items()}

    expected = results("reference", **product())
    for backend in can("edge features"):
        actual = results(backend, **given)
        for got, wanted in zip(actual, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    dropped = results("edges", 0.4, **given), results("edges", 0.4, **product())
    for got, wanted in zip(*dropped, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("score", ["dot", "additive", "additive_v2"])
def test_second_derivatives(score: str) -> None:
    torch.manual_seed(0)
    where, mask = PLACES["graph+virtual"], masks_of("graph+virtual")["near-2"].mask
    given, _ = projections(where.space.edges.num_edges, 3, "both")
    made, inputs = SCORES[score](), tensors(where)

    def function(*inputs: Tensor) -> Tensor:
        q, k, v, attr, key, value = inputs
        return attend(
            q, k, v, space=where.space, mask=mask, score=made, edge_key=EdgeProjection(attr, key),
            edge_value=EdgeProjection(attr, value), backend="edges",
        )  # fmt: skip

    attr, key = given["edge_key"]
    inputs = (*inputs, attr, key, given["edge_value"].weight)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)],
)
def test_precision(dtype: torch.dtype, autocast: bool) -> None:
    """Of a lower precision the numbers that are given, none that is computed from them."""
    where, mask = PLACES["graph"], masks_of("graph")["edges"].mask
    torch.manual_seed(0)
    _, learned = projections(where.space.edges.num_edges, 3, "both")
    inputs = [x.detach().bfloat16().to(dtype) for x in (*tensors(where), *learned[:2])]
    results = []
    for exact in (True, False):
        q, k, v, attr, weight = (x.double() if exact else x for x in inputs)
        edge = EdgeProjection(attr.requires_grad_(), weight)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and not exact):
            out = attend(q, k, v, space=where.space, mask=mask, edge_key=edge, backend="edges")
        (gradient,) = torch.autograd.grad(out.float().square().sum(), attr)
        results.append([out, gradient])
    low = autocast or dtype == torch.bfloat16
    for wanted, got in zip(*results, strict=True):
        tolerance = 2e-2 if low else 1e-5
        torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)


def test_operators_are_what_they_say() -> None:
    """Schemas, fake tensors and the graph of `torch.compile`, by torch's own check."""
    where = PLACES["graph"]
    calls: list[tuple[Any, ...]] = []
    operators = torch.ops.attention_core.edges, torch.ops.attention_core.edge_scores

    class Calls(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func in [operator.default for operator in operators]:
                calls.append((func, args))
            return func(*args, **(kwargs or {}))

    given, _ = projections(where.space.edges.num_edges, 3, "both")
    q, k, v = tensors(where)
    for score, bias in (("dot", None), ("additive_v2", Shrunk())):
        with Calls():
            attend(
                    q, k, v, space=where.space, mask=masks_of("graph")["edges"].mask,
                    bias=bias, score=SCORES[score](), backend="edges",
                    **given,
                )  # fmt: skip
    assert {func for func, _ in calls} == {operator.default for operator in operators}
    for func, args in calls:
        torch.library.opcheck(func, args)
