"""The errors of the package, and words that messages share."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path


class BackendError(NotImplementedError):
    """The backend asked for cannot do this job; the message says what it lacks."""


class UsageError(ValueError):
    """A mistake in what was asked for, which the command line shows without a traceback."""


class Damaged(UsageError):
    """A file is not what was written: another is to be read in its place, where there is one."""


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Name the file `path`, a part of `what`, in whatever goes wrong while it is read.

    Raises:
        Damaged: in place of any exception; damaged bytes make a reader raise every kind.
    """
    try:
        yield
    except UsageError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise Damaged(f"{what}: {str(path)!r} cannot be read: {reason}.") from error
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise Damaged(f"{what}: {str(path)!r} is damaged: {reason.rstrip('.')}.") from error


def too_large(most: int, what: str) -> ValueError:
    """Return the error for an input that has more than `most` of `what`, such as characters."""
    return ValueError(
        f"it has more than {most:,} {what}; data.largest_input says how many are read"
    )


def counted(number: int, what: str) -> str:
    """Return such as "1 token" or "1,024 tokens"."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return " Did you mean a or b?" for the nearest candidates, or "" where none is near."""
    known = sorted(set(candidates))
    near = get_close_matches(name, known, n=3, cutoff=0.6)
    # Only what is about as near as the nearest: model.dim for model.dimm, and not model.norm
    closeness = [SequenceMatcher(None, other, name).ratio() for other in near]
    near = [near[i] for i, close in enumerate(closeness) if close > closeness[0] - 0.1]
    # "sentiment" is far from "nlp/sentiment_tiny" in edits, and "lr" from "optimizer.lr", yet both
    # are plainly meant.
    near += [
        other
        for other in known
        if (len(name) > 2 and name in other) or other.endswith(f".{name}")
        if other not in near
    ][:2]
    return f" Did you mean {' or '.join(near[:3])}?" if near else ""
