"""The learning curves and the confusion matrix."""

from itertools import pairwise

import numpy
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from attention_core.training.plots import confusion_matrix, learning_curves


def rows(rates: int, *, end: float) -> list[dict[str, float]]:
    """Of two epochs; training begins at 1, validation ends at `end`."""
    found = [{"step": 10.0 * n, "step/lr": 0.1 * n} for n in range(rates)]
    for epoch in range(2):
        value = {"train/loss": 1 - 0.3 * epoch, "val/loss": 0.5 + (end - 0.5) * epoch}
        found.append({"epoch": epoch, "step": 9.0, **value})
    return found


@pytest.mark.parametrize(("rates", "panels"), [(0, 1), (1, 1), (2, 2)])
def test_there_is_no_panel_of_nothing(rates: int, panels: int) -> None:
    figure = learning_curves(rows(rates, end=0.4))
    assert len(figure.axes) == panels
    assert all(len(axis.lines[0].get_xdata()) > 1 for axis in figure.axes)


@pytest.mark.parametrize("end", [0.0, 0.7, 1.0, 5.0])
def test_no_curve_runs_through_what_is_said_of_the_best_epoch(end: float) -> None:
    figure = learning_curves(rows(0, end=end), best_epoch=1)
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    (axis,) = figure.axes
    (text,) = axis.texts
    assert text.get_text() == f"● chosen epoch 2: {end:.3g}"
    below = text.get_window_extent().y0
    highest = max(axis.transData.transform(line.get_xydata())[:, 1].max() for line in axis.lines)
    assert highest < below


@pytest.mark.parametrize(
    ("names", "turned"),
    [(["ab"] * 30, False), (["negative"] * 3, False), (["a longer name"] * 12, True)],
)
def test_names_of_classes_are_turned_where_they_would_meet(names: list[str], turned: bool) -> None:
    figure = confusion_matrix(numpy.eye(len(names), dtype=int), names)
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    labels = figure.axes[0].get_xticklabels()
    assert all((label.get_rotation() > 0) == turned for label in labels)
    boxes = [label.get_window_extent() for label in labels]
    if not turned:
        assert all(a.x1 < b.x0 for a, b in pairwise(boxes))
