"""The figures that every run ends with."""

from collections.abc import Sequence
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from attention_core.escape import on_one_line, plot_label
from attention_core.interpret.plots import (
    HEAT,
    INK,
    MUTED,
    RIGHT,
    bare,
    panel_rows,
    panels,
    plain,
    put_bar,
    put_title,
)

TRAIN, VALIDATION = MUTED, RIGHT


def learning_curves(
    rows: Sequence[dict[str, float]], *, title: str = "", best_epoch: int | None = None
) -> Figure:
    """Draw training and validation values over epochs, a panel per metric, and the learning rate.

    Args:
        rows: as `read_metrics` gives them.
        title: printed above the panels.
        best_epoch: marked with a dot and its value: the epoch whose weights were tested.
    """
    columns = {name for row in rows for name in row}
    names = sorted(
        {name.split("/", 1)[1] for name in columns if name.startswith(("train/", "val/"))},
        key=lambda name: (name != "loss", name),
    )
    count = len(names) + 1
    across = count if count <= 3 else -(-count // 2)
    down = len(panel_rows(count, across))
    figure = Figure(figsize=(4.6 * across, 3.1 * down + 0.5), layout="constrained")
    axes = [figure.add_subplot(place) for place in panels(figure, count, across)]
    for axis, name in zip(axes, names, strict=False):
        _epoch_panel(axis, rows, name, best_epoch)
    _rate_panel(axes[-1], rows)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
    put_title(figure, title)
    return figure


def _epoch_panel(
    axis: Axes, rows: Sequence[dict[str, float]], name: str, best_epoch: int | None
) -> None:
    # The dashes distinguish the lines also where colour does not.
    for stage, label, color, style in (
        ("train", "training", TRAIN, (0, (4, 1.5))),
        ("val", "validation", VALIDATION, "-"),
    ):
        key = f"{stage}/{name}"
        points = {int(row["epoch"]): row[key] for row in rows if key in row}
        marker = "o" if len(points) == 1 else None
        axis.plot(
            [epoch + 1 for epoch in points],
            list(points.values()),
            color=color,
            linestyle=style,
            linewidth=1.8,
            marker=marker,
            label=label,
        )
        if stage == "val" and best_epoch in points:
            _mark_tested(axis, best_epoch + 1, points[best_epoch], name)
    if name == "accuracy":
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_title(_spoken(name), loc="left", fontsize=11, color=INK)
    axis.set_xlabel("epoch")
    axis.set_ylabel({"loss": "mean per sample", "accuracy": "of the samples"}.get(name, ""))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(axis)


def _mark_tested(axis: Axes, epoch: int, value: float, name: str) -> None:
    axis.plot(epoch, value, "o", color=VALIDATION, markersize=6, zorder=3)
    text = f"{value:.1%}" if name == "accuracy" else f"{value:.3g}"
    # In the corner that the curves of a converging run leave empty.
    corner, va = (0.92, "top") if name == "loss" else (0.08, "bottom")
    axis.text(
        0.98,
        corner,
        f"● chosen epoch {epoch}: {text}",
        transform=axis.transAxes,
        ha="right",
        va=va,
        color=VALIDATION,
    )


def _rate_panel(axis: Axes, rows: Sequence[dict[str, float]]) -> None:
    points = [(row["step"] + 1, row["step/lr"]) for row in rows if "step/lr" in row]
    if points:
        axis.plot(*zip(*points, strict=True), color="#c46a1b", linewidth=1.8)
    axis.set_title("Learning rate", loc="left", fontsize=11, color=INK)
    axis.set_xlabel("optimizer step")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
    plain(axis)


def confusion_matrix(counts: Any, classes: Sequence[str]) -> Figure:
    """Counts of (true, predicted) pairs; the colour is the share of the true class.

    Args:
        counts: (C, C) integers, rows are true classes.
        classes: C names.
    """
    counts = numpy.asarray(counts)
    number = len(classes)
    total, right = int(counts.sum()), int(numpy.trace(counts))
    share = counts / numpy.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(11.0, max(4.2, 2.2 + 0.48 * number))
    figure = Figure(figsize=(side + 1.0, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(share, HEAT, vmin=0, vmax=1, interpolation="nearest")
    ticks = range(number) if number <= 40 else range(0, number, -(-number // 40))
    names = [plot_label(_shorten(on_one_line(classes[i]))) for i in ticks]
    long = max(len(name) for name in names) * len(names) > 45
    axis.set_xticks(
        list(ticks), names, rotation=45 if long else 0, ha="right" if long else "center"
    )
    axis.set_yticks(list(ticks), names)
    if number <= 20:
        for row in range(number):
            for column in range(number):
                if count := int(counts[row, column]):
                    color = "white" if share[row, column] > 0.55 else INK
                    axis.text(column, row, str(count), ha="center", va="center", color=color)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    bare(axis, ticks=True)
    put_bar(figure, image, "share of the true class", extend="neither", fraction=0.045, pad=0.03)
    put_title(figure, f"{right:,} of {total:,} test samples right ({right / max(total, 1):.1%})")
    return figure


def _spoken(name: str) -> str:
    name = plot_label(on_one_line(name))
    return {"f1": "Macro F1"}.get(name, name.replace("_", " ").capitalize())


def _shorten(name: str, length: int = 18) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
