"""What the tasks of `nlp.tasks` show of the attention of their models."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from nlp import MaskedLanguageModel, Seq2SeqTransformer, TextDecoder, TextEncoder, Tokenizer
from nlp.data.objectives import Masking, NextToken
from nlp.data.packing import collate
from nlp.data.pairs import Pairs
from nlp.interpret import ReadText, attention_maps
from nlp.tasks import (
    CausalLanguageModelling,
    MaskedLanguageModelling,
    TextClassification,
    TextTask,
    Translation,
)
from nlp.tasks.base import MOST_TOKENS

TEXTS = ["the plane is late again, $5 lost", "on time, thanks!", "late, late, late, so late 😡"]
TOKENIZER = Tokenizer.train(TEXTS * 4, 320)
IDS = TOKENIZER.encode(TEXTS)
V = len(TOKENIZER)


def bound(task: Any) -> Any:
    """As it is once its trainer knows the data."""
    task._trainer = SimpleNamespace(datamodule=SimpleNamespace(tokenizer=TOKENIZER))
    return task.eval()


def build(kind: Any, model: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    settings = {"num_classes": 3} if kind is TextClassification else {}
    task_settings = {"classes": ["a", "b", "c"]} if settings else {}
    of_model = model(V, 16, 2, 4, **settings, **options) if isinstance(model, type) else model
    return bound(kind(of_model, optimizer=torch.optim.AdamW, **task_settings))


def asked(objective: Any, padded: bool) -> dict[str, Any]:
    objective.bind(TOKENIZER)
    torch.manual_seed(1)
    return collate([objective(torch.tensor(row)) for row in IDS], padded=padded)


def labelled(padded: bool) -> dict[str, Any]:
    rows = [{"ids": torch.tensor(row), "target": torch.tensor(n)} for n, row in enumerate(IDS)]
    return collate(rows, padded=padded)


def pairs(padded: bool) -> dict[str, Any]:
    targets = TOKENIZER.encode(["spät", "danke!", "so spät"], special=False)
    data = Pairs(IDS, targets, TOKENIZER)
    return collate([data[n] for n in range(3)], padded=padded)


@torch.no_grad()
def shown(task: Any, batch: dict[str, Any]) -> list[ReadText]:
    found: list[ReadText] = task.shown(batch)
    return found


TASKS: dict[str, Any] = {
    "classification": (TextClassification, TextEncoder, labelled),
    "masked": (MaskedLanguageModelling, MaskedLanguageModel, lambda p: asked(Masking(0.3), p)),
    "causal": (CausalLanguageModelling, TextDecoder, lambda p: asked(NextToken(), p)),
    "translation": (Translation, Seq2SeqTransformer, pairs),
}


@pytest.mark.parametrize("name", TASKS)
def test_packed_and_padded_show_the_same_and_so_does_a_second_look(name: str) -> None:
    kind, model, batch = TASKS[name]
    task = build(kind, model)
    first, second, third = (shown(task, batch(padded)) for padded in (False, True, True))
    assert first
    for one, two, three in zip(first, second, third, strict=True):
        assert one.caption == two.caption == three.caption
        torch.testing.assert_close(one.attention.weights, two.attention.weights)
        torch.testing.assert_close(two.attention.weights, three.attention.weights)
    with torch.no_grad():
        assert set(TextTask.pages(task, batch(False))) == {"attention"}


def test_figures_and_page_of_a_batch_read_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kind, model, make = TASKS["causal"]
    task, batch = build(kind, model), make(False)
    choose, read = task.shown, []
    monkeypatch.setattr(task, "shown", lambda batch: read.append(1) or choose(batch))
    with torch.no_grad():
        for times in (1, 2):
            TextTask.figures(task, batch)
            page = TextTask.pages(task, batch)
            assert len(read) == times
            next(task.parameters()).mul_(2)  # and is read again by other weights
        assert TextTask.pages(task, make(False)) != page
    assert len(read) == 3


@pytest.mark.parametrize("name", TASKS)
def test_a_model_of_another_kind_is_not_drawn(name: str) -> None:
    kind, _, batch = TASKS[name]
    task = build(kind, nn.Linear(1, 1))
    assert shown(task, batch(False)) == []
    assert task.pages(batch(False)) == {}


def test_classification_shows_a_text_of_each_class() -> None:
    task = build(TextClassification, TextEncoder)
    found = shown(task, labelled(False))
    assert [one.attention.keys for one in found] == [TOKENIZER.pieces(row) for row in IDS]
    read = [one.caption.split()[2] for one in found]
    assert [one.right for one in found] == [
        name == true for name, true in zip(read, "abc", strict=True)
    ]
    long = collate([{"ids": torch.ones(MOST_TOKENS + 1).long(), "target": torch.tensor(0)}])
    assert shown(task, long) == []


def test_masked_tokens_are_named() -> None:
    task = build(MaskedLanguageModelling, MaskedLanguageModel)
    batch = asked(Masking(0.3), False)
    (one, _) = shown(task, batch)
    # Of the first text: what is asked is told, and what the model sees is drawn
    inside = batch["at"] < batch["lengths"][0]
    for true in TOKENIZER.pieces(batch["target"][inside].tolist()):
        assert f"(was {true})" in one.caption or f"{true} (right)" in one.caption
    assert one.caption.startswith(f"Asked for {int(inside.sum())}, says")
    assert one.attention.keys == TOKENIZER.pieces(batch["ids"][: batch["lengths"][0]].tolist())


@pytest.mark.parametrize("limit", [2, 16, 64])
def test_a_text_is_completed_within_the_positions(limit: int) -> None:
    task = build(CausalLanguageModelling, TextDecoder, positions="learned", max_length=limit)
    task.generation = {"max_tokens": 100, "temperature": 0.8}
    batch = collate([NextToken()(torch.tensor(row[: limit + 1])) for row in IDS])
    for one, row in zip(shown(task, batch), IDS, strict=False):
        given = len(one.attention.keys) - one.written
        assert one.attention.keys[:given] == TOKENIZER.pieces(row)[:given]
        assert given and one.written <= limit


def test_a_translation_is_shown_within_the_positions() -> None:
    task = build(Translation, Seq2SeqTransformer, positions="learned", max_length=32)
    task.generation = {"max_tokens": 32, "stop": []}  # never ends
    written = task.translated(pairs(False), task.trainer.datamodule)
    found = shown(task, pairs(False))
    assert len(found) == 3
    for one in found:
        sums = one.attention.weights.sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))
        # All but the token that there is no position for
        assert any(repr(text)[:20] in one.caption for text in written)


def test_shared_blocks_are_drawn_too() -> None:
    task = build(TextClassification, TextEncoder, num_groups=1)
    for one in shown(task, labelled(False)):
        assert one.attention.layers == [1]
    model, ids = task.model, torch.tensor(IDS[0])
    assert attention_maps(model, ids, tokenizer=TOKENIZER).layers == [1]
