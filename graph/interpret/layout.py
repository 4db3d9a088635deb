"""Where to put the nodes of a graph on paper."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from attention_core import Graph, Pairs


def layout(edge_index: Tensor, num_nodes: int, steps: int = 200) -> numpy.ndarray:
    """Return places (N, 2) of nodes whose distances follow their hop distances.

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
