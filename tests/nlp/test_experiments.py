"""The quick variants of the experiments on texts reach what their files state."""

import importlib.util
import json
from pathlib import Path

import pytest

from attention_core.training import evaluate, train
from attention_core.training.compose import about, config_roots
from attention_core.training.predict import predict
from tests.training.conftest import Compose, compose, one_thread  # noqa: F401

EXPERIMENTS = about(config_roots(None))
STATED = {
    # Always answering "sports" gives 0.23
    "nlp/bbc_topics_tiny": {"test/accuracy": 0.8},
    # Always answering "negative" gives 0.42
    "nlp/sentiment_minilm_tiny": {"test/accuracy": 0.68},
}


def skip_without_data(name: str) -> None:
    missing = [p for p in EXPERIMENTS[name]["needs"] if importlib.util.find_spec(p) is None]
    if missing:
        pytest.skip(f"{name} needs {', '.join(missing)}")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(STATED))
def test_a_quick_variant_reaches_what_is_stated(
    name: str,
    compose: Compose,  # noqa: F811
    tmp_path: Path,
) -> None:
    skip_without_data(name)
    results = train(compose(f"experiment={name}", config_dir=None), tmp_path / "run")
    for metric, least in STATED[name].items():
        assert results[metric] > least
    assert evaluate(tmp_path / "run") == results


@pytest.mark.slow
def test_a_small_gpt_writes_shorter_than_compressors(
    compose: Compose,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    skip_without_data("nlp/bbc_gpt_tiny")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    from bits_per_byte import compare

    train(compose("experiment=nlp/bbc_gpt_tiny", config_dir=None), tmp_path / "run")
    bits = compare(tmp_path / "run")
    assert bits["this model"] < bits["xz -9"] < bits["gzip -9"]
    (tmp_path / "prompts.txt").write_text("The government said\n")
    assert predict(tmp_path / "run", tmp_path / "prompts.txt", tmp_path / "rows.jsonl") == 0
    (row,) = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    assert row["completion"]


@pytest.mark.slow
def test_a_translator_begins_to_translate(
    compose: Compose,  # noqa: F811
    tmp_path: Path,
) -> None:
    skip_without_data("nlp/translate_de_tiny")
    results = train(compose("experiment=nlp/translate_de_tiny", config_dir=None), tmp_path / "run")
    assert results["test/chrf"] > 20  # 2.5 where it has hardly begun
    (tmp_path / "texts.txt").write_text("Change my password\n")
    assert predict(tmp_path / "run", tmp_path / "texts.txt", tmp_path / "rows.jsonl") == 0
    (row,) = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    assert row["translation"]
