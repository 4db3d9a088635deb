"""Text for rich, which the command line prints with."""

from typing import TYPE_CHECKING

from attention_core.escape import for_terminal, on_one_line

if TYPE_CHECKING:
    from rich.text import Text


def rich_text(text: object, style: str = "") -> "Text":
    """Make text for a console of rich, as `for_terminal`; no bracket is markup, and `:x:` no emoji.

    No bracket is markup, and `:x:` no emoji.
    """
    from rich.text import Text  # here: `attn --help` must not wait for it

    return Text(for_terminal(text), style)


def tell(place: str, said: str) -> None:
    """Print one line about `place`, such as "data", beside what a command prints: on stderr."""
    from rich.console import Console

    line = rich_text(on_one_line(said))
    Console(stderr=True).print(f"[yellow]{place}:[/]", line, soft_wrap=True)
