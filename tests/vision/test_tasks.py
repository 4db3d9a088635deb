"""Classification with mixed images: against torchvision's mixing, losses and metrics by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW
from torchvision.transforms import v2

from attention_core.training import UsageError
from vision.tasks import ImageClassification

CLASSES = ["a", "b", "c"]


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(image.flatten(1))


def task(**settings: Any) -> ImageClassification:
    torch.manual_seed(0)
    made: Any = ImageClassification(Flat(), classes=CLASSES, optimizer=AdamW, **settings)
    made._trainer = SimpleNamespace(testing=False, world_size=1, accumulate_grad_batches=1)
    return made


def batch(count: int = 8) -> dict[str, Any]:
    return {"image": torch.rand(count, 1, 4, 4), "target": torch.arange(count) % 3}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("settings", "mix"),
    [
        ({"mixup": 0.4}, v2.MixUp(alpha=0.4, num_classes=3)),
        ({"cutmix": 1.0}, v2.CutMix(alpha=1.0, num_classes=3)),
    ],
)
def test_the_loss_is_that_of_the_blended_labels(
    settings: dict[str, float], mix: Any, smoothing: float
) -> None:
    trained, given = task(**settings, label_smoothing=smoothing), batch()
    kept = {name: value.clone() for name, value in given.items()}
    torch.manual_seed(3)
    torch.multinomial(torch.ones(1), 1)  # which of one way
    image, shares = mix(given["image"], given["target"])
    log = trained.model(image).log_softmax(-1)
    expected = -((shares * (1 - smoothing) + smoothing / 3) * log).sum(-1).mean()
    torch.manual_seed(3)
    loss = trained.training_step(given, 0)
    torch.testing.assert_close(loss, expected)
    assert not torch.allclose(loss, trained.loss(trained.model(kept["image"]), kept))
    assert all(torch.equal(given[name], kept[name]) for name in kept)


def test_accuracy_is_by_the_larger_share() -> None:
    trained = task(mixup=1.0)
    shares = torch.tensor([[0.7, 0.3, 0.0], [0.4, 0.0, 0.6], [0.1, 0.0, 0.9]])
    output = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    metrics: Any = trained.measures["train_metrics"]
    trained.update_metrics(metrics, output, {"target": shares})
    assert float(metrics.compute()["accuracy"]) == pytest.approx(2 / 3)


def test_both_take_turns_and_validation_sees_images_as_they_are() -> None:
    trained = task(mixup=0.4, cutmix=1.0)
    pasted = []
    for seed in range(40):
        torch.manual_seed(seed)
        image = torch.rand(8, 1, 4, 4)
        mixed, _ = trained.mix(image, torch.arange(8) % 3)  # type: ignore[misc]
        pasted.append(bool(torch.isin(mixed, image).all()))  # every pixel is one that was there
    assert 10 < sum(pasted) < 30
    assert task().mix is None


def test_what_cannot_be_mixed() -> None:
    for name in ("mixup", "cutmix"):
        with pytest.raises(UsageError, match=f"task.{name} must be at least 0, got -1"):
            task(**{name: -1})
    sizes = {"image": [torch.rand(1, 4, 4), torch.rand(1, 8, 8)], "target": torch.tensor([0, 1])}
    with pytest.raises(UsageError, match="images of different sizes cannot be mixed"):
        task(mixup=0.2).training_step(sizes, 0)
