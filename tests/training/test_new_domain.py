"""What `attn new-domain` writes trains as written, and it overwrites nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from attention_core.training import UsageError
from attention_core.training.new_domain import TASKS, new_domain
from tests.command_line import attn


@pytest.mark.slow
def test_it_trains_as_written(tmp_path: Path) -> None:
    made = attn("new-domain", "heart_beats", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    command = made.stdout.strip().splitlines()[-1].removeprefix("train it with: attn ")
    ran = attn(*command.split(), "hydra.run.dir=run", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["test/accuracy"] > 0.85  # a third is chance
    figures = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert figures == {"attention.png", "confusion.png", "learning_curves.png"}
    listed = attn("list", "--config-dir", "heart_beats", cwd=tmp_path, COLUMNS="200")
    assert "Tells the shapes of noisy waves apart" in listed.stdout


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
    ],
)
def test_a_name_that_cannot_be(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        new_domain(name, tmp_path)
    assert not list(tmp_path.iterdir())
