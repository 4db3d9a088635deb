"""Text files of the user's own."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from attention_core.training import UsageError
from attention_core.training.inputs import column, files
from attention_core.training.tables import TableRow, table_rows
from nlp.data.module import TextData, TextDataOptions
from nlp.data.objectives import NextToken
from nlp.data.texts import (
    Labelled,
    check_errors,
    check_malformed,
    read_text,
    report_malformed,
)


class TextFiles(TextData):
    """Every .txt file below a folder, or one such file: texts without labels, for an objective.

    Args:
        root: the folder, or the file.
        lines: each line is a text that is not blank; by default each file is one text. A single
            file needs it: one text cannot be split.
        errors: what is done about bytes that are no UTF-8: "strict" refuses the file, "replace"
            reads them as U+FFFD.
        settings: those of `TextData`; `objective` is `NextToken` by default.

    Raises:
        UsageError: when it loads: there is no such file or folder, a file is no UTF-8, or there are
            too few texts for training, validation and test.
    """

    def __init__(
        self,
        *,
        root: str,
        lines: bool = False,
        errors: str = "strict",
        **settings: Unpack[TextDataOptions],
    ) -> None:
        settings["objective"] = settings.get("objective") or NextToken()
        super().__init__(**settings)
        self.root, self.lines = Path(root).expanduser(), lines
        self.errors = check_errors(errors)

    def rows(self) -> list[Labelled]:
        try:
            paths = [path for _, path in files(self.root, (".txt",))]
        except UsageError as error:
            raise UsageError(str(error).replace("input:", "data.root:", 1)) from error
        texts = [read_text(path, self.errors) for path in paths]
        if self.lines:
            # str.splitlines would also cut where a text has U+2028 or a form feed
            texts = [line for text in texts for line in io.StringIO(text, newline=None)]
            texts = [line.removesuffix("\n") for line in texts]
        return [Labelled(text) for text in texts if text.strip()]


class LabelledFile(TextData):
    """A table with a column of texts and one of labels, to tell the labels of other texts.

    Args:
        root: a .csv file, or a .tsv file, whose columns are separated by tabs; in UTF-8, with the
            names of the columns in its first line.
        text: the column of texts. They may be empty.
        label: the column of labels.
        quotes: whether cells may be quoted, as `csv` writes them, and then hold line ends; without,
            quotes are part of a text. By default in a .csv file, and not in a .tsv file.
        malformed: what is done about rows that have more or fewer columns, no label, or quotes that
            are not balanced: "refuse" the file, or "leave_out", which says on standard error how
            many and which. A row of several lines counts as such where one of them is a row itself.
        errors: what is done about bytes that are no UTF-8: "strict" refuses the file, "replace"
            reads them as U+FFFD.
        settings: those of `TextData`; `classes` names the labels to use, in their order.

    Raises:
        UsageError: when it loads: there is no such file or column, or the file is refused.
    """

    def __init__(
        self,
        *,
        root: str,
        text: str = "text",
        label: str = "label",
        quotes: bool | None = None,
        malformed: str = "refuse",
        errors: str = "strict",
        **settings: Unpack[TextDataOptions],
    ) -> None:
        super().__init__(**settings)
        self.root, self.text, self.label = Path(root).expanduser(), text, label
        self.quotes = quotes
        self.malformed, self.errors = check_malformed(malformed), check_errors(errors)

    def rows(self) -> list[Labelled]:
        kind = self.root.suffix.lower()
        if kind not in (".csv", ".tsv") or not self.root.is_file():
            raise UsageError(f"data.root: there is no .csv or .tsv file {str(self.root)!r}.")
        content = io.StringIO(read_text(self.root, self.errors), newline="")
        delimiter, quotes = (",", True) if kind == ".csv" else ("\t", False)
        quotes = quotes if self.quotes is None else self.quotes
        return self._labelled(table_rows(content, delimiter=delimiter, quotes=quotes), delimiter)

    def _labelled(self, table: Iterator[TableRow], delimiter: str) -> list[Labelled]:
        names = next(table, TableRow(1, [], [])).cells
        if isinstance(names, ValueError):
            raise UsageError(f"data.root: the first line of {str(self.root)!r}: {names}.")
        places = []
        for argument, name in (("text", self.text), ("label", self.label)):
            try:
                places.append(column(name, names))
            except ValueError as error:
                raise UsageError(f"data.{argument}: {str(self.root)!r}: {error}.") from error
        text, label = places
        given = list(table)
        labels = {
            row.cells[label].strip()
            for row in given
            if not isinstance(row.cells, ValueError) and len(row.cells) == len(names)
        }
        rows, wrong = [], []
        for row in given:
            place = f"line {row.number}"
            if isinstance(row.cells, ValueError):
                wrong.append(f"{place}: {row.cells}")
            elif len(row.cells) != len(names):
                wrong.append(f"{place} has {len(row.cells)} columns")
            elif not row.cells[label].strip():
                wrong.append(f"{place} has no label")
            elif hidden := _hidden_row(row, label, labels, delimiter):
                wrong.append(f"{place} has a quote that closes after line {hidden}, itself a row")
            else:
                rows.append(Labelled(row.cells[text], row.cells[label].strip()))
        meant = f"{len(names)} columns with a label"
        report_malformed(self.root, "rows", meant, wrong, len(given), self.malformed)
        return rows


def _hidden_row(row: TableRow, label: int, labels: set[str], delimiter: str) -> int:
    """The number of a line in a quoted cell that would be a row with one of the `labels` itself,
    such as quotes make that were never meant to be a pair; 0 where there is none."""
    assert not isinstance(row.cells, ValueError)
    quoted = next((k for k, cell in enumerate(row.cells) if "\n" in cell or "\r" in cell), None)
    if quoted is None:
        return 0
    # The label of the row itself is in its first line where it comes in front, else in its last
    own = 0 if label < quoted else len(row.lines) - 1
    for index, line in enumerate(row.lines):
        cells = line.replace('"', "").strip("\r\n").split(delimiter)
        if index != own and len(cells) == len(row.cells) and cells[label].strip() in labels:
            return row.number + index
    return 0
