"""Callbacks of every run: step seeding and logging, the watch over the loss, the progress bar."""

import math
import sys
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from attention_core.errors import UsageError
from attention_core.escape import on_one_line
from attention_core.training.processes import gather
from attention_core.training.seeding import seed_generators


class StepSeed(Callback):
    """Seeds every training step from (seed, epoch, batch, rank), so that dropout after a resume
    is the dropout that the uninterrupted run would have drawn."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        seed_generators(self.seed, "step", trainer.current_epoch, batch_idx, trainer.global_rank)


class StepLog(Callback):
    """Logs loss (the mean over processes), learning rate and the norm of the gradient, before it is
    clipped, of every `log_every_n_steps`-th optimizer step.

    `LightningModule.log` would pass them on only after the callbacks of the batch, and so after
    the checkpoint: a run resumed from there would miss the row of its last step.
    """

    def __init__(self) -> None:
        self._rate = 0.0
        self._norm = 0.0
        self._loss: Tensor | float = 0.0

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        # Read here: by the end of the batch the schedule has moved on to the next step's.
        self._rate = optimizer.param_groups[0]["lr"]
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            norm = get_total_norm(gradients)
            self._norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any
    ) -> None:
        step = trainer.global_step
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        self._loss = self._loss + outputs["loss"].detach()  # each is divided by their number
        if trainer.fit_loop._should_accumulate():
            return
        total, self._loss = self._loss * pl_module.rescaled, 0.0  # type: ignore[operator]
        if step % every:
            return
        loss = trainer.strategy.reduce(total, reduce_op="mean")
        row = {
            "epoch": trainer.current_epoch,
            "step/loss": float(loss),
            "step/lr": self._rate,
            "step/gradient_norm": self._norm,
        }
        for logger in trainer.loggers:
            logger.log_metrics(row, step=step - 1)


class FiniteLoss(Callback):
    """Ends a run whose loss is no finite number any more, which no step brings back.

    One such step may be an exception, which a gradient scaler skips, and so it takes `STEPS` in a
    row. A validation has no exceptions: the first loss that is not finite is enough.
    """

    STEPS = 10

    def __init__(self) -> None:
        self._in_a_row: Tensor | int = 0  # steps until now; on the device, which need not wait
        self._broken: Tensor | bool = False  # a batch of this step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any
    ) -> None:
        self._broken = outputs["loss"].detach().isfinite().logical_not() | self._broken
        if trainer.fit_loop._should_accumulate():
            return
        self._in_a_row, self._broken = (self._in_a_row + 1) * self._broken, False
        if trainer.global_step % self.STEPS == 0 and self.in_a_row() >= self.STEPS:
            raise self._error(trainer, "loss")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss = trainer.callback_metrics.get("val/loss")
        if not trainer.sanity_checking and loss is not None and not math.isfinite(loss):
            raise self._error(trainer, "loss" if self.in_a_row() else "loss of validation")

    def in_a_row(self) -> int:
        """Return how many steps until now had no finite loss, in whichever process."""
        return max(gather(int(self._in_a_row)))

    def broken(self, pl_module: LightningModule) -> bool:
        """Return whether a run would go on from here with weights that are lost."""
        weights = (weight for weight in pl_module.parameters() if weight.requires_grad)
        parts = (part.to_local() if isinstance(part, DTensor) else part for part in weights)
        finite = all(bool(part.isfinite().all()) for part in parts)
        return self.in_a_row() > 0 or not all(gather(finite))

    def _error(self, trainer: Trainer, what: str) -> UsageError:
        step = trainer.global_step - max(1, self.in_a_row())
        return UsageError(
            f"task: the {what} is not a finite number, since step {step} in epoch "
            f"{trainer.current_epoch + 1}. The checkpoints are from before. A lower optimizer.lr, "
            "a longer warmup, a lower trainer.gradient_clip_val or another trainer.precision may "
            "help; or the data holds a value that is not finite."
        )


class ProgressBar(Callback):
    """One bar over the whole training, with the latest epoch's values beside it.

    Where the output is no terminal (a log file, CI), about ten plain lines take its place.
    """

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._bar = TaskID(0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        console = Console(file=sys.stderr)
        if not trainer.is_global_zero or not console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}", markup=False),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            expand=True,
        )
        epochs, batches = trainer.max_epochs or 1, int(trainer.num_training_batches)
        self._bar = self._progress.add_task(
            "training",
            total=epochs * batches,
            completed=trainer.current_epoch * batches,
            epoch=f"{trainer.current_epoch + 1}/{epochs}",
            values="",
        )
        self._progress.start()

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if self._progress is not None:
            done = trainer.current_epoch * int(trainer.num_training_batches)
            self._progress.update(self._bar, completed=done + trainer.fit_loop.batch_idx + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        known = trainer.callback_metrics
        names = dict.fromkeys(["val/loss", str(pl_module.monitor)])
        if len(names) == 1:  # a loss alone tells nobody how good it is
            names |= dict.fromkeys(
                [n for n in known if n.startswith("val/") and n not in names][:1]
            )
        values = "  ".join(
            f"{on_one_line(name)} {float(known[name]):.4f}" for name in names if name in known
        )
        if self._progress is not None:
            now = f"{min(epoch + 1, epochs)}/{epochs}"
            self._progress.update(self._bar, epoch=now, values=values)
        elif trainer.is_global_zero and (epoch % max(1, epochs // 10) == 0 or epoch == epochs):
            print(f"epoch {epoch}/{epochs}  {values}", file=sys.stderr, flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
