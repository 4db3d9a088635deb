"""Products of float32 are computed as a run says, and afterwards as before."""

from pathlib import Path
from typing import Any

import pytest
import torch

from attention_core.errors import UsageError
from attention_core.training import evaluate, train
from attention_core.training.folder import RunFolder
from tests.training.conftest import Compose

SHORT = ["experiment=toy", "trainer.max_epochs=1", "trainer.limit_train_batches=1"]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, compose: Compose) -> list[str]:
    """The setting at each call of the model."""
    import toy_domain

    found: list[str] = []
    forward = toy_domain.MLP.forward

    def noted(*args: Any, **kwargs: Any) -> Any:
        found.append(torch.get_float32_matmul_precision())
        return forward(*args, **kwargs)

    monkeypatch.setattr(toy_domain.MLP, "forward", noted)
    return found


def test_a_run_has_its_own_precision(compose: Compose, seen: list[str], tmp_path: Path) -> None:
    assert torch.get_float32_matmul_precision() == "highest"
    path = tmp_path / "run"
    train(compose(*SHORT, "float32_matmul_precision=high"), path)
    assert seen and {*seen} == {"high"}
    assert torch.get_float32_matmul_precision() == "highest"
    assert "float32_matmul_precision: high" in RunFolder(path).config.read_text()
    assert "products of float32: high (TF32)" in (path / "README.md").read_text()
    seen.clear()
    evaluate(path, allow=["toy_domain"])
    assert seen and {*seen} == {"high"}


def test_a_configuration_without_it_changes_nothing(compose: Compose, seen: list[str],
                                                    tmp_path: Path) -> None:  # fmt: skip
    config = compose(*SHORT)
    assert config.pop("float32_matmul_precision") == "highest"
    torch.set_float32_matmul_precision("high")
    try:
        train(config, tmp_path / "run")
        assert {*seen} == {"high"} and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("value", "said"),
    [("hihg", "got 'hihg'. Did you mean high"), ("tf32", "got 'tf32'"), (True, "got True")],
)
def test_another_value_is_refused_before_a_folder_is_made(
    value: Any, said: str, compose: Compose, tmp_path: Path
) -> None:
    config = {**compose(*SHORT), "float32_matmul_precision": value}
    with pytest.raises(UsageError, match="one of highest, high, medium is needed, " + said):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
