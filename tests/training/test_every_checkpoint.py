"""From every checkpoint that a run has written it goes on to the same end."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from attention_core.training import resume, run, train
from attention_core.training.checkpoint import Checkpoint
from attention_core.training.folder import RunFolder
from attention_core.training.metrics import read_metrics
from tests.training.conftest import Compose, assert_same_run

# 3 batches an epoch, a checkpoint after every step
SMALL = ["experiment=toy", "data.samples=24", "data.batch_size=8", "checkpoint.every_steps=1"]
STOP = "+callbacks.stop={_target_: lightning.pytorch.callbacks.EarlyStopping, min_delta: 9.0"
NULL = "trainer.check_val_every_n_epoch=null"
SECONDS = 10  # that a batch takes, on the clock of these tests


@pytest.fixture(autouse=True)
def training_only(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    import toy_domain

    monkeypatch.setattr(run, "_draw", lambda *_: None)
    monkeypatch.setattr(run, "write_card", lambda *_, **__: None)
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def tick(self: Any, *args: Any, **kwargs: Any) -> None:
        clock[0] += SECONDS

    monkeypatch.setattr(toy_domain.KillAt, "on_train_batch_start", tick)


def train_and_keep(config: dict[str, Any], path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trains in `path`/whole; copies the folder after each checkpoint, as a kill would leave it."""
    write, whole = Checkpoint._save_last, path / "whole"

    def write_and_copy(self: Checkpoint, trainer: Any) -> None:
        write(self, trainer)
        number = len(list(path.glob("cut-*")))
        shutil.copytree(whole, path / f"cut-{number:02}", ignore=lambda *_: [".lock"])

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "_save_last", write_and_copy)
        train(config, whole)
    return whole


def validations(path: Path) -> list[float]:
    return [row["step"] for row in read_metrics(RunFolder(path).metrics) if "val/loss" in row]


# How long a run is, when it validates, and when it did: it always ends with a validation
SETTINGS = [
    (["max_epochs=2", "+max_steps=99"], [2, 5]),
    (["max_epochs=2", NULL, "+val_check_interval=2"], [1, 3, 5]),
    (["max_epochs=9", "+max_steps=4", "+val_check_interval=0.4"], [0, 1, 2, 3]),
    (["max_epochs=2", NULL, "+val_check_interval=100"], [5]),
]
MORE = [
    (["max_epochs=9", "+max_steps=4"], [2, 3]),
    (["max_epochs=-1", "+max_steps=3"], [2]),
    (["max_epochs=-1", "+max_steps=2"], [1]),
    (["max_epochs=2", "+val_check_interval=2"], [1, 4, 5]),
    (
        ["max_epochs=3", "+max_steps=4", "accumulate_grad_batches=2", "+val_check_interval=2"],
        [0, 2, 3],
    ),
    (["max_epochs=3", "limit_train_batches=2", "accumulate_grad_batches=2"], [0, 1, 2]),
    (["max_epochs=3", "check_val_every_n_epoch=2"], [5, 8]),
    (["max_epochs=9", f"{STOP}, monitor: val/loss, patience: 1}}"], [2, 5]),
    (
        ["max_epochs=9", "+val_check_interval=2", f"{STOP}, monitor: val/loss, patience: 1}}"],
        [1, 4],
    ),
    (
        [
            *["max_epochs=9", "check_val_every_n_epoch=5"],
            f"{STOP}, monitor: train/loss, patience: 1, check_on_train_epoch_end: true}}",
        ],
        [5],
    ),
    (
        [
            *["max_epochs=4", "check_val_every_n_epoch=2"],
            f"{STOP}, monitor: val/loss, patience: 9, check_on_train_epoch_end: true, "
            "strict: false}",
        ],
        [5, 11],
    ),
    (["max_epochs=2", "callbacks=ema", "+val_check_interval=2"], [1, 4, 5]),
    (
        [
            *["max_epochs=2", "+val_check_interval=2", "schedule=plateau", "schedule.patience=0"],
            *["+schedule.threshold=9", "+schedule.threshold_mode=abs"],
        ],
        [1, 4, 5],
    ),
    # In time: a batch takes ten seconds
    (["max_epochs=3", "+val_check_interval=00:00:00:40"], [3, 7, 8]),
    (["max_epochs=-1", "+max_time=00:00:00:50", "schedule=constant"], [2, 4]),
    (["max_epochs=9", "+max_time=00:00:00:20", NULL, "+val_check_interval=00:00:00:30"], [1]),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "validated"),
    [*SETTINGS, *MORE],
)
def test_every_checkpoint_leads_to_the_same_end(
    settings: list[str],
    validated: list[int],
    compose: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = [
        text
        if text.startswith(("trainer.", "callbacks", "+callbacks", "schedule", "+schedule"))
        else f"{'+' * text.startswith('+')}trainer.{text.lstrip('+')}"
        for text in settings
    ]
    whole = train_and_keep(compose(*SMALL, *settings), tmp_path, monkeypatch)
    assert validations(whole) == validated
    for cut in sorted(tmp_path.glob("cut-*")):
        resume(cut, ["toy_domain"])
        assert_same_run(whole, cut)
