"""The experiments that write text, begun: what is measured of them, and what they predict."""

import importlib.util
import json
from pathlib import Path

import pytest

from attention_core.training import evaluate, train
from attention_core.training.compose import about, config_roots
from attention_core.training.predict import predict
from tests.training.conftest import Compose, compose, one_thread  # noqa: F401

EXPERIMENTS = about(config_roots(None))
SHORT = [
    "trainer.max_epochs=1",
    "trainer.check_val_every_n_epoch=1",
    "trainer.limit_train_batches=4",
]


def skip_without_data(name: str) -> None:
    missing = [p for p in EXPERIMENTS[name]["needs"] if importlib.util.find_spec(p) is None]
    if missing:
        pytest.skip(f"{name} needs {', '.join(missing)}")


@pytest.mark.slow
def test_a_model_of_language_is_compared_with_compressors(
    compose: Compose,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    skip_without_data("nlp/bbc_gpt_tiny")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    from bits_per_byte import compare

    results = train(
        compose("experiment=nlp/bbc_gpt_tiny", *SHORT, config_dir=None), tmp_path / "run"
    )
    bits = compare(tmp_path / "run")
    assert bits["this model"] == results["test/bits_per_byte"]
    # What a byte takes untrained, and the order that is known of the others
    assert 8 > bits["this model"] > bits["xz -9"]
    assert bits["5-gram over bytes"] < bits["xz -9"] < bits["gzip -9"]
    (tmp_path / "prompts.txt").write_text("The government said\n")
    assert predict(tmp_path / "run", tmp_path / "prompts.txt", tmp_path / "rows.jsonl") == 0
    (row,) = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    assert row["completion"]
    assert evaluate(tmp_path / "run") == results


@pytest.mark.slow
def test_a_translator_is_measured_by_what_it_writes(
    compose: Compose,  # noqa: F811
    tmp_path: Path,
) -> None:
    skip_without_data("nlp/translate_de_tiny")
    results = train(
        compose("experiment=nlp/translate_de_tiny", *SHORT, config_dir=None), tmp_path / "run"
    )
    assert 0 <= results["test/chrf"] <= 100
    (tmp_path / "texts.txt").write_text("Change my password\n")
    assert predict(tmp_path / "run", tmp_path / "texts.txt", tmp_path / "rows.jsonl") == 0
    (row,) = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    assert isinstance(row["translation"], str)
    assert evaluate(tmp_path / "run") == results
