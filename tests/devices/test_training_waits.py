"""What a training step costs beside the model: losses and metrics wait for nothing either."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassJaccardIndex,
)

from attention_core.training import SegmentationTask, Task
from attention_core.training.running import Accuracy, F1Score, JaccardIndex, Mean
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


def placed(task: Task, device: CountingDevice) -> Task:
    """The task with its metrics there, which have no buffers."""
    task = device.moved(task)
    for metric in (one for one in task.modules() if isinstance(one, Metric)):
        metric._device = CUDA
        for name in metric._defaults:
            setattr(metric, name, device.moved(getattr(metric, name)))
    return task


@pytest.mark.parametrize("name", TASKS)
def test_a_step_waits_for_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert not counts.waits, counts
    assert counts.copies.total() <= 1, counts  # of a space


def test_the_metrics_are_those_of_torchmetrics() -> None:
    for ignored in (None, -1):
        options: dict[str, Any] = {"ignore_index": ignored, "validate_args": False}
        pairs = [
            (kind(4, average="macro", **options), wanted(4, average="macro", **options))
            for kind, wanted in (
                (F1Score, MulticlassF1Score),
                (JaccardIndex, MulticlassJaccardIndex),
            )
        ]
        micro = MulticlassAccuracy(4, average="micro", **options)
        pairs.append((Accuracy(4, average="micro", **options), micro))
        for _ in range(3):
            logits = torch.randn(20, 4)
            target = torch.randint(-1 if ignored else 0, 3, (20,))
            for given in (logits, logits.argmax(1)):
                for both in pairs:
                    for one in both:
                        one.update(given, target)
        for found, wanted in pairs:
            for name, state in wanted.metric_state.items():
                assert torch.equal(found.metric_state[name], state), name
            assert found.compute() == wanted.compute()
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
