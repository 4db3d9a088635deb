"""What a run leaves behind, and that its test can be repeated."""

import csv
import json
import math
from pathlib import Path

import matplotlib.image
import pytest
import torch
import yaml

from attention_core.interpret.plots import save_figure
from attention_core.training import ClassificationTask, UsageError, evaluate, run, train
from attention_core.training.before import check_accelerator
from attention_core.training.checkpoint import load_checkpoint
from attention_core.training.folder import RunFolder
from attention_core.training.metrics import CSVMetrics, read_metrics
from attention_core.training.run import look
from attention_core.training.trust import trusted_config
from tests.command_line import attn
from tests.training.conftest import CONF, Compose


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are rendered, for once."""
    monkeypatch.setattr(run, "save_figure", save_figure)


@pytest.fixture
def trained(compose: Compose, tmp_path: Path) -> RunFolder:
    train(compose("experiment=toy"), tmp_path / "run")
    return RunFolder(tmp_path / "run")


@pytest.mark.usefixtures("rendered")
def test_run_folder_is_complete_and_evaluates_the_same(
    trained: RunFolder, compose: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {str(p.relative_to(trained.path)) for p in trained.path.rglob("*") if p.is_file()}
    assert names - {".lock"} == {
        "README.md",
        "config.yaml",
        "metrics.csv",
        "speed.csv",
        "results.json",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "checkpoints/previous.ckpt",
        "figures/learning_curves.png",
        "figures/confusion.png",
        "figures/attention.png",
    }
    assert yaml.safe_load(trained.config.read_text()) == compose("experiment=toy")

    results = json.loads(trained.results.read_text())
    assert results["test/accuracy"] > 0.9
    assert evaluate(trained.path, ["toy_domain"]) == results
    assert "digit for digit" in capsys.readouterr().out

    rows = read_metrics(trained.metrics)
    assert [row["step"] for row in rows if "step/loss" in row] == list(range(64))
    assert [row["epoch"] for row in rows if "val/loss" in row] == list(range(8))
    assert [row["epoch"] for row in rows if "train/loss" in row] == list(range(8))
    validated = [row for row in rows if "val/accuracy" in row]
    best = max(validated, key=lambda row: (row["val/accuracy"], row["epoch"]))  # a tie: the later
    assert results["best_epoch"] == best["epoch"]

    for path in trained.figures.iterdir():
        image = matplotlib.image.imread(path)
        assert min(image.shape[:2]) > 300
        assert image[..., :3].std() > 0.05, f"{path.name} is empty"
        border = [image[0], image[-1], image[:, 0], image[:, -1]]
        assert all((edge[..., :3] > 0.99).all() for edge in border), f"{path.name} is cut off"


@pytest.mark.usefixtures("rendered")
@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_figures_in_another_format(kind: str, compose: Compose, tmp_path: Path) -> None:
    config = compose("experiment=toy", "trainer.max_epochs=1", f"figures.format={kind}")
    train(config, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    names = {f"{name}.{kind}" for name in ("learning_curves", "confusion", "attention")}
    assert {path.name for path in folder.figures.iterdir()} == names
    assert f"(figures/attention.{kind})" in (folder.path / "README.md").read_text()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("figures.format=jpg", r"figures.format: .*'png', 'svg', 'pdf'.*, got 'jpg'"),
        ("+figures.formt=svg", "figures.formt: .* Did you mean format"),
        ("figures=svg", "figures: a mapping is needed, got 'svg'"),
    ],
)
def test_another_format_is_refused_before_training(
    wrong: str, message: str, compose: Compose, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        train(compose("experiment=toy", wrong), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_same_configuration_gives_the_same_run(compose: Compose, tmp_path: Path) -> None:
    config = compose("experiment=toy", "trainer.max_epochs=2")
    train(config, tmp_path / "one")
    train(yaml.safe_load((tmp_path / "one" / "config.yaml").read_text()), tmp_path / "two")
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    assert one.metrics.read_text() == two.metrics.read_text()
    other = compose("experiment=toy", "trainer.max_epochs=2", "seed=2")
    train(other, tmp_path / "three")
    assert one.metrics.read_text() != RunFolder(tmp_path / "three").metrics.read_text()


def test_a_run_folder_is_not_overwritten(trained: RunFolder, compose: Compose) -> None:
    with pytest.raises(UsageError, match="holds a run already. To continue it"):
        train(compose("experiment=toy"), trained.path)


def test_a_wrong_target_is_refused_before_anything_is_written(
    compose: Compose, tmp_path: Path
) -> None:
    config = compose("experiment=toy")
    config["model"]["_target_"] = "os.system"
    with pytest.raises(UsageError, match=r"model\._target_: 'os.system' is refused"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_checkpoints_are_plain(trained: RunFolder) -> None:
    for path in (trained.best, trained.last):
        content = torch.load(path, weights_only=True)
        assert any(name.startswith("model.") for name in content["state_dict"])
    assert "optimizer_states" not in torch.load(trained.best, weights_only=True)


def test_metrics_survive_a_cut_last_line_and_a_new_column(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = CSVMetrics(path)
    log.log_metrics({"epoch": 0, "a": 0.1}, step=0)
    log.log_metrics({"epoch": 0, "a": 1 / 3}, step=1)
    with path.open("a") as file:
        file.write("0,2,0.")  # killed while writing
    log = CSVMetrics(path)
    assert log.rows == 2
    log.log_metrics({"epoch": 1, "b": math.inf}, step=2)
    assert read_metrics(path) == [
        {"epoch": 0, "step": 0, "a": 0.1},
        {"epoch": 0, "step": 1, "a": 1 / 3},
        {"epoch": 1, "step": 2, "b": math.inf},
    ]
    log.truncate(1)
    with path.open() as file:
        assert len(list(csv.DictReader(file))) == 1


def test_weight_decay_reaches_the_optimizer_in_groups(compose: Compose, tmp_path: Path) -> None:
    config = compose("experiment=toy", "trainer.max_epochs=1", "optimizer.weight_decay=0.25")
    train(config, tmp_path / "run")
    groups = load_checkpoint(RunFolder(tmp_path / "run").last)["optimizer_states"][0][
        "param_groups"
    ]
    assert [group["weight_decay"] for group in groups] == [0.25, 0.0]


def test_the_task_names_a_model_of_the_wrong_width(compose: Compose, tmp_path: Path) -> None:
    config = compose("experiment=toy", "model.num_classes=5")
    with pytest.raises(UsageError, match=r"logits of shape \(B, 2\) expected.*got \(16, 5\)"):
        train(config, tmp_path / "run")


def test_callbacks_of_lightning_may_log(compose: Compose, tmp_path: Path) -> None:
    config = compose(
        "experiment=toy",
        "trainer.max_epochs=1",
        "+callbacks.rate._target_=lightning.pytorch.callbacks.LearningRateMonitor",
    )
    train(config, tmp_path / "run")
    rows = read_metrics(RunFolder(tmp_path / "run").metrics)
    assert any("lr-AdamW/pg1" in row for row in rows)


def test_testing_twice_gives_the_same_counts_and_not_twice_as_many(trained: RunFolder) -> None:
    parts = look(trusted_config(trained, ["toy_domain"], "evaluate"), trained)
    assert isinstance(parts.task, ClassificationTask)
    for _ in range(2):
        parts.trainer.test(parts.task, datamodule=parts.data, verbose=False)
        assert int(parts.task.confusion.compute().sum()) == 60


@pytest.mark.slow
def test_a_sweep_over_two_processes_gives_both_the_same_job(tmp_path: Path) -> None:
    ran = attn(
        *["train", "-m", "experiment=toy", "--config-dir", str(CONF), "optimizer.lr=1e-2,1e-3"],
        *["+trainer.strategy=ddp", "trainer.devices=2", "trainer.max_epochs=1"],
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    results = sorted(tmp_path.glob("outputs/*/*/*/results.json"))
    assert [path.parent.name for path in results] == ["0-toy", "1-toy"]
    assert ran.stdout.count("run folder") == 2  # by one process of each job
    for path, rate in zip(results, (1e-2, 1e-3), strict=True):
        rows = read_metrics(RunFolder(path.parent).metrics)
        rates = [row["step/lr"] for row in rows if "step/lr" in row]
        assert max(rates) == pytest.approx(rate)
        assert len(rates) == 4  # 120 samples, 2 processes, batches of 16


@pytest.mark.slow
@pytest.mark.usefixtures("rendered")
@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "64-true"])
def test_weights_of_another_dtype_are_trained_tested_and_drawn(
    precision: str, compose: Compose, tmp_path: Path
) -> None:
    short = ["trainer.max_epochs=1", "+optimizer.eps=0.001"]
    results = train(compose("experiment=toy", f"trainer.precision={precision}", *short), tmp_path)
    assert all(map(math.isfinite, results.values()))
    assert (tmp_path / "figures" / "attention.png").exists()
    assert evaluate(tmp_path, ["toy_domain"]) == pytest.approx(results, rel=1e-3)


def test_a_gpu_that_is_not_there_is_missed_before_the_data_is_read(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    config = compose("experiment=toy", "trainer=gpu")
    with pytest.raises(UsageError, match="accelerator=gpu: torch sees no GPU here, it sees none"):
        train(config, tmp_path / "run")
    check_accelerator({"accelerator": "auto"})
