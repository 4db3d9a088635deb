"""Layouts and drawings of graphs."""

from pathlib import Path
from typing import Any

import networkx
import numpy
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection as Dots
from matplotlib.figure import Figure
from matplotlib.image import imread

from attention_core import Edges
from attention_core.interpret.plots import save_figure
from graph import GraphTransformer
from graph.interpret import Shown, attention_figures
from graph.interpret.drawing import ReadGraph
from graph.interpret.layout import layout
from graph.interpret.plots import around, attention_over_graphs


def ring(nodes: int) -> torch.Tensor:
    here = torch.arange(nodes)
    there = (here + 1) % nodes
    return torch.stack([torch.cat([here, there]), torch.cat([there, here])])


def test_a_ring_is_laid_out_as_a_regular_polygon() -> None:
    place = layout(ring(6), 6)
    sides = numpy.linalg.norm(place - numpy.roll(place, 1, axis=0), axis=1)
    radii = numpy.linalg.norm(place - place.mean(0), axis=1)
    assert sides.max() / sides.min() < 1.05
    assert radii.max() / radii.min() < 1.05


@pytest.mark.parametrize("nodes", [0, 1, 2, 5])
def test_layouts_without_edges_are_finite_and_apart(nodes: int) -> None:
    place = layout(torch.empty(2, 0).long(), nodes)
    assert place.shape == (nodes, 2)
    assert numpy.isfinite(place).all()
    gaps = numpy.linalg.norm(place[:, None] - place[None], axis=-1) + 9 * numpy.eye(nodes)
    assert nodes < 2 or gaps.min() > 0.3


def test_layouts_repeat() -> None:
    assert (layout(ring(9), 9) == layout(ring(9), 9)).all()


def read(nodes: int, edges: list[str]) -> ReadGraph:
    weights = torch.rand(nodes, nodes).softmax(-1)
    even = torch.full((nodes, nodes), 1 / nodes)
    return ReadGraph(ring(nodes), ["C", "N", "Xx"] * nodes, edges, weights, even, "a (70%)", False)


def png(figure: Figure, path: Path) -> numpy.ndarray:
    save_figure(figure, path)
    pixels: numpy.ndarray = imread(path)
    return pixels


def test_graphs_are_drawn(tmp_path: Path) -> None:
    kinds = ["double", "triple", "aromatic", "single", "other", "double"] * 2
    one = read(6, kinds)._replace(nodes=["C", "N", "O", "Xx", "Yy", "C"], marked=(2,))
    figure = attention_over_graphs([one, one._replace(edges=[]), one], title="attention")
    assert png(figure, tmp_path / "attention.png").std() > 0.02
    assert [axis.get_title(loc="left") for axis in figure.axes[:3]] == ["a (70%)"] * 3


def widths(graph: ReadGraph) -> dict[tuple[float, float], float]:
    """Of the bands, by their middle."""
    axis = attention_over_graphs([graph]).axes[0]
    bands, _ = (lines for lines in axis.collections if isinstance(lines, LineCollection))
    middles = [tuple(ends.mean(axis=0).round(6)) for ends in bands.get_segments()]
    return dict(zip(middles, bands.get_linewidths(), strict=True))


def test_bands_are_as_wide_as_attention_is_strong() -> None:
    nodes = 5
    weights = torch.full((nodes, nodes), 0.1)
    weights[1, 2], weights[2, 1], weights[3, 4] = 0.6, 0.2, 0.3
    graph = read(nodes, [])._replace(nodes=[""] * nodes, weights=weights)
    place, found = layout(ring(nodes), nodes), widths(graph)
    strength = (weights + weights.T) / 2
    ends = [(a, (a + 1) % nodes) for a in range(nodes)]
    width = [found[tuple(((place[a] + place[b]) / 2).round(6))] for a, b in ends]
    attention = [float(strength[a, b]) for a, b in ends]
    assert numpy.corrcoef(width, attention)[0, 1] > 0.999
    assert width[1] == max(width) == 13  # the widest there is
    # nothing passes where nothing may
    masked = graph.even.clone()
    masked[0, 1] = masked[1, 0] = 0
    assert len(widths(graph._replace(even=masked))) == nodes - 1


def test_arcs_are_the_strongest_attention_without_an_edge() -> None:
    weights = torch.full((6, 6), 0.1)
    weights[0, 3], weights[4, 1] = 0.9, 0.8
    graph = read(6, [])._replace(nodes=[""] * 6, weights=weights)
    axis = attention_over_graphs([graph]).axes[0]
    assert len(axis.patches) == 2  # all others are below an even spread


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="at least one graph"):
        attention_over_graphs([])
    with pytest.raises(ValueError, match=r"weights must be \(18, 18\) for 18 nodes"):
        attention_over_graphs([read(6, [])])
    with pytest.raises(ValueError, match="edges must name all 12 edges .* got 3 names"):
        attention_over_graphs([read(6, ["a"] * 3)._replace(nodes=[""] * 6)])


@pytest.mark.parametrize("most", [1, 4, 30])
def test_what_is_around_a_node(most: int) -> None:
    torch.manual_seed(0)
    edge_index = torch.randint(20, (2, 30))
    found = around(edge_index, 3, most)
    graph = networkx.Graph(edge_index.T.tolist())
    hops = networkx.single_source_shortest_path_length(graph, 3)
    assert len(found) == len(set(found.tolist())) == min(most, len(hops))
    apart = [hops[node] for node in found.tolist()]
    assert apart == sorted(hops.values())[: len(found)]


def inputs(graphs: int, nodes: int) -> dict[str, Any]:
    edges = torch.cat([ring(nodes) + nodes * graph for graph in range(graphs)], dim=1)
    return {
        "x": torch.arange(graphs * nodes) % 3,
        "edge_index": edges,
        "batch": torch.arange(graphs).repeat_interleave(nodes),
        "num_graphs": graphs,
    }


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"virtual_nodes": 1, "max_hops": 3, "pooling": "attention"}, True),
        ({"mask": Edges(), "level": "node", "heads": 6, "score": "additive"}, True),
        ({"local": Edges()}, False),
    ],
)
def test_all_figures_of_a_model(options: dict[str, Any], named: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"dim": 12, "depth": 2, "heads": 2, **options}
    model = GraphTransformer(num_classes=2, node_types=3, **sizes).eval()
    shown = [Shown(torch.arange(8), "first", True, torch.tensor([2])), Shown(torch.tensor([9]), "")]
    batch = inputs(2, 8)
    names = (["C", "N", "O"] * 5 + ["C"], ["double"] * 32) if named else ((), ())
    figures = attention_figures(model, batch, shown, names=names, layer=0, head=1)
    assert list(figures) == ["attention", "attention_layers", "attention_hops"]
    for name, figure in figures.items():
        assert png(figure, tmp_path / f"{name}.png").std() > 0.02
    title = figures["attention"].get_suptitle()
    assert title == "Attention of layer 1, head 2"


def test_of_a_large_graph_a_part_is_drawn() -> None:
    torch.manual_seed(0)
    model = GraphTransformer(8, 1, 2, num_classes=2, node_types=3, mask=Edges()).eval()
    one = Shown(torch.arange(300), "", marked=torch.tensor([150]))
    figures = attention_figures(model, inputs(1, 300), [one])
    dots = [part for part in figures["attention"].axes[0].collections if isinstance(part, Dots)]
    assert [len(part.get_offsets()) for part in dots] == [60, 60]  # halos and nodes


def test_figures_of_nothing() -> None:
    model = GraphTransformer(8, 1, 2, num_classes=2, node_types=3).eval()
    with pytest.raises(ValueError, match="shown must hold at least one graph"):
        attention_figures(model, inputs(1, 4), [])
    with pytest.raises(ValueError, match="there are 1 layers, no layer 1"):
        attention_figures(model, inputs(1, 4), [Shown(torch.arange(4), "")], layer=1)
