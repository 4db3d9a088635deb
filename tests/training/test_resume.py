"""A killed run, continued, equals the uninterrupted one bit for bit."""

import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from attention_core.training import RegressionTask, UsageError, resume, train
from attention_core.training.folder import RunFolder, read_config
from attention_core.training.longer import read_limits
from attention_core.training.metrics import read_metrics
from tests.command_line import attn
from tests.training.conftest import CONF, Compose, Killed, assert_same_run, interrupt

STEPS_PER_EPOCH = 8  # 120 samples, batches of 16


# The checkpoint every 3 steps: before the first one, in the middle of an epoch, on the last step
# of an epoch, on the first step of one, on a checkpoint's own step.
@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 5, 8, 9, 12, 17, 24])
def test_resume_is_exact_wherever_the_run_stopped(
    step: int, compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose("experiment=toy", "trainer.max_epochs=3", "checkpoint.every_steps=3")
    train(config, tmp_path / "whole")
    interrupt(config, tmp_path / "cut", step, monkeypatch)
    resume(tmp_path / "cut", ["toy_domain"])
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_resume_is_exact_with_accumulated_gradients(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(
        "experiment=toy",
        "trainer.max_epochs=3",
        "trainer.accumulate_grad_batches=3",
        "checkpoint.every_steps=2",
    )
    train(config, tmp_path / "whole")
    interrupt(config, tmp_path / "cut", 5, monkeypatch)
    resume(tmp_path / "cut", ["toy_domain"])
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_the_loss_of_a_step_is_that_of_all_its_batches(compose: Compose, tmp_path: Path) -> None:
    config = compose(
        *["experiment=toy", "trainer.max_epochs=1", "trainer.accumulate_grad_batches=4"],
        "data.samples=128",  # 8 batches
    )
    train(config, tmp_path)
    rows = read_metrics(RunFolder(tmp_path).metrics)
    steps = [row["step/loss"] for row in rows if "step/loss" in row]
    (epoch,) = (row["train/loss"] for row in rows if "train/loss" in row)
    assert len(steps) == 2
    assert sum(steps) / 2 == pytest.approx(epoch)


@pytest.mark.slow
def test_resume_is_exact_around_a_validation_within_an_epoch(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(
        *["experiment=toy", "trainer.max_epochs=2", "checkpoint.every_steps=2"],
        "+trainer.val_check_interval=0.5",
    )
    train(config, tmp_path / "whole")
    interrupt(config, tmp_path / "cut", 5, monkeypatch)  # the validation came after step 4
    resume(tmp_path / "cut", ["toy_domain"])
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_a_run_that_was_stopped_early_is_not_trained_on(compose: Compose, tmp_path: Path) -> None:
    stop = "+callbacks.stop={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss"
    config = compose(
        *["experiment=toy", "trainer.max_epochs=9", f"{stop}, patience: 1, min_delta: 9.0}}"]
    )
    for name in ("whole", "cut"):
        train(config, tmp_path / name)
    rows = read_metrics(RunFolder(tmp_path / "whole").metrics)
    assert sum("val/loss" in row for row in rows) == 2
    whole, cut = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "cut")
    cut.results.unlink()  # killed before its test
    resume(cut.path, ["toy_domain"])
    assert cut.results.read_text() == whole.results.read_text()
    trained = [[r for r in read_metrics(f.metrics) if "test/loss" not in r] for f in (whole, cut)]
    assert trained[0] == trained[1]


EARLY = ["callbacks=early_stopping", "callbacks.early_stopping.patience=2"]


@pytest.mark.parametrize("step", [pytest.param(3, marks=pytest.mark.slow), 17])
def test_early_stopping_waits_as_long_after_a_resume(
    step: int, compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No epoch is better by 0.9 than the first: it stops after the third, which a count that began
    anew, within the third, would not."""
    more = ["callbacks.early_stopping.min_delta=0.9", "checkpoint.every_steps=3"]
    config = compose("experiment=toy", "trainer.max_epochs=9", *EARLY, *more)
    stopping = config["callbacks"]["early_stopping"]
    assert (stopping["monitor"], stopping["mode"]) == ("val/accuracy", "max")
    train(config, tmp_path / "whole")
    rows = read_metrics(RunFolder(tmp_path / "whole").metrics)
    assert sum("val/accuracy" in row for row in rows) == 3
    interrupt(config, tmp_path / "cut", step, monkeypatch)
    resume(tmp_path / "cut", ["toy_domain"])
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_early_stopping_goes_by_what_the_task_is_judged_by(compose: Compose) -> None:
    given = compose("callbacks=[ema,early_stopping]", "task=regression", config_dir=None)
    assert given["callbacks"]["early_stopping"]["monitor"] == RegressionTask.monitor == "val/loss"
    assert given["callbacks"]["early_stopping"]["mode"] == "min"
    assert "ema" in given["callbacks"]


@pytest.mark.slow
def test_resume_twice(compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose("experiment=toy", "trainer.max_epochs=3", "checkpoint.every_steps=3")
    train(config, tmp_path / "whole")
    interrupt(config, tmp_path / "cut", 7, monkeypatch)
    import toy_domain

    def stop(self: Any, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == 14:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(toy_domain.KillAt, "on_train_batch_end", stop)
        with pytest.raises(Killed):
            resume(tmp_path / "cut", ["toy_domain"])
    resume(tmp_path / "cut", ["toy_domain"])
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_process_resumes_exactly(workers: int, compose: Compose, tmp_path: Path) -> None:
    step = random.randrange(1, 3 * STEPS_PER_EPOCH)
    setting = [f"data.workers={workers}", "trainer.max_epochs=3", "checkpoint.every_steps=3"]
    where = ["--config-dir", str(CONF)]
    killed = attn(
        *["train", "experiment=toy", *setting, *where, f"hydra.run.dir={tmp_path}/cut"],
        cwd=tmp_path,
        renders=False,
        TOY_KILL_AT=str(step),
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # The uninterrupted run loads without workers: their number makes no difference either.
    train(compose("experiment=toy", *setting, "data.workers=0"), tmp_path / "whole")
    continued = attn("train", f"run={tmp_path}/cut", *where, cwd=tmp_path, renders=False)
    assert continued.returncode == 0, f"killed at step {step}: {continued.stderr}"
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


# Augmentation, dropout, drop path, packed batches, gradients accumulated, workers: whatever the
# domain has. A few batches an epoch are enough to be killed in the middle, at its end and after.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "more"),
    [
        ("vision/digits", ["data.workers=2", "data.batch_size=32"]),
        ("graph/mutag", ["trainer.accumulate_grad_batches=2"]),
        ("nlp/sentiment_tiny", ["data.limit=1000", "data.vocab_size=512"]),
    ],
)
def test_every_domain_resumes_exactly(experiment: str, more: list[str], tmp_path: Path) -> None:
    setting = [
        f"experiment={experiment}",
        *["trainer.max_epochs=3", "trainer.limit_train_batches=6", "trainer.log_every_n_steps=1"],
        *["checkpoint.every_steps=2", "allow=[toy_domain]"],
        "+callbacks.kill._target_=toy_domain.KillAt",
        *more,
    ]
    where = ["--config-dir", str(CONF)]
    steps = 9 if "accumulate" in more[0] else 18
    step = random.randrange(1, steps)
    killed = attn(
        *["train", *setting, *where, f"hydra.run.dir={tmp_path}/cut"],
        cwd=tmp_path,
        renders=False,
        TOY_KILL_AT=str(step),
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    for name in ("cut", "whole"):
        (tmp_path / name).mkdir(exist_ok=True)
        if name == "whole":  # repeated from its configuration alone
            shutil.copy(tmp_path / "cut" / "config.yaml", tmp_path / name)
        ran = attn("train", f"run={tmp_path}/{name}", *where, cwd=tmp_path, renders=False)
        assert ran.returncode == 0, f"killed at step {step}: {ran.stderr}"
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_a_run_stopped_between_training_and_test_is_tested(
    compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = compose("experiment=toy", "trainer.max_epochs=2")
    for name in ("whole", "cut"):
        train(config, tmp_path / name)
    RunFolder(tmp_path / "cut").results.unlink()
    capsys.readouterr()
    resume(tmp_path / "cut", ["toy_domain"])
    out = capsys.readouterr().out
    assert "Nothing was left to train" in out and "trained in" not in out
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_finished_run_has_nothing_to_resume(
    compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = compose("experiment=toy", "trainer.max_epochs=1")
    results = train(config, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.csv").read_text()
    capsys.readouterr()
    assert resume(tmp_path / "run", ["toy_domain"]) == results
    out = capsys.readouterr().out
    assert "Finished already" in out and "trainer.max_epochs=N" in out and "trained in" not in out
    assert (tmp_path / "run" / "metrics.csv").read_text() == before


def test_a_finished_run_trains_on_as_if_it_had_been_longer(
    compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a constant rate, which does not depend on the length."""
    config = compose("experiment=toy", "trainer.max_epochs=2", "schedule=constant")
    train(config, tmp_path / "whole")
    short = {**config, "trainer": {**config["trainer"], "max_epochs": 1}}
    train(short, tmp_path / "run")
    for too_few in (1, 0):
        with pytest.raises(UsageError, match="trainer.max_epochs"):
            resume(tmp_path / "run", ["toy_domain"], max_epochs=too_few)
    assert RunFolder(tmp_path / "run").results.exists()
    resume(tmp_path / "run", ["toy_domain"], max_epochs=2)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert read_config(RunFolder(tmp_path / "run"))["trainer"]["max_epochs"] == 2
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UsageError, match="no checkpoint to train on from.*init.run=FOLDER"):
        resume(tmp_path / "run", ["toy_domain"], max_steps=99)


def test_what_may_be_given_with_a_run() -> None:
    assert read_limits(["trainer.max_epochs=4"]) == {"max_epochs": 4}
    with pytest.raises(
        UsageError, match="optimizer.lr: run=FOLDER continues a run exactly.*init.r"
    ):
        read_limits(["optimizer.lr=1"])
    with pytest.raises(UsageError, match="must be a whole number of at least 1, got 'x'"):
        read_limits(["trainer.max_epochs=x"])
