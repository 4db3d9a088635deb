"""The learning-rate range test."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attention_core.training import DataModule, Task, UsageError, resume, train
from attention_core.training.find_lr import HIGHEST, LOWEST, STEPS, find_lr, suggest
from tests.training.conftest import Compose

CURVATURE = 10.0


class Noise(DataModule):
    def load(self) -> None:
        points = torch.randn(512, 4, generator=torch.Generator().manual_seed(0))
        self.train_set = self.val_set = self.test_set = [
            {"points": point, "target": torch.tensor(0)} for point in points
        ]


class Centre(nn.Module):
    """A single point, far from where it belongs."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.full((4,), 3.0))

    def forward(self, points: Tensor) -> Tensor:
        return points - self.point


class Distance(Task):
    """Gradient descent diverges as soon as the rate exceeds 2 / CURVATURE, and not before."""

    def loss(self, output: Tensor, batch: dict[str, Any]) -> Tensor:
        return 0.5 * CURVATURE * output.square().sum(dim=1).mean()

    def update_metrics(self, *args: Any) -> None:
        pass


def quadratic(accumulate: int = 1) -> dict[str, Any]:
    here = __name__
    return {
        "allow": [here.split(".")[0]],
        "data": {"_target_": f"{here}.Noise", "batch_size": 8},
        "model": {"_target_": f"{here}.Centre"},
        "task": {"_target_": f"{here}.Distance"},
        "optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
        "trainer": {
            "_target_": "lightning.pytorch.Trainer",
            "accelerator": "cpu",
            "accumulate_grad_batches": accumulate,
        },
    }


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_suggestion_is_below_where_descent_diverges(accumulate: int, tmp_path: Path) -> None:
    limit = 2 / CURVATURE
    suggested = find_lr(quadratic(accumulate), tmp_path)
    assert limit / 20 < suggested < limit / 4


@pytest.mark.slow
def test_on_the_toy_it_beats_rates_far_from_it_and_leaves_no_run(
    compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suggested = find_lr(compose("experiment=toy", "trainer.max_epochs=1"), tmp_path / "lr")
    assert f"optimizer.lr={suggested:.1e}" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "lr").iterdir()] == ["lr_finder.png"]
    with pytest.raises(UsageError, match="is not a run folder"):
        resume(tmp_path / "lr")
    losses = {}
    for factor in (0.03, 1, 300):
        config = compose("experiment=toy", f"optimizer.lr={suggested * factor}")
        losses[factor] = train(config, tmp_path / str(factor))["test/loss"]
    assert losses[1] == min(losses.values()), losses


def test_the_suggestion_of_a_known_curve() -> None:
    rates = np.geomspace(LOWEST, HIGHEST, STEPS)
    # Down by 1 around 1e-4, up again around 1e-2, with noise that a single value would fall for
    position = np.log10(rates)
    curve = -1 / (1 + np.exp(-8 * (position + 4))) + 4 / (1 + np.exp(-8 * (position + 2)))
    curve += 0.1 * np.random.default_rng(0).standard_normal(STEPS)
    assert 2e-4 < suggest(rates, curve) < 1e-3


@pytest.mark.parametrize("changes", [np.zeros(STEPS), np.linspace(0, 5, STEPS), np.array([])])
def test_a_loss_that_never_falls_is_said(changes: np.ndarray[Any, Any]) -> None:
    rates = np.geomspace(LOWEST, HIGHEST, STEPS)[: len(changes)]
    with pytest.raises(UsageError, match="the loss falls at no rate"):
        suggest(rates, changes)


def test_a_run_folder_is_left_alone(compose: Compose, tmp_path: Path) -> None:
    config = compose("experiment=toy", "debug=fast_dev_run")
    train(config, tmp_path / "run")
    with pytest.raises(UsageError, match="holds a run already"):
        find_lr(config, tmp_path / "run")
