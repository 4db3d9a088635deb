"""Blocks that are compiled serve packed batches of any number and lengths of samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from attention_core import Causal, Encoder, Neighborhood, RelativeTable, Rotary, Sequence
from attention_core.backends import packed
from attention_core.planning import BACKENDS
from attention_core.training.parallel import compile_blocks

HEADS = 4
LENGTHS = [[9, 30], [25, 1, 17], [8] * 7, [50]]


def encoder(**options: Any) -> Encoder:
    torch.manual_seed(0)
    return Encoder(16, 2, HEADS, **options).double()


def step(model: Encoder, lengths: list[int], backend: str | None) -> list[Tensor]:
    """Output and gradients of a batch, whose tokens were learned, too."""
    torch.manual_seed(1)
    x = torch.randn(sum(lengths), 16, dtype=torch.float64, requires_grad=True)
    out = model(x, Sequence.packed(lengths), backend=backend)
    return [out, *torch.autograd.grad(out.square().sum(), [x, *model.parameters()])]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "backend"),
    [
        ({"mask": Causal(), "rotary": Rotary(), "kv_heads": 2}, "dense"),
        ({"bias": RelativeTable.t5(HEADS)}, "dense"),
        ({"mask": Neighborhood(4), "bias": RelativeTable.t5(HEADS), "sink": True}, "blocks"),
    ],
)
def test_steps_with_other_lengths_compile_nothing_new(
    options: dict[str, Any], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, compiled = encoder(**options), encoder(**options)
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self: _compile(self, backend="aot_eager")
    )
    torch._dynamo.reset()
    counters.clear()
    compile_blocks(compiled)
    for lengths in LENGTHS:
        found, wanted = (step(model, lengths, backend) for model in (compiled, plain))
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other)
    # One for the first lengths, one for all others
    assert counters["stats"]["unique_graphs"] <= 2
    assert not counters["graph_break"]


_compile = torch.nn.Module.compile


@pytest.mark.slow
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_compiled_blocks_run_by_every_backend(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"mask": Neighborhood(4), "bias": RelativeTable.t5(HEADS), "rotary": Rotary()}
    plain, compiled = encoder(**options), encoder(**options)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: _compile(self, backend="eager"))
    torch._dynamo.reset()
    compile_blocks(compiled)
    found, wanted = (step(model, [9, 5], backend) for model in (compiled, plain))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("value_dim", [4, 3])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_operator_is_the_loop(causal: bool, sink: bool, value_dim: int, kv_heads: int) -> None:
    torch.manual_seed(0)
    sizes = ((HEADS, 4), (kv_heads, 4), (kv_heads, value_dim))
    given = [torch.randn(2, h, 11, d, dtype=torch.float64, requires_grad=True) for h, d in sizes]
    logits = torch.randn(HEADS, dtype=torch.float64, requires_grad=True) if sink else None
    starts = torch.tensor([0, 3, 4, 11], dtype=torch.int32)
    scale, of = 0.7, torch.randn(2, HEADS, 11, value_dim, dtype=torch.float64)
    out = packed.attend(*given, logits, starts, causal, 0.0, scale)
    q, k, v = given
    k, v = (x.repeat_interleave(HEADS // kv_heads, 1) for x in (k, v))
    scores = q @ k.mT * scale
    segment = torch.tensor([0] * 3 + [1] + [2] * 7)
    hidden = segment != segment[:, None]
    if causal:
        hidden = hidden | torch.ones(11, 11, dtype=torch.bool).triu(1)
    scores = scores.masked_fill(hidden, -torch.inf)
    if logits is not None:
        scores = torch.cat([scores, logits[:, None, None].expand(2, -1, 11, 1)], -1)
    wanted = scores.softmax(-1)[..., :11] @ v
    learned = [*given, *([] if logits is None else [logits])]
    found = [out, *torch.autograd.grad(out, learned, of)]
    for one, other in zip(found, [wanted, *torch.autograd.grad(wanted, learned, of)], strict=True):
        torch.testing.assert_close(one, other)


def test_the_operator_drops_the_same_weights_backwards() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 9, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    starts = torch.tensor([0, 5, 9], dtype=torch.int32)
    seed = torch.tensor(7)

    def run(*tensors: Tensor) -> Tensor:
        return packed.packed_attention(*tensors, None, starts, seed, True, 0.4, 0.5)[0]

    assert torch.autograd.gradcheck(run, (q, k, v))
    torch.library.opcheck(
        packed.packed_attention, (q, k, v, None, starts, seed, True, 0.4, 0.5),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip
    means = torch.stack([packed.attend(q, k, v, None, starts, False, 0.4, 0.5) for _ in range(800)])
    plain = packed.attend(q, k, v, None, starts, False, 0.0, 0.5)
    assert (means.mean(0) - plain).abs().max() < 0.15
