"""`torch.export` of encoders: one program for every batch size and length, equal to the model."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from attention_core import (
    ALiBi,
    AttentionPool,
    Causal,
    ContinuousBias,
    Encoder,
    Grid,
    LearnedPosition,
    Nearest,
    Neighborhood,
    RelativeTable,
    Rotary,
    Sequence,
    Window,
    pool,
)

BATCH, LENGTH = Dim("batch"), Dim("length")


class OverGrid(nn.Module):
    def __init__(self, special: int = 0, **encoder: Any) -> None:
        super().__init__()
        self.special = special
        self.encoder = Encoder(16, 2, 2, rotary=Rotary(axes=2), **encoder)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x, Grid(3, 4, special=self.special))


class OverTexts(nn.Module):
    """With `lengths` padded, without it every row is full."""

    def __init__(self, how: str = "mean", special: int = 0, **encoder: Any) -> None:
        super().__init__()
        self.how, self.special = how, special
        self.encoder = Encoder(16, 2, 4, rotary=Rotary(), **encoder)
        self.pool = AttentionPool(16, 2)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        length = x.shape[1] - self.special
        space = Sequence(length, special=self.special)
        if lengths is not None:
            space = Sequence.padded(lengths, length, special=self.special)
        x = self.encoder(x, space)
        return self.pool(x, space) if self.how == "attention" else pool(x, space, self.how)  # type: ignore[arg-type]


def randomized(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)  # biases of 0 would hide a lost term
    return model.eval()


def assert_same(model: nn.Module, program: Any, *inputs: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(program(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"special": 1, "mask": Neighborhood(1), "bias": RelativeTable.swin(2, 3, special=True)},
        {"mask": Neighborhood(9)},  # which allows all
        {"mask": [None, Window(2)], "bias": ContinuousBias(2, (2.0, 3.0), hidden=8)},
        {
            "special": 2,
            "mask": Causal(),
            "softcap": 5.0,
        },  # which scaled_dot_product_attention cannot do
        {"sink": True, "kv_heads": 1, "qk_norm": "cosine"},
    ],
    ids=str,
)
def test_grid(options: dict[str, Any]) -> None:
    model = randomized(OverGrid(**options))
    special = options.get("special", 0)
    example = torch.randn(3, 12 + special, 16)
    program = export(model, (example,), dynamic_shapes=({0: BATCH},)).module()
    for batch in (1, 2, 7):
        assert_same(model, program, torch.randn(batch, 12 + special, 16))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "padded"),
    [
        ({"mask": Neighborhood(2), "bias": RelativeTable.t5(4)}, True),
        # Allows all of the example, and not all of what comes later
        ({"mask": Neighborhood(8)}, True),
        ({"mask": Neighborhood(8)}, False),
        ({"mask": Causal(), "bias": ALiBi(4), "how": "max"}, True),
        ({"mask": [Nearest(2), Neighborhood(1)], "how": "sum", "special": 1}, True),
        ({"bias": RelativeTable.t5(4), "how": "attention", "sink": True}, False),
        ({"softcap": 5.0, "how": "attention", "special": 1}, True),
    ],
    ids=str,
)
def test_sequence(options: dict[str, Any], padded: bool) -> None:
    model = randomized(OverTexts(**options))

    def texts(batch: int, length: int) -> tuple[Tensor, ...]:
        x = torch.randn(batch, length, 16)
        short = torch.arange(batch) * 3 % (length - model.special + 1)
        return (x, length - model.special - short) if padded else (x,)

    shapes = ({0: BATCH, 1: LENGTH}, {0: BATCH})[: 1 + padded]
    program = export(model, texts(3, 7), dynamic_shapes=shapes).module()
    for batch, length in ((1, 2), (2, 3), (5, 20)):
        assert_same(model, program, *texts(batch, length))


def test_learned_positions() -> None:
    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = LearnedPosition((3, 4), 8, special=1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.positions(Grid(3, 4, special=1))

    model = randomized(Places())
    program = export(model, (torch.zeros(2, 13, 8),), dynamic_shapes=({0: BATCH},)).module()
    assert_same(model, program, torch.randn(5, 13, 8))
