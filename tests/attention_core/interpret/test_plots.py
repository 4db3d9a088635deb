"""What figures are put together from: formats, panels without a blank, sheets, two colours."""

import ast
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from attention_core.interpret.plots import (
    HEAT,
    INK,
    RIGHT,
    WRONG,
    evenly_chosen,
    head_sheet,
    panels,
    save_figure,
    verdict_color,
)

ROOT = Path(__file__).resolve().parents[3]


def figure() -> Figure:
    drawn = Figure(figsize=(2, 1))
    drawn.subplots().plot([1, 2], label="$x")
    return drawn


@pytest.mark.parametrize(
    ("kind", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_a_figure_is_written_in_every_format_and_alike_each_time(
    kind: str, start: bytes, tmp_path: Path
) -> None:
    written = []
    for number in range(2):
        path = tmp_path / f"{number}.{kind}"
        save_figure(figure(), path)
        written.append(path.read_bytes())
    assert written[0].startswith(start) and written[0] == written[1]


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format must be one of 'png', 'svg', 'pdf'; got 'jpg'"):
        save_figure(figure(), tmp_path / "x.jpg")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize("across", [1, 2, 3])
def test_panels_leave_no_place_blank(count: int, across: int) -> None:
    places = panels(Figure(), count, across)
    rows, columns = places[0].get_gridspec().get_geometry()
    cells = [(row, column) for place in places for row in place.rowspan for column in place.colspan]
    assert len(places) == count and rows == -(-count // across)
    assert len(cells) == len(set(cells)) == rows * columns


def test_a_sheet_has_an_axis_for_each_head_and_no_other() -> None:
    drawn = []

    def draw(axis: Axes, layer: int, head: int, *, left: bool, below: bool) -> None:
        drawn.append((layer, head, left, below))
        axis.plot([0, 1])

    scale = ScalarMappable(Normalize(0, 1), HEAT)
    options: Any = {"tile": (1.0, 1.0), "title": "every head"}
    sheet = head_sheet(["one", "two"], [[4], [0, 2]], draw, scale, "share", **options)
    assert drawn == [(0, 0, True, False), (1, 0, True, True), (1, 1, False, True)]
    *axes, bar = sheet.axes
    assert [axis.get_title() for axis in axes] == ["head 5", "head 1", "head 3"]
    assert [axis.get_ylabel() for axis in axes] == ["one", "two", ""]
    assert bar.get_ylabel() == "share" and sheet.get_suptitle() == "every head"
    drawn.clear()
    sheet = head_sheet(["a", "b", "c"], [[0, 1], [0, 1], [0, 1, 2, 3]], draw, scale, "", **options)
    assert [place[:2] for place in drawn] == [
        *((n, h) for n in (0, 1) for h in (0, 1)),
        *((2, h) for h in range(4)),
    ]
    assert {axis.get_gridspec().get_geometry() for axis in sheet.axes[:-1]} == {
        (2, 4)
    }  # all filled
    assert [axis.get_ylabel() for axis in sheet.axes[:-1]] == ["a", "", "b", "", "c", "", "", ""]
    names = [axis.get_title() for axis in sheet.axes[:-1]]
    assert names == [f"head {n}" for n in (1, 2, 1, 2)] + ["", "", "head 3", "head 4"]
    drawn.clear()
    head_sheet([str(n) for n in range(30)], [range(20)] * 30, draw, scale, "share", **options)
    assert len(drawn) == 144 and {layer for layer, *_ in drawn} == set(evenly_chosen(30))
    assert {0, 29} < set(evenly_chosen(30))


def test_right_and_wrong_have_one_colour() -> None:
    """Defined here, and written nowhere else."""
    assert [verdict_color(right) for right in (None, True, False)] == [INK, RIGHT, WRONG]
    for package in ("attention_core", "vision", "nlp", "graph"):
        for path in sorted((ROOT / package).rglob("*.*")):
            if path.suffix not in {".py", ".j2"} or (path.name == "plots.py" and "core" in package):
                continue
            text = path.read_text()
            assert RIGHT not in text and WRONG not in text, path
            if path.suffix == ".py":
                names = [
                    target.id
                    for node in ast.walk(ast.parse(text))
                    if isinstance(node, ast.Assign)
                    for target in ast.walk(node)
                    if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store)
                ]
                assert not {"INK", "RIGHT", "WRONG"} & set(names), path
