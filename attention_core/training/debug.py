"""What `debug=overfit` does to the data."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import Subset

from attention_core.errors import UsageError
from attention_core.training.data import DataModule


class Overfit(Callback):
    """Trains and validates on the same few samples.

    Lightning's `overfit_batches` replaces the sampler of a DataLoader, and validates on other
    samples than it trains on, which says nothing about learning by heart.

    Args:
        batches: how many batches of training samples to keep, drawn by the seed of the data.
    """

    def __init__(self, batches: int = 1) -> None:
        if batches < 1:
            raise UsageError(f"callbacks.overfit.batches must be at least 1, got {batches}.")
        self.batches = batches

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if stage != "fit" or not isinstance(data, DataModule) or data.train_set is None:
            return
        # Drawn, because many data sets are sorted by class
        generator = torch.Generator().manual_seed(data.seed)
        order = torch.randperm(len(data.train_set), generator=generator)  # type: ignore[arg-type]
        kept = order[: self.batches * data.batch_size * trainer.world_size].tolist()
        data.train_set = data.val_set = Subset(data.train_set, kept)  # type: ignore[arg-type]
