"""What all data modules of texts share: a tokenizer of their own, batches, new texts to read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Required, Unpack

import torch

from attention_core.errors import reading, too_large
from attention_core.files import replace_file
from attention_core.pretrained.files import located
from attention_core.training import DataModule, DataModuleOptions, UsageError
from attention_core.training.folder import RunFolder
from attention_core.training.inputs import (
    check_file,
    csv_rows,
    files,
    json_lines,
    json_object,
    text_lines,
    whole_path,
)
from attention_core.transfer import remember_original
from nlp.data.objectives import Objective
from nlp.data.packing import Sample, Texts, collate
from nlp.data.texts import Labelled, distinct, split
from nlp.tokenizer import Tokenizer

#: What `tokenizer` may name that is no file.
KINDS = ("bpe", "wordpiece")


class TokenDataOptions(DataModuleOptions, total=False):
    """Options of every `TokenData`, which subclasses pass on."""

    vocab_size: Required[int]
    tokenizer: str
    tokens: int | None
    padded: bool
    limit: int | None


class TokenData(DataModule):
    """Texts as token ids.

    The tokenizer learns from the training texts, or is loaded; a run keeps it as `tokenizer.json`.

    `attn predict` reads one text per line of .txt files, empty ones too, the column `text` of .csv
    files, and the key "text" of .jsonl files: one file, or those below a folder. `largest_input`
    counts the characters of a text, and by default is 100,000.

    Args:
        vocab_size: number of token ids, at most.
        tokenizer: the kind to learn, "bpe" or "wordpiece"; or a file or folder to load it from,
            see `Tokenizer.load`; ``package:NAME/PATH`` is one inside an installed package.
        tokens: a batch has about so many tokens. None: it has `batch_size` texts.
        padded: pad the texts of a batch to the longest, in place of packing them end to end.
        limit: use this many texts, drawn by their hash; None for all.
        settings: those of `DataModule`; `batch_size` also is what `attn predict` reads at a time.

    Attributes:
        tokenizer: set by `load`, and by `setup("predict")` to the run's.
        longest: the most tokens that a model is given of a text, set by `load`.
    """

    tokenizer: Tokenizer
    longest = 0
    whole_files = False

    def __init__(
        self,
        *,
        vocab_size: int,
        tokenizer: str = "bpe",
        tokens: int | None = None,
        padded: bool = False,
        limit: int | None = None,
        **settings: Unpack[DataModuleOptions],
    ) -> None:
        super().__init__(**settings)
        for name, value, least in (("limit", limit, 10), ("tokens", tokens, 1)):
            if value is not None and value < least:
                raise UsageError(f"data.{name} must be at least {least}, or null, got {value}.")
        self.vocab_size, self.limit, self.padded, self.budget = vocab_size, limit, padded, tokens
        self._kind = tokenizer

    @classmethod
    def located(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        located = super().located(arguments)
        tokenizer = located.get("tokenizer", KINDS[0])
        if tokenizer in KINDS:
            return located
        return {**located, "tokenizer": whole_path(str(tokenizer))}

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        if stage == "predict":
            path = self._tokenizer_file()
            if path is None or not path.is_file():
                raise UsageError(
                    "run: it has no tokenizer.json, without which its model cannot be given a text."
                )
            self.tokenizer = _load(path)

    def inputs(self, path: Path) -> Iterator[tuple[str, Any]]:
        for name, file in files(path, (".txt", ".csv", ".jsonl")):
            kind = file.suffix.lower()
            if kind == ".txt" and self.whole_files:
                yield name, file
            elif kind == ".txt":
                yield from text_lines(name, file, largest=self.largest_input)
            elif kind == ".csv":
                yield from csv_rows(name, file, ["text"], largest=self.largest_input)
            else:  # where a character may be written as twelve bytes
                yield from json_lines(name, file, largest=12 * self.largest_input)

    def read(self, raw: str | dict[str, str] | bytes | Path) -> Sample:
        if isinstance(raw, Path):
            with check_file(raw).open(encoding="utf-8-sig", errors="replace", newline="") as file:
                raw = file.read(self.largest_input + 1)
        if isinstance(raw, bytes):
            raw = json_object(raw, ["text"])
        text = raw["text"] if isinstance(raw, dict) else raw
        if not isinstance(text, str):
            raise ValueError(f"text must be a string, got {text!r:.80}")
        if len(text) > self.largest_input:
            raise too_large(self.largest_input, "characters")
        return {"ids": torch.tensor(self.encode([text])[0])}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts as ids, as a model is given them."""
        return self.tokenizer.encode(texts)

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        return collate(samples, padded=self.padded)

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Move a batch: Lightning's hook. Of lengths the originals are remembered, so that models
        need not wait for the device to know them."""
        there = super().transfer_batch_to_device(batch, device, dataloader_idx)
        for name in ("lengths", "target_lengths"):
            if isinstance(batch, dict) and name in batch and there[name] is not batch[name]:
                remember_original(there[name], batch[name])
        return there

    def learn(self, texts: Iterable[str]) -> None:
        """Set `tokenizer`: the run's where it has one, else the given one, or one that learns from
        `texts`.

        Raises:
            UsageError: there is no such tokenizer, or it has more tokens than `vocab_size`.
        """
        path = self._tokenizer_file()
        if path is not None and path.is_file():
            self.tokenizer = _load(path)
            return
        try:
            if self._kind in KINDS:
                self.tokenizer = Tokenizer.train(texts, self.vocab_size, kind=self._kind)  # type: ignore[arg-type]
            else:
                self.tokenizer = Tokenizer.load(located(self._kind))
        except (ValueError, FileNotFoundError) as error:
            raise UsageError(f"data.tokenizer, data.vocab_size: {error}") from error
        if len(self.tokenizer) > self.vocab_size:
            raise UsageError(
                f"data.vocab_size: the tokenizer {self._kind!r} has {len(self.tokenizer)} tokens, "
                f"more than {self.vocab_size}."
            )
        if path is not None:
            with replace_file(path, "w") as file:
                file.write(self.tokenizer.to_json())

    def _tokenizer_file(self) -> Path | None:
        # The trainer's root is the run folder, where training runs in one
        folder = RunFolder(Path(self.trainer.default_root_dir)) if self.trainer else None
        return folder.path / "tokenizer.json" if folder and folder.config.is_file() else None


def _load(path: Path) -> Tokenizer:
    with reading(path, "run"):
        return Tokenizer.load(path)


class TextDataOptions(TokenDataOptions, total=False):
    """Options of every `TextData`, which subclasses pass on."""

    objective: Objective | None
    window: int | None


class TextData(TokenData):
    """Texts with a label each, or with an objective: what of a text is asked for.

    A subclass gives `rows`. Duplicates go before the split; see `distinct`, `split`. A batch has
    `ids`, `lengths` (B,) and `target`: (B,) classes, or what the objective asks of each token; see
    `collate`.

    Args:
        objective: `NextToken()` or `Masking()`; None: the label.
        window: for an objective, a text of more tokens is cut into parts of so many, each of which
            is a text of its own. None: texts stay whole, and a model with fewer positions refuses
            them. (A model that tells labels reads a long text in windows by its own option.)
        settings: those of `TokenData`; `classes` names the labels to use, in their order.

    Attributes:
        texts: the parts "train", "val" and "test" as texts with labels, set by `load`.

    Raises:
        UsageError: when it loads: a class is no label of the data, or a part is empty.
    """

    def __init__(
        self,
        *,
        objective: Objective | None = None,
        window: int | None = None,
        **settings: Unpack[TokenDataOptions],
    ) -> None:
        super().__init__(**settings)
        if window is not None and window < 2:
            raise UsageError(f"data.window must be at least 2 tokens, or null, got {window}.")
        if window is not None and objective is None:
            raise UsageError("data.window: it cuts texts for a data.objective, and there is none.")
        self.objective, self.window = objective, window
        self.texts: dict[str, list[Labelled]] = {}

    def rows(self) -> list[Labelled]:
        """Return all texts of the data, duplicates and all."""
        raise NotImplementedError(f"{type(self).__name__}.rows must return the texts.")

    def parts(self) -> dict[str, list[Labelled]]:
        """Split the texts to train, validate and test with: "train", "val", "test"."""
        rows = distinct(self.rows())
        self.check_classes(rows)
        return dict(zip(("train", "val", "test"), split(self.wanted(rows)), strict=True))

    def check_classes(self, rows: Iterable[Labelled]) -> None:
        """Refuse classes that are none of the labels in `rows`."""
        if self.objective is not None:
            return
        labels = {row.label for row in rows}
        unknown = sorted(set(self.classes) - labels)
        if unknown or not self.classes:
            raise UsageError(
                f"data.classes: there is no label {', '.join(unknown) or 'given'}; there are "
                f"{', '.join(sorted(labels))}."
            )

    def wanted(self, rows: list[Labelled]) -> list[Labelled]:
        """Return those of distinct rows whose label is used, `limit` of them."""
        if self.objective is None:
            rows = [row for row in rows if row.label in self.classes]
        return rows[: self.limit]

    def load(self) -> None:
        self.texts = self.parts()
        for name, part in self.texts.items():
            if not part:
                raise UsageError(f"data: there are too few texts: none is left for {name!r}.")
        self.learn(row.text for row in self.texts["train"])
        sets = [self._encoded(part) for part in self.texts.values()]
        self.longest = max(part.longest for part in sets)
        self.train_set, self.val_set, self.test_set = sets

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        if self.objective is None:
            return super().encode(texts)
        if self.objective.tokenizer is not self.tokenizer:
            self.objective.bind(self.tokenizer)
        return self.objective.encode(texts)

    def _encoded(self, rows: list[Labelled]) -> Texts:
        ids = self.encode([row.text for row in rows])
        if self.objective is None:
            return Texts(ids, [self.classes.index(row.label) for row in rows])
        parts = [part for row in ids for part in self.objective.cut(row, self.window)]
        return Texts(parts, objective=self.objective)
