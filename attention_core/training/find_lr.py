"""The learning-rate range test of `attn find-lr`."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from rich.console import Console
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from attention_core.errors import UsageError
from attention_core.escape import on_one_line, plot_label
from attention_core.interpret.plots import INK, MUTED, RIGHT, plain, save_figure
from attention_core.training.console import rich_text
from attention_core.training.finetune import start_from
from attention_core.training.folder import RunFolder
from attention_core.training.matmul import matmul_precision
from attention_core.training.overrides import shell_override
from attention_core.training.run import assemble, check_config, figure_format
from attention_core.training.task import Task

Values = np.ndarray[Any, Any]

LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 300


def find_lr(config: dict[str, Any], folder: Path) -> float:
    """Train a few steps at rates that rise from 1e-6 to 1 and suggest one (Smith, "Cyclical
    learning rates for training neural networks", 2017).

    Writes `lr_finder.png` into `folder` and no run: there is nothing in it to continue.

    Lightning's own finder is not used: it takes the slope over the rate itself, where the rates are
    spaced by factors, and so suggests one near the lowest, whatever the model.

    Args:
        config: of a run, resolved. Its schedule and its number of epochs play no part.

    Raises:
        UsageError: the configuration is wrong, or the loss falls at no rate.
    """
    check_config(config)
    if RunFolder(folder).config.exists():
        raise UsageError(f"{str(folder)!r} holds a run already.")
    test = {
        **config,
        "optimizer": {**config["optimizer"], "lr": LOWEST},
        "schedule": {"_target_": f"{__name__}.rising", "_partial_": True},
        "trainer": {
            **config["trainer"],
            "max_epochs": -1,
            "max_steps": STEPS,
            "limit_val_batches": 0,
        },
    }
    parts = assemble(test, RunFolder(folder), log=False)
    start_from(parts.task.model, **(config.get("init") or {}))
    curve = _Curve()
    parts.trainer.callbacks.append(curve)  # type: ignore[attr-defined]
    with matmul_precision(config):
        parts.trainer.fit(parts.task, datamodule=parts.data)
    rates, changes = np.array(curve.rates), np.array(curve.changes)
    suggestion = suggest(rates, changes)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"lr_finder.{figure_format(**config.get('figures') or {})}"
    title = str(config.get("experiment") or "")
    save_figure(_draw(rates, changes, suggestion, title=title), path)
    given = f" {shell_override('experiment', title)}" if title else ""
    configured = on_one_line(config["optimizer"].get("lr"))
    said = (
        f"suggested learning rate: {suggestion:.1e} (configured: {configured})\n"
        f"figure: {on_one_line(path)}\n"
        f"to train with it: attn train{given} ... optimizer.lr={suggestion:.1e}"
    )
    Console().print(rich_text(said), soft_wrap=True)
    return suggestion


def rising(optimizer: Optimizer, *, total_steps: int) -> LambdaLR:
    """Raise the rate from LOWEST to HIGHEST, by the same factor each step."""
    factor = (HIGHEST / LOWEST) ** (1 / max(1, total_steps - 1))
    return LambdaLR(optimizer, lambda step: factor**step)


def suggest(rates: Values, changes: Values) -> float:
    """Return a tenth of the highest rate at which the smoothed loss is still down by nine tenths of
    its deepest fall, in two digits.

    The usual choice where the loss falls fastest is led astray by models whose first loss is poor:
    getting the size of the output right takes almost no rate.

    Args:
        rates: rising by a constant factor, (N,).
        changes: of the loss at each rate since before training, (N,).

    Raises:
        UsageError: the loss falls nowhere.
    """
    smooth = smoothed(changes) if len(changes) else np.zeros(1)
    if smooth.min() >= 0:
        raise UsageError(
            f"find-lr: the loss falls at no rate between {LOWEST:g} and {HIGHEST:g}. Does the "
            "experiment learn at all? attn train ... debug=overfit tells."
        )
    last = int(np.flatnonzero(smooth <= 0.9 * smooth.min())[-1])
    return float(f"{rates[last] / 10:.1e}")


def smoothed(changes: Values) -> Values:
    """Return the mean under a bell curve a third of a decade wide, without lag; (N,) as `changes`.

    A rise counts for no more than the deepest fall: what diverges would drown what comes before.
    """
    width = STEPS * 0.15 / math.log10(HIGHEST / LOWEST)
    steps = np.arange(len(changes))
    weight = np.exp(-0.5 * ((steps[:, None] - steps) / width) ** 2)
    clipped = np.minimum(changes, np.abs(changes.min()))
    return np.asarray(weight @ clipped / weight.sum(axis=1))


class _Curve(Callback):
    """Notes, for each optimizer step, its rate and how much lower or higher the loss of its batch
    is than the untrained model's. Stops where the loss is no number any more.

    The difference has much less noise than the loss: in a small batch, it matters more which
    samples are in it than what a few steps have taught.
    """

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.changes: list[float] = []
        self._of_step: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._untrained = copy.deepcopy(pl_module.model)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        # Before the step: after it the schedule has moved on
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        assert isinstance(pl_module, Task) and callable(self._untrained)
        inputs = pl_module.model_inputs(batch)
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            before = float(pl_module.loss(self._untrained(**inputs), batch))
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
        self._of_step.append(loss - before)
        if trainer.fit_loop._should_accumulate():
            return
        change, self._of_step = sum(self._of_step) / len(self._of_step), []
        if math.isfinite(change):
            self.rates.append(self._rate)
            self.changes.append(change)
        else:
            trainer.should_stop = True


def _draw(rates: Values, changes: Values, suggestion: float, *, title: str) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    smooth = smoothed(changes)
    axis.axhline(0, color=MUTED, linewidth=0.8)
    axis.plot(rates, changes, color="0.78", linewidth=1, label="of a step")
    axis.plot(rates, smooth, color=RIGHT, linewidth=2, label="smoothed")
    axis.axvline(suggestion, color=INK, linestyle="--", label=f"suggested: {suggestion:.1e}")
    axis.set_ylim(2 * smooth.min(), -smooth.min())  # what diverges may leave the picture
    axis.set_xscale("log")
    axis.set_xlabel("learning rate, rising from step to step")
    axis.set_ylabel("loss, less that of the untrained model")
    axis.set_title(plot_label(f"Learning-rate range test  {on_one_line(title)}"), loc="left")
    axis.legend(frameon=False, loc="upper left")
    plain(axis)
    return figure
