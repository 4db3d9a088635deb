"""What would fail after all training is refused before the first step, or works."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attention_core.training import ClassificationTask, UsageError, train
from attention_core.training.before import check_monitors
from attention_core.training.folder import RunFolder
from attention_core.training.metrics import read_metrics
from tests.training.conftest import Compose

STOP = "+callbacks.stop={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor:"


@pytest.fixture
def no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClassificationTask, "training_step", lambda *_: pytest.fail("trained"))


@pytest.mark.usefixtures("no_step")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["trainer.limit_test_batches=0"], "trainer.limit_test_batches is 0"),
        (["trainer.limit_val_batches=0.0"], "trainer.limit_val_batches is 0"),
        (["trainer.limit_train_batches=0"], "trainer.limit_train_batches is 0"),
        (["trainer.max_epochs=0"], "trainer.max_epochs is 0"),
        (["+trainer.max_steps=0"], "trainer.max_steps is 0"),
        ([f"{STOP} val_loss}}"], "waits for 'val_loss'.*Did you mean val/loss"),
        ([f"{STOP} test/loss}}"], "EarlyStopping waits for 'test/loss'.* It logs train/loss"),
        (["+trainer.val_check_interval=100"], r"trainer: `val_check_interval` \(100\) must be"),
        (
            ["trainer.max_epochs=-1", "+trainer.max_time=00:00:01:00"],
            "schedule: it needs to know how many steps there are",
        ),
        (
            ["trainer.max_epochs=-1", "+trainer.max_time=00:00:01:00", "schedule=inverse_sqrt"],
            "schedule: it needs to know how many steps there are",
        ),
        (
            [
                *["~schedule", "+schedule._target_=torch.optim.lr_scheduler.OneCycleLR"],
                *["+schedule._partial_=true", "+schedule.max_lr=-1", "+schedule.pct_start=7"],
            ],
            "schedule: .*pct_start",
        ),
        (["task.class_weights=[1]"], "task.class_weights: 2 numbers of at least 0"),
        (["task.class_weights=[1,-1]"], "task.class_weights: 2 numbers of at least 0"),
    ],
)
def test_it_is_refused_before_the_first_step(
    settings: list[str], said: str, compose: Compose, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        train(compose("experiment=toy", *settings), tmp_path / "run")


def test_a_task_may_log_values_of_its_own(compose: Compose, tmp_path: Path) -> None:
    class Logs(ClassificationTask):
        def on_validation_epoch_end(self) -> None:
            self.log("val/own", 1.0)

    from lightning.pytorch.callbacks import EarlyStopping

    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW
    stop = EarlyStopping("val/own")
    check_monitors(Logs(model, classes=["a", "b"], optimizer=optimizer), [stop])
    with pytest.raises(UsageError, match="waits for 'val/own'"):
        check_monitors(ClassificationTask(model, classes=["a", "b"], optimizer=optimizer), [stop])


def test_the_rate_falls_where_validations_do_not_improve(compose: Compose, tmp_path: Path) -> None:
    config = compose(
        *["experiment=toy", "schedule=plateau", "schedule.patience=0", "schedule.factor=0.5"],
        *["+schedule.threshold=9", "+schedule.threshold_mode=abs"],  # nothing improves so much
        *["trainer.max_epochs=2", "+trainer.val_check_interval=4", "optimizer.lr=0.01"],
        *["trainer.accumulate_grad_batches=3", "trainer.gradient_clip_val=1.0"],
    )
    train(config, tmp_path)
    rows = read_metrics(RunFolder(tmp_path).metrics)
    # Of 8 batches an epoch the third, sixth and eighth end a step, the fourth and eighth are
    # followed by a validation; the first of these is the best
    rates = [row["step/lr"] for row in rows if "step/lr" in row]
    assert rates == [0.01, 0.01, 0.01, 0.005, 0.0025, 0.0025]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classes_count_as_weighted_in_every_batch(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(8, 2, generator=generator), torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    task = ClassificationTask(
        nn.Identity(),
        classes=["often", "rare"],
        optimizer=torch.optim.AdamW,
        label_smoothing=smoothing,
        class_weights=[1, 3],
    )
    loss = task.loss(logits, {"target": target})
    torch_mean = F.cross_entropy(
        logits, target, weight=torch.tensor([1.0, 3.0]), label_smoothing=smoothing
    )
    torch.testing.assert_close(loss, torch_mean * (6 * 1 + 2 * 3) / 8)
    halves = zip(logits.split(4), target.split(4), strict=True)
    parts = [task.loss(rows, {"target": labels}) for rows, labels in halves]
    torch.testing.assert_close(sum(parts) / 2, loss)
    assert "class_weights" not in task.state_dict()
