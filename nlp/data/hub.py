"""Data sets of Hugging Face, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attention_core.training import UsageError, require
from nlp.data.module import TextData
from nlp.data.texts import Labelled, distinct, same, split


class HubTexts(TextData):
    """A data set that `datasets.load_dataset` finds by its name, or reads from local files.

    Where it has the splits "validation" or "test", these are the parts, and none of their texts is
    trained with; what is not there is cut from the others by a hash of each text.

    Args:
        name: the first argument of `load_dataset`: "imdb", "user/name"; or "csv", "json", "text",
            "parquet" with `options` {data_files: ...}.
        text: the column of texts.
        label: the column of labels; None where there are none, for an objective.
        options: further arguments of `load_dataset`.
        settings: those of `TextData`.

    Raises:
        UsageError: when it loads: the package `datasets` is not installed, the data cannot be
            loaded, or has no such column.
    """

    def __init__(
        self,
        *,
        name: str,
        text: str = "text",
        label: str | None = "label",
        options: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if label is None and self.objective is None:
            raise UsageError("data.label: it is needed where there is no data.objective.")
        self.name, self.text, self.label = name, text, label
        self.options = dict(options or {})

    def parts(self) -> dict[str, list[Labelled]]:
        splits = self._splits()
        self.check_classes(row for rows in splits.values() for row in rows)
        given = {
            part: self.wanted(distinct(splits.pop(name)))
            for part, name in (("val", "validation"), ("test", "test"))
            if name in splits
        }
        taken = {same(row.text) for rows in given.values() for row in rows}
        others = distinct(row for rows in splits.values() for row in rows)
        others = [row for row in others if same(row.text) not in taken]
        train, val, test = split(self.wanted(others))
        cut = {"val": val, "test": test}
        for part in given:
            train += cut[part]
        return {"train": train, **{part: given.get(part, cut[part]) for part in cut}}

    def _splits(self) -> dict[str, list[Labelled]]:
        require("datasets", extra="datasets")
        import datasets

        try:
            loaded = datasets.load_dataset(self.name, **self.options)
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise UsageError(f"data.name: {self.name!r} cannot be loaded: {error}") from error
        if not isinstance(loaded, datasets.DatasetDict):  # one split was asked for
            loaded = {"train": loaded}
        return {str(name): self._read(part) for name, part in loaded.items()}

    def _read(self, part: Any) -> list[Labelled]:
        for argument, column in (("text", self.text), ("label", self.label)):
            if column is not None and column not in part.column_names:
                raise UsageError(
                    f"data.{argument}: {self.name!r} has no column {column!r}; it has "
                    f"{', '.join(part.column_names)}."
                )
        texts = part[self.text]
        if self.label is None:
            return [Labelled(str(text)) for text in texts]
        # A feature of classes knows their names
        name = getattr(part.features[self.label], "int2str", str)
        labels = part[self.label]
        return [
            Labelled(str(text), str(name(label))) for text, label in zip(texts, labels, strict=True)
        ]
