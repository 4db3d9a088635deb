"""`metrics.csv`: one row per event, written as it happens and cut back on resume; and
`results.json`, read back."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from attention_core.training.errors import UsageError
from attention_core.training.escape import csv_cell, on_one_line
from attention_core.training.folder import replace_file


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
        """The run folder holds the whole configuration already."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        values = {"epoch": None, "step": step, **metrics}  # these two columns come first
        row = {csv_cell(on_one_line(name)): _text(value) for name, value in values.items()}
        if set(row) - set(self._columns):
            self._write([*read_rows(self.path), row])
            return
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)
        self.rows += 1

    @rank_zero_only
    def truncate(self, rows: int) -> None:
        """Forgets all but the first `rows` rows."""
        self._write(read_rows(self.path)[:rows])

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
    """The rows of a metrics file as text, without a last line that a kill cut short."""
    if not path.exists():
        return []
    text = path.read_text()
    complete = text[: text.rfind("\n") + 1]
    return list(csv.DictReader(io.StringIO(complete, newline="")))


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics file as numbers; a row holds the columns that it has values for."""
    return [{name: float(value) for name, value in row.items() if value} for row in read_rows(path)]


def read_results(path: Path) -> dict[str, float]:
    """What the test of a run has given, by name.

    Raises:
        UsageError: the file holds something else.
    """
    try:
        results = json.loads(path.read_text())
    except ValueError as error:
        raise UsageError(f"run: {str(path)!r} is no JSON: {error}.") from error
    if not isinstance(results, dict) or not all(
        isinstance(value, int | float) for value in results.values()
    ):
        raise UsageError(f"run: {str(path)!r} holds no results, which are numbers by name.")
    return results


def _text(value: Any) -> str:
    # repr gives the shortest text that reads back as the same float.
    return "" if value is None else repr(value.item() if hasattr(value, "item") else value)
