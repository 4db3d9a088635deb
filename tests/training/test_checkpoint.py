"""Checkpoints survive what happens to files: kills, full disks, damage, malice, another model."""

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest
import torch

from attention_core.files import replace_file
from attention_core.pretrained.serialization import save_torch
from attention_core.training import UsageError, evaluate, resume, train
from attention_core.training.checkpoint import (
    PlainCheckpointIO,
    load_checkpoint,
    shard_path,
)
from attention_core.training.folder import RunFolder, write_config
from tests.command_line import attn
from tests.training.conftest import CONF, Compose, assert_same_run, interrupt


class Point(NamedTuple):
    x: int
    y: int


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Changes one bit of the largest tensor, which no parser would notice."""
    content = load_checkpoint(path)
    largest = max(content["state_dict"].values(), key=torch.Tensor.numel)
    data = bytearray(path.read_bytes())
    place = data.find(largest.numpy().tobytes())
    assert place > 0
    data[place + 5] ^= 16
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, empty])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(
    damage: Any,
    compose: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = compose("experiment=toy", "trainer.max_epochs=3", "checkpoint.every_steps=3")
    train(config, tmp_path / "whole")
    interrupt(config, tmp_path / "cut", 13, monkeypatch)
    folder = RunFolder(tmp_path / "cut")
    steps = [load_checkpoint(path)["global_step"] for path in (folder.previous, folder.last)]
    assert steps == [9, 12]
    damage(folder.last)
    capsys.readouterr()
    resume(tmp_path / "cut", ["toy_domain"])
    assert "last.ckpt' is damaged" in (said := capsys.readouterr().err), said
    assert "Continuing from previous.ckpt" in said
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_damage_to_all_checkpoints_is_an_error_that_says_what_to_do(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose("experiment=toy", "trainer.max_epochs=3", "checkpoint.every_steps=3")
    interrupt(config, tmp_path, 13, monkeypatch)
    folder = RunFolder(tmp_path)
    cut(folder.last)
    cut(folder.previous)
    with pytest.raises(UsageError, match=r"no checkpoint .* can be read: .*last.ckpt' is damaged"):
        resume(tmp_path, ["toy_domain"])


def test_damage_to_the_best_checkpoint_is_named(compose: Compose, tmp_path: Path) -> None:
    train(compose("experiment=toy", "trainer.max_epochs=1"), tmp_path)
    flip(RunFolder(tmp_path).best)
    with pytest.raises(UsageError, match=r"best.ckpt' is damaged: it does not match its checksum"):
        evaluate(tmp_path, ["toy_domain"])


# After the new one is complete, after the last has become the previous.
@pytest.mark.parametrize("moved", [0, 1])
def test_a_kill_between_two_moves_loses_nothing(
    moved: int, compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose("experiment=toy", "trainer.max_epochs=3", "checkpoint.every_steps=3")
    train(config, tmp_path / "whole")
    interrupt(config, tmp_path / "cut", 13, monkeypatch)
    folder = RunFolder(tmp_path / "cut")
    folder.last.rename(folder.next)
    if not moved:
        folder.previous.rename(folder.last)
    assert load_checkpoint(folder.resumable[0])["global_step"] == 12
    resume(tmp_path / "cut", ["toy_domain"])
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert not folder.next.exists()


def test_a_pickle_bomb_does_not_go_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "bomb.ckpt").open("wb") as file:
        save_torch({"state_dict": Bomb()}, file)
    for load in (
        load_checkpoint,
        lambda path: PlainCheckpointIO().load_checkpoint(path, weights_only=False),
    ):
        with pytest.raises(UsageError, match="is refused: it holds more than plain data"):
            load(tmp_path / "bomb.ckpt")
    assert not (tmp_path / "exploded").exists()


def test_a_run_folder_with_a_bomb_is_refused(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not damage: nobody goes back to the checkpoint before as if nothing had happened."""
    monkeypatch.chdir(tmp_path)
    config = compose("experiment=toy", "trainer.max_epochs=3", "checkpoint.every_steps=3")
    interrupt(config, tmp_path, 13, monkeypatch)
    folder = RunFolder(tmp_path)
    for path in (folder.last, folder.best):
        content = load_checkpoint(path)
        with path.open("wb") as file:
            save_torch({**content, "callbacks": Bomb()}, file)
    with pytest.raises(UsageError, match="last.ckpt' is refused"):
        resume(tmp_path, ["toy_domain"])
    with pytest.raises(UsageError, match="best.ckpt' is refused"):
        evaluate(tmp_path, ["toy_domain"])
    assert not (tmp_path / "exploded").exists()


def test_what_is_not_plain_is_refused_by_its_place(tmp_path: Path) -> None:
    for value, kind in ((cut, "function"), (numpy.float64(1), "float64"), (Point(1, 2), "Point")):
        with pytest.raises(UsageError, match=rf"checkpoint\['callbacks'\]\[1\] is a {kind}"):
            PlainCheckpointIO().save_checkpoint({"callbacks": [1, value]}, tmp_path / "x.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_model_are_named(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose("experiment=toy", "trainer.max_epochs=2", "checkpoint.every_steps=3")
    interrupt(config, tmp_path, 9, monkeypatch)
    folder = RunFolder(tmp_path)
    write_config({**config, "model": {**config["model"], "dim": 16}}, folder)
    shapes = r"not those of MLP as configured: model.layers.0.weight is \(32, 2\), not \(16, 2\)"
    for use, said in ((resume, "model.dim is 16, was 32"), (evaluate, shapes)):
        with pytest.raises(UsageError, match=said):
            use(tmp_path, ["toy_domain"])
    write_config(config, folder)
    content = load_checkpoint(folder.last)
    content["state_dict"]["model.head.weight"] = content["state_dict"].pop("model.layers.3.weight")
    PlainCheckpointIO().save_checkpoint(content, folder.last)
    with pytest.raises(
        UsageError,
        match="model.layers.3.weight is missing; model.head.weight is not a part of it",
    ):
        resume(tmp_path, ["toy_domain"])


def test_a_failed_write_leaves_the_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    PlainCheckpointIO().save_checkpoint({"step": 1}, path)

    def disk_is_full() -> None:
        with replace_file(path) as file:
            file.write(b"half a check")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        disk_is_full()
    assert load_checkpoint(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_before_and_the_run_continues(
    compose: Compose, tmp_path: Path
) -> None:
    """The operating system itself refuses to write more: files may grow to 8 KiB, no further."""
    config = compose("experiment=toy", "trainer.max_epochs=3", "checkpoint.every_steps=3")
    train(config, tmp_path / "whole")
    write_config(config, RunFolder(tmp_path / "cut"))
    ran = attn("train", "run=cut", "--config-dir", str(CONF), cwd=tmp_path, TOY_FILL_DISK_AT="7")
    assert ran.returncode == 2, ran.stderr
    assert "best.ckpt' could not be written: File too large" in ran.stderr  # after a validation
    assert "Traceback" not in ran.stderr
    folder = RunFolder(tmp_path / "cut")
    # The one at the end of the epoch failed
    assert [load_checkpoint(path)["global_step"] for path in folder.resumable] == [6, 3]
    assert not list(folder.path.rglob("*.tmp"))
    resume(folder.path, ["toy_domain"])
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_two_runs_do_not_write_one_folder(compose: Compose, tmp_path: Path) -> None:
    config = compose("experiment=toy", "trainer.max_epochs=1")
    folder = RunFolder(tmp_path / "run")
    with held(folder.path), pytest.raises(UsageError, match=r"process \d+ on .* is training in"):
        train(config, folder.path)
    assert not folder.config.exists()
    train(config, folder.path)
    with pytest.raises(UsageError, match="holds a run already"):
        train(config, folder.path)
    folder.results.unlink()  # as if killed before its test
    with held(folder.path), pytest.raises(UsageError, match="is training in"):
        resume(folder.path, ["toy_domain"])
    evaluate(folder.path, ["toy_domain"])  # only looks


@contextmanager
def held(path: Path, *, workers: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Another process that works in a run folder, with processes of its own that outlive it."""
    code = f"""
        import os, time
        from pathlib import Path
        from attention_core.training.folder import RunFolder
        with RunFolder(Path({str(path)!r})).locked():
            if {workers} and os.fork() == 0:
                time.sleep(5)  # loads data, and does not know that it is alone
                os._exit(0)
            print("in", flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_the_lock_of_a_killed_run_is_gone(tmp_path: Path) -> None:
    with held(tmp_path, workers=1) as process:
        name = f"process {process.pid} on"
        with pytest.raises(UsageError, match=name), RunFolder(tmp_path).locked():
            pass
    with RunFolder(tmp_path).locked():
        pass


def test_what_killed_runs_left_half_written_goes_with_the_next(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    code = f"""
        import os, signal
        from pathlib import Path
        from attention_core.files import replace_file
        from attention_core.training.folder import RunFolder
        folder = RunFolder(Path({str(tmp_path)!r}))
        with replace_file(folder.metrics, "w"), replace_file(folder.next) as file:
            file.write(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    shard = shard_path(folder.next.with_name(".next.ckpt.tmp"), 0)  # as FSDP2 names it
    PlainCheckpointIO().save_checkpoint({"step": 1}, shard)
    mine = tmp_path / "notes.tmp"
    mine.write_text("mine")
    assert len(list(tmp_path.rglob("*.tmp"))) == 4
    with held(tmp_path):
        assert list(tmp_path.rglob("*.tmp")) == [mine]
        with replace_file(folder.results) as file:
            file.write(b"{}")
            with pytest.raises(UsageError, match="is training in"), RunFolder(tmp_path).locked():
                pass
    assert folder.results.read_bytes() == b"{}"
