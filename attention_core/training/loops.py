"""The loops of a fit, which go on from a checkpoint exactly where it was written.

Lightning writes checkpoints from within a batch or an epoch, and guesses from its counters what was
left to do of it: a validation, the step of a schedule, the last of an epoch. Here each is written
between two batches or after an epoch, when nothing is half done and nothing is to be guessed.
"""

import time
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from attention_core.errors import UsageError

if TYPE_CHECKING:
    from attention_core.training.checkpoint import Checkpoint


def settle_checkpoints(trainer: Trainer, checkpoint: "Checkpoint") -> None:
    """Give `trainer` the loops of this module, which tell `checkpoint` when to write."""
    old = trainer.fit_loop
    loop = FitLoop(trainer, min_epochs=old.min_epochs, max_epochs=old.max_epochs)
    loop.epoch_loop = EpochLoop(
        trainer, min_steps=old.epoch_loop.min_steps, max_steps=old.epoch_loop.max_steps
    )
    loop.checkpoint = loop.epoch_loop.checkpoint = checkpoint
    trainer.fit_loop = loop


class EpochLoop(_TrainingEpochLoop):
    """One epoch, with a checkpoint due after each batch but the last, and its validation."""

    checkpoint: "Checkpoint"

    def on_run_start(self, data_fetcher: Any) -> None:
        super().on_run_start(data_fetcher)
        self.restarting = False  # the first batch after a checkpoint is like any other

    def on_advance_end(self, data_fetcher: Any) -> None:
        super().on_advance_end(data_fetcher)
        if not self.done:
            self.checkpoint.after_batch(self.trainer)

    def update_lr_schedulers(self, interval: str, update_plateau_schedulers: bool) -> None:
        if interval == "step" and update_plateau_schedulers:
            # After each validation, be it between the batches of a step
            if self.checkpoint.validated_batch == self.total_batch_idx:
                self._update_learning_rates(interval, update_plateau_schedulers)
        else:
            super().update_lr_schedulers(interval, update_plateau_schedulers)

    def _should_check_val_fx(self, data_fetcher: Any) -> bool:
        # Whatever the interval, a run ends with a validation: of its last weights, too, something
        # is to be known
        ends = self.trainer.enable_validation and self._is_last_of_run()
        return ends or super()._should_check_val_fx(data_fetcher)

    def _is_last_of_run(self) -> bool:
        loop: Any = self.trainer.fit_loop
        if self.trainer.should_stop and loop._can_stop_early:
            return True
        epochs = loop.epoch_progress.current.processed + 1
        return self._is_training_done and (
            not self._num_ready_batches_reached()  # max_steps
            or epochs == loop.max_epochs
            or self.global_step == self.max_steps
        )


class FitLoop(_FitLoop):
    """All epochs, with a checkpoint after each."""

    checkpoint: "Checkpoint"
    epoch_loop: EpochLoop

    def __init__(self, trainer: Trainer, **limits: int | None) -> None:
        super().__init__(trainer, **limits)
        self._since_validation = 0.0
        self._should_stop = False
        self.has_run = False  # in this process: not where a checkpoint is from a run's end

    def _iteration_based_training(self) -> bool:
        return False  # Lightning asks in order to guess: with max_steps, that no epoch ever ended

    def run(self) -> None:
        # As at the checkpoint, not as a limit of time says since: it looks again after a batch,
        # when what belongs to the end of a run is still done
        self.trainer.should_stop = self._should_stop
        super().run()

    def setup_data(self) -> None:
        try:
            super().setup_data()
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(f"trainer: {str(error).strip()}") from error

    def on_run_start(self) -> None:
        super().on_run_start()
        self.has_run = True
        trainer: Any = self.trainer
        trainer._last_val_time = time.monotonic() - self._since_validation

    def on_advance_end(self) -> None:
        super().on_advance_end()
        self.checkpoint._save_last(self.trainer)

    def validate_if_last(self) -> None:
        """Validate where a callback has just ended the run, after an epoch that was not validated;
        otherwise `EpochLoop` has done so."""
        trainer = self.trainer
        if not (trainer.should_stop and self._can_stop_early and trainer.enable_validation):
            return
        if self.checkpoint.validated_batch != self.total_batch_idx:
            self.epoch_loop._batches_that_stepped -= 1  # as Lightning does, to log by the last step
            trainer.validating = True
            self.epoch_loop.val_loop.run()
            trainer.training = True
            self.epoch_loop._batches_that_stepped += 1

    # Beside the counters: the clock of a val_check_interval in time, and the values that early
    # stopping or a plateau schedule may look at before they are computed again
    def on_save_checkpoint(self) -> dict[str, Any]:
        trainer: Any = self.trainer
        last = getattr(trainer, "_last_val_time", None)
        timed = trainer._val_check_time_interval is not None
        values = trainer._logger_connector._callback_metrics
        return {
            **super().on_save_checkpoint(),
            "should_stop": trainer.should_stop,
            "since_validation": 0.0 if last is None or not timed else time.monotonic() - last,
            "values": {name: value.detach().cpu().clone() for name, value in values.items()},
        }

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        super().on_load_checkpoint(state_dict)
        self._should_stop = state_dict["should_stop"]
        self._since_validation = state_dict["since_validation"]
        device = self.trainer.strategy.root_device
        values: dict[str, torch.Tensor] = state_dict["values"]
        self.trainer._logger_connector._callback_metrics.update(
            {name: value.to(device) for name, value in values.items()}
        )
