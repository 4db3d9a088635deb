"""Text files of the user's own."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from attention_core.training import UsageError
from attention_core.training.inputs import files
from nlp.data.module import TextData
from nlp.data.objectives import NextToken
from nlp.data.texts import Labelled, check_errors, read_text


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
