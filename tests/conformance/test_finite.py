"""Rules 11 and 15: what is not finite shows wherever it may be seen, and in no other sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attention_core import Additive, Encoder, MultiheadAttention, Sequence, attend
from tests.conformance import oracle
from tests.conformance.cases import (
    BACKENDS,
    HEADS,
    PLACES,
    Biased,
    Masked,
    biases_of,
    can,
    edge_features,
    gradients,
    masks_of,
    serving,
    tensors,
)

NAN, INF = torch.nan, torch.inf


def _spoilt(inputs: tuple[Tensor, ...], which: int, token: int, value: float) -> list[Tensor]:
    """q, k and v with a number of one token of the last sample that is not finite."""
    spoilt = [x.detach().clone() for x in inputs]
    spoilt[which][-1, -1, token, 1] = value
    return [x.requires_grad_() for x in spoilt]


@pytest.mark.parametrize("which", [0, 1, 2], ids="qkv")
@pytest.mark.parametrize("place", PLACES)
def test_it_shows_where_it_may_be_seen_and_nowhere_else(place: str, which: int) -> None:
    """A row that may see it is NaN, every other is as before: values, weights, and gradients."""
    turn = 3 * list(PLACES).index(place) + which  # other masks, biases and numbers in other places
    masks, every = list(masks_of(place).values()), list(biases_of(place).values())
    for number, backend in enumerate(BACKENDS, turn):
        biases = [one for one in every if backend in serving(PLACES[place].space, one.bias)]
        mask, biased = masks[number % len(masks)], biases[number % len(biases)]
        prove(place, which, mask, biased, backend, (NAN, INF, -INF)[number % 3])


def prove(place: str, which: int, mask: Masked, biased: Biased, backend: str, value: float) -> None:
    where = PLACES[place]
    truth = oracle.truth(where.world, mask.claim, HEADS)
    inputs = tensors(where)
    token = inputs[which].shape[2] - 2 if inputs[which].shape[2] > 1 else 0
    spoilt = _spoilt(inputs, which, token, value)
    shown = torch.zeros(truth.shape[:-1], dtype=torch.bool)
    if which == 0:
        shown[-1, -1, token] = truth[-1, -1, token].any()
    else:
        shown[-1, -2:] = truth[-1, -2:, :, token]  # two query heads share the key head
    options: dict[str, Any] = {
        "space": where.space, "mask": mask.mask, "bias": biased.bias, "backend": backend,
        "return_weights": True, "return_lse": True,
    }  # fmt: skip
    out, weights, lse = attend(*spoilt, **options)
    for x in (out, weights, lse[..., None]):
        assert x[shown].isnan().all()
    before = attend(*inputs, **options)
    for got, wanted in zip((out, weights, lse), before, strict=True):
        torch.testing.assert_close(got[~shown], wanted[~shown], rtol=1e-9, atol=1e-9)
    keep = ~shown[..., None]
    of = gradients(out.where(keep, 0), [*spoilt, *biased.parameters])
    wanted_of = gradients(before[0].where(keep, 0), [*inputs, *biased.parameters])
    for i, (got, wanted) in enumerate(zip(of, wanted_of, strict=True)):
        if i == which or {i, which} == {1, 2}:  # a key and its value are one token
            one = (-1, -1, token)
            assert got[one].isnan().all() if shown.any() else (got[one] == 0).all()
            got, wanted = got.clone(), wanted.clone()
            got[one], wanted[one] = 0, 0
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 3, 20, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_length_and_dtype_hides_a_query(length: int, dtype: torch.dtype, backend: str) -> None:
    """The kernel of a CPU takes short rows of NaN for empty ones."""
    q, k, v = (torch.randn(2, 2, length, 8).to(dtype) for _ in range(3))
    q[1] = NAN
    out = attend(q, k, v, backend=backend)
    assert out[1].isnan().all() and out[0].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [3, 70])
def test_a_sample_of_a_row_spoils_no_other(length: int, backend: str) -> None:
    """With a bias, a plan of one's own, autocast and weights by pair, too."""
    space = Sequence.packed([length, length])
    options: dict[str, Any] = {"space": space, "backend": backend}
    bias = biases_of("sequence")["t5"].bias
    for more in ({}, {"bias": bias}, {"dropout_p": 0.5}, {"sink": torch.zeros(HEADS)}):
        q, k, v = (torch.randn(1, HEADS, 2 * length, 8) for _ in range(3))
        for x in (q, k, v):
            x[:, :, length:] = NAN
        with torch.autocast("cpu", torch.bfloat16, enabled="sink" in more):
            out = attend(q, k, v, **options, **more)
        assert out[:, :, :length].isfinite().all() and out[:, :, length:].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [3, 70])
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_bias_that_is_not_finite_shows(value: float, length: int, backend: str) -> None:
    q, k, v = (torch.randn(1, 2, length, 8) for _ in range(3))
    bias = torch.randn(1, 2, length, length)
    bias[0, 1, 2, 1] = value
    rows = attend(q, k, v, bias=bias, backend=backend).isnan().any(-1)
    assert rows.nonzero().tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("backend", can("edge features"))
def test_scores_and_features_of_edges(backend: str) -> None:
    """An additive score and edge features beside a value that is not finite."""
    where = PLACES["graph"]
    mask = masks_of("graph")["edges"]
    truth = oracle.truth(where.world, mask.claim, HEADS)
    spoilt = _spoilt(tensors(where), 2, 0, NAN)
    score = Additive(HEADS, 4, edge=True).double()
    out = attend(*spoilt, space=where.space, mask=mask.mask, score=score, backend=backend,
                 **edge_features(where))  # fmt: skip
    rows = out.isnan().any(-1)
    assert torch.equal(rows[-1, -2:], truth[-1, -2:, :, 0]) and not rows[0].any()


def _diverged() -> tuple[MultiheadAttention, Tensor]:
    """A layer that lost its queries alone, and tokens for it."""
    layer = MultiheadAttention(8, 2)
    with torch.no_grad():
        layer.query.weight[0] = NAN
    return layer, torch.randn(2, 3, 8)


def test_a_diverged_layer_never_looks_healthy() -> None:
    layer, x = _diverged()
    assert layer(x).isnan().all()


@pytest.mark.slow
def test_a_diverged_layer_never_looks_healthy_when_compiled() -> None:
    layer, x = _diverged()
    assert torch.compile(layer, backend="eager")(x).isnan().all()


def test_a_diverged_sample_of_a_batch_changes_no_other() -> None:
    """Through a whole encoder, packed: values, and the gradient of what is finite."""
    torch.manual_seed(0)
    encoder = Encoder(16, 2, 2)
    x = torch.randn(9, 16)
    space = Sequence.packed([4, 5])
    whole = encoder(x, space)[:4]
    x[6, 3] = NAN
    x.requires_grad_()
    found = encoder(x, space)
    torch.testing.assert_close(found[:4], whole)
    assert found[4:].isnan().all()
    (gradient,) = torch.autograd.grad(found[:4].sum(), x)
    assert gradient[:4].isfinite().all()
