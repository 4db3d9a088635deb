"""What a text model attends to, drawn with the tokens and words themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from attention_core.interpret.plots import (
    CHANGE,
    HEAT,
    INK,
    MUTED,
    PLAIN,
    RIGHT,
    bare,
    fill,
    head_sheet,
    panel_rows,
    panels,
    printable,
    put_bar,
    put_title,
    verdict_color,
)
from nlp.encoder import TextEncoder
from nlp.interpret.maps import (
    Model,
    TextAttention,
    WordWeights,
    attention_maps,
    occlusion,
    pooling_attention,
)
from nlp.tokenizer import Tokenizer

#: The most tokens on an axis, and the most words of a text, that are drawn.
MOST_TOKENS, MOST_WORDS = 48, 160
#: What is marked in words, and beside it.
MARKED = "attention into the pooled vector"
LEFT_OUT = "log-probability of the predicted class without each word"


class Shown(NamedTuple):
    """A caption above a text.

    Attributes:
        caption: such as what the model made of it.
        right: whether the model was right; None where there is no telling.
    """

    caption: str
    right: bool | None = None


class ReadText(NamedTuple):
    """A text, how the model attended to it, and what to write above it.

    Attributes:
        caption: what the model made of it.
        attention: of its tokens, or of a translation to it; at least one layer and head.
        pooled: of the words of a text that was made one vector, the attention into that.
        left_out: of the same words, what changes without each.
        right: whether the model was right; None where there is no telling.
        written: how many of the last queries the model wrote itself.
    """

    caption: str
    attention: TextAttention
    pooled: WordWeights | None = None
    left_out: WordWeights | None = None
    right: bool | None = None
    written: int = 0


def read_text(model: Model, text: str | Tensor, shown: Shown, *, tokenizer: Tokenizer) -> ReadText:
    """Return all that is drawn of a text: `attention_maps`; of a `TextEncoder` `pooling_attention`,
    and, where it tells classes apart, `occlusion`."""
    pooled = left_out = None
    if isinstance(model, TextEncoder):
        pooled = pooling_attention(model, text, tokenizer=tokenizer)
        if getattr(model.head, "out_features", 0) > 1:
            left_out = occlusion(model, text, tokenizer=tokenizer)
    attention = attention_maps(model, text, tokenizer=tokenizer)
    return ReadText(shown.caption, attention, pooled, left_out, shown.right)


def attention_figures(
    model: Model,
    inputs: Sequence[str | Tensor],
    shown: Sequence[Shown],
    *,
    tokenizer: Tokenizer,
    subject: str = "Attention",
) -> dict[str, Figure]:
    """Return all that shows what `model` attends to, by file name, see `text_figures`.

    Args:
        model: in eval mode.
        inputs: texts, or ids (L,) of each.
        shown: what to write above each.
        tokenizer: that of the model.
        subject: what is shown, the beginning of titles.
    """
    pairs = zip(inputs, shown, strict=True)
    texts = [read_text(model, text, one, tokenizer=tokenizer) for text, one in pairs]
    return text_figures(texts, subject=subject)


def text_figures(texts: Sequence[ReadText], *, subject: str = "Attention") -> dict[str, Figure]:
    """Return the figures of texts by file name.

    "attention" is the `map_sheet` of all texts, "attention_layers" the `layer_sheet` of the first;
    and of texts that are pooled "attention_words" is the `words_sheet`.

    Args:
        texts: at least one.
        subject: what is shown, the beginning of titles.
    """
    figures = {
        "attention": map_sheet(texts, title=f"{subject}, last layer, mean of its heads"),
        "attention_layers": layer_sheet(texts[0], title=f"{subject}, every head"),
    }
    if all(one.pooled is not None for one in texts):
        figures["attention_words"] = words_sheet(texts)
    return figures


def map_sheet(texts: Sequence[ReadText], *, title: str = "") -> Figure:
    """Return who attends to whom: a map for each text, attending tokens as rows. It is of the last
    layer of `attention`, mean of its heads; of a long text, its beginning.

    Raises:
        ValueError: there is no text.
    """
    _check(texts)
    widths = [min(len(one.attention.keys), MOST_TOKENS) for one in texts]
    heights = iter([min(len(one.attention.queries), MOST_TOKENS) for one in texts])
    across = 2 if len(texts) > 1 and max(widths) <= 28 else 1
    cell = 0.21
    width = across * (max(5.2, 3.2 + cell * max(widths)))
    rows = panel_rows(len(texts), across)
    tall = [max(2.6, 2.0 + cell * max(next(heights) for _ in range(count))) for count in rows]
    figure = Figure(figsize=(width, sum(tall) + 0.4), layout="constrained")
    places = panels(figure, len(texts), across, height_ratios=tall)
    shares = [width / count for count in rows for _ in range(count)]
    for place, one, inches in zip(places, texts, shares, strict=True):
        part = figure.add_subfigure(place)
        axis = part.subplots()
        weights = one.attention.weights[-1].mean(0)
        scale = _scale(weights)
        _map(axis, one, weights, scale, 8.0)
        axis.set_xlabel("attended to", color=INK, fontsize=9)
        axis.set_ylabel("attending", color=INK, fontsize=9)
        put_bar(part, scale, "share", fraction=0.04, aspect=25)
        caption = fill(f"{one.caption}{_cut(one.attention)}", inches, 10)
        color = verdict_color(one.right)
        part.suptitle(caption, x=0.02, ha="left", fontsize=10, weight="bold", color=color, **PLAIN)
    put_title(figure, title)
    return figure


def layer_sheet(text: ReadText, *, title: str = "") -> Figure:
    """Return every head of every layer in one text: a row per layer, a column per head. Of a long
    text its beginning, as many tokens as are readable: 24 where there are up to four heads."""
    attention = text.attention
    count = len(attention.heads)
    tile, limit = (2.5, 24) if count <= 4 else (1.9, 18) if count <= 8 else (1.35, 13)
    weights = attention.weights[..., :limit, :limit]
    scale, font = _scale(weights), min(8.0, 0.8 * tile * 72 / max(weights.shape[-2:]))

    def draw(axis: Axes, layer: int, head: int, *, left: bool, below: bool) -> None:
        _map(axis, text, weights[layer, head], scale, font, names=(left, below))

    said = f"{text.caption}{_cut(attention, limit)}"
    return head_sheet(
        [f"layer {layer + 1}" for layer in attention.layers],
        [attention.heads] * len(attention.layers),
        draw,
        scale,
        "share",
        tile=(tile, tile),
        title=f"{title}: {said}" if title else said,
    )


class View(NamedTuple):
    """How the words of a text are marked in one column: the heading, and of each word its colour
    and how strong that is, from 0 to 1."""

    heading: str
    colors: list[tuple[float, float, float, float]]
    strength: list[float]


def words_sheet(texts: Sequence[ReadText], *, title: str = "") -> Figure:
    """Return texts whose words are marked by how much attention to them reaches the text's vector,
    mean of the heads. Beside that, where it is known of all texts, how the log-probability of the
    predicted class changes without each word: orange where it falls. Of a long text, its beginning.

    Raises:
        ValueError: there is no text, or one that is not pooled.
    """
    _check(texts)
    for one in texts:
        if one.pooled is None:
            raise ValueError(f"a text that is not pooled has no words to mark: {one.caption!r}")
    two = all(one.left_out is not None for one in texts)
    size, width, gap = 11.0, (6.6 if two else 10.0) * 72, 22.0 if two else 0.0
    letter, line = 0.602 * size, 1.75 * size  # of the font, in points
    drawn = [_flow(one.pooled, int(width / letter)) for one in texts if one.pooled is not None]
    heights = [line * (1 + max(row for row, _, _ in places)) for places in drawn]
    above = 52.0
    columns = 2 if two else 1
    total = sum(heights) + above * len(texts) + (32 if title else 6)
    across = columns * width + (columns - 1) * gap
    margin = 14.0
    figure = Figure(figsize=((across + 2 * margin) / 72, total / 72))
    # A unit is a point, as of the letters
    axis = figure.add_axes((margin / (across + 2 * margin), 0, across / (across + 2 * margin), 1))
    axis.set_xlim(0, across)
    axis.set_ylim(total, 0)
    axis.axis("off")
    top = 32.0 if title else 6.0
    for one, places, height in zip(texts, drawn, heights, strict=True):
        assert one.pooled is not None
        cut = len(one.pooled.words) - len(places)
        said = f"; the first {len(places)} of {len(one.pooled.words)} words" if cut else ""
        color = verdict_color(one.right)
        caption = printable(f"{one.caption}{said}", int(across / (0.56 * size)))
        bold = {"fontsize": 10, "fontweight": "bold", **PLAIN}
        axis.text(0, top + 12, caption, color=color, va="center", **bold)
        views = [marked(one.pooled)] + ([changed(one.left_out)] if two and one.left_out else [])
        for number, view in enumerate(views):
            left = number * (width + gap)
            axis.text(left, top + 30, view.heading, fontsize=8.5, color=MUTED, va="center")
            for (row, column, word), fill_color, strength, special in zip(
                places, view.colors, view.strength, one.pooled.special, strict=False
            ):
                x, y = left + letter * column, top + above - 8 + line * row
                box = FancyBboxPatch(
                    (x + 0.5, y + 1),
                    letter * len(word) - 1,
                    line - 4,
                    boxstyle="round,pad=0,rounding_size=2.5",
                    facecolor=fill_color,
                    edgecolor="none",
                )
                axis.add_patch(box)
                ink = "white" if strength > 0.65 else MUTED if special else INK
                middle = (x + letter * len(word) / 2, y + line / 2 - 1)
                centred = {"ha": "center", "va": "center_baseline", **PLAIN}
                axis.text(*middle, word, fontsize=size, color=ink, **centred)
        top += height + above
    put_title(figure, title)
    return figure


def marked(pooled: WordWeights) -> View:
    """Return how words are marked by the attention into what is pooled."""
    shares = pooled.weights.mean(0)
    most = most_of_words(shares, pooled.special)
    strength = (shares / most).clamp(max=1).tolist()
    heading = f"{MARKED} (darkest: {most:.0%})"
    return View(heading, [HEAT(0.85 * one) for one in strength], strength)


def changed(left_out: WordWeights) -> View:
    """Return how words are marked by what changes without them; special ones are not."""
    changes = left_out.weights.nan_to_num()
    most = max(float(changes.abs().max()), 1e-6)
    relative = (changes / most).tolist()
    heading = f"{LEFT_OUT}: orange falls, violet rises (at most {most:.2g})"
    return View(heading, [_shade(one) for one in relative], [abs(one) for one in relative])


def _shade(change: float) -> tuple[float, float, float, float]:
    """Between -1 and 1; 0 is white."""
    red, green, blue, _ = CHANGE(0.5 + 0.42 * change)
    share = min(1.0, 4 * abs(change))  # the middle of the map is gray
    red, green, blue = (1 - share * (1 - one) for one in (red, green, blue))
    return red, green, blue, 1.0


def most_of_words(shares: Tensor, special: Sequence[bool]) -> float:
    """Return the share of a word that is drawn darkest. A special token often serves as a rest for
    idle heads; it must not wash out the words."""
    words = [share for share, out in zip(shares.tolist(), special, strict=True) if not out]
    return max(words or shares.tolist()) or 1.0


def largest(weights: Tensor) -> float:
    """Return the weight (..., Lq, Lk) that is drawn darkest: a few larger ones, such as those of
    the first tokens of a causal text, and all of the first key, must not make all others look
    alike."""
    others = weights[..., 1:] if weights.shape[-1] > 1 else weights
    others = others[others > 0].float()
    return float(torch.quantile(others, 0.98)) if len(others) else 1.0


def _scale(weights: Tensor) -> ScalarMappable:
    most = largest(weights[..., :MOST_TOKENS, :MOST_TOKENS])
    return ScalarMappable(Normalize(0.0, most), HEAT)


def _map(
    axis: Axes,
    text: ReadText,
    weights: Tensor,
    scale: ScalarMappable,
    size: float,
    names: tuple[bool, bool] = (True, True),
) -> None:
    """Weights (Lq, Lk), of a long text the first, with names of rows and of columns."""
    drawn = weights[:MOST_TOKENS, :MOST_TOKENS].cpu()
    rows, columns = text.attention.queries[: len(drawn)], text.attention.keys[: drawn.shape[1]]
    rows, columns = ([printable(name, 16) for name in side] for side in (rows, columns))
    options: Any = {"norm": scale.norm, "aspect": "auto", "interpolation": "nearest"}
    axis.imshow(drawn.numpy(), HEAT, **options)
    bare(axis)
    if names[0]:
        axis.set_yticks(range(len(rows)), rows, fontsize=size, **PLAIN)
        first_written = len(text.attention.queries) - text.written
        for label in axis.get_yticklabels()[first_written:]:
            label.set_color(RIGHT)
    if names[1]:
        axis.set_xticks(range(len(columns)), columns, rotation=90, fontsize=size, **PLAIN)


def _flow(pooled: WordWeights, letters: int) -> list[tuple[int, int, str]]:
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
    """Return what says that not all is drawn, "" where all is."""
    length = max(len(attention.queries), len(attention.keys))
    return f" (the first {limit} of {length})" if length > limit else ""


def _check(texts: Sequence[ReadText]) -> None:
    if not texts:
        raise ValueError("texts must hold at least one text")
