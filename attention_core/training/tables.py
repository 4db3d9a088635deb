"""Tables of text, row by row: what is wrong with a row costs no other."""

import csv
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from attention_core.errors import too_large


class TableRow(NamedTuple):
    """A row of a table; its error in place of the cells where it cannot be read."""

    number: int
    """That of its first line, from 1 on."""
    lines: list[str]
    cells: list[str] | ValueError


def table_rows(
    lines: Iterable[str],
    *,
    delimiter: str = ",",
    quotes: bool = True,
    largest: int | None = None,
) -> Iterator[TableRow]:
    """Yield the rows of a table that are not blank.

    Quotes are read strictly. Where one is not closed, or closed in the middle of a cell, the row
    that it opens in is an error of one line, and so many lines of the file as it had run over are
    read one by one: a quote that is missing or too many hides no row that is whole.

    Args:
        lines: of the file, with their ends as they are.
        delimiter: between the cells of a row.
        quotes: whether a cell may be quoted, as `csv` writes it. Without, quotes are text.
        largest: the most characters of a row; a larger one is an error. None for any.
    """
    # Of the process, and never lowered: by default a cell of 131,073 characters ends the file
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))
    source = _Lines(lines, largest)
    reader = csv.reader(
        source,
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
        strict=True,
    )
    number = 1
    while True:
        source.begin()
        cells: list[str] | ValueError
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cells = ValueError(f'its quotes (") are not balanced: {error}')
            source.give_back()
        except ValueError as error:
            cells = error
            source.give_back()
        if cells:
            yield TableRow(number, source.taken, cells)
        number += len(source.taken)


class _Lines:
    """Lines for `csv.reader`, which can be given back all but the first.

    Attributes:
        taken: the lines of the row that is being read.
    """

    def __init__(self, lines: Iterable[str], largest: int | None) -> None:
        self._lines, self._largest = iter(lines), largest
        self._again: deque[str] = deque()
        self._alone = 0  # so many lines are rows of their own
        self.taken: list[str] = []

    def begin(self) -> None:
        """A new row begins."""
        self.taken, self._size = [], 0

    def give_back(self) -> None:
        """The row has failed: its first line is all of it. The others are rows of their own, but
        for the last, with which a longer one may begin."""
        others, self.taken = self.taken[1:], self.taken[:1]
        if others:
            self._again.extendleft(reversed(others))
            self._alone = len(others)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if not self.taken:
            self._alone = max(0, self._alone - 1)
        elif self._alone:
            raise StopIteration
        line = self._again.popleft() if self._again else next(self._lines)
        self.taken.append(line)
        self._size += len(line.rstrip("\r\n"))
        if self._largest is not None and self._size > self._largest:
            raise too_large(self._largest, "characters")
        return line
