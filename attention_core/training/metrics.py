"""`metrics.csv`: one row per event, written as it happens and cut back on resume."""

import csv
import os
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from attention_core.errors import Damaged, reading
from attention_core.escape import csv_cell, on_one_line
from attention_core.files import replace_file

_TO_GO_ON = "To continue the run without the rows that it had, delete it."


class CSVMetrics(Logger):
    """Logs to one CSV file with the columns `epoch`, `step` and every metric seen so far.

    A row is flushed as soon as it is logged, so a killed run keeps what it had. Lightning's own
    CSV logger deletes the file when a run resumes; this one keeps the rows that the checkpoint
    knows of.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows = 0
        self._columns: list[str] = []
        self._write(read_rows(path))

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run folder holds the whole configuration already."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        values = {"epoch": None, "step": step, **metrics}  # these two columns come first
        row = {csv_cell(on_one_line(name)): _text(value) for name, value in values.items()}
        if set(row) - set(self._columns):
            self._write([*read_rows(self.path), row])
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(row)
        self.rows += 1

    def sync(self) -> int:
        """Return the number of rows, all of which survive a power cut from now on."""
        if self.rows:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        return self.rows

    @rank_zero_only
    def truncate(self, rows: int) -> None:
        """Forget all but the first `rows` rows.

        Raises:
            UsageError: there are fewer.
        """
        found = read_rows(self.path)
        if rows and not found:  # deleted, as the message below says
            print(
                f"metrics: {on_one_line(self.path)} begins anew; its first {rows} rows are gone.",
                file=sys.stderr,
            )
        elif len(found) < rows:
            raise Damaged(
                f"metrics: {str(self.path)!r} is damaged: it has {len(found)} rows, where the "
                f"checkpoint knows of {rows}. {_TO_GO_ON}"
            )
        self._write(found[:rows])

    @rank_zero_only
    def _write(self, rows: list[dict[str, str]]) -> None:
        self._columns = list(dict.fromkeys(name for row in rows for name in row))
        self.rows = len(rows)
        if not rows:
            self.path.unlink(missing_ok=True)
            return
        with replace_file(self.path, "w") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows of a metrics file as text, without a last line that a kill cut short.

    Raises:
        UsageError: a line before is damaged.
    """
    if not path.exists():
        return []
    try:
        with reading(path, "metrics"):
            text = path.read_text(encoding="utf-8")
            complete = text[: text.rfind("\n") + 1]
            columns, *rows = list(csv.reader(complete.splitlines())) or [[]]
            if not rows:
                raise ValueError("it has no rows")
            for number, row in enumerate(rows, start=1):
                _check_row(columns, row, number)
    except Damaged as error:
        raise Damaged(f"{error} {_TO_GO_ON}") from error
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _check_row(columns: list[str], row: list[str], number: int) -> None:
    if len(row) != len(columns):
        raise ValueError(f"row {number} has {len(row)} values for {len(columns)} columns")
    for name, value in zip(columns, row, strict=True):
        try:
            float(value or 0)
        except ValueError:
            raise ValueError(f"row {number}: {name} is {value!r:.60}, no number") from None


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read the rows of a metrics file as numbers; a row holds those columns that have values."""
    return [{name: float(value) for name, value in row.items() if value} for row in read_rows(path)]


def _text(value: Any) -> str:
    # repr gives the shortest text that reads back as the same float.
    return "" if value is None else repr(value.item() if hasattr(value, "item") else value)
