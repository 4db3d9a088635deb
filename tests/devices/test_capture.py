"""What runs while a CUDA graph is captured copies nothing from the host, or says that it would."""

from __future__ import annotations

import pytest
import torch

from attention_core import Encoder, KVCache, Neighborhood, Sequence, attend, plan
from nlp import TextDecoder, TextEncoder
from tests.devices.counting import CountingDevice
from vision import VisionTransformer


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


@torch.no_grad()
def test_models_that_need_no_lengths_are_captured(capture: list[bool]) -> None:
    image, ids, x = torch.rand(2, 3, 16, 16), torch.randint(60, (2, 9)), torch.rand(2, 64, 32)
    with CountingDevice() as device:
        vit = VisionTransformer(32, 2, 4, patch_size=4, image_size=16, num_classes=3)
        text = TextEncoder(60, 32, 2, 4, num_classes=3)
        encoder, line = Encoder(32, 2, 4, mask=Neighborhood(3)), Sequence(64, device="cuda")
        for model, *given in ((vit, image), (text, ids), (encoder, x, line)):
            there = device.moved(model.eval())  # type: ignore[attr-defined]
            inputs = [device.moved(one) if isinstance(one, torch.Tensor) else one for one in given]
            capture[0] = False
            there(*inputs)
            capture[0] = True
            with device.counting() as counts:
                there(*inputs)
            assert not counts.copies and not counts.waits, counts
        capture[0] = False


@torch.no_grad()
def test_layers_of_an_encoder_are_captured_by_a_plan(capture: list[bool]) -> None:
    """As docs/devices.md has it; the encoder itself, which would plan, is refused."""
    encoder, space, x = Encoder(32, 2, 4), Sequence.packed([40, 24]), torch.rand(64, 32)
    encoder.eval()
    wanted = encoder(x, space, mask=Neighborhood(3), backend="blocks")
    with CountingDevice() as device:
        there, y, on_device = device.moved(encoder), device.moved(x), space.to("cuda")
        spaces = (on_device, on_device)
        made = there.blocks[0].attention.plan(y, spaces, Neighborhood(3), backend="blocks")

        def layers(y: torch.Tensor) -> torch.Tensor:
            for block in there.blocks:
                y = block(y, plan=made)
            return there.norm(y)  # type: ignore[no-any-return]

        layers(y)
        capture[0] = True
        with device.counting() as counts:
            found = layers(y)
        assert not counts.copies and not counts.waits, counts
        with pytest.raises(RuntimeError, match="while a CUDA graph is captured"):
            there(y, on_device, mask=Neighborhood(3), backend="blocks")
        capture[0] = False
        torch.testing.assert_close(found.cpu(), wanted)
