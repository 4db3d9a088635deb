"""What a training step costs beside the model: losses wait for nothing either."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from attention_core.training import SegmentationTask, Task
from attention_core.training.mean import Mean
from nlp import MaskedLanguageModel, TextDecoder, TextEncoder
from nlp.tasks import CausalLanguageModelling, MaskedLanguageModelling, TextClassification
from tests.devices.counting import CUDA, CountingDevice
from vision import VisionTransformer
from vision.tasks import ImageClassification

IDS, LENGTHS = 60, torch.tensor([9, 4])
OPTIONS: dict[str, Any] = {"optimizer": partial(torch.optim.SGD, lr=0.1)}
CLASSES: dict[str, Any] = {"classes": ["a", "b", "c"], **OPTIONS}


class Tokens(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(IDS, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids)


def texts() -> dict[str, Tensor]:
    return {"ids": torch.randint(IDS, (13,)), "lengths": LENGTHS}


def tokens() -> dict[str, Tensor]:
    return {**texts(), "target": torch.randint(IDS, (13,)).where(torch.arange(13) % 5 > 0, -100)}


TASKS: dict[str, tuple[Callable[[], Task], Callable[[], dict[str, Tensor]]]] = {
    "images": (
        lambda: ImageClassification(
            VisionTransformer(16, 1, 2, patch_size=8, image_size=16, num_classes=3), **CLASSES
        ),
        lambda: {"image": torch.randn(2, 3, 16, 16), "target": torch.tensor([2, 0])},
    ),
    "texts": (
        lambda: TextClassification(TextEncoder(IDS, 16, 1, 2, num_classes=3), **CLASSES),
        lambda: {**texts(), "target": torch.tensor([2, 0])},
    ),
    "masked tokens": (
        lambda: MaskedLanguageModelling(MaskedLanguageModel(IDS, 16, 1, 2), **OPTIONS), tokens,
    ),
    "next tokens": (
        lambda: CausalLanguageModelling(TextDecoder(IDS, 16, 1, 2), **OPTIONS), tokens,
    ),
    "a class for each token": (
        lambda: SegmentationTask(Tokens(), **CLASSES),
        lambda: {"ids": torch.randint(IDS, (2, 5)), "target": torch.randint(-1, 3, (2, 5))},
    ),
}  # fmt: skip

#: Metrics of torchmetrics that count classes.
COUNTED = {"images": 1, "texts": 1, "a class for each token": 8}


def placed(task: Task, device: CountingDevice) -> Task:
    """The task with its metrics there, which have no buffers."""
    task = device.moved(task)
    for metric in (one for one in task.modules() if isinstance(one, Metric)):
        metric._device = CUDA
        for name in metric._defaults:
            setattr(metric, name, device.moved(getattr(metric, name)))
    return task


@pytest.mark.parametrize("name", TASKS)
def test_a_step_waits_for_no_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, batch = TASKS[name]
    words = SimpleNamespace(tokenizer=SimpleNamespace(byte_counts=lambda: [1] * IDS))
    trainer = SimpleNamespace(
        testing=False, world_size=1, accumulate_grad_batches=1, datamodule=words
    )
    monkeypatch.setattr(Task, "trainer", trainer)
    with CountingDevice() as device:
        task = placed(make(), device)
        for _ in range(2):
            given = {key: x if key == "lengths" else device.moved(x) for key, x in batch().items()}
            with device.counting() as counts:
                task.training_step(given, 0).backward()
    # Of torchmetrics, which counts classes by `bincount`, and leaves out what has none
    assert {what for what, _ in counts.waits} <= {"bincount", "an index of bools"}, counts
    assert counts.waits.total() <= COUNTED.get(name, 0), counts
    assert counts.copies.total() <= 1, counts  # of a space


def test_the_mean_is_that_of_torchmetrics() -> None:
    mean, expected = Mean(), MeanMetric()
    for value, weight in (
        (torch.rand(3), None),
        (torch.rand(()), 4),
        (torch.rand(2), torch.rand(2)),
    ):
        mean.update(value, weight)
        expected.update(value, weight)
    assert mean.metric_state.keys() == expected.metric_state.keys()
    torch.testing.assert_close(mean.compute(), expected.compute())
    mean.update(torch.tensor(torch.nan), 2)
    assert mean.compute().isnan()
