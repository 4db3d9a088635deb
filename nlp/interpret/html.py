"""What a text model attends to as one HTML page, which needs no network and no script."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.colors import to_hex
from matplotlib.image import imsave
from torch import Tensor

from attention_core.escape import html_text
from attention_core.interpret.plots import HEAT, RIGHT, WRONG
from nlp.interpret.maps import WordWeights
from nlp.interpret.plots import (
    MOST_TOKENS,
    ReadText,
    View,
    changed,
    largest,
    marked,
)

#: The most words of a text on a page.
MOST_WORDS = 2000


def attention_page(texts: Sequence[ReadText], *, title: str = "Attention") -> str:
    """Return the page, to be written as UTF-8: of each text its words, marked by how much attention
    to them reaches its vector, where it is pooled, and beside that by what changes without them; a
    table of who attends to whom; and a picture of every head.

    The table is of the last layer of `attention`, mean of its heads, with attending tokens as rows.
    Of a long text it shows the beginning, and says so.

    Raises:
        ValueError: there is no text.
    """
    if not texts:
        raise ValueError("texts must hold at least one text")
    environment = Environment(
        loader=PackageLoader("nlp"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    page = environment.get_template("attention.html.j2").render(
        title=html_text(title),
        note="Rows attend to columns: the last layer, mean of its heads.",
        right=RIGHT,
        wrong=WRONG,
        texts=[_text(one) for one in texts],
    )
    return str(page)


def _text(text: ReadText) -> dict[str, Any]:
    attention = text.attention
    weights = attention.weights[..., :MOST_TOKENS, :MOST_TOKENS].float().cpu()
    table = weights[-1].mean(0)
    keys = [html_text(name) for name in attention.keys[:MOST_TOKENS]]
    queries = [html_text(name) for name in attention.queries[:MOST_TOKENS]]
    top, written = largest(table), len(attention.queries) - text.written
    length = max(len(attention.keys), len(attention.queries))
    top_of_all = largest(weights)
    return {
        "caption": html_text(text.caption),
        "verdict": {None: "", True: "right", False: "wrong"}[text.right],
        "views": _views(text),
        "words_left": 0 if text.pooled is None else len(text.pooled.words) - MOST_WORDS,
        "columns": [_short(name) for name in keys],
        "longest": max(len(_short(name)) for name in keys),
        "rows": [
            {
                "name": name,
                "written": place >= written,
                "cells": [
                    {
                        "name": key,
                        "weight": f"{0.75 * min(share / top, 1.0):.2f}",
                        "share": f"{share:.1%}",
                    }
                    for key, share in zip(keys, row, strict=True)
                ],
            }
            for place, (name, row) in enumerate(zip(queries, table.tolist(), strict=True))
        ],
        "cut": f"The first {MOST_TOKENS} of {length}." if length > MOST_TOKENS else "",
        "heads": attention.heads,
        "layers": [
            {"number": number, "images": [_image(head, top_of_all) for head in layer]}
            for number, layer in zip(attention.layers, weights, strict=True)
        ],
    }


def _views(text: ReadText) -> list[dict[str, Any]]:
    """The words as they are marked, once or twice."""
    views = []
    if text.pooled is not None:
        shares = [f"{share:.1%}" for share in text.pooled.weights.mean(0).tolist()]
        views.append(_view(text.pooled, marked(text.pooled), shares))
    if text.left_out is not None:
        changes = text.left_out.weights.tolist()
        told = ["" if change != change else f"{change:+.2f}" for change in changes]
        views.append(_view(text.left_out, changed(text.left_out), told))
    return views


def _view(words: WordWeights, view: View, told: list[str]) -> dict[str, Any]:
    rows = []
    for written, color, strength, value, special in zip(
        words.words[:MOST_WORDS], view.colors, view.strength, told, words.special, strict=False
    ):
        text = written.lstrip()
        rows.append(
            {
                "space": html_text(written[: len(written) - len(text)]),
                "text": html_text(text),
                "color": to_hex(color),
                "kind": " ".join(["special"] * special + ["strong"] * (strength > 0.65)),
                "value": value,
            }
        )
    return {"heading": view.heading, "words": rows}


def _image(weights: Tensor, top: float) -> str:
    """A PNG of (Lq, Lk), a dot for each pair, in base64."""
    file = io.BytesIO()
    imsave(file, weights.numpy(), vmin=0.0, vmax=top, cmap=HEAT, format="png")
    return base64.b64encode(file.getvalue()).decode()


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"
