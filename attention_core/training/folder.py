"""What a run folder holds, and how a file in it is read."""

import fcntl
import json
import math
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from attention_core.errors import Damaged, UsageError, reading
from attention_core.files import replace_file

# Ends a YAML document. Without it, a file that was cut short may read as another configuration.
END_OF_CONFIG = "..."


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
        """Make the next checkpoint the last one, and the last one the previous."""
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
        """Keep every other run out of this folder until the end, or until this process is killed.

        What runs that were killed have left half written is removed.

        Raises:
            UsageError: another process works in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = self.path / ".lock"
        if lock.is_symlink():  # what it points to would be overwritten
            raise UsageError(f"run: {str(lock)!r} is a link, and not the lock of a run. Remove it.")
        with lock.open("a+") as file:
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
            self._remove_leftovers()
            yield

    def _remove_leftovers(self) -> None:
        for parent in (self.path, self.last.parent):
            for path in parent.glob(".*.tmp"):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def existing(self) -> "RunFolder":
        """Return this folder, where it is a run's.

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


def write_config(config: Mapping[str, Any], folder: RunFolder) -> None:
    """Write the configuration of a run, of which `read_config` notices when it is cut short."""
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    with replace_file(folder.config, "w") as file:
        file.write(f"{text}{END_OF_CONFIG}\n")


def read_config(folder: RunFolder) -> dict[str, Any]:
    """Read the configuration of a run, resolved.

    Raises:
        UsageError: the file is damaged or cut short.
    """
    with reading(folder.config, "run"):
        text = folder.config.read_text(encoding="utf-8")
        if not text.rstrip().endswith(f"\n{END_OF_CONFIG}"):
            raise ValueError(
                f"it is cut short: its last line is not {END_OF_CONFIG!r}, which ends it"
            )
        try:
            config: dict[str, Any] = yaml.safe_load(text)
            _check_ends(config)
        except yaml.MarkedYAMLError as error:
            line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
            raise ValueError(f"{line}{error.problem}") from error
        if not isinstance(config, dict):
            raise ValueError("it holds no configuration")
    return config


def _check_ends(config: Any, within: frozenset[int] = frozenset()) -> None:
    """Refuses what is a part of itself, as an alias of YAML's can make it."""
    if isinstance(config, dict | list):
        if id(config) in within:
            raise ValueError("a part of it holds itself")
        for value in config.values() if isinstance(config, dict) else config:
            _check_ends(value, within | {id(config)})


def write_json(value: Mapping[str, Any], path: Path) -> None:
    """Write JSON, in which what is no finite number is null: JSON knows no other."""
    with replace_file(path, "w") as file:
        json.dump(_finite(value), file, indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_results(folder: RunFolder) -> dict[str, float]:
    """Read the test metrics of a finished run by name, and its "best_epoch"; NaN for none.

    Raises:
        UsageError: the file is damaged.
    """
    try:
        with reading(folder.results, "run"):
            results: dict[str, float] = json.loads(folder.results.read_text(encoding="utf-8"))
            if not isinstance(results, dict) or "best_epoch" not in results:
                raise ValueError("it holds no results")
            for name, value in results.items():
                if value is None:
                    results[name] = math.nan
                elif not isinstance(value, int | float):
                    raise ValueError(f"{name} is {value!r:.60}, no number")
    except Damaged as error:
        raise Damaged(
            f"{error} Delete it and continue the run: the best weights are then tested again."
        ) from error
    return results


def from_here(path: Path) -> str:
    """Return a path as it is shortest to write in the current folder, which it is relative to if it
    lies there."""
    path, here = path.resolve(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _move(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)  # a folder is not replaced by a move
    os.replace(source, target)
