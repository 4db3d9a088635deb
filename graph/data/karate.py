"""Zachary's karate club."""

from __future__ import annotations

from typing import Unpack

import torch

from attention_core.training import UsageError
from attention_core.training.splits import stratified_split
from graph.data.module import GraphData, GraphDataOptions


class Karate(GraphData):
    """34 members of a karate club and their friendships (Zachary, 1977), in PyG.

    The four classes are communities that modularity finds. Known is one member of each, those of
    PyG (Kipf & Welling, 2017). A quarter of the others, stratified and fixed, choose the epoch; the
    rest are tested.

    Each of the three parts is the whole graph as one sample: `x` (34,), a type of its own for each
    node, `edge_index` (2, 156), `target` (34,), and `node_mask` (34,) of those that count.

    Args:
        settings: those of `GraphData`, of which `fold` has no meaning here.
    """

    def __init__(self, **settings: Unpack[GraphDataOptions]) -> None:
        super().__init__(**settings)
        if self.fold is not None:
            raise UsageError("data.fold: the nodes of the karate club are split in one way only.")

    def load(self) -> None:
        from torch_geometric.datasets import KarateClub

        club = KarateClub()[0]
        rest = (~club.train_mask).nonzero().squeeze(1)
        chosen, _ = stratified_split(club.y[rest].tolist(), (0.25, 0.75), "karate")
        val = torch.zeros_like(club.train_mask)
        val[rest[chosen]] = True
        graph = {"x": torch.arange(34), "edge_index": club.edge_index, "target": club.y}
        self.fill_nodes(graph, club.train_mask, val, ~(club.train_mask | val))
