"""Overrides, `key=value`, as a shell hands them over and as Hydra's grammar reads them.

In that grammar lists, sweeps, functions and interpolations are written, and a text of most other
characters has to be quoted, beside the quotes of the shell. What means something there keeps its
meaning. What means nothing there is taken as the text that it is, such as `don't`, `#1` and
`/data/Ärger (1)`; but not where it looks like a structure that went wrong, as `[1,2` does.
"""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from attention_core.errors import UsageError, did_you_mean
from attention_core.escape import shell_word

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# An element of a list or a sweep: a quoted text, or what stands between the marks
_ELEMENT = re.compile(
    r"""\s*(?P<quoted>'(?:\\.|[^\\'])*'|"(?:\\.|[^\\"])*")"""
    r"""|(?P<text>(?:\\.|[^][{}(),'"\s])(?:(?:\\.|[^][{}(),])*(?:\\.|[^][{}(),\s]))?)""",
    re.DOTALL,
)
_BEGINS = {"[": "a list", "{": "a mapping", "'": "a quoted text", '"': "a quoted text"}


def read_overrides(given: Iterable[str]) -> list[str]:
    """Bring overrides into Hydra's grammar.

    Raises:
        UsageError: one that is neither in that grammar nor plainly a text; says how it is quoted.
    """
    return [_read(override) for override in given]


def parsed(override: str) -> "Override | None":
    """Parse an override as Hydra does; None where it is not in its grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(override)
    except (HydraException, ValueError, RecursionError):  # a number of 5,000 digits, [[[[[[...
        return None


def is_sweep(override: str) -> bool:
    """Return whether it gives several values, or a range to draw them from."""
    read = parsed(override)
    return read is not None and read.is_sweep_override()


def texts(value: Any) -> Iterator[str]:
    """Yield the texts in the value of an override, in its lists and in what it sweeps over."""
    if isinstance(value, str):
        yield value
    for element in value if isinstance(value, list) else getattr(value, "list", ()):
        yield from texts(getattr(element, "text", element))


def quoted(value: str) -> str:
    """Put a value in quotes of Hydra's, which only OmegaConf looks into, for interpolations."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(value, Quote.double).with_quotes()


def exact(text: str) -> str:
    """Return the value that gives exactly `text`, in an override and in a list there.

    No value gives `???`, which is to OmegaConf that there is none.
    """
    return quoted(re.sub(r"(\\*)\$\{", r"\1\1\\${", text))


def shell_override(key: str, text: str) -> str:
    """Return a word of a shell that gives `key` exactly the value `text`, quoted if it must be."""
    plain = parsed(f"{key}={text}")
    simple = plain is not None and plain.value() == text and "${" not in text
    return shell_word(f"{key}={text if simple else exact(text)}")


def _read(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals and not key.startswith("~"):
        raise UsageError(f"{override!r}: an override is written key=value, as in seed=2.")
    alone = parsed(f"{key}=1")
    if alone is None or not alone.key_or_group:
        raise UsageError(
            f"{override!r}: {key!r} is no key. The parts of a key are made of the letters a to z, "
            "digits, - and _, with dots between them, as in optimizer.lr=1e-3."
        )
    read, kind = parsed(override), "an interpolation"
    if read is None:
        structure = _structure(value)
        kind = structure or kind
        override = f"{key}={_ELEMENT.sub(_element, value) if structure else quoted(value)}"
        read = parsed(override)
    if read is None or not _can_be_set(read):
        raise UsageError(
            f"{key}: {value!r} cannot be read as {kind}. "
            f"To give it as a text: {shell_word(f'{key}={exact(value)}')}"
        )
    return override


def _structure(value: str) -> str:
    """Name what a value that Hydra does not read was meant as, "" where plainly a text."""
    from hydra.core.override_parser.overrides_parser import create_functions

    begin = value.lstrip()
    if begin[:1] in _BEGINS:
        return _BEGINS[begin[:1]]
    names = create_functions().functions
    call = re.match(r"(\w+)\s*\(", begin)
    if call and (call[1] in names or did_you_mean(call[1], names)):
        return f"{call[1]}(...)"
    return "several values" if "," in value else ""


def _can_be_set(read: "Override") -> bool:
    """Whether interpolations in it are in OmegaConf's grammar."""
    from omegaconf import OmegaConf
    from omegaconf.errors import GrammarParseError, OmegaConfBaseException

    try:
        OmegaConf.create({"value": None if read.is_sweep_override() else read.value()})
    except OmegaConfBaseException as error:
        return not isinstance(error, GrammarParseError)
    return True


def _element(match: re.Match[str]) -> str:
    text = match["text"]
    if text is None or parsed(f"value={text}") is not None:
        return match[0]
    return quoted(text)
