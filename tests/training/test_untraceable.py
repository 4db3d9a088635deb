"""An export that fails names the line of the model, and what to write there."""

import math
import re

import pytest
import torch
from torch import Tensor, nn

from attention_core import Sequence
from attention_core.training.export import _traced
from attention_core.training.untraceable import explain


class Length(nn.Module):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x + torch.zeros(len(x), 1)


class WholeSize(nn.Module):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x + torch.zeros(int(x.shape[0]), 1)


class Root(nn.Module):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x / math.sqrt(x.shape[1])


class Loop(nn.Module):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return torch.stack([row * 2 for row in x])


class Listed(nn.Module):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return torch.cat(x.flatten().split(lengths.tolist()))


class SomeSizes(nn.Module):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x * 2 if x.shape[1] > 5 else x


class Longest(nn.Module):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x[:, : int(lengths.max())]


class Check(nn.Module):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        if (lengths > 9).any():
            raise ValueError("too long")
        return x * 2


class Array(nn.Module):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x + torch.from_numpy(lengths.numpy())[:, None]


class Padded(nn.Module):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x * Sequence.padded(lengths).valid


def traced(model: nn.Module) -> object:
    inputs = {"x": torch.randn(3, 7), "lengths": torch.tensor([7, 5, 3])}
    return _traced(model, inputs, {"x": {0: "batch", 1: "length"}, "lengths": {0: "batch"}})


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Length, "a size .*`return x . torch.zeros.len.x., 1.`: write x.shape.0. in place of len"),
        (WholeSize, r"a size .*int\(x.shape.*keep a size as it is, x.shape\[0\]"),
        (Root, r"a size .*math.sqrt.*or x.shape\[0\] \*\* 0.5, without int, float and math"),
        (Loop, "a size .*for row in x.*all rows at once, and not one by one"),
        (Listed, "a size .*tolist.*all rows at once, and not one by one"),
        (SomeSizes, "a size .*> 5 else.*no line hold for some sizes alone"),
        (Longest, "what a tensor holds.*int.lengths.max.*take sizes from x.shape"),
        (Check, "what a tensor holds.*any.*torch.where or a mask, .*not torch.compiler.is_expo"),
        (Array, r"leaves torch.*lengths.numpy\(\).*compute with tensors alone"),
        (Padded, r"^length is needed .* Sequence.padded\(lengths, length=x.shape\[1\]\)$"),
    ],
)
def test_it_says_which_line_and_what_to_write(
    model: type[nn.Module], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    made = model()
    with pytest.raises((RuntimeError, ValueError)) as caught:
        traced(made)
    sentence = explain(caught.value, made, lambda: traced(made))
    if model is not Padded:
        assert f"of {__name__.rpartition('.')[2]}.py " in sentence
    assert re.search(said, sentence), sentence
    assert capfd.readouterr().err == ""  # torch lists what it has traced


def test_what_is_said_to_be_written_can_be_traced() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            x = (x + torch.zeros(x.shape[0], 1)) / x.shape[1] ** 0.5
            if not torch.compiler.is_exporting() and (lengths > 9).any():
                raise ValueError("too long")
            return (
                torch.where(lengths[:, None] > 4, x, -x)
                * Sequence.padded(lengths, x.shape[1]).valid
            )

    program = traced(Plain())
    x, lengths = torch.randn(2, 7), torch.tensor([7, 2])
    assert torch.allclose(program.module()(x=x, lengths=lengths), Plain()(x, lengths))  # type: ignore[attr-defined]
