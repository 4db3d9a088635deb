"""A class for every token."""

from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, jaccard_score
from torch import Tensor, nn
from torch.nn import functional as F

from attention_core.training import DataModule, SegmentationTask, UsageError

SGD = partial(torch.optim.SGD, lr=0.1)
CLASSES = ["rest", "ramp", "burst"]


class Same(nn.Module):
    """Logits as they are given, with a parameter, as an optimizer wants one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return x * self.scale


def batches() -> list[dict[str, Tensor]]:
    """Two batches of padded samples, of 5 + 3 and of 4 tokens."""
    draw = torch.Generator().manual_seed(0)
    made = []
    for lengths in ([5, 3], [4]):
        shape = (len(lengths), max(lengths))
        target = torch.randint(3, shape, generator=draw)
        target[torch.arange(shape[1]) >= torch.tensor(lengths)[:, None]] = -1
        logits = torch.randn(*shape, 3, generator=draw)
        made.append({"x": logits, "lengths": torch.tensor(lengths), "target": target})
    return made


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_every_token_that_is_asked_counts_alike(smoothing: float) -> None:
    task = SegmentationTask(Same(), classes=CLASSES, optimizer=SGD, label_smoothing=smoothing)
    task._trainer = cast(Any, SimpleNamespace(testing=False))
    metrics: Any = task.measures["val_metrics"]
    logits, labels = [], []
    for batch in batches():
        kept = batch["target"] != -1
        logits.append(batch["x"][kept])
        labels.append(batch["target"][kept])
        assert int(task.weight(batch)) == len(labels[-1])
        expected = F.cross_entropy(logits[-1], labels[-1], label_smoothing=smoothing)
        torch.testing.assert_close(task.loss(task(x=batch["x"]), batch), expected)
        task.update_metrics(metrics, batch["x"], batch)
    says, are = torch.cat(logits).argmax(-1), torch.cat(labels)
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert found["iou"] == pytest.approx(jaccard_score(are, says, average="macro"))
    assert found["f1"] == pytest.approx(f1_score(are, says, average="macro"))
    assert found["accuracy"] == pytest.approx(accuracy_score(are, says))


def test_a_batch_of_padding_alone_has_a_loss_of_0() -> None:
    task = SegmentationTask(Same(), classes=CLASSES, optimizer=SGD)
    batch = {"x": torch.randn(2, 3, 3), "target": torch.full((2, 3), -1)}
    assert task.loss(task(x=batch["x"]), batch).item() == 0
    assert int(task.weight(batch)) == 0


@pytest.mark.parametrize("packed", [False, True])
def test_predictions_have_a_class_for_each_token_of_a_sample(packed: bool) -> None:
    task = SegmentationTask(Same(), classes=CLASSES, optimizer=SGD)
    x = F.one_hot(torch.tensor([[0, 1, 2, 2], [1, 0, 0, 0]]), 3).float()
    lengths = torch.tensor([4, 1])
    batch = {"x": torch.cat([x[0], x[1, :1]]) if packed else x, "lengths": lengths}
    rows = task.predict(batch, DataModule(batch_size=2))
    assert rows == [{"prediction": "rest ramp burst burst"}, {"prediction": "ramp"}]


def test_logits_of_another_shape_are_refused() -> None:
    task = SegmentationTask(Same(), classes=CLASSES, optimizer=SGD)
    target = torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(UsageError, match=r"shape \(2, 5, 3\) expected, .* got \(2, 3\)"):
        task.loss(torch.randn(2, 3), {"target": target})
