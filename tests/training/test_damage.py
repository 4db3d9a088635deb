"""Damage to the files of a run and to weights: named in one sentence, or nothing that is read."""

import json
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from attention_core.pretrained import read_weights
from attention_core.training import UsageError, evaluate, export, load_model, resume, train
from attention_core.training.checkpoint import (
    SHAPE,
    PlainCheckpointIO,
    load_checkpoint,
    shard_path,
)
from attention_core.training.cli import main
from attention_core.training.folder import (
    RunFolder,
    read_config,
    read_results,
    write_config,
)
from attention_core.training.metrics import CSVMetrics, read_metrics
from attention_core.training.predict import predict
from tests.training.conftest import Compose, assert_same_run, interrupt, same

STATE = {"weight": torch.randn(4, 3), "bias": torch.ones(2).half()}
CHECKPOINT = {"state_dict": STATE, "epoch": 3, "lrs": [torch.tensor(3.0)]}


def save(content: Any, path: Path) -> None:
    PlainCheckpointIO().save_checkpoint(content, path)


def save_exported(content: Any, path: Path) -> None:
    model = nn.Module()
    for name, value in content.items():
        model.register_buffer(name, value)
    export._write_weights(model, path, {"attention_core": "0.1", "experiment": "toy"})


# What is written, under which name, by what, read by what, and gives what.
FORMATS: dict[str, tuple[Any, str, Callable[..., Any], Callable[[Path], Any], Any]] = {
    "a checkpoint": (CHECKPOINT, "last.ckpt", save, load_checkpoint, CHECKPOINT),
    "weights of a checkpoint": (CHECKPOINT, "best.ckpt", save, read_weights, STATE),
    "exported weights": (STATE, "x.safetensors", save_exported, read_weights, STATE),
    "weights of torch": (STATE, "x.pth", torch.save, read_weights, STATE),
}


def flipped(data: bytes, count: int) -> Iterator[bytes]:
    """`data` with another bit changed each time."""
    for bit in random.Random(0).sample(range(8 * len(data)), min(count, 8 * len(data))):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "count",
    [pytest.param(150, marks=pytest.mark.quick), pytest.param(2000, marks=pytest.mark.slow)],
)
def test_a_flipped_bit_is_named_or_changes_nothing(format: str, count: int, tmp_path: Path) -> None:
    content, name, write, read, wanted = FORMATS[format]
    path = tmp_path / name
    write(content, path)
    named = 0
    for data in flipped(path.read_bytes(), count):
        path.write_bytes(data)
        try:
            assert same(read(path), wanted)
        except UsageError as error:
            assert name in str(error) and "\n" not in str(error)
            named += 1
    assert named > count // 3  # of a zip file of another's, dates and much else is not read


@pytest.mark.parametrize("format", ["a checkpoint", "weights of a checkpoint", "weights of torch"])
def test_attributes_of_a_zip_entry_make_no_weights(format: str, tmp_path: Path) -> None:
    """An entry that says that it is a folder was never filled: torch gave whatever memory held."""
    content, name, write, read, _ = FORMATS[format]
    path = tmp_path / name
    write(content, path)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        place = archive.start_dir
        for entry in archive.infolist():
            assert data[place : place + 4] == b"PK\1\2"
            data[place + 38] ^= 0x10
            path.write_bytes(data)
            with pytest.raises(UsageError, match="is damaged"):
                read(path)
            data[place + 38] ^= 0x10
            place += 46 + len(entry.filename) + len(entry.extra) + len(entry.comment)


@pytest.mark.parametrize(
    "count",
    [pytest.param(100, marks=pytest.mark.quick), pytest.param(2000, marks=pytest.mark.slow)],
)
def test_the_checkpoint_before_is_read_whatever_is_flipped(
    count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path)
    before = {**CHECKPOINT, "epoch": 2}
    save(before, folder.previous)
    save(CHECKPOINT, folder.last)
    read = PlainCheckpointIO().load_checkpoint
    assert same(read(folder.last), CHECKPOINT)
    assert not capsys.readouterr().err
    for data in flipped(folder.last.read_bytes(), count):
        folder.last.write_bytes(data)
        assert same(read(folder.last), before)
        assert "last.ckpt' is damaged" in (said := capsys.readouterr().err), said


def test_no_checkpoint_is_read_without_its_checksum(tmp_path: Path) -> None:
    torch.save(CHECKPOINT, tmp_path / "last.ckpt")
    with pytest.raises(UsageError, match="does not end in a checksum"):
        load_checkpoint(tmp_path / "last.ckpt")
    save(CHECKPOINT, tmp_path / "last.ckpt")
    assert same(torch.load(tmp_path / "last.ckpt", weights_only=True), CHECKPOINT)  # by others, too


def test_a_shard_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)

    def write(path: Path, epoch: int) -> None:
        for rank in range(2):
            local = torch.full((2, 3), rank + 1.0)
            shard = {"processes": 2, "epoch": epoch, "weight": {SHAPE: [4, 3], "local": local}}
            save(shard, shard_path(path, rank))

    write(folder.previous, 1)
    write(folder.last, 2)
    read = PlainCheckpointIO()
    assert load_checkpoint(folder.last)["weight"].sum() == 18
    assert [read.load_shard(folder.last, rank)["epoch"] for rank in (0, 1)] == [2, 2]
    shard_path(folder.last, 1).unlink()
    with pytest.raises(UsageError, match="last.ckpt' is damaged: it has 1 of 2 files"):
        load_checkpoint(folder.last)
    assert [read.load_shard(folder.last, rank)["epoch"] for rank in (0, 1)] == [1, 1]
    shard_path(folder.previous, 1).write_bytes(b"")
    with pytest.raises(UsageError, match="rank-00001.ckpt' is damaged: it does not end"):
        load_checkpoint(folder.previous)
    shard_path(folder.last, 0).unlink()
    with pytest.raises(UsageError, match="no checkpoint .* can be read: .* a folder without"):
        read.load_checkpoint(folder.last)


def test_exported_weights_keep_their_digest_and_those_of_others_need_none(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_exported(STATE, path)
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    save_file(load_file(path), path, about)  # written again, by another
    assert same(read_weights(path), STATE)
    for change in ({"experiment": "other"}, {"attention_core": "0.2"}, {"more": ""}):
        save_file(STATE, path, {**about, **change})
        with pytest.raises(UsageError, match=r"x.safetensors' is damaged: .* digest"):
            read_weights(path)
    for key in ("attention_core", "attention_core_sha256"):
        save_file(STATE, path, {k: v for k, v in about.items() if k != key})
        with pytest.raises(UsageError, match=r"x.safetensors' is damaged: .* digest"):
            read_weights(path)
    save_file(STATE, path)
    assert same(read_weights(path), STATE)


# ------------------------------------------------------------------------------- files of a run


CONFIG = {
    "experiment": "größer",
    "seed": 10,
    "model": {"_target_": "toy_domain.MLP", "dim": 32, "rates": [0.5, 1e-05]},
    "trainer": {"max_epochs": 12},
}


def test_a_configuration_that_was_cut_is_never_read_as_another(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_config(CONFIG, folder)
    data = folder.config.read_bytes()
    assert read_config(folder) == CONFIG
    for size in range(len(data)):
        folder.config.write_bytes(data[:size])
        try:
            assert read_config(folder) == CONFIG
            assert size == len(data) - 1  # the end of the last line
        except UsageError as error:
            assert "config.yaml' is damaged" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    "content",
    [
        *[b"", b"\xff\xfe", b"model: [1, 2\n...\n", b"- 1\n...\n", b"a: b: c\n...\n"],
        *[b"seed: 1\n", b"a: 2024-13-45\n...\n", b"\0\n...\n", b"a: *b\n...\n"],
        b"[" * 500 + b"\n...\n",
    ],
    ids=range(10),
)
def test_a_damaged_configuration_is_named_by_every_command(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    for command in (
        resume,
        evaluate,
        load_model,
        lambda path: predict(path, path, None),
        lambda path: export.export(path, "safetensors"),
    ):
        with pytest.raises(UsageError, match="config.yaml' is damaged: ") as error:
            command(tmp_path)
        assert "\n" not in str(error.value)


def test_damaged_results_are_named(compose: Compose, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_config(compose("experiment=toy"), folder)
    save(CHECKPOINT, folder.best)
    results = {"test/loss": 0.25, "best_epoch": 3}
    data = json.dumps(results, indent=2).encode()
    folder.results.write_bytes(data)
    assert read_results(folder) == results == resume(tmp_path, ["toy_domain"])
    others = [b"\xff", b"3", b"[]", b"{}", b'{"test/loss": "low", "best_epoch": 3}', b"[" * 99999]
    for damaged in [data[:size] for size in range(len(data))] + others:
        folder.results.write_bytes(damaged)
        for command in (resume, evaluate):  # before any work
            with pytest.raises(UsageError, match="results.json' is damaged: ") as error:
                command(tmp_path, ["toy_domain"])
            assert "\n" not in str(error.value)
    folder.results.unlink()
    folder.results.mkdir()
    with pytest.raises(UsageError, match="results.json' cannot be read: Is a directory"):
        resume(tmp_path, ["toy_domain"])


def test_damaged_metrics_are_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = CSVMetrics(path)
    for step in range(3):
        log.log_metrics({"epoch": 0, "loss": 1 / 3, "a": 0.125}, step=step)
    data, rows = path.read_bytes(), read_metrics(path)
    assert len(rows) == 3
    for size in range(len(data)):  # only a last line may lack its end: a kill cuts it
        path.write_bytes(data[:size])
        try:
            assert read_metrics(path) == rows[: data[:size].count(b"\r") - 1] != []
        except UsageError as error:
            assert "metrics.csv' is damaged" in str(error) and "\n" not in str(error)
            assert data[:size].count(b"\r") < 2
    for old, new in (
        (b"0.125", b"0,125"),
        (b"0.125", b"0.1x5"),
        (b"0.125", b"\xff"),
        (b"\n0,", b""),
    ):
        path.write_bytes(data.replace(old, new))
        with pytest.raises(UsageError, match="metrics.csv' is damaged"):
            read_metrics(path)
    path.write_bytes(data.replace(b"0,1,", b'0,"1,'))
    with pytest.raises(UsageError, match="metrics.csv' is damaged"):
        read_metrics(path)


def test_a_run_does_not_go_on_without_rows_of_its_metrics(
    compose: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = compose("experiment=toy", "trainer.max_epochs=2", "trainer.log_every_n_steps=1")
    train(config, tmp_path / "whole")
    interrupt(config, tmp_path / "cut", 11, monkeypatch)
    cut, whole = RunFolder(tmp_path / "cut"), RunFolder(tmp_path / "whole")
    data = cut.metrics.read_bytes()
    lines = data.splitlines(keepends=True)
    cut.metrics.write_bytes(b"".join(lines[:4]))
    with pytest.raises(
        UsageError, match=r"metrics.csv' is damaged: it has 3 rows, where .* of \d+"
    ):
        resume(cut.path, ["toy_domain"])
    cut.metrics.write_bytes(data)
    resume(cut.path, ["toy_domain"])
    assert_same_run(whole.path, cut.path)
    cut.results.unlink()
    cut.metrics.unlink()  # as the message says
    capsys.readouterr()
    resume(cut.path, ["toy_domain"])
    assert "metrics.csv begins anew" in capsys.readouterr().err
    assert cut.results.read_text() == whole.results.read_text()


def test_a_command_says_what_is_damaged_and_shows_no_traceback(
    compose: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = RunFolder(tmp_path)
    write_config(compose("experiment=toy"), folder)
    save(CHECKPOINT, folder.best)
    folder.best.write_bytes(folder.best.read_bytes()[:-1])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", f"run={folder.path}", "allow=[toy_domain]"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"attn: checkpoint: '{folder.best}' is damaged: it does not end")
