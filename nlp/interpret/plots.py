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

from attention_core.interpret import plots as kit
from attention_core.interpret.plots import CHANGE, HEAT, INK, MUTED, PLAIN, RIGHT, printable
from nlp.encoder import TextEncoder
from nlp.interpret import maps
from nlp.interpret.maps import Model, TextAttention, WordWeights
from nlp.tokenizer import Tokenizer

#: The most tokens on an axis, and the most words of a text, that are drawn.
MOST_TOKENS, MOST_WORDS = 48, 160
#: Inches that a token takes on an axis.
CELL = 0.21
#: What to write above a text, and whether the model was right; None where there is no telling.
Caption = tuple[str, bool | None]
Color = tuple[float, float, float, float]


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


def read_text(
    model: Model, text: str | Tensor, caption: Caption, *, tokenizer: Tokenizer
) -> ReadText:
    """Return all that is drawn of a text: `attention_maps`; of a `TextEncoder` `pooling_attention`,
    and, where it tells classes apart, `occlusion`."""
    pooled = left_out = None
    if isinstance(model, TextEncoder):
        pooled = maps.pooling_attention(model, text, tokenizer=tokenizer)
        if getattr(model.head, "out_features", 0) > 1:
            left_out = maps.occlusion(model, text, tokenizer=tokenizer)
    attention = maps.attention_maps(model, text, tokenizer=tokenizer)
    return ReadText(caption[0], attention, pooled, left_out, caption[1])


def attention_figures(
    model: Model,
    inputs: Sequence[str | Tensor],
    shown: Sequence[Caption],
    *,
    tokenizer: Tokenizer,
    subject: str = "Attention",
) -> dict[str, Figure]:
    """Return all that shows what `model` attends to, by file name: the `text_figures` of what
    `read_text` gives for each of `inputs` and of `shown`."""
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
    check_texts(texts)
    longest = min(max(len(one.attention.keys) for one in texts), MOST_TOKENS)
    across = 2 if len(texts) > 1 and longest <= 28 else 1
    figure = Figure(layout="constrained")
    places = kit.panels(figure, len(texts), across)
    grid = places[0].get_gridspec()
    tall = [0.0] * grid.nrows
    for place, one in zip(places, texts, strict=True):
        height = 2.0 + CELL * min(len(one.attention.queries), MOST_TOKENS)
        tall[place.rowspan.start] = max(2.6, tall[place.rowspan.start], height)
    grid.set_height_ratios(tall)
    figure.set_size_inches(across * max(5.2, 3.2 + CELL * longest), sum(tall) + 0.4)
    for place, one in zip(places, texts, strict=True):
        part = figure.add_subfigure(place)
        axis = part.subplots()
        weights = one.attention.weights[-1].mean(0)
        scale = _scale(weights)
        _map(axis, one, weights, scale, 8.0)
        axis.set_xlabel("attended to", color=INK, fontsize=9)
        axis.set_ylabel("attending", color=INK, fontsize=9)
        kit.put_bar(part, scale, "share", fraction=0.04, aspect=25)
        inches = figure.get_figwidth() * len(place.colspan) / grid.ncols
        caption = kit.fill(f"{one.caption}{_cut(one.attention)}", inches, 10)
        look = {"fontsize": 10, "weight": "bold", "color": kit.verdict_color(one.right), **PLAIN}
        part.suptitle(caption, x=0.02, ha="left", **look)
    kit.put_title(figure, title)
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
    return kit.head_sheet(
        [f"layer {layer + 1}" for layer in attention.layers],
        [attention.heads] * len(attention.layers),
        draw,
        scale,
        "share",
        tile=(tile, tile),
        title=f"{title}: {said}" if title else said,
    )


class View(NamedTuple):
    """How the words of a text are marked in one column.

    Attributes:
        heading: what the colours say.
        words: which are marked, by their weights.
        colors, strength: of each word its colour, and how strong that is, from 0 to 1.
        told: of each its number, empty where there is none.
    """

    heading: str
    words: WordWeights
    colors: list[Color]
    strength: list[float]
    told: list[str]


def views(text: ReadText) -> list[View]:
    """Return how the words of a text are marked: by the attention into what is pooled, mean of the
    heads, and by what changes without them; each where it is known."""
    found = []
    if text.pooled is not None:
        shares = text.pooled.weights.mean(0).tolist()
        # A special token often serves as a rest for idle heads; it must not wash out the words
        kept = [share for share, out in zip(shares, text.pooled.special, strict=True) if not out]
        most = max(kept or shares) or 1.0
        strength = [min(share / most, 1.0) for share in shares]
        heading = f"attention into the pooled vector (darkest: {most:.0%})"
        colors = [HEAT(0.85 * one) for one in strength]
        told = [f"{share:.1%}" for share in shares]
        found.append(View(heading, text.pooled, colors, strength, told))
    if text.left_out is not None:
        changes = text.left_out.weights.tolist()  # NaN of special tokens
        most = max([1e-6, *(abs(one) for one in changes if one == one)])
        told = ["" if one != one else f"{one:+.2f}" for one in changes]
        relative = [0.0 if one != one else one / most for one in changes]
        heading = (
            "log-probability of the predicted class without each word: orange falls, violet rises "
            f"(at most {most:.2g})"
        )
        colors = [_shade(one) for one in relative]
        found.append(View(heading, text.left_out, colors, [abs(one) for one in relative], told))
    return found


def words_sheet(texts: Sequence[ReadText], *, title: str = "") -> Figure:
    """Return texts whose words are marked as `views` says, by attention and, where it is known of
    all texts, by what changes without each word beside that. Of a long text, its beginning.

    Raises:
        ValueError: there is no text, or one that is not pooled.
    """
    check_texts(texts)
    for one in texts:
        if one.pooled is None:
            raise ValueError(f"a text that is not pooled has no words to mark: {one.caption!r}")
    seen = [views(one) for one in texts]
    columns = min(map(len, seen))
    # All in points, as the letters of the font are
    size, letter, line, above, gap, margin = 11.0, 6.62, 19.25, 52.0, 22.0, 14.0
    width = (6.6 if columns == 2 else 10.0) * 72
    across = columns * (width + gap) - gap
    drawn = [_flow(first.words, int(width / letter)) for first, *_ in seen]
    top = 32.0 if title else 6.0
    total = top + sum(above + line * (1 + places[-1][0]) for places in drawn)
    whole = across + 2 * margin
    figure = Figure(figsize=(whole / 72, total / 72))
    axis = figure.add_axes((margin / whole, 0, across / whole, 1))
    axis.set(xlim=(0, across), ylim=(total, 0))
    axis.axis("off")
    for one, of_text, places in zip(texts, seen, drawn, strict=True):
        count = len(of_text[0].words.words)
        said = f"; the first {len(places)} of {count} words" if len(places) < count else ""
        caption = printable(f"{one.caption}{said}", int(across / (0.56 * size)))
        look: dict[str, Any] = {"fontsize": 10, "fontweight": "bold", "va": "center", **PLAIN}
        axis.text(0, top + 12, caption, color=kit.verdict_color(one.right), **look)
        for number, view in enumerate(of_text[:columns]):
            left = number * (width + gap)
            axis.text(left, top + 30, view.heading, fontsize=8.5, color=MUTED, va="center")
            for (row, column, word), color, strength, special in zip(
                places, view.colors, view.strength, view.words.special, strict=False
            ):
                x, y, wide = left + letter * column, top + above - 8 + line * row, len(word)
                box: dict[str, Any] = {"boxstyle": "round,pad=0,rounding_size=2.5", "ec": "none"}
                corner, extent = (x + 0.5, y + 1), (letter * wide - 1, line - 4)
                axis.add_patch(FancyBboxPatch(corner, *extent, facecolor=color, **box))
                ink = "white" if strength > 0.65 else MUTED if special else INK
                look = {"fontsize": size, "ha": "center", "va": "center_baseline", **PLAIN}
                axis.text(x + letter * wide / 2, y + line / 2 - 1, word, color=ink, **look)
        top += above + line * (1 + places[-1][0])
    kit.put_title(figure, title)
    return figure


def _shade(change: float) -> Color:
    """The colour of a change between -1 and 1; 0 is white, as the middle of the map is gray."""
    share = min(1.0, 4 * abs(change))
    red, green, blue, _ = (1 - share * (1 - one) for one in CHANGE(0.5 + 0.42 * change))
    return red, green, blue, 1.0


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
    rows, columns = (
        [printable(name, 16) for name in side[:count]]
        for side, count in zip(text.attention[:2], drawn.shape, strict=True)
    )
    options: Any = {"norm": scale.norm, "aspect": "auto", "interpolation": "nearest"}
    axis.imshow(drawn.numpy(), HEAT, **options)
    kit.bare(axis)
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


def check_texts(texts: Sequence[ReadText]) -> None:
    """Raise ValueError where there is no text."""
    if not texts:
        raise ValueError("texts must hold at least one text")
