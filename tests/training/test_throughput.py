"""Speed is logged, and the FLOPs are those that a formula gives."""

from pathlib import Path

import pytest

from attention_core.training import UsageError, train
from attention_core.training.folder import RunFolder
from attention_core.training.metrics import read_metrics
from attention_core.training.throughput import Throughput
from tests.training.conftest import Compose


@pytest.mark.slow
def test_speed_is_logged_beside_the_metrics(compose: Compose, tmp_path: Path) -> None:
    sizes = ["model.dim=16", "model.depth=2", "model.heads=2", "model.hidden=32"]
    few = ["trainer.max_epochs=2", "trainer.limit_train_batches=4", "trainer.log_every_n_steps=2"]
    peak = "callbacks.throughput.peak_tflops=0.5"
    config = compose("experiment=vision/digits", *sizes, *few, peak)
    train(config, tmp_path)
    rows = read_metrics(RunFolder(tmp_path).speed)
    assert [row["step"] for row in rows] == [1, 3, 5, 7]
    for row in rows:
        tokens = row["speed/tokens_per_second"]
        # 16 patches and the class token
        assert tokens == pytest.approx(17 * row["speed/samples_per_second"])
        # Matrices: 4 of attention, 2 of the feed-forward network, per layer; scores and their sum
        # of values; the patches, and the head on one token in 17. Two for each multiply-and-add,
        # and the backward pass counts double
        layer = 4 * 16 * 16 + 2 * 16 * 32 + 2 * 17 * 16
        flops = 3 * 2 * (2 * layer + (16 * 4 * 16 + 16 * 10) / 17)
        assert row["speed/model_tflops"] == pytest.approx(flops * tokens / 1e12, rel=1e-3)
        assert row["speed/mfu"] == pytest.approx(row["speed/model_tflops"] / 0.5)
        assert 100 < row["speed/memory_mib"] < 100_000
    metrics = read_metrics(RunFolder(tmp_path).metrics)
    assert not any(name.startswith("speed") for row in metrics for name in row)
    assert all(row["step/gradient_norm"] > 0 for row in metrics if "step/loss" in row)


@pytest.mark.slow
def test_measuring_changes_no_number(compose: Compose, tmp_path: Path) -> None:
    few = ["experiment=vision/digits", "trainer.max_epochs=1", "trainer.limit_train_batches=3"]
    few += ["model.dim=16", "model.heads=2", "+model.dropout=0.1", "trainer.log_every_n_steps=1"]
    train(compose(*few), tmp_path / "with")
    train(compose(*few, "~callbacks.throughput"), tmp_path / "without")
    measured, plain = RunFolder(tmp_path / "with"), RunFolder(tmp_path / "without")
    assert measured.metrics.read_text() == plain.metrics.read_text()
    assert not plain.speed.exists()


@pytest.mark.slow
def test_a_pool_over_a_padded_batch_is_counted_too(compose: Compose, tmp_path: Path) -> None:
    few = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.log_every_n_steps=1"]
    train(compose("experiment=vision/digits", "model.pooling=attention", *few), tmp_path)
    rows = read_metrics(RunFolder(tmp_path).speed)
    assert all(row["speed/model_tflops"] > 0 for row in rows)
    losses = [r["step/gradient_norm"] for r in read_metrics(RunFolder(tmp_path).metrics)[:2]]
    assert all(norm > 0 for norm in losses)  # the parameters are trained again


def test_a_peak_that_is_none() -> None:
    with pytest.raises(UsageError, match="peak_tflops must be positive, got -1"):
        Throughput(peak_tflops=-1)
