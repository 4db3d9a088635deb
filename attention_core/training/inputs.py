"""What a file or folder holds, one thing at a time: for `DataModule.inputs`.

Everything here is a generator of (name, item) that reads ahead no further than it must. What
cannot be read is given as its error in place of the item, and the rest goes on: see
`DataModule.inputs`.
"""

import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from attention_core.errors import UsageError, too_large
from attention_core.training.tables import TableRow, table_rows

Text = TypeVar("Text", str, bytes)


def files(source: Path, suffixes: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Yield the file `source`, or those below the folder `source`, hidden ones left out.

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


def whole_path(path: str) -> str:
    """Return the path from the root on, which means the same in every current folder; links stay
    what they are, and so does what is no path: ``package:NAME/PATH`` and addresses."""
    if path.startswith("package:") or "://" in path:
        return path
    return os.path.abspath(Path(path).expanduser())


def class_folders(root: Path) -> list[str]:
    """Return the names of the folders, one for each class, in `root`, or in `root/train` if it is.

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


def check_file(path: Path) -> Path:
    """Return `path`; refuse a named pipe, a device and a socket, which could keep a reader waiting.

    Raises:
        ValueError: `path` is none of a file.
        OSError: there is nothing.
    """
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        names = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise ValueError(f"it is no file, but {names.get(kind, 'a device')}")
    return path


def text_lines(
    name: str, path: Path, *, largest: int | None = None
) -> Iterator[tuple[str, str | Exception]]:
    """Yield the lines of a text file, empty ones too, as `name:line`; bytes that are no UTF-8
    become U+FFFD.

    Args:
        largest: the most characters of a line; a longer one is an error. None for any.
    """
    try:
        with check_file(path).open(encoding="utf-8-sig", errors="replace") as file:
            for number, line in enumerate(_lines(file, largest), start=1):
                text = line.removesuffix("\n")
                yield f"{name}:{number}", _no_larger(text, len(text), largest, "characters")
    except (OSError, ValueError) as error:
        yield name, error


def csv_rows(
    name: str, path: Path, columns: Sequence[str], *, largest: int | None = None
) -> Iterator[tuple[str, dict[str, str] | Exception]]:
    """Yield the rows of a CSV file with a header, as dicts of texts, named `name:line`.

    Args:
        columns: those that it must have, once. Every row given has them; a shorter one is an error,
            as is one of more cells than there are columns, or whose quotes are not balanced: see
            `table_rows`.
        largest: the most characters of a row; a larger one is an error. None for any.
    """
    try:
        with check_file(path).open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = table_rows(_lines(file, largest), largest=largest)
            header = _header(next(rows, TableRow(1, [], [])).cells, columns)
            for number, lines, cells in rows:
                yield f"{name}:{number + len(lines) - 1}", _row(cells, header, columns)
    except (OSError, ValueError) as error:
        yield name, error


def column(name: str, header: Sequence[str]) -> int:
    """Find the place of the column `name` in the first line of a table.

    Raises:
        ValueError: it is not there, or twice.
    """
    if name not in header:
        raise ValueError(
            f"it has no column {name!r}; its first line names "
            f"{', '.join(map(repr, header)) or 'none'}"
        )
    if header.count(name) > 1:
        raise ValueError(f"its first line names the column {name!r} {header.count(name)} times")
    return header.index(name)


def _header(names: list[str] | ValueError, columns: Sequence[str]) -> list[str]:
    if isinstance(names, ValueError):
        raise ValueError(f"its first line cannot be read: {names}")
    for name in columns:
        column(name, names)
    return names


def _row(
    cells: list[str] | ValueError, header: Sequence[str], columns: Sequence[str]
) -> dict[str, str] | ValueError:
    if isinstance(cells, ValueError):
        return cells
    if len(cells) > len(header):
        return ValueError(f"it has {len(cells)} cells, but there are {len(header)} columns")
    row = dict(zip(header, cells, strict=False))
    short = next((name for name in columns if name not in row), None)
    return row if short is None else ValueError(f"it has no value for {short!r}")


def json_lines(
    name: str, path: Path, *, largest: int | None = None
) -> Iterator[tuple[str, bytes | Exception]]:
    """Yield the lines of a file of JSON lines, not yet parsed (see `json_object`), as `name:line`;
    blank ones are left out.

    Args:
        largest: the most bytes of a line; a longer one is an error. None for any.
    """
    try:
        with check_file(path).open("rb") as file:
            for number, line in enumerate(_lines(file, largest), start=1):
                if line.strip():
                    size = len(line.rstrip(b"\r\n"))
                    yield f"{name}:{number}", _no_larger(line, size, largest, "bytes")
    except (OSError, ValueError) as error:
        yield name, error


def _no_larger(text: Text, size: int, largest: int | None, what: str) -> Text | ValueError:
    if largest is None or size <= largest:
        return text
    return too_large(largest, what)


def _lines(file: IO[Text], largest: int | None) -> Iterator[Text]:
    """The lines of a file. Of one longer than `largest` only a little more than that is read into
    memory and given."""
    size = -1 if largest is None else largest + 3  # its end is two at most
    end: Any
    while line := file.readline(size):
        yield line
        end = b"\n" if isinstance(line, bytes) else ("\n", "\r")
        while len(line) == size and not line.endswith(end):
            line = file.readline(size)


def json_object(line: bytes, keys: Sequence[str]) -> dict[str, Any]:
    """Read the object in a line of JSON.

    Args:
        keys: those that it must have.

    Raises:
        ValueError: it is no JSON, no object, lacks a key, or has one twice.
    """
    try:
        content = json.loads(line, object_pairs_hook=_once)
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


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} comes {names.count(twice)} times")
    return found
