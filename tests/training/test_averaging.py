"""The moving average of the weights: what it is, where it is kept, and that it resumes exactly."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from attention_core.training import UsageError, evaluate, load_model, resume, train
from attention_core.training.averaging import EMA
from attention_core.training.checkpoint import load_checkpoint
from attention_core.training.folder import RunFolder
from attention_core.training.instantiate import build
from attention_core.training.metrics import read_metrics
from attention_core.training.parallel import FSDP2
from tests.training.conftest import Compose, assert_same_run, interrupt, same

SETTING = [
    *["experiment=toy", "callbacks=ema", "callbacks.ema.decay=0.9"],
    *["trainer.max_epochs=3", "checkpoint.every_steps=3"],
]


def test_the_average_is_that_of_the_weights_after_each_step(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import toy_domain

    seen: list[dict[str, torch.Tensor]] = []

    def keep(self: Any, trainer: Any, task: Any, *args: Any) -> None:
        seen.append({name: weight.detach().clone() for name, weight in task.named_parameters()})

    monkeypatch.setattr(toy_domain.KillAt, "on_train_batch_end", keep)
    train(compose(*SETTING), tmp_path)
    assert len(seen) == 24
    average = {name: weight.double() for name, weight in seen[0].items()}
    for weights in seen[1:]:
        for name, weight in weights.items():
            average[name] = 0.9 * average[name] + 0.1 * weight.double()
    last = load_checkpoint(RunFolder(tmp_path).last)
    for name, weight in average.items():
        torch.testing.assert_close(last["state_dict"][name].double(), weight, atol=1e-6, rtol=0)
        assert torch.equal(last["current_model_state"][name], seen[-1][name])


@pytest.mark.parametrize("more", [[], ["+trainer.val_check_interval=0.5"]])
def test_what_is_validated_is_what_is_kept(
    more: list[str], compose: Compose, tmp_path: Path
) -> None:
    """Seen by computing the validation loss again from best.ckpt."""
    config = compose(*SETTING, *more)
    results = train(config, tmp_path)
    validations = [row for row in read_metrics(RunFolder(tmp_path).metrics) if "val/loss" in row]
    highest = max(row["val/accuracy"] for row in validations)
    best = [row for row in validations if row["val/accuracy"] == highest][-1]  # the later of a tie
    data = build(config["data"], allow=config["allow"])
    data.setup()
    with torch.no_grad():
        output = load_model(tmp_path, ["toy_domain"])(data.val_set.points)
    assert float(F.cross_entropy(output, data.val_set.target)) == pytest.approx(
        best["val/loss"], abs=1e-6
    )
    assert evaluate(tmp_path, ["toy_domain"]) == results


@pytest.mark.slow
def test_training_goes_on_with_the_weights_themselves(compose: Compose, tmp_path: Path) -> None:
    train(compose(*SETTING), tmp_path / "with")
    train(compose(*SETTING, "callbacks.ema=null"), tmp_path / "without")
    rows = {
        name: [
            {key: row[key] for key in row if key.startswith(("step/", "train/"))}
            for row in read_metrics(RunFolder(tmp_path / name).metrics)
        ]
        for name in ("with", "without")
    }
    assert rows["with"] == rows["without"]
    assert any("step/loss" in row for row in rows["with"])


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, 9])
@pytest.mark.parametrize("more", [[], ["+trainer.val_check_interval=0.5"]])
def test_resume_is_exact(
    step: int, more: list[str], compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(*SETTING, *more)
    train(config, tmp_path / "whole")
    interrupt(config, tmp_path / "cut", step, monkeypatch)
    resume(tmp_path / "cut", ["toy_domain"])
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    whole, cut = (load_checkpoint(RunFolder(tmp_path / name).last) for name in ("whole", "cut"))
    for key in ("current_model_state", "averaging_state"):
        assert same(whole[key], cut[key])
    assert not same(whole["state_dict"], whole["current_model_state"])


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range(decay: float) -> None:
    with pytest.raises(UsageError, match=r"ema.decay must be in \[0, 1\), got"):
        EMA(decay)


def test_a_sharded_model_is_refused() -> None:
    trainer: Any = SimpleNamespace(strategy=FSDP2())
    with pytest.raises(UsageError, match="a sharded model cannot be averaged"):
        EMA().setup(trainer, None, "fit")  # type: ignore[arg-type]
