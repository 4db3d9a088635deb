"""Rule 17: second, forward-mode and batched derivatives are right, or refused in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from attention_core import (
    Additive,
    AdditiveV2,
    BackendError,
    Bias,
    Causal,
    Edges,
    MultiheadAttention,
    RelativeTable,
    Score,
    attend,
)
from tests.conformance.cases import (
    DIM,
    HEADS,
    PLACES,
    TWICE,
    biases_of,
    can,
    edge_features,
    masks_of,
    tensors,
)

COMPOSITE = ["reference", "dense"]
CLOSE = {"rtol": 1e-8, "atol": 1e-9}

# -- second derivatives ----------------------------------------------------------------------------


def _derivatives(inputs: list[Tensor], call: Callable[[], Any], times: int = 2) -> list[Tensor]:
    """First, second, ... derivatives of what `call` gives, output and log-sum-exp."""
    generator = torch.Generator().manual_seed(5)
    out, lse = call()
    lse = lse.masked_fill(lse == -torch.inf, 0)
    found: list[Tensor] = []
    now: list[Tensor] = [out.sin(), lse.sin()]
    for _ in range(times):
        weights = (torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in now)
        loss = sum((x * weight).sum() for x, weight in zip(now, weights, strict=True))
        now = list(torch.autograd.grad(loss, inputs, create_graph=True, materialize_grads=True))
        found += now
    return found


def assert_equal_derivatives(
    backend: str, inputs: list[Tensor], call: Callable[[str], Any], times: int = 2
) -> None:
    found, wanted = (
        _derivatives(inputs, lambda name=name: call(name), times) for name in (backend, "reference")
    )
    for got, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, expected, **CLOSE)


@pytest.mark.parametrize("place", PLACES)
def test_second_derivatives_equal_those_of_the_specification(place: str) -> None:
    """In queries, keys, values, the sink and what a bias learns, of output and log-sum-exp."""
    where, turn = PLACES[place], list(PLACES).index(place)
    masks, biases = list(masks_of(place).values()), list(biases_of(place).values())
    sink = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True)
    for number, backend in enumerate(("blocks", "edges"), turn):
        mask, biased = masks[3 * number % len(masks)], biases[number % len(biases)]
        more = ({}, {"softcap": 0.9}, {"sink": sink}, {"sink": sink, "softcap": 2.0})[number % 4]
        q, k, v = tensors(where)
        assert_equal_derivatives(
            backend,
            [q, k, v, *biased.parameters, *([sink] if "sink" in more else [])],
            lambda name, mask=mask, biased=biased, more=more, q=q, k=k, v=v: attend(
                q, k, v, space=where.space, mask=mask.mask, bias=biased.bias, backend=name,
                return_lse=True, **more,
            ),
        )  # fmt: skip


class Distance(Score):
    """A score of one's own."""

    def forward(self, query: Tensor, key: Tensor, head: Tensor) -> Tensor:
        return -(query - key).square().sum(-1)


SCORES: dict[str, Callable[[], Score | None]] = {
    "dot": lambda: None,
    "additive": lambda: Additive(HEADS, DIM, edge=True).double(),
    "additive_v2": lambda: AdditiveV2(HEADS, DIM).double(),
    "own": Distance,
}


@pytest.mark.parametrize("features", [False, True], ids=["", "features"])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("backend", [b for b in can("score") if b != "reference"])
def test_second_derivatives_of_scores_and_features(
    backend: str, score: str, features: bool
) -> None:
    where, module = PLACES["graph"], SCORES[score]()
    q, k, v = tensors(where)
    both = edge_features(where) if features else {}
    learned = [] if module is None else list(module.parameters())
    assert_equal_derivatives(
        backend,
        [q, k, v, *both.values(), *learned],
        lambda name: attend(
            q, k, v, space=where.space, mask=Edges(), score=module, backend=name,
            return_lse=True, **both,
        ),
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["blocks", "edges"])
def test_third_derivatives_and_one_tensor_thrice(backend: str) -> None:
    """Where queries, keys and values are one, what each contributes counts once."""
    (x, _, _), space = tensors(PLACES["sequence"]), PLACES["sequence"].space
    assert_equal_derivatives(
        backend,
        [x],
        lambda name: attend(x, x, x, space=space, mask=Causal(), backend=name, return_lse=True),
        times=3,
    )


@pytest.mark.parametrize("backend", TWICE)
def test_gradgradcheck_with_dropout(backend: str) -> None:
    where = PLACES["padded"]
    mask, bias = masks_of("padded")["near"].mask, biases_of("padded")["t5"].bias

    def call(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        torch.manual_seed(0)  # drops the same weights each time
        return attend(q, k, v, space=where.space, mask=mask, bias=bias, backend=backend,
                      dropout_p=0.4)  # fmt: skip

    assert isinstance(bias, RelativeTable)
    assert torch.autograd.gradgradcheck(call, (*tensors(where), bias.table), fast_mode=True)


@pytest.mark.parametrize("backend", ["blocks", "edges"])
def test_a_gradient_penalty_trains(backend: str) -> None:
    """A loss of gradients through a layer, as for forces: each parameter gets its gradient."""
    found = []
    for name in (backend, "reference"):
        torch.manual_seed(0)
        layer = MultiheadAttention(8, 2, bias=RelativeTable.t5(2), sink=True).double()
        x = torch.randn(1, 6, 8, dtype=torch.float64, requires_grad=True)
        energy = layer(x, mask=Causal(), backend=name).square().sum()
        (force,) = torch.autograd.grad(energy, x, create_graph=True)
        force.square().sum().backward()
        found.append([p.grad for p in layer.parameters()])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, **CLOSE)


# -- forward mode and transforms -------------------------------------------------------------------


def _of_queries(backend: str, bias: Bias | None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    q, k, v = (x.detach() for x in tensors(PLACES["sequence"]))

    def call(q: Tensor) -> Tensor:
        return attend(q, k, v, mask=Causal(), bias=bias, backend=backend)

    return q, call


def _dual(call: Callable[[Tensor], Tensor], q: Tensor, tangent: Tensor) -> Tensor:
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(call(forward_ad.make_dual(q, tangent))).tangent
    assert found is not None
    return found


@pytest.mark.parametrize("learns", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("backend", COMPOSITE)
def test_transforms_give_what_the_backward_pass_gives(backend: str, learns: bool) -> None:
    bias = RelativeTable.t5(HEADS).double() if learns else None
    q, call = _of_queries(backend, bias)
    q = q[:1]
    _, specified = _of_queries("reference", bias)
    k = torch.randn(1, 2, 6, DIM, dtype=torch.float64)
    call, specified = (
        lambda q, name=name: attend(q, k, k, mask=Causal(), bias=bias, backend=name)
        for name in (backend, "reference")
    )
    jacobian = torch.autograd.functional.jacobian(specified, q)
    tangent = torch.randn_like(q)
    pushed = torch.tensordot(jacobian, tangent, 4)
    loss = torch.autograd.functional.hessian(lambda q: specified(q).sin().sum(), q)
    for got, wanted in (
        (jvp(call, (q,), (tangent,))[1], pushed),
        (_dual(call, q, tangent), pushed),
        (jacfwd(call)(q), jacobian),
        (jacrev(call)(q), jacobian),
        (torch.autograd.functional.jacobian(call, q, vectorize=True), jacobian),
        (hessian(lambda q: call(q).sin().sum())(q), loss),
        (vmap(call)(torch.stack([q, tangent])), torch.stack([specified(q), specified(tangent)])),
    ):
        torch.testing.assert_close(got.detach(), wanted.detach(), **CLOSE)


@pytest.mark.parametrize("backend", COMPOSITE)
def test_transforms_of_what_a_bias_learns(backend: str) -> None:
    bias = RelativeTable.t5(HEADS).double()
    q, k, v = tensors(PLACES["sequence"])

    def loss(table: Tensor) -> Tensor:
        def call() -> Tensor:
            return attend(q, k, v, bias=bias, backend=backend).sin().sum()

        class Calling(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bias = bias

            def forward(self) -> Tensor:
                return call()

        found: Tensor = functional_call(Calling(), {"bias.table": table}, ())
        return found

    table = bias.table.detach().clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(table), table)
    tangent = torch.randn_like(wanted)
    torch.testing.assert_close(grad(loss)(table.detach()).detach(), wanted, **CLOSE)
    pushed = jvp(loss, (table.detach(),), (tangent,))[1].detach()
    torch.testing.assert_close(pushed, (wanted * tangent).sum(), **CLOSE)


REFUSED: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], object]] = {
    "jvp": lambda call, q: jvp(call, (q,), (q,)),
    "dual": lambda call, q: _dual(call, q, q),
    "vmap": lambda call, q: vmap(call)(torch.stack([q, q])),
    "grad": lambda call, q: grad(lambda q: call(q).sum())(q),
    "jacrev": lambda call, q: jacrev(call)(q),
    "jacfwd": lambda call, q: jacfwd(call)(q),
    "hessian": lambda call, q: hessian(lambda q: call(q).sum())(q),
    "vectorized": lambda call, q: torch.autograd.functional.jacobian(call, q, vectorize=True),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("backend", ["blocks", "edges"])
def test_what_a_backend_has_not_it_refuses_in_words(backend: str, what: str) -> None:
    q, call = _of_queries(backend, None)
    with pytest.raises(BackendError, match=f"backend='{backend}'.*give backend='reference'"):
        REFUSED[what](call, q)


@pytest.mark.parametrize("mask", [None, Causal()])
@pytest.mark.parametrize("which", range(3))
def test_dense_refuses_second_derivatives_alone(which: int, mask: Causal | None) -> None:
    """The first, with a graph of its own, as a scaler or a hook may want it, it has."""
    inputs = [torch.randn(2, 2, 6, 4, requires_grad=True) for _ in range(3)]
    out = attend(*inputs, mask=mask, backend="dense")
    first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
    out = attend(*inputs, mask=mask, backend="reference")
    for got, wanted in zip(first, torch.autograd.grad(out.square().sum(), inputs), strict=True):
        torch.testing.assert_close(got, wanted)
    with pytest.raises(BackendError, match="'dense' has no second.*'reference'.*'edges'"):
        first[which].sum().backward()


def test_the_tangent_of_a_parameter_is_refused_too() -> None:
    bias = RelativeTable.t5(HEADS).double()
    q, k, v = tensors(PLACES["sequence"])
    with forward_ad.dual_level():
        table = bias.table
        del bias._parameters["table"]
        bias.table = forward_ad.make_dual(table.detach(), torch.ones_like(table))
        for backend in ("blocks", "edges"):
            with pytest.raises(BackendError, match="forward-mode.*'reference'"):
                attend(q, k, v, bias=bias, backend=backend)
