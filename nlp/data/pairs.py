"""Pairs of texts, to translate one into the other."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Unpack

import torch

from attention_core.training import UsageError
from nlp.data.module import TokenData, TokenDataOptions
from nlp.data.packing import Sample, Texts
from nlp.data.texts import (
    check_errors,
    check_malformed,
    hashed,
    read_text,
    report_malformed,
    same,
    split,
)
from nlp.tokenizer import Tokenizer


class Pair(NamedTuple):
    """A text and its translation."""

    source: str
    target: str


def distinct_pairs(pairs: Iterable[Pair]) -> list[Pair]:
    """Keep one pair of each source, in the order of a hash of it: the same whatever the order of
    the pairs. Of several translations the first in the alphabet is taken."""
    found: dict[str, Pair] = {}
    for pair in sorted(pairs):
        found.setdefault(same(pair.source), pair)
    return [found[key] for key in sorted(found, key=hashed)]


class PairData(TokenData):
    """Texts with their translations; one tokenizer serves both languages.

    A subclass gives `rows`. Sources that come twice go before the split, which is by a hash of the
    source. A batch has `ids` with `lengths`, the sources; `target_ids` with `target_lengths`, what
    the decoder is given: <s> and the translation; and `target`, the token that is to follow each of
    these, the last of which is `end`.

    Arguments are those of `TokenData`; `tokens` counts both sides.

    Attributes:
        texts: the parts "train", "val" and "test" as pairs, set by `load`.
    """

    def __init__(self, **settings: Unpack[TokenDataOptions]) -> None:
        super().__init__(**settings)
        self.texts: dict[str, list[Pair]] = {}

    def rows(self) -> list[Pair]:
        """Return all pairs of the data, duplicates and all."""
        raise NotImplementedError(f"{type(self).__name__}.rows must return the pairs.")

    def load(self) -> None:
        rows = distinct_pairs(self.rows())[: self.limit]
        self.texts = dict(zip(("train", "val", "test"), split(rows), strict=True))
        for name, part in self.texts.items():
            if not part:
                raise UsageError(f"data: there are too few pairs: none is left for {name!r}.")
        self.learn(text for pair in self.texts["train"] for text in pair)
        sets = [
            Pairs(
                self.tokenizer.encode([pair.source for pair in part]),
                self.tokenizer.encode([pair.target for pair in part], special=False),
                self.tokenizer,
            )
            for part in self.texts.values()
        ]
        self.longest = max(part.longest for part in sets)
        self.train_set, self.val_set, self.test_set = sets


class Pairs(torch.utils.data.Dataset[Sample]):
    """Pairs as token ids.

    Args:
        sources: ids of each text, as a model reads it.
        targets: ids of each translation, without special tokens.
        tokenizer: tells the tokens in front of a translation and after it.
    """

    def __init__(
        self, sources: list[list[int]], targets: list[list[int]], tokenizer: Tokenizer
    ) -> None:
        start, end = tokenizer.start, tokenizer.end
        self._sources = Texts(sources)
        self._targets = Texts([[start, *row, end] for row in targets])
        both = zip(self._sources.sizes, self._targets.sizes, strict=True)
        self.sizes = [source + target - 1 for source, target in both]
        self.longest = max(self._sources.longest, self._targets.longest - 1)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Sample:
        target = self._targets[index]["ids"]
        return {**self._sources[index], "target_ids": target[:-1], "target": target[1:]}


class PairFile(PairData):
    """A file of tab-separated lines: a text, a tab, its translation. Quotes are part of a text.

    Args:
        root: the file, in UTF-8.
        malformed: what is done about lines that are not two texts with one tab between them:
            "refuse" the file, or "leave_out", which says on standard error how many and which.
        errors: what is done about bytes that are no UTF-8: "strict" refuses the file, "replace"
            reads them as U+FFFD.
        settings: those of `PairData`.

    Raises:
        UsageError: when it loads: there is no such file, or it is refused; names the first lines.
    """

    def __init__(
        self,
        *,
        root: str,
        malformed: str = "refuse",
        errors: str = "strict",
        **settings: Unpack[TokenDataOptions],
    ) -> None:
        super().__init__(**settings)
        self.root = Path(root).expanduser()
        self.malformed, self.errors = check_malformed(malformed), check_errors(errors)

    def rows(self) -> list[Pair]:
        if not self.root.is_file():
            raise UsageError(f"data.root: there is no file {str(self.root)!r}.")
        pairs, wrong = read_pairs(read_text(self.root, self.errors))
        meant, count = "two texts with one tab between them", len(pairs) + len(wrong)
        report_malformed(self.root, "lines", meant, wrong, count, self.malformed)
        return pairs


def read_pairs(text: str) -> tuple[list[Pair], list[str]]:
    """Read the pairs in tab-separated lines, and what is wrong with the other lines, each by its
    number. Blank lines are none."""
    pairs, wrong = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        columns = line.removesuffix("\r").split("\t")
        if not line.strip():
            continue
        if len(columns) != 2:
            wrong.append(f"line {number} has {len(columns)} columns")
        elif not all(column.strip() for column in columns):
            wrong.append(f"line {number} has an empty text")
        else:
            pairs.append(Pair(columns[0].strip(), columns[1].strip()))
    return pairs, wrong
