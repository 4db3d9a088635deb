"""Which tokens make a word."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def words(spelled: Sequence[bytes]) -> list[list[int]]:
    """Return the places of the tokens of each word, in the order of the text.

    A word is letters and digits, or else other signs, with the white space in front of it: " late!"
    is two. A token with parts of several words belongs to the first of them; one that stands for no
    text, as special tokens do, is a word of its own.

    Args:
        spelled: the text of each token, as `Tokenizer.spell` gives it.
    """
    of_bytes = _numbers(b"".join(spelled))
    found: list[list[int]] = []
    start, last = 0, None
    for place, text in enumerate(spelled):
        number = of_bytes[start] if text else None
        if number is not None and number == last:
            found[-1].append(place)
        else:
            found.append([place])
        start, last = start + len(text), number
    return found


def _numbers(text: bytes) -> list[int]:
    """The number of the word that each byte belongs to."""
    numbers: list[int] = []
    number, kind = 0, "space"
    for character in text.decode("utf-8", "surrogateescape"):
        category = unicodedata.category(character)[0]
        if character.isspace():
            now = "space"
        elif category in "MC" and kind != "space":  # accents, joiners, bytes of no character
            now = kind
        else:
            now = "sign" if category in "PS" else "letter"
        if now != kind and kind != "space":
            number += 1
        kind = now
        numbers += [number] * len(character.encode("utf-8", "surrogateescape"))
    return numbers
