"""What a file or folder holds, one thing at a time: for `DataModule.inputs`.

Everything here is a generator of (name, item) that reads ahead no further than it must. What
cannot be read is given as its error in place of the item, and the rest goes on: see
`DataModule.inputs`.
"""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attention_core.training.errors import UsageError


def files(source: Path, suffixes: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """The file `source`, or those below the folder `source`, hidden ones left out.

    Args:
        suffixes: endings in lower case, such as ".png". Other files of a folder are left out.

    Yields:
        Its path relative to the folder, and its path; the files of a folder by name, and then
        those of its subfolders.

    Raises:
        UsageError: `source` does not exist, is a file that ends otherwise, or holds no such file.
    """
    endings = ", ".join(suffixes)
    if source.is_file():
        if source.suffix.lower() not in suffixes:
            raise UsageError(f"input: {str(source)!r} does not end in one of {endings}.")
        yield source.name, source
        return
    if not source.is_dir():
        raise UsageError(f"input: there is no file or folder {str(source)!r}.")
    none = True
    for folder, subfolders, names in os.walk(source, onerror=_refuse):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix.lower() in suffixes and not name.startswith("."):
                none = False
                yield path.relative_to(source).as_posix(), path
    if none:
        raise UsageError(f"input: {str(source)!r} holds no file that ends in one of {endings}.")


def class_folders(root: Path) -> list[str]:
    """The names of the folders, one for each class, in `root`, or in `root/train` where that is.

    Raises:
        UsageError: `root` is no folder, or has none inside. Hidden ones do not count.
    """
    folder = root / "train" if (root / "train").is_dir() else root
    if not folder.is_dir():
        raise UsageError(f"data.root: there is no folder {str(root)!r}.")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise UsageError(
            f"data.root: {str(folder)!r} has no folders; one for each class was expected."
        )
    return names


def _refuse(error: OSError) -> None:
    raise UsageError(f"input: {error.filename!r} cannot be listed: {error.strerror}.")


def text_lines(name: str, path: Path) -> Iterator[tuple[str, Any]]:
    """The lines of a text file, empty ones too, as `name:line`; bytes that are no UTF-8 become
    U+FFFD."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                yield f"{name}:{number}", line.removesuffix("\n")
    except OSError as error:
        yield name, error


def csv_rows(name: str, path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The rows of a CSV file with a header, as dicts of texts, named `name:line`.

    Args:
        columns: those that it must have. Every row given has them; a shorter one is an error.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = csv.DictReader(file)
            header = list(rows.fieldnames or [])
            missing = [column for column in columns if column not in header]
            if missing:
                yield (
                    name,
                    ValueError(
                        f"it has no column {missing[0]!r}; its first line names "
                        f"{', '.join(map(repr, header)) or 'none'}"
                    ),
                )
                return
            for row in rows:
                short = next((column for column in columns if row[column] is None), None)
                place = f"{name}:{rows.line_num}"
                yield place, row if short is None else ValueError(f"it has no value for {short!r}")
    except (OSError, csv.Error) as error:
        yield name, error


def json_lines(name: str, path: Path) -> Iterator[tuple[str, Any]]:
    """The lines of a file of JSON lines, not yet parsed (see `json_object`), as `name:line`;
    blank ones are left out."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{name}:{number}", line
    except OSError as error:
        yield name, error


def json_object(line: bytes, keys: Sequence[str]) -> dict[str, Any]:
    """The object in a line of JSON.

    Args:
        keys: those that it must have.

    Raises:
        ValueError: it is no JSON, no object, or lacks a key.
    """
    try:
        content = json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"it is no JSON object, but {type(content).__name__}")
    missing = [key for key in keys if key not in content]
    if missing:
        raise ValueError(f"it has no key {missing[0]!r}; its keys are {', '.join(content)}")
    return content
