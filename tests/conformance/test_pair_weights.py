"""`return_weights="pairs"`: the weights of the allowed pairs alone, whatever the plan."""

from __future__ import annotations

import pytest
import torch

from attention_core import Additive, AdditiveV2, Edges, Graph, Neighborhood, PairWeights, attend
from tests.conformance.cases import (
    BACKENDS,
    DIM,
    EDGE_PLACES,
    HEADS,
    ONE_GRAPH,
    PLACES,
    biases_of,
    can,
    edge_features,
    gradients,
    masks_of,
    oracle_with_gradients,
    serving,
    tensors,
)

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_they_are_the_weights_of_all_pairs(place: str) -> None:
    """In each backend, with every mask: those that it allows, and no others."""
    where, biases = PLACES[place], biases_of(place)
    q, k, v = tensors(where)
    for masked in masks_of(place).values():
        biased = biases["sum"]
        out, expected, *_ = oracle_with_gradients(where, masked, biased)
        for backend in serving(where.space, biased.bias):
            found, weights = attend(
                q, k, v, space=where.space, mask=masked.mask, bias=biased.bias, backend=backend,
                return_weights="pairs",
            )  # fmt: skip
            assert isinstance(weights, PairWeights)
            torch.testing.assert_close(found, out, **CLOSE)
            torch.testing.assert_close(weights.dense(), expected, **CLOSE)
            pairs = weights.pairs
            assert len(weights.values) == int(expected.gt(0).any(1).sum())
            at = expected[pairs.batch, :, pairs.query, pairs.key]
            torch.testing.assert_close(weights.values, at, **CLOSE)


@pytest.mark.parametrize("backend", can("edge features"))
@pytest.mark.parametrize("place", EDGE_PLACES)
def test_weights_of_edges(place: str, backend: str) -> None:
    """In the order of the edge list, 0 where tokens were dropped; beside every option."""
    where, edges = PLACES[place], PLACES[place].world.edges
    q, k, v = tensors(where)
    options = {
        "mask": Edges(),
        "space": where.space,
        "backend": backend,
        "sink": torch.randn(HEADS, dtype=torch.float64),
        "softcap": 0.8,
        "scale": 0.7,
        **edge_features(where),
    }
    _, dense = attend(q, k, v, return_weights=True, **options)
    _, weights = attend(q, k, v, return_weights="pairs", **options)
    of_edges = weights.of_edges()
    assert of_edges.shape == (len(q), len(edges), HEADS)
    for b, (queries, keys) in enumerate(zip(where.world.queries, where.world.keys, strict=True)):
        for e, (source, target) in enumerate(edges):
            at = [
                [i for i, token in enumerate(row) if token.node == node and not token.special]
                for row, node in ((queries, target), (keys, source))
            ]
            wanted = dense[b, :, at[0][0], at[1][0]] if all(at) else torch.zeros(HEADS).double()
            torch.testing.assert_close(of_edges[b, e], wanted, **CLOSE)


@pytest.mark.parametrize("score", [None, Additive(HEADS, DIM), AdditiveV2(HEADS, DIM)])
def test_an_edge_that_is_listed_twice(score: Additive | AdditiveV2 | None) -> None:
    """Has two weights, which make up the one of their pair; so has a self-loop."""
    twice = Graph(torch.tensor([*ONE_GRAPH, (1, 0), (2, 2), (2, 2)]).T, 7)
    q, k, v = (x[:1] for x in tensors(PLACES["graph"]))
    score = None if score is None else score.double()
    _, dense = attend(q, k, v, space=twice, mask=Edges(), score=score, return_weights=True)
    _, weights = attend(q, k, v, space=twice, mask=Edges(), score=score, return_weights="pairs")
    of_edges = weights.of_edges()[0]
    edge = ONE_GRAPH.index((1, 0))
    torch.testing.assert_close(of_edges[edge], of_edges[len(ONE_GRAPH)])
    torch.testing.assert_close(2 * of_edges[edge], dense[0, :, 0, 1])
    torch.testing.assert_close(3 * of_edges[-1], dense[0, :, 2, 2])
    total = torch.zeros(7, HEADS).double().index_add(0, twice.edges.target, of_edges)
    torch.testing.assert_close(total[:5], torch.ones(5, HEADS).double())
    assert total[5:].eq(0).all()  # no edges lead there


@pytest.mark.parametrize("backend", BACKENDS)
def test_they_have_a_gradient(backend: str) -> None:
    where = PLACES["graph"]
    q, k, v = tensors(where)
    found = []
    for form in (True, "pairs"):
        _, weights = attend(
            q, k, v, space=where.space, mask=Neighborhood(1), backend=backend, return_weights=form
        )
        dense = weights.dense() if isinstance(weights, PairWeights) else weights
        found.append(gradients(dense, [q, k]))
    for got, wanted in zip(*found, strict=True):
        assert wanted.abs().sum() > 0
        torch.testing.assert_close(got, wanted, **CLOSE)


def test_they_are_from_before_dropout_and_beside_the_rest() -> None:
    where = PLACES["graph"]
    q, k, v = tensors(where)
    kept = attend(q, k, v, space=where.space, mask=Edges(), return_weights="pairs", return_lse=True)
    dropped = attend(
        q, k, v, space=where.space, mask=Edges(), return_weights="pairs", return_lse=True,
        dropout_p=0.5,
    )  # fmt: skip
    assert not torch.equal(kept[0], dropped[0])
    torch.testing.assert_close(kept[1].values, dropped[1].values)
    torch.testing.assert_close(kept[2], dropped[2])


def test_errors() -> None:
    q, k, v = tensors(PLACES["sequence"])
    with pytest.raises(ValueError, match="return_weights must be a bool or 'pairs', got 'all'"):
        attend(q, k, v, return_weights="all")  # type: ignore[arg-type]
    _, weights = attend(q, k, v, return_weights="pairs")
    with pytest.raises(TypeError, match="a sequence of 6 .* has no edges"):
        weights.of_edges()
