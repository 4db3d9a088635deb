"""What `attn new-domain` writes trains as written, and it overwrites nothing."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attention_core.training import UsageError
from attention_core.training.new_domain import TASKS, new_domain
from tests.command_line import attn


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains_predicts_exports_and_draws(task: str, tmp_path: Path) -> None:
    made = attn("new-domain", "tides", "--task", task, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    here = ["--config-dir", "tides"]
    assert made.stdout.endswith("train it with: attn train experiment=tides --config-dir tides\n")
    short = ["data.steps=700" if task == "forecasting" else "data.samples=40"]
    short += ["trainer.max_epochs=1", "model.depth=1"]
    if task == "classification":
        short = []  # as written
    ran = attn("train", "experiment=tides", *here, *short, "hydra.run.dir=run", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    figures = {path.stem for path in (tmp_path / "run" / "figures").iterdir()} - {"learning_curves"}
    measured, drawn = {
        "classification": ("accuracy", {"attention", "confusion"}),
        "regression": ("r2", {"attention"}),
        "forecasting": ("naive_mae", {"attention"}),
        "segmentation": ("iou", {"steps", "confusion"}),
    }[task]
    assert f"test/{measured}" in results and figures == drawn
    if task == "classification":
        assert results["test/accuracy"] > 0.85  # a third is chance
        listed = attn("list", *here, cwd=tmp_path, COLUMNS="200")
        assert "Tells the shapes of noisy waves apart" in listed.stdout

    (tmp_path / "series.csv").write_text(",".join(["0", "1"] * 50) + "\n0,high\n")
    predicted = attn("predict", "run=run", "input=series.csv", *here, cwd=tmp_path)
    header, good, bad = predicted.stdout.splitlines()
    assert header.startswith("input,prediction") and good.endswith(",")
    assert bad.endswith("could not convert string to float: 'high'")
    if task == "segmentation":
        assert len(good.split(",")[1].split()) == 100  # a class for each step

    exported = attn("export", "run=run", "format=torch_export", *here, cwd=tmp_path)
    sizes = "(batch, 96)" if task == "forecasting" else "(batch, length, 1), lengths (batch)"
    assert f"takes series {sizes}; within" in exported.stdout, exported.stderr
    assert attn("export", "run=run", "format=safetensors", *here, cwd=tmp_path).returncode == 0
    spec = importlib.util.spec_from_file_location("tides", tmp_path / "tides" / "tides.py")
    assert spec is not None and spec.loader is not None
    tides = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tides)
    weights = tmp_path / "run" / "export" / "model"
    inputs = {"series": torch.randn(2, 96)}
    if task != "forecasting":
        inputs = {"series": inputs["series"][..., None], "lengths": torch.tensor([96, 50])}
    with torch.no_grad():
        model = tides.TidesEncoder.from_pretrained(f"{weights}.safetensors").eval()
        said, features = model(**inputs), model.features(**inputs)[0]
    program = torch.export.load(f"{weights}.pt2").module()
    assert torch.allclose(said, program(**inputs), atol=1e-5)
    assert features.shape == (2, 12 if task == "forecasting" else 96, 32)


def test_a_task_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--task must be .* Did you mean forecasting\?"):
        new_domain("audio", tmp_path, "forcasting")
    assert not list(tmp_path.iterdir())


def test_it_is_written_in_our_style(tmp_path: Path) -> None:
    for task in TASKS:
        new_domain(f"audio_{task}", tmp_path, task)
        source = (tmp_path / f"audio_{task}.py").read_text()
        assert "{" + "{" not in source and "{%" not in source
        assert f"class Audio{task.title()}Data(DataModule)" in source
    ruff = [sys.executable, "-m", "ruff"]
    ours = "lint.isort.known-third-party=['attention_core']"  # as it is to those who install it
    for check in (
        ["check", "--select=E,F,W,I,UP,B,SIM,C4", "--config", ours],
        ["format", "--check"],
    ):
        length = ["--line-length=100", "--no-cache", "--isolated"]
        ran = subprocess.run(
            [*ruff, *check, *length, str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stdout


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    new_domain("audio", tmp_path)
    (tmp_path / "audio.py").write_text("mine")
    with pytest.raises(UsageError, match=r"audio.py' exists already"):
        new_domain("audio", tmp_path)
    assert (tmp_path / "audio.py").read_text() == "mine"
    (tmp_path / "audio.py").unlink()
    with pytest.raises(UsageError, match=r"audio.yaml' exists already"):
        new_domain("audio", tmp_path)
    assert not (tmp_path / "audio.py").exists()  # neither, or both


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-domain", "such as audio or time_series; got 'my-domain'"),
        ("3d", "got '3d'"),
        ("class", "got 'class'"),
        ("a.b", "got 'a.b'"),
        ("../up", "got '../up'"),
        ("", "got ''"),
        ("json", "'json' is a package of Python already"),
        ("vision", "'vision' is a package of attention-core already"),
        ("torch", "'torch' is a package that attention-core needs"),
    ],
)
def test_a_name_that_cannot_be(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        new_domain(name, tmp_path)
    assert not list(tmp_path.iterdir())
