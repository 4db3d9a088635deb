"""Scores whose rounding is larger than their sum: a bias of -1e9, or of the lowest number, on all
keys of a query, as masks that are added to scores have it; and a sink far above all scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attention_core import Additive, AdditiveV2, Edges, Graph, Sequence, attend
from tests.conformance.cases import can

FAR = [-1e4, -1e9, -1e30, torch.finfo(torch.float32).min, 1e9]


def _results(
    inputs: tuple[Tensor, ...], bias: Tensor, backend: str, **options: Any
) -> tuple[Tensor, ...]:
    """Output and log-sum-exp; gradients of q, k, v, bias and sink."""
    q, k, v, sink = (x.clone().requires_grad_() for x in inputs)
    bias = bias.clone().requires_grad_()
    out, lse = attend(q, k, v, bias=bias, sink=sink, backend=backend, return_lse=True, **options)
    loss = (out * torch.linspace(-1, 1, out.shape[-1])).sum() + (lse / lse.detach().abs()).sum()
    return out, lse, *torch.autograd.grad(loss, (q, k, v, bias, sink))


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize(
    ("backend", "sink"),
    [("blocks", "far below"), ("blocks", "far above"), ("edges", "far above"), ("edges", "as far")],
)
def test_all_scores_of_a_query_are_far(backend: str, sink: str, far: float) -> None:
    q, k, v = torch.randn(3, 1, 2, 20, 8).unbind()
    bias = torch.zeros(1, 2, 20, 20)
    bias[:, :, 3:9] = far
    bias[:, 1, 12, 1:] = far
    logit = {"far below": -torch.inf, "far above": 300.0, "as far": min(far, 1e8)}[sink]
    inputs = q, k, v, torch.full((2,), logit)
    found, wanted = (_results(inputs, bias, x) for x in (backend, "reference"))
    names = ("out", "lse", "q", "k", "v", "bias", "sink")
    for name, one, other in zip(names, found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("score", [Additive(2, 8), AdditiveV2(2, 8)], ids=["gat", "gatv2"])
@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("backend", can("score"))
def test_other_scores(backend: str, far: float, score: Any) -> None:
    q, k, v = torch.randn(3, 1, 2, 20, 8).unbind()
    space, bias = Sequence(20), torch.zeros(1, 2, 20, 20)
    bias[:, :, 3:9] = far
    inputs = q, k, v, torch.full((2,), -1.0)
    found, wanted = (
        _results(inputs, bias, x, space=space, score=score) for x in (backend, "reference")
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("length", [20, 600])
def test_a_bias_that_nobody_learns(length: int, far: float) -> None:
    """For which SDPA has a fused kernel, whose backward pass knows the log-sum-exp alone."""
    bias = torch.zeros(1, 2, length, length)
    bias[:, :, 3:9] = far
    x = torch.randn(3, 1, 2, length, 8)
    found = []
    for backend in ("dense", "reference"):
        q, k, v = (one.clone().requires_grad_() for one in x)
        out = attend(q, k, v, bias=bias, backend=backend)
        found.append((out, *torch.autograd.grad((out * out.detach()).sum(), (q, k, v))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_second_derivatives_along_edges() -> None:
    space = Graph((torch.rand(6, 6) > 0.5).nonzero().T, 6)
    x, sink = torch.randn(1, 2, 6, 4), torch.tensor([200.0, 0.0])
    found = []
    for backend in ("edges", "reference"):
        q = x.clone().requires_grad_()
        out, lse = attend(q, x, x, space=space, mask=Edges(), sink=sink, backend=backend,
                          return_lse=True)  # fmt: skip
        some = lse.masked_fill(lse == -torch.inf, 0)
        (one,) = torch.autograd.grad((out**2).sum() + (some**2).sum(), q, create_graph=True)
        (two,) = torch.autograd.grad((one**2).sum(), q)
        found.append((out, some, one, two))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
