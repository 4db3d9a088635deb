"""A static cache decodes what a growing one does, by steps that differ in numbers alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from attention_core import (
    ALiBi,
    BackendError,
    Causal,
    Decoder,
    Graph,
    KVCache,
    Neighborhood,
    RelativeTable,
    Rotary,
    Sequence,
)
from nlp import TextDecoder
from tests.devices.counting import CountingDevice

DIM, HEADS = 16, 4


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def decoder(**options: Any) -> Decoder:
    given = {"kv_heads": 2, "rotary": Rotary(), "mask": [None, Neighborhood(5)], **options}
    return Decoder(DIM, 3, HEADS, **given).eval()


#: Options of a decoder; of those with a softcap, `reference` takes the steps.
OPTIONS = [
    {},
    {"bias": RelativeTable.t5(HEADS, bidirectional=False), "rotary": None},
    {"bias": [ALiBi(HEADS) for _ in range(3)], "sink": True, "qk_norm": True},
    {"softcap": 5.0, "cross": True},
]


def prompt(side: str, x: Tensor) -> tuple[Tensor, Sequence, list[int]]:
    """Prompts of 3 and 6 tokens, the first of each text in x (2, L, DIM)."""
    lengths = [6, 6] if side == "whole" else [3, 6]
    padded = torch.zeros(2, 6, DIM)
    for row, n in enumerate(lengths):
        start = 6 - n if side == "left" else 0
        padded[row, start : start + n] = x[row, :n]
    space = Sequence(6) if side == "whole" else Sequence.padded(lengths, side=side)
    return padded, space, lengths


#: Compiling takes seconds, so it is done once for each side and kind of step.
COMPILED = [(OPTIONS[0], "left"), (OPTIONS[1], "whole"), (OPTIONS[3], "right")]


@pytest.mark.parametrize(
    ("options", "side", "compiled"),
    [(options, side, False) for options in OPTIONS for side in ("whole", "left", "right")]
    + [
        pytest.param(options, side, True, marks=[pytest.mark.slow] if n else [])
        for n, (options, side) in enumerate(COMPILED)
    ],
)
def test_steps_equal_those_of_a_growing_cache(
    options: dict[str, Any], side: str, compiled: bool
) -> None:
    model, x = decoder(**options), torch.randn(2, 15, DIM)
    first, space, lengths = prompt(side, x)
    more: dict[str, Any] = {}
    if options.get("cross"):
        more = {"context": torch.randn(2, 4, DIM), "context_space": Sequence.padded([4, 2])}
    caches = KVCache(), KVCache(20, static=True)
    outs = [model(first, space, cache=cache, **more) for cache in caches]
    torch.testing.assert_close(outs[0], outs[1])
    torch._dynamo.reset()
    counters.clear()
    step = torch.compile(model, fullgraph=True, backend="eager") if compiled else model
    for n in range(5):
        new = torch.stack([x[row, length + n] for row, length in enumerate(lengths)])[:, None]
        torch.testing.assert_close(
            step(new, cache=caches[1], **more), model(new, cache=caches[0], **more)
        )
    assert counters["stats"]["unique_graphs"] == compiled
    assert caches[1].length == 11


def test_pieces_and_reordered_samples() -> None:
    model, x, swap = decoder(), torch.randn(2, 14, DIM), torch.tensor([1, 0])
    first, space, _ = prompt("left", x)
    caches = KVCache(), KVCache(14, static=True)
    for cache in caches:
        model(first, space, cache=cache)
        cache.reorder(swap)
    held = caches[1][0]._held
    assert held is not None
    memory = [one.data_ptr() for one in held]
    for piece in x[:, 6:].split([3, 1, 3, 1], dim=1):
        found, wanted = (model(piece, cache=cache) for cache in caches)
        torch.testing.assert_close(found, wanted)
        for cache in caches:
            cache.reorder(swap)
    again = caches[1][0]._held
    assert again is not None and memory == [one.data_ptr() for one in again]


@pytest.mark.parametrize(
    ("positions", "lengths", "compiled"),
    [
        ("rotary", None, False),
        ("alibi", torch.tensor([2, 5]), False),
        pytest.param("learned", torch.tensor([4, 3]), True, marks=pytest.mark.slow),
    ],
)
def test_a_text_goes_on_with_the_same_tokens(
    positions: Any, lengths: Tensor | None, compiled: bool
) -> None:
    model = TextDecoder(30, 16, 2, 2, positions=positions, max_length=12, window=[None, 4]).eval()
    ids = torch.randint(30, (2, 5))
    wanted = model.generate(ids, lengths, side="left", max_tokens=7)
    torch._dynamo.reset()
    counters.clear()
    cache = KVCache(12, static=True)
    scores = model.next_scores(ids, lengths, cache)
    step = model.next_scores
    if compiled:
        step = torch.compile(step, fullgraph=True, backend="eager")
    found = []
    for _ in range(7):
        found.append(scores.argmax(-1, keepdim=True))
        scores = step(found[-1], None, cache) if len(found) < 7 else scores
    assert torch.equal(torch.cat(found, 1), torch.stack(wanted))
    assert counters["stats"]["unique_graphs"] == compiled


def test_a_step_waits_for_nothing_and_copies_nothing() -> None:
    for options in OPTIONS[:3]:
        with CountingDevice() as device:
            model = device.moved(decoder(**options))
            x = device.moved(torch.randn(2, 12, DIM))
            cache = KVCache(12, static=True)
            space = Sequence.padded([3, 6], side="left", device="cuda")
            model(x[:, :6], space, cache=cache)
            model(x[:, 6:7], cache=cache)
            kernels = []
            for n in (7, 8, 9):
                with device.counting() as counts:
                    model(x[:, n : n + 1], cache=cache)
                assert not counts.waits and not counts.copies, counts
                kernels.append(counts.kernels.total())
            assert len({*kernels}) == 1


def test_what_a_static_cache_refuses() -> None:
    model, x = decoder(), torch.randn(1, 5, DIM)
    with pytest.raises(ValueError, match="give max_length"):
        KVCache(static=True)
    cache = KVCache(4, static=True)
    assert cache.empty and not cache.length
    model(x[:, :3], cache=cache)
    model(x[:, 3:4], cache=cache)
    with pytest.raises(ValueError, match="max_length=4 tokens, got 5"):
        model(x[:, 4:], cache=cache)
    with pytest.raises(ValueError, match="leave mask and space out"):
        model(x[:, 4:], Sequence(1, start=4), cache=cache)
    with pytest.raises(ValueError, match="leave mask and space out"):
        model(x[:, 4:], mask=Causal(), cache=cache)
    assert cache.length == 4
    with pytest.raises(BackendError, match="a static cache is for dense and reference"):
        model(x[:, :2], cache=cache, backend="blocks")
    with pytest.raises(ValueError, match="has room for max_length=4 tokens, got 5"):
        model(x, cache=KVCache(4, static=True))
    graph = Graph(torch.tensor([[0], [1]]), 5)
    with pytest.raises(TypeError, match="no order|takes a Sequence"):
        Decoder(DIM, 1, HEADS)(x, graph, cache=KVCache(9, static=True))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    cache = KVCache(5, static=True)
    model(x[:, :2], cache=cache)
    with pytest.raises(Exception, match="before the decoder is compiled"):
        compiled(x[:, 2:4], cache=cache)
