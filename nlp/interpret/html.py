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
from attention_core.interpret.plots import HEAT, RIGHT, WRONG, shorten
from nlp.interpret.plots import MOST_TOKENS, ReadText, View, check_texts, largest, views

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
    check_texts(texts)
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
    table, most = weights[-1].mean(0), largest(weights)
    keys, queries = (
        [html_text(name) for name in side[:MOST_TOKENS]]
        for side in (attention.keys, attention.queries)
    )
    length = max(len(attention.keys), len(attention.queries))
    return {
        "caption": html_text(text.caption),
        "verdict": {None: "", True: "right", False: "wrong"}[text.right],
        "views": [{"heading": view.heading, "words": _words(view)} for view in views(text)],
        "words_left": 0 if text.pooled is None else len(text.pooled.words) - MOST_WORDS,
        "key_names": keys,
        "columns": [shorten(name, 20) for name in keys],
        "rows": list(zip(queries, table.tolist(), strict=True)),
        "given": len(attention.queries) - text.written,
        "top": largest(table),
        "cut": f"The first {MOST_TOKENS} of {length}." if length > MOST_TOKENS else "",
        "heads": attention.heads,
        "layers": [
            (number, [_image(head, most) for head in layer])
            for number, layer in zip(attention.layers, weights, strict=True)
        ],
    }


def _words(view: View) -> list[dict[str, Any]]:
    rows = []
    for written, special, color, strength, value in zip(
        view.words.words, view.words.special, view.colors, view.strength, view.told, strict=True
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
    return rows[:MOST_WORDS]


def _image(weights: Tensor, top: float) -> str:
    """A PNG of (Lq, Lk), a dot for each pair, in base64."""
    file = io.BytesIO()
    imsave(file, weights.numpy(), vmin=0.0, vmax=top, cmap=HEAT, format="png")
    return base64.b64encode(file.getvalue()).decode()
