"""The figures that every run ends with."""

from collections.abc import Sequence
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from attention_core.escape import on_one_line, plot_label
from attention_core.interpret import plots as kit
from attention_core.interpret.plots import INK, MUTED, RIGHT


def learning_curves(
    rows: Sequence[dict[str, float]], *, title: str = "", best_epoch: int | None = None
) -> Figure | None:
    """Draw training and validation values over epochs, a panel per metric, and the learning rate;
    None where metrics begin anew and hold none of these.

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
    rates = [(row["step"] + 1, row["step/lr"]) for row in rows if "step/lr" in row]
    rates = rates if len(rates) > 1 else []  # of a run of a few steps there is nothing to draw
    count = len(names) + bool(rates)
    if not count:
        return None
    across = count if count <= 3 else -(-count // 2)
    figure = Figure(figsize=(4.6 * across, 3.1 * -(-count // across) + 0.5), layout="constrained")
    axes = [figure.add_subplot(place) for place in kit.panels(figure, count, across)]
    for axis, name in zip(axes, names, strict=False):
        _epoch_panel(axis, rows, name, best_epoch)
    if rates:
        _rate_panel(axes[-1], rates)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
    kit.put_title(figure, title)
    return figure


def _epoch_panel(
    axis: Axes, rows: Sequence[dict[str, float]], name: str, best_epoch: int | None
) -> None:
    # The dashes distinguish the lines also where colour does not.
    for stage, label, color, style in (
        ("train", "training", MUTED, (0, (4, 1.5))),
        ("val", "validation", RIGHT, "-"),
    ):
        key = f"{stage}/{name}"
        points = {int(row["epoch"]) + 1: row[key] for row in rows if key in row}
        look: Any = {"linestyle": style, "linewidth": 1.8, "color": color, "label": label}
        axis.plot(
            list(points), list(points.values()), marker="o" if len(points) == 1 else None, **look
        )
        if stage == "val" and best_epoch is not None and best_epoch + 1 in points:
            value = points[best_epoch + 1]
            axis.plot(best_epoch + 1, value, "o", color=RIGHT, markersize=6, zorder=3)
            told = f"{value:.1%}" if name == "accuracy" else f"{value:.3g}"
            axis.margins(y=0.13)  # room for words above all curves
            look = {"transform": axis.transAxes, "ha": "right", "va": "top", "color": RIGHT}
            axis.text(0.99, 0.99, f"● chosen epoch {best_epoch + 1}: {told}", **look)
    if name == "accuracy":
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_title(_spoken(name), loc="left", fontsize=11, color=INK)
    axis.set_xlabel("epoch")
    axis.set_ylabel({"loss": "mean per sample", "accuracy": "of the samples"}.get(name, ""))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    kit.plain(axis)


def _rate_panel(axis: Axes, rates: Sequence[tuple[float, float]]) -> None:
    steps, values = zip(*rates, strict=True)
    # Of a short run few are written, and the lines between them are no measurements
    axis.plot(steps, values, "o-" if len(steps) < 12 else "-", color="#c46a1b", linewidth=1.8)
    axis.set(xlim=(0, 1.03 * steps[-1]), ylim=(0, 1.08 * max(values) or 1.0))
    axis.set_title("Learning rate", loc="left", fontsize=11, color=INK)
    axis.set_xlabel("optimizer step")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axis.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
    kit.plain(axis)


def confusion_matrix(counts: Any, classes: Sequence[str]) -> Figure:
    """Draw counts of (true, predicted) pairs; the colour is the share of the true class.

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
    image = axis.imshow(share, kit.HEAT, vmin=0, vmax=1, interpolation="nearest")
    ticks = range(number) if number <= 40 else range(0, number, -(-number // 40))
    names = [plot_label(kit.shorten(on_one_line(classes[i]), 18)) for i in ticks]
    long = max(map(len, names)) > 9.3 * side / len(names) - 1  # letters that a column has room for
    axis.set_xticks(
        list(ticks), names, rotation=45 if long else 0, ha="right" if long else "center"
    )
    axis.set_yticks(list(ticks), names)
    if number <= 20:
        for row in range(number):
            for column in range(number):
                if count := int(counts[row, column]):
                    kit.put_number(axis, row, column, str(count), share[row, column], 10)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    kit.bare(axis, ticks=True)
    kit.put_bar(
        figure, image, "share of the true class", extend="neither", fraction=0.045, pad=0.03
    )
    kit.put_title(
        figure, f"{right:,} of {total:,} test samples right ({right / max(total, 1):.1%})"
    )
    return figure


def _spoken(name: str) -> str:
    name = plot_label(on_one_line(name))
    return {"f1": "Macro F1"}.get(name, name.replace("_", " ").capitalize())
