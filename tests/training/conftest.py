"""The toy domain, composed through the same path as the command line takes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

CONF = Path(__file__).parent / "conf"

Compose = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compose:
    """Composes a resolved configuration from overrides; nothing is trained."""
    from attention_core.training.compose import run_hydra

    monkeypatch.syspath_prepend(str(CONF))

    def composed(*overrides: str, config_dir: Path | None = CONF) -> dict[str, Any]:
        found: list[dict[str, Any]] = []
        run_hydra(
            lambda config, folder: found.append(config),
            [f"hydra.run.dir={tmp_path}/composed", *overrides],
            flags=[],
            config_dir=config_dir,
        )
        return found[0]

    return composed


def attn(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "attention_core.training", *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
