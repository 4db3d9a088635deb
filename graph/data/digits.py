"""Handwritten digits as one graph, each joined to those that look like it."""

from __future__ import annotations

from typing import Unpack

import numpy
import torch
from torch import Tensor

from attention_core.training import UsageError, require
from graph.data.module import GraphData, GraphDataOptions


class DigitsKNN(GraphData):
    """1,797 handwritten digits of 8×8 pixels (Alpaydin & Kaynak, UCI, 1998; in scikit-learn), each
    joined to its nearest neighbours by Euclidean distance, in both directions.

    Few of the nodes have a known class: to train with as many of each class as asked for, chosen by
    `seed`, and as many others to choose the epoch by. All other nodes are tested.

    Each of the three parts is the whole graph as one sample: `x` (1797, 64), ink in [0, 1],
    `edge_index` (2, E), `target` (1797,), and `node_mask` (1797,) of those that count.

    Args:
        neighbors: how many each digit names, itself left out.
        labels_per_class: how many nodes of each class to train with.
        settings: those of `GraphData`, of which `fold` has no meaning here.

    Raises:
        UsageError: there are not so many digits.
    """

    def __init__(
        self,
        *,
        neighbors: int = 10,
        labels_per_class: int = 10,
        **settings: Unpack[GraphDataOptions],
    ) -> None:
        super().__init__(**settings)
        if self.fold is not None:
            raise UsageError("data.fold: the labels of digits are chosen by seed, not in folds.")
        for name, value, most in (
            ("neighbors", neighbors, 1796),
            ("labels_per_class", labels_per_class, 80),
        ):
            if not 1 <= value <= most:
                raise UsageError(f"data.{name} must be 1 to {most}, got {value}.")
        self.neighbors, self.labels_per_class = neighbors, labels_per_class

    def load(self) -> None:
        require("sklearn", extra="graph")
        from sklearn.datasets import load_digits
        from sklearn.neighbors import kneighbors_graph

        pixels, labels = load_digits(return_X_y=True)
        pixels /= 16
        near = kneighbors_graph(pixels, self.neighbors)
        edges = numpy.stack((near + near.T).nonzero())
        graph = {
            "x": torch.from_numpy(pixels).float(),
            "edge_index": torch.from_numpy(edges).long(),
            "target": torch.from_numpy(labels).long(),
        }
        self.fill_nodes(graph, *few_labels(graph["target"], self.labels_per_class, self.seed))


def few_labels(target: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw masks (N,) of `count` random nodes of each class to train with, of as many others to
    validate with, and of all that are left to test with."""
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(seed))
    masks = torch.zeros(3, len(target), dtype=torch.bool)
    for label in target.unique():
        members = order[target[order] == label]
        for mask, part in zip(masks, members.tensor_split([count, 2 * count]), strict=True):
            mask[part] = True
    train, val, test = masks
    return train, val, test
