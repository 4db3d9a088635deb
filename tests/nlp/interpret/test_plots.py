"""Attention drawn over texts, as figures and as a page, and which texts are drawn."""

import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread

from attention_core.interpret.plots import RIGHT, WRONG, save_figure
from nlp import TextDecoder, TextEncoder, Tokenizer
from nlp.interpret import ReadText, attention_figures, attention_page, text_figures
from nlp.interpret.maps import TextAttention, WordWeights
from nlp.interpret.plots import MOST_TOKENS, MOST_WORDS, layer_sheet, map_sheet, words_sheet
from nlp.tasks.base import readable
from nlp.tasks.classification import choose

ODD = [
    "<s>",
    "$x_{",
    "·",
    "\u058d",
    "\ufffd" * 30,
    "<b>&\"'",
    "שלום",
    "مرحبا",
    "😀",
    "漢",
    "\x00",
    "\u202e",
]


def seen(queries: list[str], keys: list[str] | None = None, layers: int = 2) -> TextAttention:
    keys = queries if keys is None else keys
    weights = torch.rand(layers, 3, len(queries), len(keys)).softmax(-1)
    return TextAttention(queries, keys, weights, list(range(layers)), [0, 1, 2])


def read(names: list[str], **more: Any) -> ReadText:
    weights = torch.rand(3, len(names)).softmax(-1)
    special = [name == "<s>" for name in names]
    pooled = WordWeights([f" {name}" for name in names], special, weights)
    return ReadText("Read as $good_ <i>", seen(names), pooled, right=True, **more)


class Page(HTMLParser):
    """What a browser finds in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.titles: list[str] = []
        self.written: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                self.links.append(str(value))
            if name == "title":
                self.titles.append(str(value))

    def handle_data(self, data: str) -> None:
        self.written.setdefault(self.tags[-1] if self.tags else "", []).append(data)


@pytest.mark.parametrize("names", [["<s>"], ["x"], ODD], ids=["special", "one", "odd"])
def test_texts_are_drawn(names: list[str], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a glyph that no font has
        figures = text_figures([read(names), read(["<s>", "fine"])])
        for name, figure in figures.items():
            save_figure(figure, tmp_path / f"{name}.png")
            assert imread(tmp_path / f"{name}.png").std() > 0.02
    assert set(figures) == {"attention", "attention_layers", "attention_words"}


def test_the_real_tokens_are_on_the_axes() -> None:
    source, target = ["<s>", "good", "day"], ["guten", "Tag", "</s>", "$"]
    shown = ReadText("", seen(target, source), written=2)
    (axis, *_) = map_sheet([shown]).subfigs[0].axes
    assert [label.get_text() for label in axis.get_xticklabels()] == source
    assert [label.get_text() for label in axis.get_yticklabels()] == target
    assert torch.tensor(axis.images[0].get_array()).equal(shown.attention.weights[-1].mean(0))
    colors = [label.get_color() for label in axis.get_yticklabels()]
    assert colors[0] == colors[1] != colors[2] == colors[3]
    sheet = layer_sheet(shown)
    maps = [axis for axis in sheet.axes if axis.images]
    assert len(maps) == 6  # 2 layers, 3 heads
    assert torch.tensor(maps[4].images[0].get_array()).equal(shown.attention.weights[1, 1])


def texts_of(figure: Any) -> str:
    parts = [figure, *figure.subfigs]
    found = [text.get_text() for part in parts for text in part.texts]
    found += [part._suptitle.get_text() for part in parts if part._suptitle is not None]
    return " ".join(
        " ".join([*found, *(t.get_text() for a in figure.axes for t in a.texts)]).split()
    )


def test_a_long_text_is_cut_and_says_so(tmp_path: Path) -> None:
    names = [f"w{n}" for n in range(2100)]
    long = ReadText("Long", seen(names[:60], layers=1), read(names).pooled)
    figure = map_sheet([long])
    assert f"Long (the first {MOST_TOKENS} of 60)" in texts_of(figure)
    assert len(figure.subfigs[0].axes[0].get_xticks()) == MOST_TOKENS
    assert "Long (the first 24 of 60)" in texts_of(layer_sheet(long))
    assert f"the first {MOST_WORDS} of 2100 words" in texts_of(words_sheet([long]))
    page = attention_page([long])
    assert "The first 2000 words; 100 more are left out." in page
    assert f"The first {MOST_TOKENS} of 60." in page
    assert page.count("<mark") == 2000 and page.count("<td style") == MOST_TOKENS**2


def test_of_many_layers_and_heads_some_are_drawn() -> None:
    weights = torch.rand(30, 20, 2, 2)
    attention = TextAttention(["a", "b"], ["a", "b"], weights, list(range(30)), list(range(20)))
    figure = layer_sheet(ReadText("", attention))
    assert len([axis for axis in figure.axes if axis.images]) == 144
    layers = [axis.get_ylabel() for axis in figure.axes]
    assert "layer 1" in layers and "layer 30" in layers


def test_a_page_holds_what_is_seen() -> None:
    one = read(["<s>", "late", "day"])
    page = Page(attention_page([one], title="Attention & more"))
    assert "".join(page.written["h1"]).strip() == "Attention & more"
    assert one.pooled is not None
    shares = [f"{share:.1%}" for share in one.pooled.weights.mean(0).tolist()]
    assert page.titles[:3] == shares
    assert [text for text in page.written["mark"] if text.strip()] == ["<s>", "late", "day"]
    table = one.attention.weights[-1].mean(0).tolist()
    names = one.attention.keys
    wanted = [
        f"{query} → {key}: {share:.1%}"
        for query, row in zip(names, table, strict=True)
        for key, share in zip(names, row, strict=True)
    ]
    assert page.titles[3:] == wanted
    assert page.tags.count("img") == 6


def test_a_page_escapes_everything_and_needs_nothing() -> None:
    evil = "<script>alert('x')</script>"
    names = ["<s>", evil, '" onmouseover="x', "a&amp;b", *ODD]
    one = ReadText(f"{evil} & more", seen(names), read(names).pooled)
    text = attention_page([one], title=evil)
    page = Page(text)
    assert "script" not in page.tags and "b" not in page.tags
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "http" not in text and "\x00" not in text and "\u202e" not in text
    assert any(evil in title for title in page.titles)
    assert any('" onmouseover="x' in title for title in page.titles)
    assert "a&amp;b" in page.written["bdi"]
    text.encode("utf-8")


def left_out(names: list[str]) -> WordWeights:
    one = read(names).pooled
    assert one is not None
    changes = torch.linspace(-2, 1, len(names)).masked_fill(torch.tensor(one.special), torch.nan)
    return one._replace(weights=changes)


def test_beside_attention_stands_what_changes_without_a_word(tmp_path: Path) -> None:
    names = ["<s>", "late", "again", "thanks"]
    one = read(names)._replace(left_out=left_out(names))
    figure = words_sheet([one, one])
    drawn = texts_of(figure)
    assert drawn.count("attention into the pooled vector (darkest:") == 2
    assert drawn.count("the predicted class without each word: orange falls") == 2
    words = [text for text in figure.axes[0].texts if text.get_text() == "late"]
    (left, first), (right, second) = (text.get_position() for text in words[:2])
    assert left < 0.5 * figure.axes[0].get_xlim()[1] < right and first == second
    colors = [patch.get_facecolor() for patch in figure.axes[0].patches]
    special, late, _, thanks = colors[4:8]
    assert special == (1, 1, 1, 1)
    assert late[0] > late[2] + 0.2 and thanks[2] > thanks[0] + 0.05  # orange, violet
    save_figure(figure, tmp_path / "words.png")
    # Where one is not known of all texts, none is drawn of it
    assert "without each word" not in texts_of(words_sheet([one, read(names)]))
    page = Page(attention_page([one]))
    changes = [f"{change:+.2f}" for change in left_out(names).weights[1:].tolist()]
    assert page.titles[4:8] == ["", *changes]


def test_figures_of_a_model_and_its_texts() -> None:
    tokenizer = Tokenizer.train(["the plane is late again"] * 4, 300)
    options: dict[str, Any] = {"num_classes": 2}
    for kind, drawn, more in ((TextEncoder, 3, options), (TextDecoder, 2, {})):
        model = kind(len(tokenizer), 16, 2, 2, **more).eval()
        shown = [("late", True), ("again", False)]
        figures = attention_figures(model, ["late", "again"], shown, tokenizer=tokenizer)
        assert len(figures) == drawn
        colors = [part._suptitle.get_color() for part in figures["attention"].subfigs]
        assert colors == [RIGHT, WRONG]


def test_what_cannot_be_drawn() -> None:
    for draw in (map_sheet, words_sheet, attention_page):
        with pytest.raises(ValueError, match="at least one text"):
            draw([])
    with pytest.raises(ValueError, match="not pooled has no words to mark: 'one'"):
        words_sheet([ReadText("one", seen(["a"]))])


def test_one_text_of_each_class_is_chosen() -> None:
    lengths = torch.tensor([10, 90, 10, 12, 3])
    target = torch.tensor([0, 0, 0, 1, 2])
    first = torch.tensor([0.6, 0.9, 0.7, 0.8, 0.1])
    shares = torch.stack([first, 1 - first, torch.zeros(5)], dim=1)
    # The surest of readable length; one that is wrong, or long, where there is no other
    assert choose(lengths, target, shares) == [2, 3, 4]


def test_texts_of_readable_length_are_chosen() -> None:
    assert readable(torch.tensor([3000, 5, 90, 24, 8, 0]), 3) == [3, 4, 1]
    assert readable(torch.tensor([3000, 0]), 3) == []
