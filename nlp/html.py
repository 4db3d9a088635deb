"""What a text model attends to as one HTML page, which needs no network and no script."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.image import imsave
from torch import Tensor

from attention_core.escape import html_text
from nlp.drawing import HEAT
from nlp.figures import MOST_TOKENS, Shown, largest, most
from nlp.seeing import PooledAttention

#: The most words of a text on a page.
MOST_WORDS = 2000


def attention_page(shown: Sequence[Shown], *, title: str = "Attention") -> str:
    """The page, to be written as UTF-8: of each text its words, marked by how much of them reaches
    its vector, where it is pooled; a table of who attends to whom; and a picture of every head.

    The table is of the last layer of `attention`, mean of its heads, with attending tokens as rows.
    Of a long text it shows the beginning, and says so.

    Raises:
        ValueError: there is no text.
    """
    if not shown:
        raise ValueError("shown must hold at least one text")
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
        texts=[_text(one) for one in shown],
    )
    return str(page)


def _text(shown: Shown) -> dict[str, Any]:
    attention = shown.attention
    weights = attention.weights[..., :MOST_TOKENS, :MOST_TOKENS].float().cpu()
    table = weights[-1].mean(0)
    keys = [html_text(name) for name in attention.keys[:MOST_TOKENS]]
    queries = [html_text(name) for name in attention.queries[:MOST_TOKENS]]
    top, written = largest(table), len(attention.queries) - shown.written
    length = max(len(attention.keys), len(attention.queries))
    words = [] if shown.pooled is None else _words(shown.pooled)
    top_of_all = largest(weights)
    return {
        "caption": html_text(shown.caption),
        "verdict": {None: "", True: "right", False: "wrong"}[shown.right],
        "words": words,
        "words_left": 0 if shown.pooled is None else len(shown.pooled.words) - len(words),
        "columns": [_short(name) for name in keys],
        "longest": max(len(_short(name)) for name in keys),
        "rows": [
            {
                "name": name,
                "written": place >= written,
                "cells": [
                    {"name": key, "weight": _shade(share, top), "share": f"{share:.1%}"}
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


def _words(pooled: PooledAttention) -> list[dict[str, Any]]:
    shares = pooled.weights.mean(0)
    top = most(shares, pooled.special)
    rows = []
    listed = zip(pooled.words[:MOST_WORDS], shares.tolist(), pooled.special, strict=False)
    for written, share, special in listed:
        text = written.lstrip()
        rows.append(
            {
                "space": html_text(written[: len(written) - len(text)]),
                "text": html_text(text),
                "weight": _shade(share, top),
                "share": f"{share:.1%}",
                "special": special,
            }
        )
    return rows


def _shade(share: float, top: float) -> str:
    return f"{0.75 * min(share / top, 1.0):.2f}"


def _image(weights: Tensor, top: float) -> str:
    """A PNG of (Lq, Lk), a dot for each pair, in base64."""
    file = io.BytesIO()
    imsave(file, weights.numpy(), vmin=0.0, vmax=top, cmap=HEAT, format="png")
    return base64.b64encode(file.getvalue()).decode()


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"
