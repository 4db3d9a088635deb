"""Rule 16: what was first used without a gradient, or is computed again, works in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attention_core import (
    AttentionPool,
    Causal,
    ContinuousBias,
    Encoder,
    Grid,
    Neighborhood,
    Points,
    RelativeTable,
    Rotary,
    Space,
    attend,
    plan,
    pool,
)
from attention_core.biases import Bias
from attention_core.layers import Block
from tests.conformance.cases import (
    BACKENDS,
    HEADS,
    PLACES,
    Place,
    _places,
    assert_same,
    attend_with_gradients,
    biases_of,
    can,
    gradients,
    masks_of,
    serving,
    tensors,
)

ROWS = [name for name, place in PLACES.items() if isinstance(place.space, Space)]


def _turn(place: str, step: int) -> Any:
    """One of the masks and one of the biases of a space, others for another step."""
    number = list(PLACES).index(place) + step
    masks, biases = list(masks_of(place).values()), list(biases_of(place).values())
    return masks[number % len(masks)], biases[number % len(biases)]


@pytest.mark.parametrize("place", PLACES)
def test_what_was_made_and_used_in_inference_mode_trains(place: str) -> None:
    """A space with its edges, and a plan with its blocks, lists of pairs and tables."""
    for step, backend in enumerate(BACKENDS):
        mask, biased = _turn(place, step)
        if backend not in serving(PLACES[place].space, biased.bias):
            _, biased = _turn(place, step + 2)
        expected = attend_with_gradients(backend, PLACES[place], mask, biased)
        q, k, v = tensors(PLACES[place])
        with torch.inference_mode():
            space, world = _places()[place]
            where = Place(place, space, world)
            made = plan(space, mask.mask, biased.bias, heads=HEADS, batch=len(q), backend=backend)
            attend(q, k, v, plan=made, bias=biased.bias, return_weights=True)
        assert_same(attend_with_gradients(backend, where, mask, biased), expected, backend)
        out, weights, lse = attend(
            q, k, v, plan=made, bias=biased.bias, return_weights=True, return_lse=True
        )
        of = gradients(out, [q, k, v, *biased.parameters])
        assert_same([out, weights, lse, *of], expected, f"{backend}, the plan")


@pytest.mark.parametrize("place", ROWS)
def test_layers_train_on_a_space_made_in_inference_mode(place: str) -> None:
    """Blocks, drop path and pooling read the space's own tensors, also of what was kept of it."""
    torch.manual_seed(0)
    axes, space = PLACES[place].axes, PLACES[place].spaces[1]
    wraps = isinstance(space, Grid) and any(space.wrap)  # where Rotary does not come round
    rotary = Rotary(axes) if axes in (1, 2) and not wraps else None
    layers = nn.ModuleList([Encoder(8, 1, 2, rotary=rotary, drop_path=[0.5]), AttentionPool(8, 2)])
    found = []
    for mode in (torch.enable_grad, torch.inference_mode):
        with mode():
            made = _places()[place][0]
            assert isinstance(made, Space)
            space = made.keep(torch.arange(made.length))
            x = torch.ones(space.batch or 2, space.length, 8)[
                0 if space.segments is not None else ...
            ]
        torch.manual_seed(1)
        x = torch.randn(x.shape)
        encoder, pooling = layers
        loss = pooling(encoder(x, space), space).sum() + pool(encoder(x, space), space).sum()
        found.append(torch.autograd.grad(loss, list(layers.parameters()), allow_unused=True))
    for got, wanted in zip(*found, strict=True):
        assert (got is None) == (wanted is None)
        assert got is None or torch.equal(got, wanted)


@pytest.mark.parametrize("backend", can("network"))
def test_places_that_learn_do_so_after_inference(backend: str) -> None:
    """A plan that knows distances without a gradient computes them again for one."""
    at = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    bias = ContinuousBias(2, (1, 1), 4).double()
    q, k, v = (torch.randn(1, 2, 5, 4, dtype=torch.float64) for _ in range(3))

    def run(made: Any) -> Tensor:
        out = attend(q, k, v, bias=bias, plan=made)
        return torch.autograd.grad(out.square().sum(), at)[0]

    made = plan(Points(at), bias=bias, heads=2, backend=backend)
    with torch.no_grad():
        attend(q, k, v, bias=bias, plan=made)
    got = run(made.renewed())
    wanted = run(plan(Points(at), bias=bias, heads=2, backend=backend))
    assert wanted.abs().sum() > 0
    torch.testing.assert_close(got, wanted)


def _recomputed(block: nn.Module, reentrant: bool) -> None:
    forward = block.forward

    def again(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(
            lambda x: forward(x, *args, **kwargs), x, use_reentrant=reentrant
        )  # its plan and bias are shared with other blocks

    block.forward = again  # type: ignore[method-assign]


BIASES: dict[str, Callable[[], Bias | list[Bias]]] = {
    "shared": lambda: RelativeTable.t5(2),
    "sum": lambda: RelativeTable.t5(2) + ContinuousBias(2, (6,), 4),
    "each": lambda: [RelativeTable.t5(2) for _ in range(3)],
}


@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_recomputed_blocks_have_the_gradients_of_plain_ones(
    backend: str, bias: str, reentrant: bool
) -> None:
    """Activation checkpointing (Chen et al., 2016) of blocks that share what a plan remembers."""
    found = []
    for recomputes in (False, True):
        torch.manual_seed(0)
        encoder = Encoder(
            8, 3, 2, bias=BIASES[bias](), rotary=Rotary(), mask=[Causal(), Neighborhood(3)],
            attention_dropout=0.3,
        )  # fmt: skip
        if recomputes:
            for module in encoder.modules():
                if isinstance(module, Block):
                    _recomputed(module, reentrant)
        x = torch.randn(2, 9, 8, requires_grad=True)
        encoder(x, backend=backend).square().sum().backward()
        found.append([x.grad, *(p.grad for p in encoder.parameters())])
    for got, wanted in zip(*found, strict=True):
        assert got is not None and wanted is not None
        torch.testing.assert_close(got, wanted)
