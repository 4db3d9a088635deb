"""Data sets of Hugging Face, by name."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from attention_core.training import UsageError, require
from attention_core.training.inputs import whole_path
from attention_core.training.unpickling import plain_pickles
from nlp.data.module import TextData, TextDataOptions
from nlp.data.texts import Labelled, distinct, same, split

#: The readers of files that can be named. Others of the package `datasets` unpickle, or import what
#: they are told to.
READERS = ("csv", "json", "parquet", "text")


class HubTexts(TextData):
    """A data set that `datasets.load_dataset` finds by its name, or reads from local files.

    Where it has the splits "validation" or "test", these are the parts, and none of their texts is
    trained with, nor validated with where it is the test's; what is not there is cut from the
    others by a hash of each text. A text without a label is left out where labels are asked for,
    and no text at all (null) counts as an empty one.

    Args:
        name: the first argument of `load_dataset`: "imdb", "user/name"; or "csv", "json", "text",
            "parquet" with `options` {data_files: ...}.
        text: the column of texts.
        label: the column of labels; None where there are none, for an objective.
        options: further arguments of `load_dataset`.
        settings: those of `TextData`.

    Raises:
        UsageError: when it loads: the package `datasets` is not installed, the data cannot be
            loaded, has no such column, or a column that holds no texts.
    """

    def __init__(
        self,
        *,
        name: str,
        text: str = "text",
        label: str | None = "label",
        options: Mapping[str, Any] | None = None,
        **settings: Unpack[TextDataOptions],
    ) -> None:
        super().__init__(**settings)
        if label is None and self.objective is None:
            raise UsageError("data.label: it is needed where there is no data.objective.")
        if (options or {}).get("trust_remote_code"):
            raise UsageError("data.options.trust_remote_code is refused: it would run their code.")
        self.name, self.text, self.label = name, text, label
        self.options = dict(options or {})

    @classmethod
    def located(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        located = super().located(arguments)
        name, options = str(located.get("name")), dict(located.get("options") or {})
        if name in READERS:  # of anything else, its files lie where it does
            for key in ("data_files", "data_dir"):
                if options.get(key):
                    options[key] = _whole_paths(options[key])
        elif Path(name).expanduser().exists():
            located = {**located, "name": whole_path(name)}
        return {**located, "options": options} if options else located

    def parts(self) -> dict[str, list[Labelled]]:
        splits = self._splits()
        self.check_classes(row for rows in splits.values() for row in rows)
        given = {
            part: self.wanted(distinct(splits.pop(name)))
            for part, name in (("val", "validation"), ("test", "test"))
            if name in splits
        }
        taken = {same(row.text) for row in given.get("test", [])}
        if "val" in given:
            given["val"] = [row for row in given["val"] if same(row.text) not in taken]
            taken |= {same(row.text) for row in given["val"]}
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

        readers = {
            module.name for module in pkgutil.iter_modules(datasets.packaged_modules.__path__)
        }
        if self.name in readers - {*READERS}:
            raise UsageError(
                f"data.name: {self.name!r} is refused: of the readers of files there can be "
                f"{', '.join(READERS)}."
            )
        try:
            with plain_pickles(f"data: {self.name}"):
                loaded = datasets.load_dataset(self.name, **self.options)
        except UsageError:
            raise
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
        texts = ["" if text is None else text for text in part[self.text]]
        odd = next((text for text in texts if not isinstance(text, str)), None)
        if odd is not None:
            raise UsageError(
                f"data.text: the column {self.text!r} of {self.name!r} must hold texts, got "
                f"{odd!r:.80}."
            )
        if self.label is None:
            return [Labelled(text) for text in texts]
        # A feature of classes knows their names, and has -1 where there is no label
        classes = part.features[self.label]
        name = getattr(classes, "int2str", str)
        none = (None, -1) if hasattr(classes, "int2str") else (None,)
        rows = list(zip(texts, part[self.label], strict=True))
        if self.objective is None:
            rows = [(text, label) for text, label in rows if label not in none]
        return [Labelled(text, "" if label in none else str(name(label))) for text, label in rows]


def _whole_paths(files: Any) -> Any:
    """Paths, or lists and mappings of paths, as whole ones."""
    if isinstance(files, Mapping):
        return {name: _whole_paths(some) for name, some in files.items()}
    return whole_path(files) if isinstance(files, str) else [_whole_paths(one) for one in files]
