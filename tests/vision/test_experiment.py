"""`vision/digits` as it is configured: one real step; and its promise."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from attention_core.training import evaluate, train
from tests.training.conftest import figures_as_files  # noqa: F401

pytest.importorskip("sklearn")


def compose(folder: Path, *overrides: str, experiment: str = "vision/digits") -> dict[str, Any]:
    from attention_core.training.compose import run_hydra

    found: list[dict[str, Any]] = []
    run_hydra(
        lambda config, path: found.append(config),
        [f"experiment={experiment}", f"hydra.run.dir={folder}/composed", *overrides],
        flags=[],
        config_dir=None,
    )
    return found[0]


@pytest.mark.slow
def test_it_trains_a_real_step(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    limits = [f"trainer.limit_{stage}_batches=2" for stage in ("train", "val", "test")]
    config = compose(tmp_path, "trainer.max_epochs=1", *limits)
    results = train(config, tmp_path / "run")
    drawn = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    names = ["learning_curves", "confusion", "attention"]
    names += [f"attention_{what}" for what in ("rollout", "layers", "distance")]
    assert drawn == {f"{name}.png" for name in names}
    assert results["test/loss"] < 4
    assert evaluate(tmp_path / "run") == results


@pytest.mark.parametrize(
    "override",
    [
        "model.positions=rotary",
        "model.pooling=attention",
        "model.mask={_target_: attention_core.Neighborhood, radius: 1}",
        "model.bias={_target_: attention_core.RelativeTable.swin, heads: 4, window: [4, 4]}",
    ],
)
def test_the_model_is_configured_from_the_command_line(tmp_path: Path, override: str) -> None:
    from attention_core.training.instantiate import build

    model = build(compose(tmp_path, override)["model"])
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.slow
def test_it_reaches_what_it_promises(tmp_path: Path) -> None:
    results = train(compose(tmp_path), tmp_path / "run")
    assert results["test/accuracy"] >= 0.975
    assert evaluate(tmp_path / "run") == results
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
