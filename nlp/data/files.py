"""Text files of the user's own."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from attention_core.training import UsageError
from attention_core.training.inputs import files
from nlp.data.module import TextData
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
        self, *, root: str, lines: bool = False, errors: str = "strict", **settings: Any
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
            names of the columns in its first line, and quotes as `csv` reads them.
        text: the column of texts. They may be empty.
        label: the column of labels.
        malformed: what is done about rows that have more or fewer columns, or no label: "refuse"
            the file, or "leave_out", which says on standard error how many and which.
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
        malformed: str = "refuse",
        errors: str = "strict",
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.root, self.text, self.label = Path(root).expanduser(), text, label
        self.malformed, self.errors = check_malformed(malformed), check_errors(errors)

    def rows(self) -> list[Labelled]:
        kind = self.root.suffix.lower()
        if kind not in (".csv", ".tsv") or not self.root.is_file():
            raise UsageError(f"data.root: there is no .csv or .tsv file {str(self.root)!r}.")
        content = io.StringIO(read_text(self.root, self.errors), newline="")
        table = csv.reader(content, dialect="excel" if kind == ".csv" else "excel-tab")
        try:
            names, *lines = [(table.line_num, cells) for cells in table if cells] or [(0, [])]
        except csv.Error as error:
            where = f"{str(self.root)!r} cannot be read beyond line {table.line_num}"
            raise UsageError(f"data.root: {where}: {error}.") from error
        return self._labelled(names[1], lines)

    def _labelled(self, names: list[str], lines: list[tuple[int, list[str]]]) -> list[Labelled]:
        for argument, column in (("text", self.text), ("label", self.label)):
            if column not in names:
                raise UsageError(
                    f"data.{argument}: {str(self.root)!r} has no column {column!r}; its first line "
                    f"names {', '.join(map(repr, names)) or 'none'}."
                )
        text, label = names.index(self.text), names.index(self.label)
        rows, wrong = [], []
        for number, cells in lines:
            if len(cells) != len(names):
                wrong.append(f"line {number} has {len(cells)} columns")
            elif not cells[label].strip():
                wrong.append(f"line {number} has no label")
            else:
                rows.append(Labelled(cells[text], cells[label].strip()))
        meant = f"{len(names)} columns with a label"
        report_malformed(self.root, "rows", meant, wrong, len(lines), self.malformed)
        return rows
