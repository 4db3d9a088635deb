"""Attention drawn on graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy
import torch
from torch import Tensor

from attention_core import Graph, Pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

INK, RIGHT, WRONG = "#222222", "#1f6fb4", "#c0392b"
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
    """A graph, what the model made of it, and how it attended.

    Attributes:
        edge_index: (2, E).
        nodes: names of the N nodes' types, such as elements.
        edges: names of the E edges' types; "double", "triple" and "aromatic" are drawn as bonds.
        weights: (N, N) attention weights, rows are queries, or (H, N, N), averaged over heads.
        predicted, label: names of classes.
        share: probability of the predicted class.
    """

    edge_index: Tensor
    nodes: list[str]
    edges: list[str]
    weights: Tensor
    predicted: str
    label: str
    share: float


def layout(edge_index: Tensor, num_nodes: int, steps: int = 200) -> numpy.ndarray:
    """Places (N, 2) of nodes whose distances follow their hop distances.

    Stress majorisation with weights 1/d² (Gansner et al., 2004), from classical scaling and from
    a few fixed random starts, of which the least stressed result is kept: rings come out as rings.
    Directions of edges are ignored; unconnected parts stand side by side. Deterministic.
    """
    if num_nodes < 2:
        return numpy.zeros((num_nodes, 2))
    both = torch.cat([edge_index, edge_index.flip(0)], dim=1).unique(dim=1).cpu()
    space = Graph(both, num_nodes)
    hops = Pairs.all((space, space)).distance[0, 0].double().numpy()
    finite = hops[numpy.isfinite(hops)].max()
    hops = numpy.where(numpy.isfinite(hops), hops, finite + 1.5)
    weight = 1 / numpy.maximum(hops, 1) ** 2
    numpy.fill_diagonal(weight, 0)
    laplacian = numpy.diag(weight.sum(1)) - weight
    # Pinning the first node removes the free translation, and with it the singular direction
    inverse = numpy.linalg.inv(laplacian[1:, 1:])
    random = numpy.random.default_rng(0)
    spread = [hops.max() / 2 * random.standard_normal((num_nodes, 2)) for _ in range(8)]
    best, least = numpy.zeros((num_nodes, 2)), numpy.inf
    for place in [_scaled(hops), *spread]:
        for _ in range(steps):
            gap = numpy.linalg.norm(place[:, None] - place[None], axis=-1)
            ratio = numpy.divide(weight * hops, gap, out=numpy.zeros_like(gap), where=gap > 1e-9)
            pull = (numpy.diag(ratio.sum(1)) - ratio) @ place
            place = numpy.vstack([numpy.zeros((1, 2)), inverse @ pull[1:]])
        gap = numpy.linalg.norm(place[:, None] - place[None], axis=-1)
        stress = float((weight * (gap - hops) ** 2).sum())
        if stress < least * (1 - 1e-6):
            best, least = place, stress
    return _turned(best)


def _scaled(hops: numpy.ndarray) -> numpy.ndarray:
    """Classical multidimensional scaling to two dimensions (Torgerson, 1952)."""
    n = len(hops)
    center = numpy.eye(n) - 1 / n
    values, vectors = numpy.linalg.eigh(-0.5 * center @ hops**2 @ center)
    place = vectors[:, -2:] * numpy.sqrt(numpy.maximum(values[-2:], 0))
    # Nodes that mirror each other share a place, and stress cannot part them; a fixed small
    # displacement can
    angle = numpy.arange(n) * 2.4
    return place + 0.05 * numpy.stack([numpy.cos(angle), numpy.sin(angle)], axis=1)


def _turned(place: numpy.ndarray) -> numpy.ndarray:
    """Centred, with the longest extent along the first axis."""
    place = place - place.mean(0)
    _, vectors = numpy.linalg.eigh(place.T @ place)
    turned: numpy.ndarray = place @ vectors[:, ::-1]
    return turned


def attention_over_graphs(graphs: Sequence[ReadGraph], *, title: str = "") -> Figure:
    """A panel per graph: nodes by type, edges by type, and attention on top of both.

    The width and colour of an edge is the attention along it, the mean of both directions where
    it has both. Dotted arcs are the strongest weights between nodes without an edge. The halo of a
    node is the attention that it receives from all nodes. All three are relative to what an even
    spread would give, so that graphs of any size compare.

    Raises:
        ValueError: there is no graph, or weights of another shape than its nodes.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    if not graphs:
        raise ValueError("graphs must hold at least one graph")
    for graph in graphs:
        count = len(graph.nodes)
        if graph.weights.shape[-2:] != (count, count) or graph.weights.ndim not in (2, 3):
            raise ValueError(
                f"weights must be ({count}, {count}) for {count} nodes, or that with heads in "
                f"front; got {tuple(graph.weights.shape)}"
            )
    across = min(len(graphs), 2)
    down = -(-len(graphs) // across)
    figure = Figure(figsize=(6.6 * across, 4.6 * down + 0.9), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten()
    # The scale ends where the drawn weights do, so that even mild preferences are seen
    drawn = numpy.concatenate([_lifts(graph) for graph in graphs])
    scale = ScalarMappable(Normalize(float(drawn.min()), float(drawn.max())), "YlOrRd")
    for axis, graph in zip(axes, graphs, strict=False):
        _draw(axis, graph, scale)
    for axis in axes[len(graphs) :]:
        axis.set_visible(False)
    bar = figure.colorbar(
        scale, ax=list(axes), location="bottom", fraction=0.03, pad=0.02, aspect=60
    )
    bar.set_label(
        "attention, as a multiple of an even spread over the graph's nodes: along an edge (band), "
        "received by a node (halo),\nand the strongest between nodes without an edge (dotted)"
    )
    bar.outline.set_visible(False)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    return figure


def _lift(graph: ReadGraph) -> numpy.ndarray:
    """Weights (N, N) as multiples of 1/N, what every pair would have if all attended evenly."""
    weights = graph.weights.detach().double().cpu()
    lift: numpy.ndarray = (weights.mean(0) if weights.ndim == 3 else weights).numpy()
    return lift * len(graph.nodes)


def _lifts(graph: ReadGraph) -> numpy.ndarray:
    """All that colours show: what nodes receive, and what passes along edges."""
    lift = _lift(graph)
    along = [(lift[a, b] + lift[b, a]) / 2 for a, b in _undirected(graph)]
    return numpy.concatenate([lift.mean(0), numpy.array(along)])


def _draw(axis: Axes, graph: ReadGraph, scale: ScalarMappable) -> None:
    count = len(graph.nodes)
    lift = _lift(graph)
    place = layout(graph.edge_index, count)
    edges = _undirected(graph)
    _draw_arcs(axis, lift, place, edges, scale)
    for (a, b), kind in edges.items():
        _draw_edge(axis, place[a], place[b], kind, (lift[a, b] + lift[b, a]) / 2, scale)
    received = lift.mean(0)
    kinds = sorted(set(graph.nodes) - set(COLORS))
    for node, name in enumerate(graph.nodes):
        color = COLORS.get(name) or OTHERS[kinds.index(name) % len(OTHERS)]
        x, y = place[node].tolist()
        axis.scatter(
            x,
            y,
            s=230 + 420 * _part(scale, received[node]),
            color=scale.to_rgba(numpy.asarray(received[node])),
            linewidths=0,
            zorder=3,
        )
        axis.scatter(x, y, s=190, color=color, edgecolors="white", linewidths=1.2, zorder=4)
        axis.text(
            x,
            y,
            name,
            color="white",
            fontsize=8.5,
            fontweight="bold",
            ha="center",
            va="center_baseline",
            zorder=5,
        )
    right = graph.predicted == graph.label
    verdict = f"{graph.predicted} ({graph.share:.0%})" + (
        ", rightly" if right else f"; in truth {graph.label}"
    )
    axis.set_title(verdict, loc="left", fontsize=11, color=RIGHT if right else WRONG)
    axis.margins(0.12)
    axis.set_aspect("equal", adjustable="datalim")
    axis.axis("off")


def _part(scale: ScalarMappable, lift: float) -> float:
    """Where `lift` lies on the scale, from 0 to 1."""
    low, high = scale.get_clim()
    assert low is not None and high is not None
    return float(numpy.interp(lift, (low, high), (0.0, 1.0)))


def _undirected(graph: ReadGraph) -> dict[tuple[int, int], str]:
    found: dict[tuple[int, int], str] = {}
    names = graph.edges or [""] * graph.edge_index.shape[1]
    for (a, b), name in zip(graph.edge_index.T.tolist(), names, strict=True):
        if a != b:
            found[min(a, b), max(a, b)] = name
    return found


def _draw_edge(
    axis: Axes, a: numpy.ndarray, b: numpy.ndarray, kind: str, lift: float, scale: ScalarMappable
) -> None:
    # Attention is the broad band below, the bond itself the thin dark lines on top of it
    axis.plot(
        *zip(a, b, strict=True),
        color=scale.to_rgba(numpy.asarray(lift)),
        linewidth=3.0 + 10.0 * _part(scale, lift),
        solid_capstyle="round",
        zorder=1,
    )
    along = (b - a) / max(float(numpy.linalg.norm(b - a)), 1e-9)
    aside = numpy.array([-along[1], along[0]]) * 0.055
    shifts: dict[str, tuple[tuple[float, str], ...]] = {
        "double": ((-1, "-"), (1, "-")),
        "triple": ((-1.6, "-"), (0, "-"), (1.6, "-")),
        "aromatic": ((-1, "-"), (1, "--")),
    }
    for shift, style in shifts.get(kind, ((0, "-"),)):
        ends = zip(a + shift * aside, b + shift * aside, strict=True)
        axis.plot(*ends, color=INK, linewidth=1.0, linestyle=style, zorder=2)


def _draw_arcs(
    axis: Axes,
    lift: numpy.ndarray,
    place: numpy.ndarray,
    edges: dict[tuple[int, int], str],
    scale: ScalarMappable,
    most: int = 4,
) -> None:
    from matplotlib.patches import FancyArrowPatch

    away = lift.copy()
    numpy.fill_diagonal(away, 0)
    for a, b in edges:
        away[a, b] = away[b, a] = 0
    for flat in numpy.argsort(-away, axis=None)[:most]:
        query, key = numpy.unravel_index(flat, away.shape)
        value = float(away[query, key])
        if value <= 1:
            break
        # From what is attended to who attends: the way that information flows
        arc = FancyArrowPatch(
            tuple(place[key]),
            tuple(place[query]),
            connectionstyle="arc3,rad=0.25",
            arrowstyle="-|>",
            mutation_scale=9,
            shrinkA=9,
            shrinkB=9,
            color=scale.to_rgba(numpy.asarray(value)),
            linestyle=(0, (1, 1.5)),
            linewidth=1.6,
            zorder=2.5,
        )
        axis.add_patch(arc)
