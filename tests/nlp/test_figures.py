"""Attention drawn over texts, and which texts are drawn."""

import warnings
from pathlib import Path

import pytest
import torch

from attention_core.training.figures import save_figure
from nlp.figures import ReadText, attention_over_text
from nlp.tasks.classification import choose


def read(tokens: int) -> ReadText:
    weights = torch.rand(4, tokens, tokens).softmax(-1)
    return ReadText([f"·w{n}" for n in range(tokens)], weights, "good", "bad", 0.7)


@pytest.mark.parametrize("tokens", [1, 2, 20])
def test_texts_are_drawn(tokens: int, tmp_path: Path) -> None:
    one = read(tokens)._replace(pieces=["$x_{", "·", "\ufffd" * 30, *["w"] * 17][:tokens])
    figure = attention_over_text([one, one._replace(weights=one.weights[0])], title="attention")
    save_figure(figure, tmp_path / "attention.png")
    assert (tmp_path / "attention.png").stat().st_size > 10_000


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="at least one text"):
        attention_over_text([])
    with pytest.raises(ValueError, match=r"weights must be \(3, 3\) for 3 tokens"):
        attention_over_text([read(3)._replace(weights=torch.rand(2, 2))])


def test_one_text_of_each_class_is_chosen() -> None:
    lengths = torch.tensor([10, 90, 10, 12, 3])
    target = torch.tensor([0, 0, 0, 1, 2])
    first = torch.tensor([0.6, 0.9, 0.7, 0.8, 0.1])
    shares = torch.stack([first, 1 - first, torch.zeros(5)], dim=1)
    # The surest of readable length; one that is wrong, or long, where there is no other
    assert choose(lengths, target, shares) == [2, 3, 4]


def test_a_character_that_the_font_lacks_is_a_box(tmp_path: Path) -> None:
    odd = read(3)._replace(pieces=["<s>", "\u058d", "good"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(attention_over_text([odd]), tmp_path / "attention.png")
