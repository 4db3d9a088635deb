"""Message catalogs: what a program says, in many languages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from attention_core.training import UsageError, require
from nlp.data.module import TokenDataOptions
from nlp.data.pairs import Pair, PairData
from nlp.data.tweets import packaged


class MessageCatalogs(PairData):
    """The messages of an installed package, in English and as its translators have put them.

    They are read from the package's gettext catalogs, `locale/LANGUAGE/LC_MESSAGES/*.po`; the
    package is not imported. Of a message with a plural, singular and plural are a pair each. White
    space is taken for one space.

    Args:
        language: "de", "fr", "es", or any other that the package has catalogs of.
        package: its import name.
        settings: those of `PairData`.

    Raises:
        UsageError: when it loads: the package or polib is not installed, or there is no catalog of
            that language; the message names those that there are.
    """

    def __init__(
        self, *, language: str, package: str = "django", **settings: Unpack[TokenDataOptions]
    ) -> None:
        super().__init__(**settings)
        self.language, self.package = language, package

    def rows(self) -> list[Pair]:
        require("polib", extra="translation")
        extra = "translation" if self.package == "django" else None
        folder = packaged(self.package, extra=extra)
        paths = sorted(folder.glob(f"**/locale/{self.language}/LC_MESSAGES/*.po"))
        if not paths:
            known = sorted({path.parent.parent.name for path in folder.glob("**/locale/*/*/*.po")})
            raise UsageError(
                f"data.language: {self.package!r} has no catalog of {self.language!r}; it has "
                f"{', '.join(known) or 'none'}."
            )
        return [pair for path in paths for pair in read_catalog(path)]


def read_catalog(path: Path) -> Iterator[Pair]:
    """Yield the translated messages of a .po file; fuzzy and obsolete ones are left out."""
    import polib

    for entry in polib.pofile(str(path)):
        if not entry.translated():
            continue
        found = [(entry.msgid, entry.msgstr)]
        if entry.msgid_plural:
            forms = entry.msgstr_plural
            found = [(entry.msgid, forms[min(forms)]), (entry.msgid_plural, forms[max(forms)])]
        for source, target in found:
            yield Pair(*(re.sub(r"\s+", " ", text).strip() for text in (source, target)))
