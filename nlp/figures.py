"""Attention drawn over texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, RIGHT, WRONG = "#222222", "#1f6fb4", "#c0392b"


class ReadText(NamedTuple):
    """A text, what the model made of it, and how it attended.

    Attributes:
        pieces: the L tokens, readable.
        weights: (L, L) attention weights, rows are queries, or (H, L, L), averaged over heads.
        predicted, label: names of classes.
        share: probability of the predicted class.
    """

    pieces: list[str]
    weights: Tensor
    predicted: str
    label: str
    share: float


def attention_over_text(texts: Sequence[ReadText], *, title: str = "") -> Figure:
    """A row per text: who attends to whom, token by token, and how much attention each token gets.

    Colours of a map are shares of its largest weight, so that texts of any length are readable.

    Raises:
        ValueError: there is no text, or weights of another shape than its tokens.
    """
    from matplotlib.figure import Figure

    if not texts:
        raise ValueError("texts must hold at least one text")
    for text in texts:
        tokens = len(text.pieces)
        if text.weights.shape[-2:] != (tokens, tokens) or text.weights.ndim not in (2, 3):
            raise ValueError(
                f"weights must be ({tokens}, {tokens}) for {tokens} tokens, or that with heads in "
                f"front; got {tuple(text.weights.shape)}"
            )
    heights = [1.9 + 0.24 * len(text.pieces) for text in texts]
    figure = Figure(figsize=(11.0, sum(heights) + 0.6), layout="constrained")
    rows = figure.subfigures(len(texts), 1, height_ratios=heights, squeeze=False)[:, 0]
    for row, text in zip(rows, texts, strict=True):
        weights = text.weights.detach().float().cpu()
        weights = weights.mean(0) if weights.ndim == 3 else weights
        map_axis, bar_axis = row.subplots(1, 2, width_ratios=(1.25, 1.0))
        pieces = [_shorten(piece) for piece in text.pieces]
        _map(map_axis, pieces, weights)
        _bars(bar_axis, pieces, weights.mean(0))
        right = text.predicted == text.label
        verdict = f"read as {text.predicted} ({text.share:.0%})" + (
            ", rightly" if right else f", labelled {text.label}"
        )
        row.suptitle(
            verdict,
            x=0.01,
            ha="left",
            fontsize=12,
            fontweight="bold",
            color=RIGHT if right else WRONG,
        )
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    return figure


def _map(axis: Axes, pieces: list[str], weights: Tensor) -> None:
    # The start token often serves as a rest for idle heads; it must not wash out the words
    top = float(weights[:, 1:].max()) if len(pieces) > 1 else float(weights.max())
    axis.imshow(weights.numpy(), cmap="Blues", vmin=0, vmax=top or 1.0, aspect="auto")
    ticks, size = range(len(pieces)), _size(pieces)
    axis.set_xticks(ticks, pieces, rotation=90, fontsize=size)
    axis.set_yticks(ticks, pieces, fontsize=size)
    axis.set_xlabel("attended token")
    axis.set_ylabel("attending token")
    axis.set_title(f"attention, darkest = {top:.2f}", loc="left", fontsize=10, color=INK)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _bars(axis: Axes, pieces: list[str], received: Tensor) -> None:
    even = 1 / len(pieces)
    values = received.tolist()
    colors = [RIGHT if value > even else "#b9cfe2" for value in values]
    axis.barh(range(len(pieces)), values, color=colors, height=0.78)
    axis.axvline(even, color="#8a8a8a", linewidth=1, linestyle=(0, (4, 2)))
    axis.annotate(
        "even", (even, -0.7), fontsize=8, color="#666666", ha="center", annotation_clip=False
    )
    axis.set_yticks(range(len(pieces)), pieces, fontsize=_size(pieces))
    axis.set_ylim(len(pieces) - 0.5, -0.5)
    axis.set_xlabel("share of all attention that the token receives")
    axis.tick_params(length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)


def _shorten(piece: str, length: int = 16) -> str:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    # A character that the font has no picture of is a box, without a warning of each
    font = get_font(findfont(FontProperties()))
    piece = "".join(c if font.get_char_index(ord(c)) else "□" for c in piece)
    # "$" would start a formula
    return (piece if len(piece) <= length else f"{piece[: length - 1]}…").replace("$", r"\$")


def _size(pieces: list[str]) -> float:
    return 9.0 if len(pieces) <= 30 else 7.0
