"""What the figures of all domains are put together from: colours, titles, scales, sheets, saving.

Drawn without pyplot: no global state, no window.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import matplotlib
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure, FigureBase
from matplotlib.font_manager import FontProperties, fontManager as fonts, get_font
from matplotlib.gridspec import SubplotSpec
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from attention_core.checks import check_choice
from attention_core.escape import plot_label
from attention_core.files import replace_file

#: The one colour of what is right, in words and lines too, and the one of what is wrong.
RIGHT, WRONG = "#1f6fb4", "#c0392b"
INK, MUTED = "#222222", "#8a8a8a"
#: Shares of attention, on white; and changes of a score: orange where it falls, else violet.
HEAT, CHANGE = colormaps["Blues"], colormaps["PuOr"]
Format = Literal["png", "svg", "pdf"]
#: A character that the first does not have is taken from the second.
FONTS = ["DejaVu Sans Mono", "DejaVu Sans"]
#: Of texts in these fonts: "$" starts no formula.
PLAIN: dict[str, Any] = {"family": FONTS, "parse_math": False}


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format that the path ends with, png, svg or pdf, cut so that nothing at
    its edges is lost; the same figure gives the same file.

    Raises:
        ValueError: the path ends otherwise.
    """
    kind = path.suffix[1:]
    check_choice(get_args(Format), format=kind)
    undated: Any = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    options: Any = {"format": kind, "dpi": 150, "bbox_inches": "tight", "facecolor": "white"}
    with replace_file(path) as file, matplotlib.rc_context({"svg.hashsalt": "attention"}):
        figure.savefig(file, metadata=undated, **options)


def verdict_color(right: bool | None) -> str:
    """Return the colour of what a model says; None: there is no telling whether it is right."""
    return INK if right is None else RIGHT if right else WRONG


def printable(text: str, length: int | None = None) -> str:
    """Return text on one line, cut to `length` characters, with a box for each that the fonts
    lack."""
    text = " ".join(text.split())
    text = text if length is None else shorten(text, length)
    return "".join(c if c.isprintable() and _has(c) else "□" for c in text)


def shorten(text: str, length: int) -> str:
    """Return text, cut to `length` characters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


@cache
def _has(character: str) -> bool:
    paths = (fonts.findfont(FontProperties(family=name)) for name in FONTS)
    return any(get_font(path).get_char_index(ord(character)) for path in paths)


def fill(text: str, inches: float, size: float = 10.0) -> str:
    """Return text in lines of this width."""
    return textwrap.fill(printable(text), max(24, int(inches * 72 / (0.64 * size))))


def put_title(figure: Figure, title: str) -> None:
    """Write a title above a figure, in as many lines as its width needs; none where it is empty."""
    if title:
        lines = plot_label(fill(title, figure.get_figwidth(), 13))
        figure.suptitle(lines, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)


def put_side(axis: Axes, name: str) -> None:
    """Write a name to the left of a row."""
    axis.set_ylabel(plot_label(name), rotation=0, ha="right", va="center", labelpad=8, color=INK)


def put_bar(figure: FigureBase, scale: ScalarMappable, name: str, **where: Any) -> None:
    """Draw what the colours mean, beside all axes of a figure or a part of one."""
    axes = figure.get_axes()  # type: ignore[attr-defined]
    options = {"extend": "max", "fraction": 0.03, "pad": 0.02, "aspect": 30, **where}
    bar = figure.colorbar(scale, ax=axes, **options)
    bar.set_label(plot_label(name), color=INK, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def put_number(axis: Axes, row: int, column: int, text: str, heat: float, size: float = 8) -> None:
    """Write a number into a cell that is drawn in `HEAT` of this strength, between 0 and 1."""
    color = "white" if heat > 0.62 else INK
    axis.text(column, row, text, ha="center", va="center", fontsize=size, color=color)


def bare(axis: Axes, *, ticks: bool = False) -> None:
    """Take away frame and marks, and without `ticks` the names along the sides."""
    axis.tick_params(length=0)
    if not ticks:
        axis.set_xticks([])
        axis.set_yticks([])
    axis.spines[:].set_visible(False)


def plain(axis: Axes) -> None:
    """Leave of the frame what a curve needs, and draw faint lines to read values by."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)


def close_figure(width: float, height: float) -> Figure:
    """Return a figure of so many inches, whose axes stand close to each other."""
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    return figure


def panels(figure: Figure, count: int, across: int, **options: Any) -> list[SubplotSpec]:
    """Return the places of panels in as few rows of at most `across` as hold them; each row is
    filled, whatever the count, so that no place stays blank.

    Args:
        options: of `add_gridspec`.
    """
    down = -(-count // across)
    of_row = [count // down + (row < count % down) for row in range(down)]
    columns = math.lcm(*of_row)
    grid = figure.add_gridspec(down, columns, **options)
    return [
        grid[row, place * columns // number : (place + 1) * columns // number]
        for row, number in enumerate(of_row)
        for place in range(number)
    ]


def evenly_chosen(count: int, most: int = 12) -> list[int]:
    """Return all of `count` places, or `most` of them from the first to the last."""
    if count <= most:
        return list(range(count))
    return [round(n * (count - 1) / (most - 1)) for n in range(most)]


def head_sheet(
    layers: Sequence[str],
    heads: Sequence[Sequence[int]],
    draw: Callable[..., None],
    scale: ScalarMappable,
    name: str,
    *,
    tile: tuple[float, float],
    title: str = "",
) -> Figure:
    """Return a sheet of every head of every layer: a row per layer, a column per head; layers with
    fewer heads than others stand side by side. Of more than 12 layers or heads some are chosen
    evenly.

    Args:
        layers: their names.
        heads: of each layer the numbers of its heads, counted from 0.
        draw: called with an axis, the places of a layer and of its head in these lists, and
            ``left=``, ``below=``, whether the axis is at that side of the sheet.
        scale: from weights to colours.
        name: of the scale.
        tile: width and height of an axis in inches.
    """
    chosen = {layer: evenly_chosen(len(heads[layer])) for layer in evenly_chosen(len(layers))}
    most = max(map(len, chosen.values()))
    rows: list[list[int]] = []
    room = 0
    for layer, places in chosen.items():
        if len(places) > room:
            rows.append([])
            room = most
        rows[-1].append(layer)
        room -= len(places)
    figure = close_figure(tile[0] * most + 1.8, tile[1] * len(rows) + 1.1)
    grid = figure.add_gridspec(len(rows), most)
    named: dict[int, str] = {}  # by column, which heads stand below
    for down, row in enumerate(rows):
        across = 0
        for layer in row:
            for number, place in enumerate(chosen[layer]):
                axis = figure.add_subplot(grid[down, across])
                draw(axis, layer, place, left=across == 0, below=down == len(rows) - 1)
                name_above = f"head {heads[layer][place] + 1}"
                if named.get(across) != name_above:
                    axis.set_title(name_above, fontsize=9, color=INK)
                    named[across] = name_above
                if number == 0:
                    axis.set_ylabel(plot_label(layers[layer]), fontsize=9, color=INK)
                across += 1
    put_bar(figure, scale, name)
    put_title(figure, title)
    return figure


def distance_figure(distances: Tensor, *, unit: str, even: float | None = None) -> Figure:
    """Return how far each head looks, by layer (Dosovitskiy et al., ViT, 2021, figure 7).

    Args:
        distances: (layers, heads), as a `mean_attention_distance` gives them.
        unit: theirs, such as "pixels".
        even: the distance of evenly spread attention, drawn as a line.
    """
    depth, heads = distances.shape
    figure = Figure(figsize=(max(4.8, 2.6 + 0.32 * depth), 4.0), layout="constrained")
    axis = figure.subplots()
    layers = torch.arange(1, depth + 1)
    dots: Any = {"markeredgecolor": "white", "markersize": 7, "alpha": 0.85, "label": "one head"}
    axis.plot(layers.repeat_interleave(heads), distances.flatten().cpu(), "o", color=RIGHT, **dots)
    mean = distances.nanmean(1).cpu()
    axis.plot(layers, mean, color=RIGHT, linewidth=1.5, alpha=0.6, label="mean of the heads")
    if even is not None:
        line: Any = {"linestyle": (0, (4, 1.5)), "linewidth": 1.3, "zorder": 0.5}
        axis.axhline(even, color=MUTED, label="attention spread evenly", **line)
    axis.set_xlabel("layer")
    axis.set_ylabel(f"mean attention distance ({unit})")
    axis.set_xlim(0.5, depth + 0.5)
    axis.set_ylim(0, 1.08 * axis.get_ylim()[1])
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(axis)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9, columnspacing=1.2)
    put_title(figure, "How far each head looks")
    return figure
