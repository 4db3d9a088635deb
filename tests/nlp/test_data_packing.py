"""Batches packed and padded: the same texts, the same loss."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from attention_core.training import DataModule, Loader, Task
from attention_core.training.data import model_inputs
from nlp import MaskedLanguageModel, Seq2SeqTransformer, TextDecoder, TextEncoder
from nlp.data import IGNORED, Masking, NextToken, Texts, collate
from nlp.data.packing import unpack
from nlp.data.pairs import Pairs
from nlp.tasks import (
    CausalLanguageModelling,
    MaskedLanguageModelling,
    TextClassification,
    TokenTask,
    Translation,
)
from nlp.tokenizer import Tokenizer

TEXTS = ["good day", "", "bad", "a rather longer text than these others, with a tail"] * 3
SMALL: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 2}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 280)


def settings() -> dict[str, Any]:
    return {"optimizer": partial(torch.optim.SGD, lr=0.1)}


def case(name: str, tokenizer: Tokenizer) -> tuple[Any, Task]:
    """A data set and a task."""
    ids = tokenizer.encode(TEXTS)
    v = len(tokenizer)
    if name == "labels":
        model: nn.Module = TextEncoder(v, **SMALL, num_classes=3)
        task: Task = TextClassification(model, classes=["a", "b", "c"], **settings())
        return Texts(ids, [n % 3 for n in range(len(ids))]), task
    if name == "translation":
        model = Seq2SeqTransformer(v, **SMALL)
        return Pairs(ids, [row[1:] for row in ids[::-1]], tokenizer), Translation(
            model, **settings()
        )
    objective = NextToken() if name == "next token" else Masking(spans=name == "spans")
    objective.bind(tokenizer)
    parts = [part for row in ids for part in objective.cut(row, None)]
    if name == "next token":
        task = CausalLanguageModelling(TextDecoder(v, **SMALL), **settings())
    else:
        task = MaskedLanguageModelling(MaskedLanguageModel(v, **SMALL), **settings())
    return Texts(parts, objective=objective), task


CASES = ["labels", "next token", "masked", "spans", "translation"]


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_the_same_packed_padded_and_in_parts(name: str, tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    dataset, task = case(name, tokenizer)
    task.eval()
    samples = [dataset[index] for index in range(len(dataset))]
    packed, padded = collate(samples), collate(samples, padded=True)
    assert packed["ids"].ndim == 1 and padded["ids"].ndim == 2
    losses, gradients = [], []
    for batch in (packed, padded):
        task.zero_grad()
        loss = task.loss(task(**model_inputs(batch)), batch)
        loss.backward()
        losses.append(loss)
        gradients.append([p.grad.clone() for p in task.parameters() if p.grad is not None])
    torch.testing.assert_close(*losses)
    for pair in zip(*gradients, strict=True):
        torch.testing.assert_close(*pair, atol=1e-5, rtol=1e-4)
    # Each item weighs the same, whatever the batch that it comes in
    mean = task.means["val_mean"]  # type: ignore[operator]
    for batch in (collate(samples[:5]), collate(samples[5:])):
        loss = task.loss(task(**model_inputs(batch)), batch)
        mean.update(loss.detach(), weight=task.weight(batch))
    torch.testing.assert_close(mean.compute(), losses[0].detach())


def test_texts_of_a_batch_do_not_see_each_other(tokenizer: Tokenizer) -> None:
    for name in CASES:
        dataset, task = case(name, tokenizer)
        task.eval()
        inputs = [model_inputs(dataset[i]) for i in (0, 3)]
        alone, both = collate(inputs[:1]), collate(inputs)
        with torch.no_grad():
            one, two = task(**alone), task(**both)
        torch.testing.assert_close(two[: len(one)], one)


def test_texts_come_back_as_they_went_in(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXTS)
    texts = Texts(ids)
    assert texts.sizes == [len(row) for row in ids]
    assert texts.longest == max(texts.sizes)
    for padded in (False, True):
        batch = collate([texts[i] for i in range(len(texts))], padded=padded)
        assert [row.tolist() for row in unpack(batch["ids"], batch["lengths"])] == ids
    with pytest.raises(IndexError, match="there are 12 texts, no text 12"):
        texts[12]


def test_every_token_is_predicted_once_whatever_the_window(tokenizer: Tokenizer) -> None:
    objective = NextToken()
    objective.bind(tokenizer)
    (ids,) = tokenizer.encode([TEXTS[3]])
    for window in (None, 2, 3, 7, 1000):
        samples = [objective(torch.tensor(part)) for part in objective.cut(ids, window)]
        assert torch.cat([s["target"] for s in samples]).tolist() == [*ids[1:], tokenizer.end]
        assert torch.cat([s["ids"] for s in samples]).tolist() == ids
        assert max(len(s["ids"]) for s in samples) <= (window or len(ids))
    assert objective.cut([tokenizer.start], 5) == [[tokenizer.start, tokenizer.end]]


def test_masks_are_those_of_bert(tokenizer: Tokenizer) -> None:
    objective = Masking()
    objective.bind(tokenizer)
    torch.manual_seed(0)
    ids = torch.randint(4, len(tokenizer), (40_000,))
    ids[::100] = tokenizer.start
    sample = objective(ids)
    share = len(sample["at"]) / (len(ids) - 400)
    assert share == pytest.approx(0.15, abs=1e-3)
    assert torch.equal(sample["target"], ids[sample["at"]])
    assert not (sample["target"] == tokenizer.start).any()
    seen = sample["ids"][sample["at"]]
    assert float((seen == tokenizer.mask).float().mean()) == pytest.approx(0.8, abs=0.02)
    assert float((seen == sample["target"]).float().mean()) == pytest.approx(0.1, abs=0.02)
    untouched = torch.ones(len(ids), dtype=torch.bool)
    untouched[sample["at"]] = False
    assert torch.equal(sample["ids"][untouched], ids[untouched])
    # Of a text of one token that one; of an empty text none
    assert len(objective(torch.tensor([tokenizer.start, 270]))["at"]) == 1
    assert len(objective(torch.tensor([tokenizer.start]))["at"]) == 0


def test_spans_are_those_of_spanbert(tokenizer: Tokenizer) -> None:
    objective = Masking(spans=True)
    objective.bind(tokenizer)
    torch.manual_seed(0)
    ids = torch.full((20_000,), 270)
    chosen, run = objective._runs(20_000, 3_000)
    assert len(chosen) == 3_000
    lengths = torch.bincount(run)
    assert int(lengths.max()) <= 10
    assert float(lengths.float().mean()) == pytest.approx(3.8, abs=0.3)  # Joshi et al., 3.1
    for number in run.unique()[:50]:
        places = chosen[run == number]
        assert torch.equal(places, torch.arange(int(places[0]), int(places[0]) + len(places)))
    seen = objective(ids)
    assert len(seen["at"]) == 3_000


def test_masks_are_drawn_by_seed_and_epoch_alone(tokenizer: Tokenizer) -> None:
    dataset, _ = case("masked", tokenizer)
    build = partial(Loader, dataset, 4, collate=collate, shuffle=True)

    def epoch(loader: Loader, number: int) -> list[list[int]]:
        loader.set_epoch(number)
        return [batch["ids"].tolist() for batch in loader]

    whole = epoch(build(), 1)
    helped = build(workers=1)
    assert epoch(helped, 1) == whole
    helped.close()
    assert epoch(build(), 2) != whole


def test_padding_is_asked_for_nothing(tokenizer: Tokenizer) -> None:
    dataset, task = case("next token", tokenizer)
    batch = collate([dataset[0], dataset[3]], padded=True)
    lengths = batch["lengths"]
    assert (batch["target"][0, int(lengths[0]) :] == IGNORED).all()
    assert int(task.weight(batch)) == int(lengths.sum())  # type: ignore[arg-type]


def test_a_token_task_needs_logits_of_its_targets() -> None:
    task = TokenTask(nn.Identity(), **settings())
    batch = {"target": torch.zeros(3, dtype=torch.long), "lengths": torch.tensor([3])}
    with pytest.raises(Exception, match=r"logits of shape \(3, 'V'\) expected.*got \(2, 5\)"):
        task.loss(torch.zeros(2, 5), batch)


def test_batches_hold_about_as_many_tokens_as_is_said(tokenizer: Tokenizer) -> None:
    class Data(DataModule):
        def load(self) -> None:
            self.train_set = self.val_set = self.test_set = Texts(tokenizer.encode(TEXTS * 20))

    data = Data(batch_size=4)
    data.budget, data.collate = 100, collate  # type: ignore[method-assign]
    data.setup()
    counts = [len(batch["ids"]) for batch in data.train_dataloader()]
    total = sum(data.train_set.sizes)  # type: ignore[union-attr]
    assert sum(counts) == total and len(counts) == -(-total // 100)
    assert max(counts) <= 100 + max(data.train_set.sizes)  # type: ignore[union-attr]
