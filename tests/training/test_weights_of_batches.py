"""A step's gradient is the mean over all its items, however they are dealt to batches."""

from functools import partial
from typing import Any

import pytest
import torch
import torchmetrics
from lightning.pytorch import Trainer
from torch import Tensor, nn

from attention_core.training import Task
from attention_core.training.callbacks import StepLog


class Mean(Task):
    """A linear model and the squared error of items, of which a batch has any number."""

    def samples(self, batch: dict[str, Any]) -> int:
        return 1

    def weight(self, batch: dict[str, Any]) -> int:
        return len(batch["target"])

    def loss(self, output: Tensor, batch: dict[str, Any]) -> Tensor:
        return (output.squeeze(-1) - batch["target"]).square().sum() / max(1, self.weight(batch))

    def update_metrics(self, *args: Any) -> None: ...


def trained(batches: list[dict[str, Tensor]], accumulate: int) -> Tensor:
    """The weights after an epoch."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    task = Mean(model, optimizer=partial(torch.optim.SGD, lr=0.1))
    trainer = Trainer(
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        logger=False,
        callbacks=[StepLog()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, torch.utils.data.DataLoader(batches, batch_size=None))
    return model.weight


def batch(*sizes: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(sum(sizes), 3, generator=generator)
    y = x.sum(-1)
    return [{"input": a, "target": b} for a, b in zip(x.split(sizes), y.split(sizes), strict=True)]


@pytest.mark.parametrize("sizes", [(1, 9), (4, 0, 6), (0, 7), (0, 0), (5, 5)])
def test_accumulated_batches_count_by_their_items(sizes: tuple[int, ...]) -> None:
    parts = batch(*sizes)
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    torch.testing.assert_close(trained(parts, len(parts)), trained([whole], 1))


def test_the_last_step_of_an_epoch_may_have_fewer_batches() -> None:
    torch.testing.assert_close(trained(batch(3), 4), trained(batch(3), 1))


def test_the_loss_of_an_epoch_counts_items() -> None:
    task = Mean(nn.Linear(3, 1), optimizer=partial(torch.optim.SGD, lr=0.1))
    parts = batch(2, 8)
    for part in parts:
        task._step(part, "val")
    (whole,) = batch(10)
    expected = task.loss(task(input=whole["input"]), whole)
    torch.testing.assert_close(task._epoch_values("val")["val/loss"], expected.detach())


class Scored(Mean):
    """With a metric in a list, one that keeps a list itself, and one with a buffer."""

    def __init__(self) -> None:
        metrics = {"curve": torchmetrics.classification.BinaryROC(thresholds=5)}
        super().__init__(
            nn.Linear(3, 1), optimizer=partial(torch.optim.SGD, lr=0.1), metrics=metrics
        )
        self.more = nn.ModuleList([torchmetrics.MeanMetric(), torchmetrics.CatMetric()])


@pytest.mark.parametrize(
    "cast",
    [
        lambda task: task.to(torch.bfloat16),  # as Lightning does for precision=bf16-true
        lambda task: task.half(),
        lambda task: nn.ModuleList([task]).to(torch.float16),
    ],
)
def test_metrics_keep_their_dtype_where_weights_are_cast(cast: Any) -> None:
    task = Scored()
    homes = [task.means["val_mean"], task.more[0]]
    losses = 1 + torch.rand(300, generator=torch.Generator().manual_seed(0))
    thresholds = task.measures["val_metrics"]["curve"].thresholds.clone()
    for part in losses.split(150):
        for metric in (*homes, task.more[1]):
            metric.update(part)
        cast(task)
    assert task.model.weight.dtype in (torch.bfloat16, torch.float16)
    for metric in homes:
        torch.testing.assert_close(metric.compute(), losses.mean())
        metric.reset()  # to what was cast as well
        assert metric.mean_value.dtype == torch.float32
    assert torch.equal(task.more[1].compute(), losses)
    assert torch.equal(task.measures["val_metrics"]["curve"].thresholds, thresholds)


def test_metrics_move_with_their_task() -> None:
    task = Scored().to("meta")
    assert {metric.device.type for metric in task.means.children()} == {"meta"}
    assert task.means["val_mean"].mean_value.is_meta and task.model.weight.is_meta
