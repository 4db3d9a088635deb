"""Layouts and drawings of graphs."""

from pathlib import Path

import numpy
import pytest
import torch

from attention_core.training.figures import save_figure
from graph.figures import ReadGraph, attention_over_graphs, layout


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
    weights = torch.rand(4, nodes, nodes).softmax(-1)
    return ReadGraph(ring(nodes), ["C", "N", "Xx"] * nodes, edges, weights, "a", "b", 0.7)


def test_graphs_are_drawn(tmp_path: Path) -> None:
    kinds = ["double", "triple", "aromatic", "single", "other", "double"] * 2
    one = read(6, kinds)._replace(nodes=["C", "N", "O", "Xx", "Yy", "C"])
    figure = attention_over_graphs([one, one._replace(edges=[]), one], title="attention")
    save_figure(figure, tmp_path / "attention.png")
    assert (tmp_path / "attention.png").stat().st_size > 10_000


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="at least one graph"):
        attention_over_graphs([])
    with pytest.raises(ValueError, match=r"weights must be \(18, 18\) for 18 nodes"):
        attention_over_graphs([read(6, [])])
