"""Encodings as PyG transforms, for `pre_transform`: computed once per graph, joined in batches.

What is of a node is stored as (n, ...), what is of an edge as (e, ...), what is of a pair as
(n², ...), row by row, so that PyG's batches just put those of their graphs one after the other, as
`Graph(pair_attr=...)` takes them::

    transform = Compose([AddRandomWalks(16), AddRelativeWalks(8), AddHops()])
    dataset = TUDataset(folder, name, pre_transform=transform)
    for batch in DataLoader(dataset, 32):
        space = Graph.from_pyg(batch, pair_attr=["hops", "rrwp"])

Transforms that drop nodes or edges, or renumber them, come before these: none knows of pairs. All
take a whole `Batch`, too, which then gives no single graphs back.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from attention_core.annotated import checked
from attention_core.checks import check_whole
from attention_core.spaces.edge_list import EdgeList
from graph.encodings.biases import edge_rows
from graph.encodings.centrality import degrees
from graph.encodings.expander import check_degree, expander_edges
from graph.encodings.laplacian import (
    Normalization,
    check_normalization,
    components,
    flip_signs,
    laplacian_eigenvectors,
    spectral_coordinates,
)
from graph.encodings.random_walks import relative_walks, return_probabilities, walk_table
from graph.encodings.shortest_paths import path_features


def edge_list(data: Data) -> EdgeList:
    """Return the edges of a PyG `Data` or `Batch`.

    Raises:
        ValueError: there is no `edge_index`.
    """
    if data.edge_index is None:
        raise ValueError(f"data has no edge_index, got {data}")
    return EdgeList(data.edge_index, data.num_nodes, data.edge_attr, getattr(data, "batch", None))


class AddHops(BaseTransform):
    """`hops`, (n²,) float: the length of the shortest path between any two nodes."""

    def forward(self, data: Data) -> Data:
        data.hops = edge_list(data).hop_table
        return data


class AddDegree(BaseTransform):
    """`degree`, (n, 2) integers, in and out: for `CentralityEmbedding`, where a sampled subgraph
    would show other ones."""

    def forward(self, data: Data) -> Data:
        data.degree = degrees(edge_list(data))
        return data


class AddLaplacian(BaseTransform):
    """`laplacian` and `laplacian_values`, (n, k) each: see `laplacian_eigenvectors`."""

    @checked
    def __init__(self, k: int, *, normalization: Normalization = "sym") -> None:
        check_whole(k=k)
        check_normalization(normalization)
        self.k, self.normalization = k, normalization

    def forward(self, data: Data) -> Data:
        data.laplacian, data.laplacian_values = laplacian_eigenvectors(
            edge_list(data), self.k, normalization=self.normalization
        )
        return data


class AddSpectralCoordinates(BaseTransform):
    """`spectral`, (n, k), for ``Graph.from_pyg(data, coordinates="spectral")``: see
    `spectral_coordinates`."""

    @checked
    def __init__(self, k: int, *, normalization: Normalization = "sym") -> None:
        check_whole(k=k)
        check_normalization(normalization)
        self.k, self.normalization = k, normalization

    def forward(self, data: Data) -> Data:
        data.spectral = spectral_coordinates(
            edge_list(data), self.k, normalization=self.normalization
        )
        return data


class RandomSigns(BaseTransform):
    """Flips the sign of each eigenvector in `laplacian` and `spectral` at random, anew each time:
    a `transform` of the training set, after the `pre_transform` that stored them."""

    def forward(self, data: Data) -> Data:
        names = [name for name in ("laplacian", "spectral") if name in data]
        if not names:
            raise ValueError("data has no 'laplacian' or 'spectral': apply AddLaplacian before")
        component = components(edge_list(data))
        for name in names:
            data[name] = flip_signs(data[name], component)
        return data


class AddRandomWalks(BaseTransform):
    """`rwse`, (n, steps): see `return_probabilities`."""

    @checked
    def __init__(self, steps: int) -> None:
        check_whole(steps=steps)
        self.steps = steps

    def forward(self, data: Data) -> Data:
        data.rwse = return_probabilities(edge_list(data), self.steps)
        return data


class AddRelativeWalks(BaseTransform):
    """`rrwp`, (n², steps), for `RandomWalkBias`; or `edge_rrwp`, (e, steps), those along edges.

    Args:
        steps: how many probabilities, of 0 to steps - 1 steps.
        of: "pairs"; or "edges" for graphs too large for n² pairs, where they are features of edges
            for `EdgeBias(features=...)` or edge features in keys and values.
    """

    @checked
    def __init__(self, steps: int, *, of: Literal["pairs", "edges"] = "pairs") -> None:
        if of not in ("pairs", "edges"):
            raise ValueError(f"of must be 'pairs' or 'edges', got {of!r}")
        check_whole(steps=steps)
        self.steps, self.of = steps, of

    def forward(self, data: Data) -> Data:
        edges = edge_list(data)
        if self.of == "pairs":
            data.rrwp = walk_table(edges, self.steps)
        else:
            data.edge_rrwp = relative_walks(edges, self.steps, edges.target, edges.source)
        return data


class AddPaths(BaseTransform):
    """`path`, (n², max_hops · F), for `PathBias`: see `path_features`.

    Args:
        max_hops: number of positions.
        types: number of edge types, where `edge_attr` holds types (e,); None where it holds
            features (e, F).
    """

    @checked
    def __init__(self, max_hops: int, *, types: int | None = None) -> None:
        check_whole(max_hops=max_hops)
        check_whole(types=types, or_none=True)
        self.max_hops, self.types = max_hops, types

    def forward(self, data: Data) -> Data:
        edges = edge_list(data)
        if edges.attr is None:
            raise ValueError("AddPaths needs data.edge_attr")
        data.path = path_features(edges, edge_rows(edges.attr, self.types), self.max_hops)
        return data


class AddExpander(BaseTransform):
    """More edges, those of a random regular graph, with a type of their own: see `expander_edges`.

    With the mask `Edges()` attention then runs along both kinds in one softmax, and
    `EdgeBias(types=types + 1)` tells them apart. Other encodings come before this one, or count the
    new edges, too.

    Args:
        degree: even.
        types: number of edge types in `edge_attr` (e,); new edges have the type `types`. None
            where there are no types: then edges get types 0 and 1, and features (e, F) a last one
            more, which is 1 on new edges, whose other features are 0.
        seed: of the permutations.
    """

    @checked
    def __init__(self, degree: int, *, types: int | None = None, seed: int = 0) -> None:
        check_degree(degree, seed)
        check_whole(types=types, or_none=True)
        self.degree, self.types, self.seed = degree, types, seed

    def forward(self, data: Data) -> Data:
        edges = edge_list(data)
        new = expander_edges(edges, self.degree, seed=self.seed)
        data.edge_attr = self._attr(edges.attr, edges.num_edges, new)
        data.edge_index = torch.cat([data.edge_index, new], dim=1)
        return data

    def _attr(self, attr: Tensor | None, old: int, new: Tensor) -> Tensor:
        count = new.shape[1]
        if attr is None and self.types is None:
            return torch.cat([new.new_zeros(old), new.new_ones(count)])
        if attr is None:
            raise ValueError(f"AddExpander(types={self.types}) needs data.edge_attr")
        edge_rows(attr, self.types)  # is it of the kind that was announced?
        if self.types is not None:
            return torch.cat([attr, attr.new_full((count,), self.types)])
        features = attr[:, None] if attr.ndim == 1 else attr
        is_new = torch.cat([features.new_zeros(old, 1), features.new_ones(count, 1)])
        rows = torch.cat([features, features.new_zeros(count, *features.shape[1:])])
        return torch.cat([rows, is_new], dim=1)
