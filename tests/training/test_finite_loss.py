"""A loss that is no number ends the run, and results are JSON whatever they are."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from attention_core.training import UsageError, resume, train
from attention_core.training.checkpoint import load_checkpoint
from attention_core.training.folder import RunFolder, read_results, write_json
from attention_core.training.metrics import read_metrics
from attention_core.training.run import _print_comparison
from tests.training.conftest import Compose


# Within an epoch after ten steps in a row, where a validation does not come before
@pytest.mark.parametrize(("batches", "steps"), [(30, 20), (4, 8)])
def test_a_loss_that_is_not_finite_ends_the_run(
    batches: int,
    steps: int,
    compose: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = compose(
        *["experiment=toy", f"data.samples={8 * batches}", "data.batch_size=8"],
        *["checkpoint.every_steps=1", "schedule=constant"],
    )
    import toy_domain

    loss = toy_domain.RingsTask.loss

    def break_at_seven(self: Any, output: Any, batch: Any) -> Any:
        whole = not self.trainer.training or self.trainer.global_step != 6
        return loss(self, output, batch) * (1 if whole else math.nan)

    monkeypatch.setattr(toy_domain.RingsTask, "loss", break_at_seven)
    for start in (train, resume):
        with pytest.raises(UsageError, match=r"the loss is not a finite number, since step 6 in"):
            start(*([config, tmp_path] if start is train else [tmp_path, ["toy_domain"]]))
    folder = RunFolder(tmp_path)
    rows = read_metrics(folder.metrics)
    assert max(row["step"] for row in rows) == steps - 1
    assert not folder.results.exists()
    last = load_checkpoint(folder.last)
    assert last["global_step"] == 6
    assert all(weight.isfinite().all() for weight in last["state_dict"].values())


def test_one_batch_of_a_validation_is_enough(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose("experiment=toy")
    import toy_domain

    step = toy_domain.RingsTask.validation_step

    def poisoned(self: Any, batch: Any, number: int) -> None:
        bad = self.trainer.global_step == 16 and number == 1
        step(self, {**batch, "points": batch["points"] * (math.nan if bad else 1)}, number)

    monkeypatch.setattr(toy_domain.RingsTask, "validation_step", poisoned)
    with pytest.raises(UsageError, match="the loss of validation is not .* since step 15 in epoch"):
        train(config, tmp_path)
    assert load_checkpoint(RunFolder(tmp_path).best)["global_step"] == 8


def test_a_step_without_effect_does_not_end_the_run(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose("experiment=toy", "trainer.max_epochs=1", "checkpoint.every_steps=1")
    import toy_domain

    end = toy_domain.KillAt.on_train_batch_end

    def skipped(self: Any, trainer: Any, task: Any, outputs: Any, *args: Any) -> None:
        if trainer.global_step == 3:  # as a gradient scaler skips it
            outputs["loss"] = outputs["loss"] * math.inf
        end(self, trainer, task, outputs, *args)

    monkeypatch.setattr(toy_domain.KillAt, "on_train_batch_end", skipped)
    assert math.isfinite(train(config, tmp_path)["test/loss"])


def test_results_are_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path)
    results = {"test/loss": 0.5, "test/r": math.nan, "test/most": math.inf, "best_epoch": 1}
    write_json(results, folder.results)
    read = json.loads(folder.results.read_text(), parse_constant=pytest.fail)
    assert read == {"test/loss": 0.5, "test/r": None, "test/most": None, "best_epoch": 1}
    _print_comparison(results, read_results(folder))
    assert "digit for digit" in capsys.readouterr().out
    _print_comparison({**results, "test/r": 0.1}, read_results(folder))
    assert "differs from results.json: test/r was nan" in capsys.readouterr().out
