"""Text for rich, which the command line prints with."""

from typing import TYPE_CHECKING

from attention_core.escape import for_terminal

if TYPE_CHECKING:
    from rich.text import Text


def rich_text(text: object, style: str = "") -> "Text":
    """Make text for a console of rich, as `for_terminal`; no bracket is markup, and `:x:` no emoji.

    No bracket is markup, and `:x:` no emoji.
    """
    from rich.text import Text  # here: `attn --help` must not wait for it

    return Text(for_terminal(text), style)
