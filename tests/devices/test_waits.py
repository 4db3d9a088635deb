"""What a step of each kind of model costs beside its mathematics: waits, copies, kernels.

Each step is a new batch, as in training, so no plan of an earlier one serves it. What a model of
depth 4 has more than one of depth 2 is that of its layers; the rest is the step's. Numbers may not
grow. Kernels are those that torch dispatches, of torch 2.15; other versions may take some more.
Models of graphs are in `test_graph_waits`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_core import (
    ALiBi,
    ContinuousBias,
    Encoder,
    KVCache,
    Nearest,
    Neighborhood,
    Points,
    RelativeTable,
    Sequence,
)
from attention_core.backends import flex
from attention_core.plan_cache import PLANS
from nlp import Seq2SeqTransformer, TextDecoder, TextEncoder
from tests.devices.counting import CUDA, CountingDevice, Counts
from vision import MaskedAutoencoder, SwinTransformer, VisionTransformer

DIM, HEADS, IDS = 32, 2, 60
#: More kernels than in the table, as a share, where torch is another version.
SLACK = 0.1


@dataclass
class Most:
    """The most that there may be: waits and copies of a step, then kernels of a step and of a
    layer, forward and backward. A layer waits for nothing and copies nothing, and no backward pass
    does."""

    waits: int
    copies: int
    forward: tuple[int, int]
    backward: tuple[int, int] = (0, 0)


@dataclass
class Scenario:
    make: Callable[[int], nn.Module]
    step: Callable[[nn.Module, CountingDevice, int], Tensor]
    most: Most
    graded: bool = True


def lengths(nth: int) -> Tensor:
    """Those of four texts, others in each batch, on the host, where loaders make them."""
    return torch.tensor([20 + nth, 7, 31 - nth, 12])


def packed(model: nn.Module, device: CountingDevice, nth: int) -> Tensor:
    n = lengths(nth)
    return model(device.moved(torch.randint(IDS, (int(n.sum()),))), n)


def padded(model: nn.Module, device: CountingDevice, nth: int) -> Tensor:
    n = lengths(nth)
    return model(device.moved(torch.randint(IDS, (len(n), int(n.max())))), n)


def text(**options: Any) -> Callable[[int], nn.Module]:
    return lambda depth: TextEncoder(IDS, DIM, depth, HEADS, num_classes=3, **options)


def windowed(model: nn.Module, device: CountingDevice, nth: int, backend: str = "blocks") -> Tensor:
    space = Sequence.packed(lengths(nth), device="cuda")
    return model(device.moved(torch.randn(len(space), DIM)), space, backend=backend)


def images(model: nn.Module, device: CountingDevice, nth: int) -> Tensor:
    return model(device.moved(torch.randn(2, 3, 32, 32)))


def points(model: nn.Module, device: CountingDevice, nth: int, backend: str = "blocks") -> Tensor:
    space = Points(torch.rand(60 + nth, 3)).to("cuda")
    return model(device.moved(torch.randn(len(space), DIM)), space, backend=backend)


class Decoding(nn.Module):
    """A decoder that takes one token more with each step, after prompts of different lengths."""

    def __init__(self, depth: int, window: int | None) -> None:
        super().__init__()
        self.decoder = TextDecoder(IDS, DIM, depth, HEADS, window=window).eval()
        self.cache: KVCache | None = None


def decode(model: Decoding, device: CountingDevice, nth: int) -> Tensor:
    if model.cache is None:
        model.cache = model.decoder.new_cache(32)
        prompt = device.moved(torch.randint(IDS, (2, 9)))
        model.decoder(prompt, torch.tensor([9, 5]), side="left", cache=model.cache)
    return model.decoder(device.moved(torch.randint(IDS, (2, 1))), cache=model.cache)


def vit(depth: int, **options: Any) -> VisionTransformer:
    return VisionTransformer(
        image_size=32, patch_size=8, dim=DIM, depth=depth, heads=HEADS, **options
    )


def of_sizes(model: nn.Module, device: CountingDevice, nth: int) -> Tensor:
    return model([device.moved(torch.randn(3, *size)) for size in ((32, 16 + 8 * nth), (16, 32))])


def autoencode(model: nn.Module, device: CountingDevice, nth: int) -> Tensor:
    image = device.moved(torch.randn(2, 3, 32, 32))
    return model.loss(image, model(image))


def translate(model: nn.Module, device: CountingDevice, nth: int) -> Tensor:
    n, m = lengths(nth), lengths(nth + 1)
    sources, targets = (device.moved(torch.randint(IDS, (int(x.sum()),))) for x in (n, m))
    return model(sources, n, targets, m)


SCENARIOS = {
    "ViT": Scenario(
        partial(vit, num_classes=3),
        images,
        Most(0, 0, (15, 11), (15, 23)),
    ),
    # Of dense, or of FlexAttention, whose backward pass is one kernel on a GPU, in plain torch here
    "Swin": Scenario(
        lambda depth: SwinTransformer(
            patch_size=2, dim=16, depths=(depth, 2), heads=(2, 4), window=4, num_classes=3
        ),
        images,
        Most(0, 0, (98, 44), (149, 76)),
    ),
    "Swin v2": Scenario(
        lambda depth: SwinTransformer(
            patch_size=2,
            dim=16,
            depths=(depth, 2),
            heads=(2, 4),
            window=4,
            num_classes=3,
            version=2,
        ),
        images,
        Most(0, 0, (142, 66), (231, 118)),
    ),
    "images of different sizes": Scenario(
        partial(vit, num_classes=3), of_sizes, Most(0, 2, (43, 13), (24, 31))
    ),
    "images of different sizes, patches dropped": Scenario(
        partial(vit, num_classes=3, patch_dropout=0.5), of_sizes, Most(0, 4, (44, 13), (26, 31))
    ),
    "masked autoencoder": Scenario(
        lambda depth: MaskedAutoencoder(vit(depth, num_classes=None), dim=16, depth=1, heads=2),
        autoencode,
        Most(0, 2, (68, 11), (53, 23)),
    ),
    "from one text to another": Scenario(
        lambda depth: Seq2SeqTransformer(IDS, DIM, depth, HEADS),
        translate,
        Most(0, 2, (37, 39), (11, 82)),
    ),
    "packed texts, rotary": Scenario(text(), packed, Most(0, 1, (24, 29), (10, 49))),
    "packed texts, learned": Scenario(
        text(positions="learned"), packed, Most(0, 1, (22, 15), (12, 33))
    ),
    "packed texts, class token": Scenario(
        text(pooling="class"), packed, Most(0, 1, (23, 29), (9, 49))
    ),
    "packed texts, pooled by attention": Scenario(
        text(pooling="attention"), packed, Most(0, 1, (51, 29), (22, 49))
    ),
    "packed texts, bias of a network": Scenario(
        lambda depth: text(bias=ContinuousBias(HEADS, (64,)))(depth),
        packed,
        Most(0, 2, (50, 28), (19, 59)),
    ),
    "padded texts, rotary": Scenario(text(), padded, Most(0, 1, (34, 36), (10, 47))),
    "padded texts, learned": Scenario(
        text(positions="learned"), padded, Most(0, 1, (32, 22), (13, 31))
    ),
    "packed windows in blocks": Scenario(
        lambda depth: Encoder(DIM, depth, HEADS, mask=Neighborhood(4)),
        windowed,
        Most(0, 2, (13, 139), (2, 191)),
    ),
    "packed windows in blocks, T5 bias": Scenario(
        lambda depth: Encoder(
            DIM, depth, HEADS, mask=Neighborhood(4), bias=RelativeTable.t5(HEADS)
        ),
        windowed,
        Most(0, 2, (105, 155), (21, 223)),
    ),
    "points in a ball in blocks": Scenario(
        lambda depth: Encoder(DIM, depth, HEADS, mask=Neighborhood(0.3)),
        points,
        Most(0, 2, (4, 46), (2, 71)),
    ),
    "nearest points in dense": Scenario(
        lambda depth: Encoder(DIM, depth, HEADS, mask=Nearest(5)),
        partial(points, backend="dense"),
        Most(0, 2, (10, 14), (2, 25)),
    ),
    "packed windows in dense": Scenario(
        lambda depth: Encoder(DIM, depth, HEADS, mask=Neighborhood(4), bias=ALiBi(HEADS)),
        partial(windowed, backend="dense"),
        Most(0, 1, (28, 13), (2, 25)),
    ),
    "packed decoder with a window": Scenario(
        lambda depth: TextDecoder(IDS, DIM, depth, HEADS, window=8),
        packed,
        Most(0, 1, (29, 28), (7, 43)),
    ),
    "decoding": Scenario(
        lambda depth: Decoding(depth, None), decode, Most(0, 0, (33, 29)), graded=False
    ),
    "decoding with a window": Scenario(
        lambda depth: Decoding(depth, 4), decode, Most(0, 0, (36, 29)), graded=False
    ),
}


def counted(scenario: Scenario, depth: int) -> tuple[Counts, Counts]:
    """Of a step forward and of its backward, after one that has made what is made once."""
    torch.manual_seed(0)
    PLANS.clear()
    backward = Counts()
    with CountingDevice() as device, torch.set_grad_enabled(scenario.graded):
        model = device.moved(scenario.make(depth))
        scenario.step(model, device, 0)
        with device.counting() as forward:
            out = scenario.step(model, device, 1)
        assert out.device == CUDA
        if scenario.graded:
            with device.counting() as backward:
                out.sum().backward()
            missing = [n for n, p in model.named_parameters() if p.grad is None]
            assert not [name for name in missing if "special" not in name], missing
    return forward, backward


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_waits(name, monkeypatch):
    if name.startswith("Swin"):  # for which flex is best, and would be compiled for a GPU
        monkeypatch.setattr(flex, "_EAGER", {"cpu", "cuda"})
    scenario = SCENARIOS[name]
    shallow, deep = counted(scenario, 2), counted(scenario, 4)
    for few, many in zip(shallow, deep, strict=True):
        assert many.totals[:2] == few.totals[:2], f"layers wait or copy: {many}"
    forward, backward = deep
    assert forward.waits.total() <= scenario.most.waits, forward
    assert forward.copies.total() <= scenario.most.copies, forward
    assert backward.totals[:2] == (0, 0), backward
    for few, many, most in zip(
        shallow, deep, (scenario.most.forward, scenario.most.backward), strict=True
    ):
        layer = (many.totals[2] - few.totals[2]) / 2
        found = few.totals[2] - 2 * layer, layer
        assert all(n <= m + 1 + SLACK * abs(m) for n, m in zip(found, most, strict=True)), (
            f"{found} kernels of a step and a layer, at most {most}: {many}"
        )


def test_a_token_that_is_generated_waits_once():
    torch.manual_seed(0)
    totals = []
    with CountingDevice() as device:
        model = device.moved(TextDecoder(IDS, DIM, 2, HEADS).eval())
        ids = device.moved(torch.randint(IDS, (3, 9)))
        for tokens in (4, 4, 8):
            with device.counting() as counts:
                model.generate(ids, torch.tensor([9, 5, 7]), max_tokens=tokens, stop=IDS - 1)
            totals.append(counts.totals)
        assert totals[2][0] - totals[1][0] == 4 and totals[2][1] == totals[1][1], counts
        assert totals[1][0] <= 4 + 1, counts  # and once to cut the texts
        model.generate(ids, max_tokens=2)
        for tokens in (4, 4, 8):
            with device.counting() as counts:
                model.generate(
                    ids, torch.tensor([9, 5, 7]), max_tokens=tokens, stop=IDS - 1, beams=3
                )
            totals.append(counts.totals)
        assert totals[-1][0] - totals[-2][0] <= 4, counts
        with device.counting() as counts:
            model.generate(ids, max_tokens=8)
        assert counts.waits.total() <= 2, counts  # where nothing may end it, at the end alone
