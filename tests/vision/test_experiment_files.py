"""The experiments whose data comes in no package, over small files that the test writes."""

import json
from pathlib import Path

import pytest

from attention_core.training import UsageError, evaluate, resume, train
from attention_core.training.export import export
from attention_core.training.predict import predict
from tests.training.conftest import (  # noqa: F401
    Compose,
    assert_same_run,
    compose,
    interrupt,
    one_thread,
)
from tests.vision.test_data_folder import damage, write
from tests.vision.test_torchvision_datasets import write_cifar10

SMALL = ["model.dim=24", "model.hidden=24", "model.depth=1", "model.heads=2", "data.batch_size=8"]
SHORT = ["data.workers=0", "trainer.log_every_n_steps=1", *SMALL]


@pytest.mark.slow
def test_cifar10_with_all_augmentation_resumes_exactly(
    compose: Compose,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Crops, RandAugment, mixup, CutMix and the average of the weights, cut within an epoch."""
    write_cifar10(tmp_path / "data", monkeypatch)
    config = compose(
        *["experiment=vision/cifar10", f"data.root={tmp_path}/data", *SHORT],
        *["trainer.max_epochs=3", "checkpoint.every_steps=2"],
        *["allow=[toy_domain]", "+callbacks.kill._target_=toy_domain.KillAt"],
        config_dir=None,
    )
    results = train(config, tmp_path / "whole")
    interrupt(config, tmp_path / "cut", 7, monkeypatch)  # four batches an epoch
    resume(tmp_path / "cut", ["toy_domain"])
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert evaluate(tmp_path / "whole", ["toy_domain"]) == results


@pytest.mark.parametrize(
    "sizes",
    [
        ["data.size=32"],
        [
            *["data.size=null", "data.augment.crop=null", "data.longest=32"],
            *["task.mixup=0", "task.cutmix=0"],
        ],
    ],
)
def test_a_folder_of_images_is_learnt_and_predicted(
    sizes: list[str],
    compose: Compose,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = write(tmp_path / "images")
    damaged = damage(root)
    config = compose(
        *["experiment=vision/image_folder", f"data.root={root}", "data.corrupted=skip"],
        *["data.multiple=8", *sizes, *SHORT, "trainer.max_epochs=2", "model.dim=32"],
        config_dir=None,
    )
    assert config["data"]["classes"] == ["cat", "dog", "owl"]
    results = train(config, tmp_path / "run")
    assert evaluate(tmp_path / "run") == results
    said = capsys.readouterr().err
    assert all(f"left out: {name}" in said for name in damaged)
    figures = {path.stem for path in (tmp_path / "run" / "figures").iterdir()}
    assert {"learning_curves", "confusion", "attention"} <= figures
    assert predict(tmp_path / "run", root, tmp_path / "rows.jsonl") == 3
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    assert [row["input"] for row in rows if "error" in row] == damaged
    assert {row["prediction"] for row in rows if "error" not in row} <= {"cat", "dog", "owl"}
    if "data.size=null" in sizes:
        with pytest.raises(UsageError, match="export: 'image' is no tensor with a row per sample"):
            export(tmp_path / "run", "torch_export")


def test_a_root_is_asked_for(compose: Compose, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "empty").mkdir()
    for given, message in (
        ([], "data.root: a value is needed: data.root=..."),
        ([f"data.root={tmp_path}/none"], "^data.root: there is no folder '.*none'"),
        ([f"data.root={tmp_path}/empty"], "^data.root: .* has no folders; one for each class"),
    ):
        with pytest.raises(UsageError, match=message):
            compose("experiment=vision/image_folder", *given, config_dir=None)
