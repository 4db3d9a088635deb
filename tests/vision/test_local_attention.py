"""`vision/digits_swin` and `vision/digits_neighborhood`: a real step."""

from pathlib import Path

import pytest
import torch

from attention_core.training import evaluate, train
from tests.training.conftest import figures_as_files  # noqa: F401
from tests.vision.test_experiment import compose

pytest.importorskip("sklearn")
EXPERIMENTS = ["vision/digits_swin", "vision/digits_neighborhood"]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_they_train_a_real_step(tmp_path: Path, experiment: str) -> None:
    torch.set_num_threads(1)
    limits = [f"trainer.limit_{stage}_batches=2" for stage in ("train", "val", "test")]
    config = compose(tmp_path, "trainer.max_epochs=1", *limits, experiment=experiment)
    results = train(config, tmp_path / "run")
    drawn = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert {"learning_curves.png", "confusion.png", "attention.png"} <= drawn
    assert results["test/loss"] < 4
    assert evaluate(tmp_path / "run") == results


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.version=2"],
        ["model.window=[2, 4]", "model.depths=[1, 3]"],
        ["model.patch_size=2", "model.window=2"],
    ],
)
def test_swin_is_configured_from_the_command_line(tmp_path: Path, overrides: list[str]) -> None:
    from attention_core.training.instantiate import build

    config = compose(tmp_path, *overrides, experiment=EXPERIMENTS[0])
    assert build(config["model"])(torch.rand(2, 1, 8, 8)).shape == (2, 10)
