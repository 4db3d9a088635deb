"""What the figures of `nlp.figures` are put together from."""

from __future__ import annotations

import textwrap
from functools import cache
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, FigureBase
from matplotlib.font_manager import FontProperties, fontManager as fonts, get_font

from attention_core.escape import plot_label

INK, RIGHT, WRONG = "#222222", "#1f6fb4", "#c0392b"
HEAT = colormaps["Blues"]
#: A character that the first does not have is taken from the second.
FONTS = ["DejaVu Sans Mono", "DejaVu Sans"]
#: Of every text: "$" starts no formula.
PLAIN: dict[str, Any] = {"family": FONTS, "parse_math": False}


def printable(text: str, length: int | None = None) -> str:
    """Text on one line, cut to `length` characters, with a box for each that the fonts lack."""
    text = " ".join(text.split())
    if length is not None and len(text) > length:
        text = f"{text[: length - 1]}…"
    return "".join(c if c.isprintable() and _has(c) else "□" for c in text)


@cache
def _has(character: str) -> bool:
    paths = (fonts.findfont(FontProperties(family=name)) for name in FONTS)
    return any(get_font(path).get_char_index(ord(character)) for path in paths)


def fill(text: str, inches: float, size: float = 10.0) -> str:
    """Text in lines of this width."""
    return textwrap.fill(printable(text), max(24, int(inches * 72 / (0.64 * size))))


def put_title(figure: Figure, title: str) -> None:
    lines = fill(title, figure.get_figwidth(), 13)
    figure.suptitle(plot_label(lines), x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)


def put_bar(figure: FigureBase, norm: Normalize, name: str, **where: Any) -> None:
    """The scale of the heat, beside all axes of a figure or a part of one."""
    axes = figure.get_axes()  # type: ignore[attr-defined]
    bar = figure.colorbar(ScalarMappable(norm, HEAT), ax=axes, extend="max", **where)
    bar.set_label(name, color=INK, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def bare(axis: Axes) -> None:
    """Without frame and marks."""
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
