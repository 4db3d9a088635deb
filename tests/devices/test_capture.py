"""What runs while a CUDA graph is captured copies nothing from the host, or says that it would."""

from __future__ import annotations

import pytest
import torch

from attention_core import KVCache, Neighborhood, Sequence, attend, plan
from nlp import TextDecoder
from tests.devices.counting import CountingDevice


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether a graph is captured, as torch would say."""
    captured = [False]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captured[0])
    return captured


@torch.no_grad()
def test_a_decode_step_is_captured(capture: list[bool]) -> None:
    with CountingDevice() as device:
        model = device.moved(TextDecoder(60, 32, 2, 2).eval())
        cache = KVCache(16, static=True)
        prompt, *tokens = (device.moved(torch.randint(60, (2, n))) for n in (5, 1, 1))
        model(prompt, cache=cache)
        model(tokens[0], cache=cache)  # what a graph is captured after
        capture[0] = True
        with device.counting() as counts:
            model(tokens[1], cache=cache)
    assert not counts.copies and not counts.waits, counts


@torch.no_grad()
def test_a_plan_is_handed_over(capture: list[bool]) -> None:
    space, mask = Sequence.packed([40, 24]), Neighborhood(3)
    x = torch.randn(1, 2, 64, 8)
    wanted = attend(x, x, x, space=space, mask=mask)
    with CountingDevice() as device:
        q = device.moved(x)
        there = space.to("cuda")
        made = plan(there, mask, heads=2, head_dim=8, device="cuda", backend="blocks")
        attend(q, q, q, plan=made)
        capture[0] = True
        with device.counting() as counts:
            found = attend(q, q, q, plan=made)
        assert not counts.copies, counts
        # One that is kept may be forgotten before the graph runs again, so it is made anew
        with pytest.raises(RuntimeError, match="while a CUDA graph is captured: make them before"):
            attend(q, q, q, space=there, mask=mask, backend="blocks")
        with pytest.raises(RuntimeError, match="while a CUDA graph is captured"):
            Sequence.packed([40, 24], device="cuda")
        capture[0] = False
        torch.testing.assert_close(found.cpu(), wanted)
