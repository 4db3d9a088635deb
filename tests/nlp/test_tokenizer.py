"""Every text survives the tokenizer."""

import importlib.util
import json
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from attention_core.training import UsageError

pytest.importorskip("tokenizers")

import tokenizers

from nlp.data.pairs import Pairs
from nlp.tokenizer import LONGEST_LEARNT, SMALLEST, Tokenizer

TEXTS = ["the plane is late again", "the plane was on time, thanks!", "late, late, late 😡"] * 4


@pytest.fixture(scope="module", params=["bpe", "wordpiece"])
def either(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=600, kind=request.param)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=320)


@pytest.mark.parametrize(
    "text",
    [
        "the plane is late",
        "never seen: Žluťoučký kůň, 漢字, עברית",
        "👩‍👩‍👧 😀 🇪🇺",
        "  two  spaces, tab\t, lines\r\n\n",
        "nul \x00, escape \x1b, replaced \ufffd, last \U0010ffff",
        "it may say <s> or <pad>",
        "## a heading, ##half of a word, C# and ###",
        "a word of " + 350 * "x" + "ends here",
        "",
        " ",
    ],
)
def test_round_trip(either: Tokenizer, text: str) -> None:
    tokenizer = either
    (ids,) = tokenizer.encode([text])
    assert tokenizer.decode(ids) == text
    assert ids[0] == tokenizer.start
    assert not tokenizer.special & set(ids[1:])
    assert tokenizer.encode([text], special=False)[0] == ids[1:]
    assert max(ids) < len(tokenizer)
    assert len(tokenizer.pieces(ids)) == len(ids)


@settings(max_examples=200, deadline=None)
@given(text=st.text(), kind=st.sampled_from(["bpe", "wordpiece"]))
def test_round_trip_of_anything(text: str, kind: Any) -> None:
    tokenizer = _small(kind)
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text


@cache
def _small(kind: Any) -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=530, kind=kind)


def test_an_empty_text_is_its_start_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(["", "late"])[0] == [tokenizer.start]


def test_a_lone_surrogate_is_no_text_and_becomes_a_question_mark(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(["a\ud800b"])[0]) == "a?b"


def test_a_lone_surrogate_does_not_stop_training() -> None:
    tokenizer = Tokenizer.train(["ab\ud800"] * 4, vocab_size=300)
    assert tokenizer.to_json() == Tokenizer.train(["ab?"] * 4, vocab_size=300).to_json()


def test_texts_may_be_any_iterable(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(text for text in TEXTS) == tokenizer.encode(TEXTS)


def test_merges_are_learned_and_bytes_remain(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode([" late"])[0]
    assert tokenizer.pieces(ids) == ["<s>", "·late"]
    assert len(tokenizer) <= 320
    # A character that no text had falls apart into its bytes, and each is shown
    assert tokenizer.pieces(tokenizer.encode(["漢"])[0]) == ["<s>", "⟨e6⟩", "⟨bc⟩", "⟨a2⟩"]


def test_word_pieces_are_learned_and_bytes_remain() -> None:
    tokenizer = Tokenizer.train(TEXTS, vocab_size=600, kind="wordpiece")
    assert len(tokenizer) <= 600
    ids = tokenizer.encode([" late 漢"])[0]
    assert tokenizer.pieces(ids) == ["<s>", "·late", "·", "⟨e6⟩", "⟨bc⟩", "⟨a2⟩"]
    # A byte within a word is another token than at its beginning
    first, later = tokenizer.encode(["xy", "yx"])
    assert set(first[1:]).isdisjoint(later[1:])


def test_learning_cuts_words_that_take_its_square_and_reading_does_not() -> None:
    """200,000 letters without a space had not been learned from after two minutes."""
    learned = Tokenizer.train(["a" * 40_000], 300)
    assert max(learned.byte_counts()) == LONGEST_LEARNT == 1000
    long = "a" * 200_000
    learned = Tokenizer.train([long, "b" * 200_000], 300)
    (ids,) = learned.encode([long])
    assert learned.decode(ids) == long
    # Up to that length a tokenizer is what it would be without a cut
    texts = ["ab" * 500, "abc" * 333, *TEXTS]
    theirs = tokenizers.ByteLevelBPETokenizer()
    theirs.train_from_iterator(texts, 320, min_frequency=2, show_progress=False)
    ours = json.loads(Tokenizer.train(texts, 320).to_json())["model"]["merges"]
    assert ours and ours == json.loads(theirs.to_str())["model"]["merges"][: len(ours)]


def test_an_id_of_no_token_is_shown_as_its_number() -> None:
    tokenizer = Tokenizer.train(TEXTS, vocab_size=600)
    beyond = len(tokenizer) + 5  # as a model may write that has more ids
    assert tokenizer.pieces([beyond]) == [f"#{beyond}"]
    assert tokenizer.spell([beyond]) == [b""] and tokenizer.decode([beyond]) == ""


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_training_is_deterministic_and_a_file_brings_it_back(kind: Any, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(TEXTS, vocab_size=600, kind=kind)
    assert Tokenizer.train(TEXTS, vocab_size=600, kind=kind).to_json() == tokenizer.to_json()
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    odd = [*TEXTS, "😡 <s> <pad> ž"]
    assert loaded.encode(odd) == tokenizer.encode(odd)
    assert len(loaded) == len(tokenizer)
    assert loaded.roles == {"pad": 0, "start": 1, "end": 2, "mask": 3}
    assert loaded.special == {0, 1, 2, 3}
    copy = pickle.loads(pickle.dumps(loaded))
    assert copy.encode(odd) == tokenizer.encode(odd)


def test_no_text_at_all_leaves_the_bytes() -> None:
    tokenizer = Tokenizer.train([], vocab_size=1000)
    assert len(tokenizer) == SMALLEST["bpe"]
    assert tokenizer.decode(tokenizer.encode(["é!"])[0]) == "é!"


def test_a_file_may_leave_ids_out(tmp_path: Path) -> None:
    words = {"[PAD]": 0, "[UNK]": 1, "late": 7}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token="[UNK]"))
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert len(tokenizer) == 8 and tokenizer.encode(["late"]) == [[7]]
    learned = json.loads(Tokenizer.train(TEXTS, vocab_size=300).to_json())
    last = max(learned["model"]["vocab"].items(), key=lambda item: item[1])[0]
    learned["model"]["vocab"][last] += 5
    (tmp_path / "tokenizer.json").write_text(json.dumps(learned))
    counts = Tokenizer.load(tmp_path).byte_counts()
    assert counts[-6:-1] == [0] * 5 and counts[-1] == len(last)


def test_t5_begins_its_targets_with_the_padding(tmp_path: Path) -> None:
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁late", -1.0)]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(words, unk_id=2))
    backend.add_special_tokens(["<pad>", "</s>", "<unk>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert "start" not in tokenizer.roles and tokenizer.start == tokenizer.pad == 0
    assert Pairs([[3]], [[3, 3]], tokenizer)[0]["target_ids"].tolist() == [0, 3, 3]


def test_errors_say_what_was_expected(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="vocab_size must be at least 260"):
        Tokenizer.train(TEXTS, vocab_size=100)
    with pytest.raises(ValueError, match="vocab_size must be at least 516 for 'wordpiece'"):
        Tokenizer.train(TEXTS, vocab_size=300, kind="wordpiece")
    with pytest.raises(ValueError, match="kind must be 'bpe' or 'wordpiece', got 'unigram'"):
        Tokenizer.train(TEXTS, vocab_size=300, kind="unigram")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no tokenizer file"):
        Tokenizer.load(tmp_path / "none.json")
    with pytest.raises(TypeError, match=r"texts must be a list \(each a str\), got 'one text'"):
        Tokenizer.train("one text", vocab_size=300)
    with pytest.raises(TypeError, match="texts must be a list .*str.*, got 'one text'"):
        tokenizer.encode("one text")


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"'tokenizers'.*attention-core\[text\]"):
        Tokenizer.train(TEXTS, vocab_size=300)
