"""A graph on paper: nodes, edges, and the attention that passes between them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.patches import FancyArrowPatch
from torch import Tensor

from attention_core.escape import on_one_line, plot_label
from attention_core.interpret.plots import INK, bare, verdict_color
from graph.interpret.layout import layout

#: The usual colours of elements (CPK), darkened or lightened until a label on them is readable.
COLORS = {
    "C": "#4a4a4a",
    "N": "#3050f8",
    "O": "#d6281c",
    "F": "#5fae3e",
    "Cl": "#1f9d1f",
    "Br": "#8c2d1b",
    "I": "#7a0f9b",
}
OTHERS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c")


class ReadGraph(NamedTuple):
    """A graph, how a model attended in it, and what to write above it.

    Attributes:
        edge_index: (2, E).
        nodes: names of the N nodes' types, such as elements; empty ones are not written.
        edges: names of the E edges' types; "double", "triple" and "aromatic" are drawn as bonds.
            None at all where edges have no names.
        weights: (N, N) attention weights, rows are queries.
        even: (N, N) what they would be if each query attended evenly to all that it may attend to;
            0 where it may not.
        caption: what is written above.
        right: whether what the model says is right, which colours the caption; None: neither.
        marked: numbers of nodes that the caption is about, drawn with a dark ring.
    """

    edge_index: Tensor
    nodes: list[str]
    edges: list[str]
    weights: Tensor
    even: Tensor
    caption: str = ""
    right: bool | None = None
    marked: tuple[int, ...] = ()

    def check(self) -> None:
        """Raise ValueError where weights, names and edges are not of one graph."""
        count = len(self.nodes)
        for name, table in (("weights", self.weights), ("even", self.even)):
            if table.shape != (count, count):
                raise ValueError(
                    f"{name} must be ({count}, {count}) for {count} nodes, got {tuple(table.shape)}"
                )
        if len(self.edges) not in (0, self.edge_index.shape[1]):
            raise ValueError(
                f"edges must name all {self.edge_index.shape[1]} edges of edge_index or none, got "
                f"{len(self.edges)} names"
            )


class Lifts(NamedTuple):
    """Attention as multiples of an even spread, NaN where there can be none.

    Attributes:
        pair: (N, N) from key (column) to query (row).
        received: (N,) what a node gets from all that may attend to it.
        edge: by the two ends of each edge, smaller first, the mean of both directions.
        kind: the name of the same edges.
    """

    pair: numpy.ndarray
    received: numpy.ndarray
    edge: dict[tuple[int, int], float]
    kind: dict[tuple[int, int], str]

    @classmethod
    def of(cls, graph: ReadGraph) -> Lifts:
        weights, even = (table.double().cpu() for table in (graph.weights, graph.even))

        def ratio(weights: Tensor, even: Tensor) -> numpy.ndarray:
            return numpy.asarray((weights / even).where(even > 0, torch.nan))

        names = graph.edges or [""] * graph.edge_index.shape[1]
        kind = {
            (min(ends), max(ends)): name
            for ends, name in zip(graph.edge_index.T.tolist(), names, strict=True)
            if ends[0] != ends[1]
        }
        both = ratio(weights + weights.T, even + even.T)
        edge = {ends: float(both[ends]) for ends in kind}
        return cls(ratio(weights, even), ratio(weights.sum(0), even.sum(0)), edge, kind)


def draw_graph(
    axis: Axes,
    graph: ReadGraph,
    scale: ScalarMappable,
    *,
    place: numpy.ndarray | None = None,
    small: bool = False,
) -> None:
    """Draw attention along edges (bands), received by nodes (halos) and between nodes without an
    edge (dotted arcs, the strongest four), with bonds and names on top.

    Args:
        scale: from lifts to colours and widths.
        place: (N, 2) of the nodes; `layout` by default.
        small: attention alone, without names and arcs.
    """
    lifts = Lifts.of(graph)
    if place is None:
        place = layout(graph.edge_index, len(graph.nodes))
    # Where there are many nodes, all is drawn finer
    size = 0.4 if small else min(1.0, (30 / max(len(graph.nodes), 1)) ** 0.5)
    if not small:
        _draw_arcs(axis, lifts, place, scale)
    ends = [list(pair) for pair, lift in lifts.edge.items() if numpy.isfinite(lift)]
    strong = numpy.array([lifts.edge[a, b] for a, b in ends])
    wide, colors = (3.0 + 10.0 * _part(scale, strong)) * size, scale.to_rgba(strong)
    look: Any = {"linewidths": wide, "colors": colors, "capstyle": "round", "zorder": 1}
    axis.add_collection(LineCollection([place[pair] for pair in ends], **look))
    _draw_bonds(axis, lifts, place, size, plain=small)
    there = numpy.isfinite(lifts.received)
    received = lifts.received[there]
    area = (230 + 420 * _part(scale, received)) * size * min(1.0, size + 0.1)
    look = {"color": scale.to_rgba(received), "linewidths": 0, "zorder": 3}
    x, y = place[there].T
    axis.scatter(x, y, s=area, clip_on=False, **look)
    if not small:
        _draw_nodes(axis, graph, place, size)
        color = verdict_color(graph.right)
        axis.set_title(plot_label(graph.caption), loc="left", fontsize=11, color=color)
    axis.margins(0.12)
    axis.set_aspect("equal", adjustable="datalim")
    bare(axis)


def _draw_nodes(axis: Axes, graph: ReadGraph, place: numpy.ndarray, size: float) -> None:
    kinds = sorted(set(graph.nodes) - set(COLORS))
    x, y = place.T
    marked = [node in graph.marked for node in range(len(place))]
    axis.scatter(
        x,
        y,
        s=190 * size,
        color=[COLORS.get(name) or OTHERS[kinds.index(name) % len(OTHERS)] for name in graph.nodes],
        edgecolors=[INK if ring else "white" for ring in marked],
        linewidths=[2.6 if ring else 1.2 for ring in marked],
        zorder=4,
        clip_on=False,  # an equal aspect takes from the margins
    )
    look: Any = {"ha": "center", "va": "center_baseline", "color": "white", "zorder": 5}
    for (right, up), name in zip(place.tolist(), graph.nodes, strict=True):
        text = plot_label(on_one_line(name))
        axis.text(right, up, text, fontsize=8.5 * size**0.5, fontweight="bold", **look)


def _draw_bonds(
    axis: Axes, lifts: Lifts, place: numpy.ndarray, size: float, *, plain: bool
) -> None:
    # Attention is the broad band below, the bond itself the thin dark lines on top of it
    kinds: dict[str, tuple[tuple[float, str], ...]] = {
        "double": ((-1, "-"), (1, "-")),
        "triple": ((-1.6, "-"), (0, "-"), (1.6, "-")),
        "aromatic": ((-1, "-"), (1, "--")),
    }
    segments, styles = [], []
    for (a, b), kind in lifts.kind.items():
        along = (place[b] - place[a]) / max(float(numpy.linalg.norm(place[b] - place[a])), 1e-9)
        aside = numpy.array([-along[1], along[0]]) * 0.055
        for shift, style in ((0, "-"),) if plain else kinds.get(kind, ((0, "-"),)):
            segments.append(numpy.stack([place[a], place[b]]) + shift * aside)
            styles.append(style)
    lines = LineCollection(segments, linewidths=size, colors=INK, linestyles=styles, zorder=2)
    axis.add_collection(lines)


def _draw_arcs(
    axis: Axes, lifts: Lifts, place: numpy.ndarray, scale: ScalarMappable, most: int = 4
) -> None:
    away = numpy.nan_to_num(lifts.pair)
    numpy.fill_diagonal(away, 0)
    for a, b in lifts.kind:
        away[a, b] = away[b, a] = 0
    for flat in numpy.argsort(-away, axis=None)[:most]:
        query, key = numpy.unravel_index(flat, away.shape)
        value = float(away[query, key])
        if value <= 1:
            break
        color, dotted = scale.to_rgba(numpy.asarray(value)), (0, (1, 1.5))
        look: Any = {"arrowstyle": "-|>", "mutation_scale": 9, "shrinkA": 9, "shrinkB": 9}
        look |= {"color": color, "linestyle": dotted, "linewidth": 1.6, "zorder": 2.5}
        # From what is attended to who attends: the way that information flows
        ends = tuple(place[key]), tuple(place[query])
        axis.add_patch(FancyArrowPatch(*ends, connectionstyle="arc3,rad=0.25", **look))


def _part(scale: ScalarMappable, lift: numpy.ndarray) -> numpy.ndarray:
    """Where each lies on the scale, from 0 to 1."""
    low, high = scale.get_clim()
    assert low is not None and high is not None
    return numpy.interp(lift, (low, high), (0.0, 1.0))
