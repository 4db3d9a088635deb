"""What a text model attends to, drawn with the tokens and words themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from nlp.drawing import (
    HEAT,
    INK,
    PLAIN,
    RIGHT,
    WRONG,
    bare,
    fill,
    printable,
    put_bar,
    put_title,
)
from nlp.seeing import PooledAttention, TextAttention

#: The most tokens on an axis, and the most words of a text, that are drawn.
MOST_TOKENS, MOST_WORDS = 48, 160


class Shown(NamedTuple):
    """A text, and how the model attended to it.

    Attributes:
        caption: what the model made of it.
        attention: of its tokens, or of a translation to it; at least one layer and head.
        pooled: of the words of a text that was made one vector.
        right: whether the model was right; None where there is no telling.
        written: how many of the last queries the model wrote itself.
    """

    caption: str
    attention: TextAttention
    pooled: PooledAttention | None = None
    right: bool | None = None
    written: int = 0

    @property
    def color(self) -> str:
        return INK if self.right is None else RIGHT if self.right else WRONG


def attention_figures(shown: Sequence[Shown], *, subject: str = "Attention") -> dict[str, Figure]:
    """All that shows what a model attends to, by file name.

    "attention" is the `map_sheet` of all texts, "attention_layers" the `head_sheet` of the first;
    and of texts that are pooled "attention_words" is the `words_sheet`.

    Args:
        shown: at least one.
        subject: what is shown, the beginning of titles.
    """
    figures = {
        "attention": map_sheet(shown, title=f"{subject}, last layer, mean of its heads"),
        "attention_layers": head_sheet(shown[0], title=f"{subject}, every head"),
    }
    if all(one.pooled is not None for one in shown):
        figures["attention_words"] = words_sheet(shown)
    return figures


def map_sheet(shown: Sequence[Shown], *, title: str = "") -> Figure:
    """Who attends to whom: a map for each text, attending tokens as rows. It is of the last layer
    of `attention`, mean of its heads; of a long text, its beginning.

    Raises:
        ValueError: there is no text.
    """
    _check(shown)
    widths = [min(len(one.attention.keys), MOST_TOKENS) for one in shown]
    heights = [min(len(one.attention.queries), MOST_TOKENS) for one in shown]
    across = 2 if len(shown) > 1 and max(widths) <= 28 else 1
    down = -(-len(shown) // across)
    cell = 0.21
    width = across * (max(5.2, 3.2 + cell * max(widths)))
    rows = [max(heights[row * across : (row + 1) * across]) for row in range(down)]
    tall = [max(2.6, 2.0 + cell * row) for row in rows]
    figure = Figure(figsize=(width, sum(tall) + 0.4), layout="constrained")
    parts = figure.subfigures(down, across, height_ratios=tall, squeeze=False).flatten()
    for part, one in zip(parts, shown, strict=False):
        axis = part.subplots()
        weights = one.attention.weights[-1].mean(0)
        norm = _norm(weights)
        _map(axis, one, weights, norm, 8.0)
        axis.set_xlabel("attended to", color=INK, fontsize=9)
        axis.set_ylabel("attending", color=INK, fontsize=9)
        put_bar(part, norm, "share", fraction=0.04, pad=0.02, aspect=25)
        caption = fill(f"{one.caption}{_cut(one.attention)}", width / across, 10)
        part.suptitle(
            caption, x=0.02, ha="left", fontsize=10, fontweight="bold", color=one.color, **PLAIN
        )
    if title:
        put_title(figure, title)
    return figure


def head_sheet(shown: Shown, *, title: str = "") -> Figure:
    """Every head of every layer in one text: a row per layer, a column per head. Of a text of more
    than 24 tokens its beginning, and of more than 12 layers or heads some evenly chosen."""
    attention = shown.attention
    weights = attention.weights[..., :24, :24]
    depth, count = weights.shape[:2]
    layers, heads = _some(depth), _some(count)
    tile = 1.9 if len(heads) <= 4 else 1.35
    size = (tile * len(heads) + 1.6, tile * len(layers) + 1.9)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(layers), len(heads), squeeze=False)
    norm = _norm(weights)
    font = min(8.0, 0.8 * tile * 72 / max(weights.shape[-2:]))
    for down, layer in enumerate(layers):
        for across, head in enumerate(heads):
            axis, names = axes[down, across], (across == 0, down == len(layers) - 1)
            _map(axis, shown, weights[layer, head], norm, font, names=names)
            if down == 0:
                axis.set_title(f"head {attention.heads[head] + 1}", fontsize=9, color=INK)
        axes[down, -1].yaxis.set_label_position("right")
        name = f"layer {attention.layers[layer] + 1}"
        axes[down, -1].set_ylabel(name, fontsize=9, color=INK)
    put_bar(figure, norm, "share", fraction=0.03, pad=0.02, aspect=30)
    said = f"{shown.caption}{_cut(attention, 24)}"
    put_title(figure, f"{title}: {said}" if title else said)
    return figure


def words_sheet(shown: Sequence[Shown], *, title: str = "") -> Figure:
    """Texts whose words are marked by how much of them reaches the text's vector, mean of the
    heads; of a long text, its beginning.

    Raises:
        ValueError: there is no text, or one that is not pooled.
    """
    _check(shown)
    size, width = 11.0, 10.0
    letter, line = 0.602 * size, 1.75 * size  # of the font, in points
    drawn = []
    for one in shown:
        if one.pooled is None:
            raise ValueError(f"a text that is not pooled has no words to mark: {one.caption!r}")
        drawn.append(_flow(one.pooled, int(width * 72 / letter)))
    heights = [line * (1 + max(row for row, _, _ in places)) for places in drawn]
    above = 34.0
    total = sum(heights) + above * len(shown) + (32 if title else 6)
    figure = Figure(figsize=(width + 0.4, total / 72))
    axis = figure.add_axes((0.02, 0.0, 0.96, 1.0))
    axis.set_xlim(0, width * 72)
    axis.set_ylim(total, 0)
    axis.axis("off")
    top = 32.0 if title else 6.0
    for one, places, height in zip(shown, drawn, heights, strict=True):
        assert one.pooled is not None
        shares = one.pooled.weights.mean(0)
        norm = Normalize(0.0, most(shares, one.pooled.special))
        cut = len(shares) - len(places)
        said = f"{one.caption}; darkest: {norm.vmax:.0%}" + (
            f"; the first {len(places)} of {len(shares)} words" if cut else ""
        )
        axis.text(
            0,
            top + 12,
            printable(said, 110),
            fontsize=10,
            fontweight="bold",
            color=one.color,
            va="center",
            **PLAIN,
        )
        for (row, column, word), share, special in zip(
            places, shares.tolist(), one.pooled.special, strict=False
        ):
            at = (letter * column, top + above - 8 + line * row)
            dark = float(norm(share))
            axis.add_patch(
                FancyBboxPatch(
                    (at[0] + 0.5, at[1] + 1),
                    letter * len(word) - 1,
                    line - 4,
                    boxstyle="round,pad=0,rounding_size=2.5",
                    facecolor=HEAT(0.85 * min(dark, 1.0)),
                    edgecolor="none",
                )
            )
            ink = "white" if dark > 0.65 else "#8a8a8a" if special else INK
            axis.text(
                at[0] + letter * len(word) / 2,
                at[1] + line / 2 - 1,
                word,
                fontsize=size,
                color=ink,
                ha="center",
                va="center_baseline",
                **PLAIN,
            )
        top += height + above
    if title:
        put_title(figure, title)
    return figure


def most(shares: Tensor, special: Sequence[bool]) -> float:
    """The share of a word that is drawn darkest. A special token often serves as a rest for idle
    heads; it must not wash out the words."""
    words = [share for share, out in zip(shares.tolist(), special, strict=True) if not out]
    return max(words or shares.tolist()) or 1.0


def largest(weights: Tensor) -> float:
    """The weight (..., Lq, Lk) that is drawn darkest: a few larger ones, such as those of the first
    tokens of a causal text, and all of the first key, must not make all others look alike."""
    others = weights[..., 1:] if weights.shape[-1] > 1 else weights
    others = others[others > 0].float()
    return float(torch.quantile(others, 0.98)) if len(others) else 1.0


def _norm(weights: Tensor) -> Normalize:
    return Normalize(0.0, largest(weights[..., :MOST_TOKENS, :MOST_TOKENS]))


def _map(
    axis: Axes,
    shown: Shown,
    weights: Tensor,
    norm: Normalize,
    size: float,
    names: tuple[bool, bool] = (True, True),
) -> None:
    """Weights (Lq, Lk), of a long text the first, with names of rows and of columns."""
    drawn = weights[:MOST_TOKENS, :MOST_TOKENS].cpu()
    rows, columns = shown.attention.queries[: len(drawn)], shown.attention.keys[: drawn.shape[1]]
    rows, columns = ([printable(name, 16) for name in side] for side in (rows, columns))
    axis.imshow(drawn.numpy(), cmap=HEAT, norm=norm, aspect="auto")
    axis.set_yticks([])
    axis.set_xticks([])
    if names[0]:
        axis.set_yticks(range(len(rows)), rows, fontsize=size, **PLAIN)
        first_written = len(shown.attention.queries) - shown.written
        for label in axis.get_yticklabels()[first_written:]:
            label.set_color(RIGHT)
    if names[1]:
        axis.set_xticks(range(len(columns)), columns, rotation=90, fontsize=size, **PLAIN)
    bare(axis)


def _flow(pooled: PooledAttention, letters: int) -> list[tuple[int, int, str]]:
    """The line, the column and the text of each word, in lines of so many letters."""
    places: list[tuple[int, int, str]] = []
    row = column = 0
    apart = False
    for written, special in zip(pooled.words[:MOST_WORDS], pooled.special, strict=False):
        word = printable(written, 40) or "␣"
        if column and (written[:1].isspace() or apart):
            column += 1
        apart = special
        if column + len(word) > letters:
            row, column = row + 1, 0
        places.append((row, column, word))
        column += len(word)
    return places


def _cut(attention: TextAttention, limit: int = MOST_TOKENS) -> str:
    """What says that not all is drawn."""
    length = max(len(attention.queries), len(attention.keys))
    return f" (the first {limit} of {length})" if length > limit else ""


def _some(count: int, limit: int = 12) -> list[int]:
    """All of `count` places, or `limit` of them from the first to the last."""
    if count <= limit:
        return list(range(count))
    return [round(n * (count - 1) / (limit - 1)) for n in range(limit)]


def _check(shown: Sequence[Shown]) -> None:
    if not shown:
        raise ValueError("shown must hold at least one text")
