"""The debug and profiler groups."""

import csv
from pathlib import Path

import pytest

from attention_core.training import UsageError, evaluate, train
from attention_core.training.folder import RunFolder
from attention_core.training.metrics import read_metrics
from attention_core.training.run import check_config
from tests.training.conftest import Compose


def test_fast_dev_run_does_everything_once(compose: Compose, tmp_path: Path) -> None:
    train(compose("experiment=toy", "debug=fast_dev_run"), tmp_path)
    folder = RunFolder(tmp_path)
    with folder.metrics.open() as file:
        rows = list(csv.DictReader(file))
    assert sum(bool(row["step/loss"]) for row in rows) == 1
    assert sum(bool(row["val/loss"]) for row in rows) == 1
    assert sum(bool(row["test/loss"]) for row in rows) == 1
    assert folder.best.exists() and folder.last.exists() and folder.results.exists()
    figures = {path.stem for path in folder.figures.iterdir()}
    assert figures >= {"learning_curves", "confusion", "attention"}
    # 16 samples are tested, again so afterwards
    assert evaluate(tmp_path, ["toy_domain"])["test/accuracy"] * 16 % 1 == 0


def test_overfit_learns_one_batch_by_heart(
    compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = train(compose("experiment=toy", "debug=overfit"), tmp_path / "run")
    losses = [row["val/loss"] for row in _rows(tmp_path / "run") if "val/loss" in row]
    assert len(losses) == 20
    assert losses[0] > 0.1
    assert losses[-1] < 0.01
    assert results["test/loss"] > 10 * losses[-1]  # by heart, and not what there is to learn
    assert "16 training / 16 validation" in capsys.readouterr().out
    rates = {row["step/lr"] for row in _rows(tmp_path / "run") if "step/lr" in row}
    assert rates == {0.02}


@pytest.mark.parametrize(("batch_size", "steps"), [(4, 3), (16, 1)])
def test_limit_takes_a_tenth_and_at_least_one(
    batch_size: int, steps: int, compose: Compose, tmp_path: Path
) -> None:
    # 120 samples: 30 batches of 4, or 8 of 16, a tenth of which is less than one
    changes = ("trainer.max_epochs=1", f"data.batch_size={batch_size}")
    train(compose("experiment=toy", "debug=limit", *changes), tmp_path)
    assert sum("step/loss" in row for row in _rows(tmp_path)) == steps


@pytest.mark.parametrize(
    ("key", "instead"),
    [("fast_dev_run=true", "debug=fast_dev_run"), ("overfit_batches=1", "debug=overfit")],
)
def test_what_lightning_would_do_less_of_is_refused(
    key: str, instead: str, compose: Compose
) -> None:
    with pytest.raises(UsageError, match=rf"trainer.{key.split('=')[0]}: .* {instead}"):
        check_config(compose("experiment=toy", f"+trainer.{key}"))


def test_too_few_epochs_for_a_validation_are_refused_before_training(compose: Compose) -> None:
    wrong = ["trainer.max_epochs=4", "trainer.check_val_every_n_epoch=5"]
    with pytest.raises(UsageError, match="max_epochs=4 .* after epoch 5"):
        check_config(compose("experiment=toy", *wrong))


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("simple", "run_training_batch"),
        ("advanced", "function calls"),
        ("pytorch", "aten::"),
    ],
)
def test_profilers_write_into_the_run_folder(
    choice: str, expected: str, compose: Compose, tmp_path: Path
) -> None:
    train(compose("experiment=toy", "debug=fast_dev_run", f"profiler={choice}"), tmp_path)
    assert expected in (tmp_path / "profile" / "fit-profile.txt").read_text()
    if choice == "pytorch":
        assert list((tmp_path / "profile").glob("*.pt.trace.json"))


def _rows(path: Path) -> list[dict[str, float]]:
    return read_metrics(RunFolder(path).metrics)
