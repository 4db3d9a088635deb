"""Numbers as targets."""

from __future__ import annotations

from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score

from attention_core.errors import UsageError
from attention_core.training.in_one_sentence import target_of
from attention_core.training.task import Batch, Task, TaskOptions


class RegressionTask(Task):
    """Predicting numbers, with mean absolute error (`mae`), root mean square error (`rmse`) and the
    share of the variance that is explained (`r2`): 0 for saying the mean. A subclass that says what
    is to be beaten, by `naive`, has it measured, too (`naive_mae`).

    The model returns (B,) or (B, 1) for a `target` (B,), or (B, T) for T targets each, (B, T). The
    metrics of several targets are means over them. Targets of a scale far from 1 are better divided
    by it in the data.

    Args:
        loss: the mean of "squared" or of "absolute" errors.
        settings: those of `Task`, without `metrics`.

    Raises:
        UsageError: there is no such loss.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: Literal["squared", "absolute"] = "squared",
        **settings: Unpack[TaskOptions],
    ) -> None:
        if loss not in ("squared", "absolute"):
            raise UsageError(f"task.loss must be squared or absolute, got {loss!r}.")
        super().__init__(
            model,
            metrics={
                "mae": MeanAbsoluteError(),
                "rmse": MeanSquaredError(squared=False),
                "r2": _R2(),
                **({"naive_mae": MeanAbsoluteError()} if self._knows_naive() else {}),
            },
            **settings,
        )
        self.error = F.mse_loss if loss == "squared" else F.l1_loss

    def naive(self, batch: Batch) -> Tensor:
        """Return what one would say without a model, in the shape of the target, such as the last
        value of a series: its mean absolute error then stands beside the model's, as `naive_mae`.
        """
        raise NotImplementedError(f"{type(self).__name__}.naive must return a number per target.")

    @classmethod
    def _knows_naive(cls) -> bool:
        return cls.naive is not RegressionTask.naive

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        target = target_of(batch)
        return self.error(_like(output, target), target.to(output.dtype))

    def update_metrics(self, metrics: Any, output: Tensor, batch: Batch) -> None:
        target = batch["target"]
        if not len(target):
            return
        said = {name: _like(output, target) for name in ("mae", "rmse", "r2")}
        if self._knows_naive():
            said["naive_mae"] = _like(self.naive(batch), target, f"{type(self).__name__}.naive")
        for name, values in said.items():
            metrics[name].update(values.float().contiguous(), target.float())

    def predictions(self, output: Tensor) -> list[dict[str, Any]]:
        """Return `prediction`, or for several targets `prediction_0`, `prediction_1`, ..."""
        rows = output.float().flatten(1) if output.ndim > 1 else output.float()[:, None]
        names = (
            ["prediction"]
            if rows.shape[1] == 1
            else [f"prediction_{column}" for column in range(rows.shape[1])]
        )
        return [dict(zip(names, row, strict=True)) for row in rows.tolist()]


def _like(output: Tensor, target: Tensor, whose: str = "model") -> Tensor:
    """The output in the shape of the target, (B,) or (B, T).

    Raises:
        UsageError: it has another one.
    """
    shaped = output.squeeze(1) if output.ndim == target.ndim + 1 == 2 else output
    if shaped.shape != target.shape:
        raise UsageError(
            f"{whose}: an output of the shape of its targets, {tuple(target.shape)}, expected, got "
            f"{tuple(output.shape)}."
        )
    return shaped


class _R2(R2Score):
    """NaN instead of an error for an epoch of one sample."""

    def compute(self) -> Tensor:
        return super().compute() if int(self.total) > 1 else torch.tensor(torch.nan)
