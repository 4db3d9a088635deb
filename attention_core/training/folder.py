"""What a run folder holds, and how a file in it is replaced whole or not at all."""

import fcntl
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from attention_core.training.errors import UsageError


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, by name."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def speed(self) -> Path:
        return self.path / "speed.csv"

    @property
    def best(self) -> Path:
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def last(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def previous(self) -> Path:
        return self.path / "checkpoints" / "previous.ckpt"

    @property
    def next(self) -> Path:
        """A checkpoint that is written and not yet the last: there only if a kill came between."""
        return self.path / "checkpoints" / "next.ckpt"

    @property
    def resumable(self) -> list[Path]:
        """The checkpoints that the run can be continued from, newest first."""
        return [path for path in (self.next, self.last, self.previous) if path.exists()]

    def advance(self) -> None:
        """Makes the next checkpoint the last one, and the last one the previous."""
        if self.last.exists():
            _move(self.last, self.previous)
        _move(self.next, self.last)

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other run out of this folder until the end, or until this process is killed.

        Raises:
            UsageError: another process works in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a+") as file:
            try:
                # Not flock: processes that load data would inherit it, and outlive a killed run
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                file.seek(0)
                raise UsageError(
                    f"run: {file.read() or 'another process'} is training in {str(self.path)!r} "
                    "already. Two runs in one folder would overwrite each other."
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
            yield

    def existing(self) -> "RunFolder":
        """This folder, where it is a run's.

        Raises:
            UsageError: it does not exist, or has no `config.yaml`.
        """
        if not self.path.is_dir():
            raise UsageError(f"run: the folder {str(self.path)!r} does not exist.")
        if not self.config.is_file():
            raise UsageError(
                f"run: {str(self.path)!r} is not a run folder: it has no {self.config.name}."
            )
        return self


def read_config(folder: RunFolder) -> dict[str, Any]:
    """The configuration of a run, resolved.

    Raises:
        UsageError: the file is none.
    """
    try:
        config: Any = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"run: {str(folder.config)!r} cannot be read: {reason}") from error
    if not isinstance(config, dict):
        raise UsageError(f"run: {str(folder.config)!r} holds no configuration.")
    return config


def _move(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)  # a folder is not replaced by a move
    os.replace(source, target)


@contextmanager
def replace_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a temporary file that becomes `path` at the end, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open(mode, newline=None if "b" in mode else "") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    # The rename itself survives a power cut only once the folder is on disk.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
