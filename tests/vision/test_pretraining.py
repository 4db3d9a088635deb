"""MNIST without labels, then with a few: the data, the two experiments and the way between them."""

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from attention_core.training import UsageError, evaluate, load_model, train
from attention_core.training.checkpoint import load_checkpoint
from attention_core.training.compose import run_hydra
from attention_core.training.folder import RunFolder
from attention_core.training.instantiate import build
from tests.command_line import attn
from tests.training.conftest import figures_as_files  # noqa: F401
from vision.data import MNIST5k

ROOT = Path(__file__).resolve().parents[2]

STEPS = [f"trainer.limit_{stage}_batches=2" for stage in ("train", "val", "test")]
SHORT = ["trainer.max_epochs=1", *STEPS]


@pytest.fixture(scope="module")
def few() -> dict[int, MNIST5k]:
    data = {seed: MNIST5k(batch_size=8, seed=seed, labels_per_class=10) for seed in (1, 2)}
    for module in data.values():
        module.setup()
    return data


def test_the_seed_chooses_ten_labels_a_class_and_no_other_images(few: dict[int, MNIST5k]) -> None:
    whole = MNIST5k(batch_size=8)
    whole.setup()
    images: Any = [data.train_set.images for data in few.values()]  # type: ignore[union-attr]
    assert whole.train_set.targets.bincount().tolist() == [320] * 10  # type: ignore[union-attr]
    for data in few.values():
        for name, count in (("train_set", 10), ("val_set", 10), ("test_set", 100)):
            part: Any = getattr(data, name)
            assert part.targets.bincount().tolist() == [count] * 10
            assert set(part.images.sum((1, 2, 3)).tolist()) <= set(
                getattr(whole, name).images.sum((1, 2, 3)).tolist()
            )
    assert not torch.equal(*images)
    parts: Any = (whole.train_set, whole.val_set, whole.test_set)
    everything = torch.cat([part.images for part in parts])
    assert len(everything.unique(dim=0)) == 5000
    assert (float(everything.min()), float(everything.max())) == (0.0, 1.0)


@pytest.mark.parametrize(("count", "least"), [(0, 320), (321, 320), (81, 80)])
def test_labels_that_are_not_there_are_refused(count: int, least: int) -> None:
    with pytest.raises(UsageError, match=f"at least 1 and at most {least}, .* got {count}"):
        MNIST5k(batch_size=8, labels_per_class=count).setup()


@pytest.mark.slow
def test_a_classifier_starts_from_what_was_pretrained(tmp_path: Path) -> None:
    torch.set_num_threads(1)

    def composed(name: str, *overrides: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = []
        given = [f"experiment=vision/{name}", f"hydra.run.dir={tmp_path}/composed", *SHORT]
        run_hydra(
            lambda config, path: found.append(config),
            [*given, *overrides],
            flags=[],
            config_dir=None,
        )
        return found[0]

    source, tuned = tmp_path / "pretrained", tmp_path / "tuned"
    results = train(composed("mnist5k_mae"), source)
    assert evaluate(source) == results  # the masks of a test are the same every time
    assert {path.name for path in RunFolder(source).figures.iterdir()} == {
        *["learning_curves.png", "reconstruction.png"],
    }
    still = ["optimizer.lr=0", "task.layer_decay=0.75"]
    config = composed("mnist5k_100", f"init.run={source}", *still)
    train(config, tuned)
    pretrained = load_model(source).vit.state_dict()  # type: ignore[operator, union-attr]
    random = build(config["model"]).state_dict()
    for name, weight in load_model(tuned).state_dict().items():
        assert name.startswith("head.") or torch.equal(weight, pretrained[name]), name
        assert weight.shape == random[name].shape
    (state,) = load_checkpoint(RunFolder(tuned).last)["optimizer_states"]
    assert state["param_groups"][-1]["rate_scale"] == 0.75**5
    with pytest.raises(UsageError, match="init: .*head.weight"):
        train(composed("mnist5k_100", f"init.run={source}", "init.new=[]"), tmp_path / "strict")


@pytest.mark.slow
def test_one_command_compares_both_ways_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = tmp_path / "from_random_weights-2" / "results.json"
    known.parent.mkdir()
    known.write_text('{"test/accuracy": 0.123}')
    started = []

    def run(command: list[str], check: bool) -> None:
        assert command[:3] == [sys.executable, "-m", "attention_core.training"] and check
        ran = attn(*command[3:], cwd=tmp_path, renders=False)
        assert ran.returncode == 0, ran.stderr
        started.append(command[4:])

    monkeypatch.setattr(subprocess, "run", run)
    given = ["--seeds", "1", "2", "--folder", str(tmp_path), *SHORT]
    monkeypatch.setattr(sys, "argv", ["few_labels.py", *given])
    runpy.run_path(str(ROOT / "examples" / "few_labels.py"), run_name="__main__")
    assert len(started) == 4
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first.startswith("from random weights ") and "12.3%" in first  # read, not trained
    assert second.startswith("after pretraining ")
    tuned = yaml.safe_load((tmp_path / "after_pretraining-2" / "config.yaml").read_text())
    assert tuned["init"]["run"] == str(tmp_path / "pretrained") and tuned["seed"] == 2
