"""Checkpoints of plain data, written so that a kill or a full disk cannot damage the last one."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer, callbacks

from attention_core.training.errors import UsageError
from attention_core.training.folder import RunFolder, replace_file
from attention_core.training.metrics import CSVMetrics


class PlainCheckpointIO(TorchCheckpointIO):
    """Writes atomically and reads with `weights_only=True`, whatever the caller asks for."""

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        _check_plain(checkpoint, "checkpoint")
        with replace_file(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        return load_checkpoint(Path(path), map_location)


def load_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Reads a checkpoint of plain data; code inside it is refused, not run."""
    content: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
    return content


def _check_plain(value: Any, place: str) -> None:
    """Refuses, by its place, what `torch.load(weights_only=True)` would not read back."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_plain(key, f"a key of {place}")
            _check_plain(item, f"{place}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{place}[{index}]")
    elif not isinstance(value, torch.Tensor | torch.dtype | str | bytes | int | float | None):
        raise TypeError(
            f"{place} is a {type(value).__name__}; a checkpoint holds only dicts, lists, numbers, "
            "strings and tensors, so that reading one never runs code."
        )


class Checkpoint(callbacks.Checkpoint):
    """Keeps `best.ckpt` (weights, by the task's `monitor`) and `last.ckpt` (everything).

    The last checkpoint is written at the end of every epoch and, between, every `every_steps`
    optimizer steps. It knows how many rows of `metrics.csv` precede it, so that a resumed run
    continues the file where the checkpoint was taken.

    Args:
        folder: where both are written; given by the run.
        every_steps: optimizer steps between two writes inside an epoch; None for none.
    """

    def __init__(self, folder: RunFolder, every_steps: int | None = None) -> None:
        if every_steps is not None and every_steps < 1:
            raise UsageError(f"checkpoint.every_steps must be at least 1, got {every_steps}.")
        self.folder = folder
        self.every_steps = every_steps
        self.best_score: float | None = None
        self.best_epoch: int | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_epoch = state_dict["best_score"], state_dict["best_epoch"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["metrics_rows"] = sum(logger.rows for logger in _csv(trainer))

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for logger in _csv(trainer):
            logger.truncate(checkpoint["metrics_rows"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        step = trainer.global_step
        # Not after an epoch's last batch: Lightning would resume past its validation. And not
        # between two steps: gradients half accumulated are in no checkpoint.
        if (
            self.every_steps
            and step % self.every_steps == 0
            and not trainer.is_last_batch
            and not trainer.fit_loop._should_accumulate()
        ):
            trainer.save_checkpoint(self.folder.last)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        monitor, mode = str(pl_module.monitor), str(pl_module.mode)
        if monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise UsageError(f"{type(pl_module).__name__}.monitor is {monitor!r}; logged: {known}.")
        score = float(trainer.callback_metrics[monitor])
        best = self.best_score
        # A tie goes to the later epoch: on a small validation set many tie, and the learning rate
        # has come down further
        better = (
            best is None or math.isnan(best) or (score >= best if mode == "max" else score <= best)
        )
        if better:
            self.best_score, self.best_epoch = score, trainer.current_epoch
            trainer.save_checkpoint(self.folder.best, weights_only=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.folder.last)


def _csv(trainer: Trainer) -> list[CSVMetrics]:
    return [logger for logger in trainer.loggers if isinstance(logger, CSVMetrics)]
