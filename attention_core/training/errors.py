"""The one error that the command line shows without a traceback, and its "did you mean"."""

from collections.abc import Iterable
from difflib import get_close_matches


class UsageError(ValueError):
    """A mistake in what was asked for: the message says what came and what was expected."""


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Returns " Did you mean a or b?" for the nearest candidates, or "" where none is near."""
    known = sorted(set(candidates))
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    # "sentiment" is far from "nlp/sentiment_tiny" in edits, yet plainly meant.
    near += [other for other in known if name and name in other and other not in near][:2]
    return f" Did you mean {' or '.join(near[:3])}?" if near else ""
