"""An average of the weights over training, which is what a run validates, tests and keeps."""

import warnings
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging

from attention_core.errors import UsageError
from attention_core.training.parallel import FSDP2


class EMA(EMAWeightAveraging):
    """The exponential moving average of the weights (Polyak & Juditsky, 1992).

    After every optimizer step `average = decay · average + (1 - decay) · weights`, from the first
    step's weights on. Validation, the best checkpoint, and so the test, predictions and exports
    have the average; training, and the loss logged of it, goes on with the weights themselves.
    `last.ckpt` holds both. Buffers, such as running statistics, are those of the weights.

    Lightning's callback does the averaging. It takes the average out of the model before the best
    checkpoint is written, which would then hold weights that nobody has validated; here the
    average stays in until training goes on.

    Args:
        decay: in [0, 1); 1 / (1 - decay) is the number of steps that an average reaches back.

    Raises:
        UsageError: the decay is out of its range, or the model is sharded.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise UsageError(f"callbacks.ema.decay must be in [0, 1), got {decay}.")
        # Averaged, an integer in a buffer could be rounded down to another one
        super().__init__(decay=decay, use_buffers=False)
        self._averaged = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, FSDP2):
            raise UsageError("callbacks.ema: the weights of a sharded model cannot be averaged.")
        # The model moves to the device of the strategy only after this
        self._device = trainer.strategy.root_device
        with warnings.catch_warnings():
            # Of what configure_model would shard, which is refused above
            warnings.filterwarnings("ignore", "You're using the WeightAveraging callback")
            super().setup(trainer, pl_module, stage)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._exchange(pl_module, averaged=True)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing: the best checkpoint is written after this."""

    # One of these three follows every validation, before anything else happens
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._exchange(pl_module, averaged=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._exchange(pl_module, averaged=False)
        super().on_train_epoch_end(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Training goes on from what is saved. It is saved by reference, and so exchanged, too
        self._exchange(pl_module, averaged=False)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def _exchange(self, pl_module: LightningModule, *, averaged: bool) -> None:
        if averaged is not self._averaged:
            self._swap_models(pl_module)
            self._averaged = averaged
