"""Every backend against the oracle: rule 3 (masks) and rule 13 (gradients).

Every mask and every bias in every space (quick), or every mask with every bias (slow): output,
weights, log-sum-exp, and the gradients of queries, keys, values and of every parameter of the bias.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

from attention_core import EdgeBias, Edges, Graph, Neighborhood, attend
from tests.conformance import oracle
from tests.conformance.cases import (
    BACKENDS,
    EDGE_PLACES,
    HEADS,
    KV_HEADS,
    ONE_GRAPH,
    PLACES,
    Biased,
    Masked,
    Place,
    assert_same,
    attend_with_gradients,
    biases_of,
    can,
    edge_features,
    gradients,
    masks_of,
    oracle_with_gradients,
    serving,
    tensors,
)


@cache
def _biases(place: str) -> dict[str, Biased]:
    return biases_of(place)


@cache
def _claims(place: str) -> list[tuple[str, str]]:
    """(mask, bias): every mask and every bias of a space at least once, in turn."""
    masks, biases = list(masks_of(place)), list(_biases(place))
    turns = range(max(len(masks), len(biases)))
    return [(masks[i % len(masks)], biases[i % len(biases)]) for i in turns]


def _prove(place: str, masked: Masked, bias: str, without: str | None = None) -> None:
    where, biased = PLACES[place], _biases(place)[bias]
    expected = oracle_with_gradients(where, masked, biased)
    for backend in serving(where.space, biased.bias):
        if backend == without:
            continue
        actual = attend_with_gradients(backend, where, masked, biased)
        assert_same(actual, expected, f"{backend}, bias {bias}", rtol=1e-9, atol=1e-9)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("place", "mask", "bias"), [(p, *claim) for p in PLACES for claim in _claims(p)]
)
def test_backends_equal_the_oracle(place: str, mask: str, bias: str) -> None:
    _prove(place, masks_of(place)[mask], bias)


@pytest.mark.slow
@pytest.mark.parametrize(("place", "mask"), [(p, m) for p in PLACES for m in masks_of(p)])
def test_every_mask_with_every_bias(place: str, mask: str) -> None:
    masks = masks_of(place)
    for turn, bias in enumerate(_biases(place), list(masks).index(mask)):
        # Writing code for each takes its time: all were proven once, and each mask and bias is here
        _prove(place, masks[mask], bias, without="flex" if turn % 3 else None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_features_of_edges(backend: str) -> None:
    """A bias from float features (E, F): features · table, and 0 where there is no edge."""
    where = PLACES["graph"]
    attr = torch.randn(len(ONE_GRAPH), 2, dtype=torch.float64)
    space = Graph(torch.tensor(ONE_GRAPH).T, 7, edge_attr=attr)
    bias = EdgeBias(HEADS, features=2).double()
    biased = Biased("edge-features", bias, oracle.of_edge(lambda e: attr[e] @ bias.table))
    place = Place("graph", space, where.world)
    for mask in masks_of("graph").values():
        expected = oracle_with_gradients(place, mask, biased)
        actual = attend_with_gradients(backend, place, mask, biased)
        assert_same(actual, expected, f"{mask}", rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("place", "mask"), [(p, m) for p in EDGE_PLACES for m in masks_of(p)])
def test_edge_features_in_keys_and_values(place: str, mask: str) -> None:
    """With every mask, also where pairs have no edge; each alone, and beside every option."""
    where, masked, biases = PLACES[place], masks_of(place)[mask], _biases(place)
    both = edge_features(where)
    sink = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True)
    for bias, options in (
        ("none", both),
        ("edge-types", {"edge_key": both["edge_key"], "softcap": 0.7}),
        ("sum", {"edge_value": both["edge_value"], "sink": sink, "scale": 0.8}),
    ):
        expected = oracle_with_gradients(where, masked, biases[bias], **options)
        for backend in can("edge features"):
            actual = attend_with_gradients(backend, where, masked, biases[bias], **options)
            assert_same(actual, expected, f"{backend}, {list(options)}", rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", can("edge features"))
@pytest.mark.parametrize("mask", [Edges(), Neighborhood(1), None])
def test_edge_features_of_no_edges(mask: Edges | Neighborhood | None, backend: str) -> None:
    """A graph without edges: nothing is added, and there is a gradient of no numbers."""
    space = Graph(torch.zeros(2, 0, dtype=torch.long), 3)
    q, k, v = (x[:1, :, :3] for x in tensors(PLACES["graph"]))
    none = [torch.zeros(0, KV_HEADS, x.shape[-1]).double().requires_grad_() for x in (k, v)]
    found = attend(
        q, k, v, space=space, mask=mask, edge_key=none[0], edge_value=none[1], backend=backend
    )
    expected = attend(q, k, v, space=space, mask=mask, backend=backend)
    torch.testing.assert_close(found, expected)
    assert [g.shape for g in gradients(found, none)] == [x.shape for x in none]
