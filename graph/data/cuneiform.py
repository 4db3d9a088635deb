"""Cuneiform signs as graphs of their wedges."""

from __future__ import annotations

import math
from typing import Unpack

import torch

from graph.data.graphs import Sample
from graph.data.module import GraphData, GraphDataOptions
from graph.data.mutag import grakel_folder
from graph.data.tu import read_tu


class Cuneiform(GraphData):
    """267 Hittite cuneiform signs of 30 classes, written by nine people (Kriege et al., 2018).

    A wedge is four nodes, its deepest point and three corners, joined to each other; the deepest
    points of a sign's wedges are joined, too. The files are those that the package grakel carries.
    The split is stratified and fixed: 60% training, 20% validation, 20% test; or by `fold`.

    A batch holds one row of nodes: `x` (N, 10), coordinates, with the sign's centre at 0 and its
    mean distance from it in the plane 1, then one-hot which point of a wedge it is (depth, tail,
    left, right) and of which kind (vertical, Winkelhaken, horizontal); `edge_index` (2, E);
    `edge_attr` (E,), 0 inside a wedge and 1 between wedges; `batch` (N,), `num_graphs` and `target`
    (G,).

    Signs to train with are turned and scaled a little, and their points moved, anew in each epoch.

    Args:
        rotation: largest angle in degrees, in the plane.
        scale: largest relative change of width and of height, each on its own.
        noise: standard deviation of what moves each coordinate.
        settings: those of `GraphData`.
    """

    def __init__(
        self,
        *,
        rotation: float = 10.0,
        scale: float = 0.2,
        noise: float = 0.05,
        **settings: Unpack[GraphDataOptions],
    ) -> None:
        super().__init__(**settings)
        self.rotation, self.scale, self.noise = rotation, scale, noise

    def names(self, graph: Sample) -> tuple[list[str], list[str]]:
        """Return the first letter of each point of a wedge."""
        return ["DTLR"[kind] for kind in graph["x"][:, 3:7].argmax(1).tolist()], []

    def load(self) -> None:
        samples = [self._centred(sample) for sample in read_tu(grakel_folder("Cuneiform"))]
        self.split(samples, "cuneiform", augment=self.jitter)

    @staticmethod
    def _centred(sample: Sample) -> Sample:
        place, kinds = sample["x"].split([3, 7], dim=1)
        place = place - place.mean(0)
        place = place / place[:, :2].norm(dim=1).mean()
        # Of an edge, the last two numbers are one-hot; the others follow from the coordinates
        return {
            **sample,
            "x": torch.cat([place, kinds], dim=1),
            "edge_attr": sample["edge_attr"][:, -1].long(),
        }

    def jitter(self, sample: Sample) -> Sample:
        """Turn and scale the sign and move its points, by amounts from torch's generator."""
        x = sample["x"].clone()
        angle, wide, high = (2 * torch.rand(3) - 1).tolist()
        angle *= math.radians(self.rotation)
        turn = torch.tensor(
            [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
        )
        size = torch.tensor([1 + self.scale * wide, 1 + self.scale * high])
        x[:, :2] = x[:, :2] @ turn * size
        x[:, :3] += self.noise * torch.randn(len(x), 3)
        return {**sample, "x": x}
