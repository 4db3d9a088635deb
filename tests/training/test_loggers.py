"""What each logger writes, read back with its own library."""

from pathlib import Path
from typing import Any

import pytest

from attention_core.training import UsageError, resume, train
from attention_core.training.folder import RunFolder
from attention_core.training.metrics import read_metrics
from tests.training.conftest import Compose, interrupt


def validated(path: Path) -> list[float]:
    rows = read_metrics(RunFolder(path).metrics)
    return [row["val/loss"] for row in rows if "val/loss" in row]


def test_tensorboard_has_the_same_numbers(compose: Compose, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(compose("experiment=toy", "trainer.max_epochs=2", "logger=tensorboard"), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    logged = [event.value for event in events.Scalars("val/loss")]
    assert logged == pytest.approx(validated(tmp_path))
    assert len(events.Scalars("step/loss")) == 16
    assert "lr: 0.02" in (tmp_path / "tensorboard" / "hparams.yaml").read_text()


@pytest.mark.slow
def test_wandb_gets_a_run_for_each_run(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = set()
    for name in ("one", "two"):  # in one process, as in a sweep
        config = compose("experiment=toy", "debug=fast_dev_run", "logger=wandb")
        train(config, tmp_path / name)
        (written,) = (tmp_path / name / "wandb").glob("offline-run-*/*.wandb")
        identity = config["logger"]["wandb"]["id"]
        assert written.name == f"run-{identity}.wandb"
        content = written.read_bytes()
        assert b"val/loss" in content and b"weight_decay" in content
        ids.add(identity)
    assert len(ids) == 2


@pytest.mark.slow
def test_mlflow_has_the_same_numbers_and_goes_on_when_resumed(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = compose("experiment=toy", "trainer.max_epochs=2", "logger=mlflow")
    interrupt(config, tmp_path, 12, monkeypatch)
    resume(tmp_path, ["toy_domain"])
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'attention-core'")
    (run,) = client.search_runs([experiment.experiment_id])
    logged = [metric.value for metric in client.get_metric_history(run.info.run_id, "val/loss")]
    assert logged == pytest.approx(validated(tmp_path))
    assert run.data.params["optimizer/lr"] == "0.02"
    assert run.info.status == "FINISHED"


def test_several_loggers_at_once(compose: Compose) -> None:
    config = compose("experiment=toy", "logger=[tensorboard,wandb]")
    assert list(config["logger"]) == ["tensorboard", "wandb"]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_answered_with_its_extra(
    name: str, compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lightning.fabric.loggers.tensorboard as tensorboard
    import lightning.pytorch.loggers.mlflow as mlflow
    import lightning.pytorch.loggers.wandb as wandb

    missing: dict[str, list[tuple[Any, str]]] = {
        "tensorboard": [
            (tensorboard, "_TENSORBOARD_AVAILABLE"),
            (tensorboard, "_TENSORBOARDX_AVAILABLE"),
        ],
        "wandb": [(wandb, "_WANDB_AVAILABLE")],
        "mlflow": [(mlflow, "_MLFLOW_AVAILABLE")],
    }
    for module, flag in missing[name]:
        monkeypatch.setattr(module, flag, False)
    with pytest.raises(UsageError, match=rf"pip install 'attention-core\[{name}\]'"):
        train(compose("experiment=toy", f"logger={name}"), tmp_path / "run")
