"""What a graph model attends to, drawn on its graphs and by hops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor, nn

from attention_core.escape import plot_label
from attention_core.interpret import plots as kit
from attention_core.interpret.maps import choose
from attention_core.interpret.plots import HEAT, INK
from graph.interpret.drawing import Lifts, ReadGraph, draw_graph
from graph.interpret.layout import layout
from graph.interpret.maps import HopProfile, NodeAttention, attention_by_hops, attention_maps

#: Nodes of a graph that are drawn; of a larger one a part.
MOST_NODES = 60


class Shown(NamedTuple):
    """A graph of a batch, or the part of one around some nodes, and what to write above it.

    Attributes:
        nodes: (n,) numbers of its nodes in the batch.
        caption: such as what the model says of it.
        right: whether that is right, which colours the caption; None: neither.
        marked: (m,) numbers in the batch of the nodes that the caption is about.
    """

    nodes: Tensor
    caption: str
    right: bool | None = None
    marked: Tensor | None = None


def around(edge_index: Tensor, node: Tensor | int, most: int = 30) -> Tensor:
    """Return `node`, or several, and the nodes nearest to it, whatever the direction of edges: at
    most `most`, (n,), in the order of hops and, at as many hops, of their numbers."""
    near = torch.as_tensor(node).to(edge_index.device).reshape(-1).unique()
    while len(near) < most:
        ends = torch.cat([edge_index, edge_index.flip(0)], dim=1)
        reached = ends[1, torch.isin(ends[0], near)].unique()
        new = reached[~torch.isin(reached, near)]
        if not len(new):
            break
        near = torch.cat([near, new[: most - len(near)]])
    return near


def attention_figures(
    model: nn.Module,
    inputs: Mapping[str, Any],
    shown: Sequence[Shown],
    *,
    names: tuple[Sequence[str], Sequence[str]] = ((), ()),
    layer: int = -1,
    head: int | None = None,
) -> dict[str, Figure]:
    """Return all that shows what `model` attends to, by file name.

    "attention" is the `attention_over_graphs` of one layer, "attention_layers" the `layer_sheet` of
    the first graph, "attention_hops" the `hop_figure` of the whole batch.

    Args:
        model: in eval mode.
        inputs: its arguments by name, of one batch.
        shown: the graphs to draw, about four of them; of one of more than 60 nodes, those nearest
            to what is marked, or else to its first node.
        names: of the types of all nodes, and of all edges, of the batch; none of either are needed.
        layer: of "attention", in the order of the model, negative ones from the last.
        head: of "attention"; None: the mean of all.

    Raises:
        ValueError: there is no such layer or head, nothing to show, or the model is in training
            mode.
    """
    layers = attention_maps(model, inputs)
    drawn = layers[choose("layer", [layer], len(layers))[0]]
    if not shown:
        raise ValueError("shown must hold at least one graph")
    edge_index = inputs["edge_index"]
    parts = [_part(one, edge_index) for one in shown]
    of_layer = [_read(drawn, one, edge_index, names, head) for one in parts]
    which = "mean of its heads" if head is None else f"head {head % len(drawn.heads) + 1}"
    title = f"Attention of {drawn.name}, {which}"
    first = [
        [_read(each, parts[0], edge_index, names, number) for number in range(len(each.heads))]
        for each in layers
    ]
    return {
        "attention": attention_over_graphs(of_layer, title=title),
        "attention_layers": layer_sheet(first, [each.name for each in layers]),
        "attention_hops": hop_figure(attention_by_hops(layers)),
    }


def attention_over_graphs(graphs: Sequence[ReadGraph], *, title: str = "") -> Figure:
    """Return a panel per graph: nodes and edges by type, and attention on top, see `draw_graph`. It
    is relative to what an even spread would give, so that graphs of any size compare.

    Raises:
        ValueError: there is no graph, or weights of another shape than its nodes.
    """
    if not graphs:
        raise ValueError("graphs must hold at least one graph")
    for graph in graphs:
        graph.check()
    across = min(len(graphs), 2)
    down = -(-len(graphs) // across)
    figure = Figure(figsize=(6.6 * across, 4.6 * down + 0.9), layout="constrained")
    scale = _scale(graphs)
    for place, graph in zip(kit.panels(figure, len(graphs), across), graphs, strict=True):
        draw_graph(figure.add_subplot(place), graph, scale)
    meaning = (
        "attention, as a multiple of an even spread over all that a node may attend to: along an "
        "edge (band),\nreceived by a node (halo), and the strongest between nodes without an edge "
        "(dotted)"
    )
    kit.put_bar(figure, scale, meaning, location="bottom", aspect=60)
    kit.put_title(figure, title)
    return figure


def layer_sheet(graphs: Sequence[Sequence[ReadGraph]], layers: Sequence[str]) -> Figure:
    """Return every head of every layer on one graph: a row per layer, a column per head.

    Args:
        graphs: for each layer the graph as each head reads it.
        layers: the names of the layers.
    """
    tile = 1.9 if max(map(len, graphs)) <= 4 else 1.4
    place = layout(graphs[0][0].edge_index, len(graphs[0][0].nodes))
    width, height = numpy.ptp(place, axis=0) + 1
    scale = _scale([graph for row in graphs for graph in row])

    def draw(axis: Axes, layer: int, head: int, *, left: bool, below: bool) -> None:
        draw_graph(axis, graphs[layer][head], scale, place=place, small=True)

    caption = graphs[0][0].caption
    return kit.head_sheet(
        layers,
        [range(len(row)) for row in graphs],
        draw,
        scale,
        "attention\n(1: spread evenly)",
        tile=(tile, tile * max(0.35, height / width)),
        title="Attention of every head" + (f" · {caption}" if caption else ""),
    )


def hop_figure(profile: HopProfile) -> Figure:
    """Return how far each head looks: a panel per layer, with a row per head, and below what an
    even spread over all that nodes may attend to would give."""
    layers, heads, columns = profile.shares.shape
    down = -(-layers // 3)
    width = 0.3 + -(-layers // down) * (0.62 * columns + 1.0)
    figure = Figure(figsize=(width, down * (0.3 * (heads + 1) + 1.5) + 0.5), layout="constrained")
    highest = max(0.3, float(profile.shares.nan_to_num().max()))
    places = kit.panels(figure, layers, 3)
    rows = zip(places, profile.layers, profile.shares, profile.even, strict=True)
    for place, name, shares, even in rows:
        axis = figure.add_subplot(place)
        shares = shares[~shares.isnan().all(1)]
        table = torch.cat([shares, even[None]]).cpu().numpy()
        axis.imshow(table, HEAT, vmin=0, vmax=highest, aspect="auto", interpolation="nearest")
        for (row, column), share in numpy.ndenumerate(table):
            if round(share * 100):
                kit.put_number(axis, row, column, f"{share:.0%}", share / highest)
        axis.axhline(len(shares) - 0.5, color=INK, linewidth=1.0)
        names = [*(f"head {head + 1}" for head in range(len(shares))), "evenly"]
        first = place.colspan.start == 0
        axis.set_yticks(range(len(names)), names if first else [""] * len(names))
        axis.set_xticks(range(columns), [hop.replace("al n", "al\nn") for hop in profile.hops])
        axis.tick_params(labelsize=8.5)
        kit.bare(axis, ticks=True)
        axis.set_title(plot_label(name), loc="left", fontsize=10.5, color=INK)
        axis.set_xlabel("hops", fontsize=9)
    kit.put_title(figure, "How far heads look: share of attention by hops")
    return figure


def _part(one: Shown, edge_index: Tensor) -> Shown:
    """Reduce a graph to as many nodes as can be drawn."""
    if len(one.nodes) <= MOST_NODES:
        return one
    kept = torch.isin(edge_index, one.nodes).all(0)
    middle = one.nodes[:1] if one.marked is None else one.marked
    return one._replace(nodes=around(edge_index[:, kept], middle, MOST_NODES))


def _read(
    layer: NodeAttention,
    one: Shown,
    edge_index: Tensor,
    names: tuple[Sequence[str], Sequence[str]],
    head: int | None,
) -> ReadGraph:
    numbers = one.nodes.tolist()
    rank = {node: number for number, node in enumerate(numbers)}
    inside = torch.isin(edge_index, one.nodes).all(0).nonzero().squeeze(-1)
    ends = [[rank[node] for node in end] for end in edge_index[:, inside].tolist()]
    of_nodes, of_edges = names
    weights, even = layer.between(one.nodes, head)
    return ReadGraph(
        torch.tensor(ends, dtype=torch.long).reshape(2, -1),
        [of_nodes[node] for node in numbers] if of_nodes else [""] * len(numbers),
        [of_edges[edge] for edge in inside.tolist()] if of_edges else [],
        weights,
        even,
        one.caption,
        one.right,
        () if one.marked is None else tuple(rank[node] for node in one.marked.tolist()),
    )


def _scale(graphs: Sequence[ReadGraph]) -> ScalarMappable:
    # It ends where the drawn weights do, so that even mild preferences are seen
    lifts = [Lifts.of(graph) for graph in graphs]
    drawn = numpy.concatenate([[*one.received, *one.edge.values()] for one in lifts])
    drawn = drawn[numpy.isfinite(drawn)]
    low, high = (float(drawn.min()), float(drawn.max())) if len(drawn) else (0.0, 1.0)
    return ScalarMappable(Normalize(low, high), "YlOrRd")
