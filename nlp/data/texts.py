"""Texts without their duplicates, and their split: both by a hash of the text alone."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from attention_core.escape import for_terminal
from attention_core.training import UsageError
from attention_core.training.inputs import check_file

Row = TypeVar("Row")


class Labelled(NamedTuple):
    """A text and the name of its class; "" where there are no classes."""

    text: str
    label: str = ""


def distinct(rows: Iterable[Labelled]) -> list[Labelled]:
    """Keep one of each text, in the order of a hash of it: the same whatever the order of the rows.

    Texts that differ in case or white space alone are the same text. Where the same text comes
    with different labels, no label is right, and it is left out.
    """
    found: dict[str, Labelled] = {}
    labels: dict[str, set[str]] = {}
    for row in rows:
        key = same(row.text)
        found.setdefault(key, row)
        labels.setdefault(key, set()).add(row.label)
    keys = sorted((key for key in found if len(labels[key]) == 1), key=hashed)
    return [found[key] for key in keys]


def split(
    rows: Sequence[Row],
    text: Callable[[Row], str] = lambda row: row[0],  # type: ignore[index]
) -> tuple[list[Row], list[Row], list[Row]]:
    """Split into training (70%), validation (10%) and test texts (20%), by a hash of each text.

    A text is in the same part whatever else is in the data: a larger `limit` moves none.

    Args:
        text: what of a row is hashed; by default the first of its fields.
    """
    parts: tuple[list[Row], ...] = ([], [], [])
    for row in rows:
        tenth = hashed(same(text(row))) % 10
        parts[2 if tenth < 2 else 1 if tenth == 2 else 0].append(row)
    return parts[0], parts[1], parts[2]


def same(text: str) -> str:
    """Return a key that texts share which count as the same: white space and case aside."""
    return " ".join(text.split()).casefold()


def hashed(key: str) -> int:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def read_text(path: Path, errors: str = "strict", what: str = "data.root") -> str:
    """Read the text in a file, without a byte order mark.

    Args:
        errors: "strict", or "replace" to read bytes that are no UTF-8 as U+FFFD.
        what: the argument that named the file.

    Raises:
        UsageError: it cannot be read; or is no UTF-8 and `errors` is "strict", and it says where.
    """
    try:
        content = check_file(path).read_bytes()
    except (ValueError, OSError) as error:
        raise UsageError(f"{what}: {str(path)!r} cannot be read: {error}.") from error
    try:
        return content.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{what}: {str(path)!r} is no UTF-8: byte 0x{content[error.start]:02x} in line {line}. "
            "Convert it, or set data.errors=replace to read such bytes as U+FFFD."
        ) from error


def report_malformed(
    path: Path, what: str, meant: str, wrong: Sequence[str], count: int, malformed: str
) -> None:
    """Tell of the lines of a file that are left out; nothing where none is.

    Args:
        what, meant: "lines" that are not "two texts with one tab between them".
        wrong: each of them by its number, and what is wrong.
        count: how many there are, right and wrong.
        malformed: "refuse" or "leave_out".

    Raises:
        UsageError: there are some, and `malformed` is "refuse".
    """
    if not wrong:
        return
    said = (
        f"{len(wrong):,} of {count:,} {what} of {str(path)!r} are not {meant}: "
        f"{'; '.join(wrong[:5])}{'; ...' if wrong[5:] else ''}"
    )
    if malformed == "refuse":
        raise UsageError(f"data.root: {said}. data.malformed=leave_out leaves them out.")
    print(f"{for_terminal(said)}. They are left out.", file=sys.stderr)


def check_malformed(malformed: Any) -> str:
    if malformed not in ("refuse", "leave_out"):
        raise UsageError(f"data.malformed must be 'refuse' or 'leave_out', got {malformed!r}.")
    return str(malformed)


def check_errors(errors: Any) -> str:
    if errors not in ("strict", "replace"):
        raise UsageError(f"data.errors must be 'strict' or 'replace', got {errors!r}.")
    return str(errors)
