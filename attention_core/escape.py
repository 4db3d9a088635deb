r"""Foreign text, made harmless for the place where it goes: nothing there takes it for a command.

Names of files, texts of a configuration or a data set, names of classes and what a model writes
come from anywhere. Ordinary characters of any script stay as they are; what a terminal, a
spreadsheet, Markdown or Matplotlib would obey is written visibly, such as `\x1b`.

Each function is given raw text, and what it returns goes to its place as it is. What `on_one_line`
and `for_terminal` return they leave alone: names can be put on a line before a message is escaped.
"""

import json
import re
import shlex
from numbers import Number
from typing import Any

# Control characters (C0, DEL, C1), separators of lines, what turns the direction of writing, and
# surrogates, which stand for the bytes of a file name that are no UTF-8
_OBEYED = "\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_ON_A_LINE = re.compile(f"[\x00-\x1f{_OBEYED}]")
_IN_LINES = re.compile(f"[\x00-\x08\x0b-\x1f{_OBEYED}]")  # where tabs and ends of lines stay
_SURROGATE = re.compile("[\ud800-\udfff]")
# What a spreadsheet begins to compute at (OWASP, CSV injection), full-width forms too
_FORMULA = re.compile("'*[=+@\t\n\uff1d\uff0b\uff0d\uff20-]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def on_one_line(text: object) -> str:
    r"""Make a name or a path fit a line of a terminal: an end of a line is a visible `\n`."""
    return _ON_A_LINE.sub(_visible, str(text))


def for_terminal(text: object) -> str:
    """Make a message of several lines harmless for a terminal: ends of lines and tabs stay."""
    return _IN_LINES.sub(_visible, str(text))


def shell_word(text: object) -> str:
    """Quote a word to be copied into a shell, on one line; it means exactly this text."""
    word = str(text)
    if not _ON_A_LINE.search(word):
        return shlex.quote(word)
    return "$'" + re.sub(rf"[\\']|{_ON_A_LINE.pattern}", _octal, word) + "'"


def csv_cell(value: Any) -> Any:
    """Make a cell of a CSV file that may be opened in a spreadsheet. Numbers stay numbers, also
    those written as text; a text that would begin a formula begins with an apostrophe."""
    if value is None or isinstance(value, Number):
        return value
    text = for_terminal(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def json_line(value: Any) -> str:
    r"""Write JSON on one line, which reads back as `value`; but a surrogate, which half of all
    readers refuse, reads back as the text `\udcff`."""
    text = _SURROGATE.sub(lambda c: "\\" + _visible(c), json.dumps(value, ensure_ascii=False))
    return _ON_A_LINE.sub(lambda c: f"\\u{ord(c[0]):04x}", text)


def markdown(text: object) -> str:
    """Write words of Markdown on one line, in which no character means anything: no link, no HTML,
    no cell of a table and, as on GitHub, no formula."""
    escaped = re.sub(r"([\\|*_`~<>\[\]#&])", r"\\\1", _words(text))
    escaped = re.sub(r"^(\d*)([-+=.)])(?!\w)", r"\1\\\2", escaped)  # which would begin a list
    return escaped.replace("$", "&#36;")


def markdown_code(text: object) -> str:
    """Write code between backticks, on one line, for a cell of a table."""
    code = _words(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", code)), default=0))
    space = " " if "`" in code or not code else ""
    return f"{fence}{space}{code}{space}{fence}".replace("|", "\\|")


def html_text(text: str) -> str:
    """Make text for a page, to be escaped as any: without what no page may hold, or what would turn
    what follows it around."""
    return _IN_LINES.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def plot_label(text: object) -> str:
    """Make a text for a figure of Matplotlib: "$" starts no formula. Ends of lines stay."""
    return "\n".join(map(on_one_line, str(text).split("\n"))).replace("$", r"\$")


def _visible(character: re.Match[str]) -> str:
    return ascii(character[0])[1:-1]


def _octal(character: re.Match[str]) -> str:
    """Its bytes in a file name."""
    handler = "surrogateescape" if "\udc80" <= character[0] <= "\udcff" else "surrogatepass"
    return "".join(f"\\{byte:03o}" for byte in character[0].encode("utf-8", handler))


def _words(text: object) -> str:
    return on_one_line(" ".join(str(text).split()))
