"""Biases from what two nodes of a graph are to each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.compiler import is_exporting

from attention_core import Bias
from attention_core.annotated import checked
from attention_core.biases import by_head
from attention_core.checks import check_whole, may_look
from attention_core.spaces import Pairs
from attention_core.spaces.edge_list import EdgeList
from graph.encodings.random_walks import walk_table
from graph.encodings.shortest_paths import path_features


class PairBias(Bias):
    """A learned score for each pair of nodes from a table of features of all pairs.

    Args:
        heads: number of query heads H.
        name: of the table, ``Graph(pair_attr={name: table})`` with (Σ n²,) or (Σ n², F) floats.
        features: number of features F.
        hidden: width of a hidden layer; None makes the score linear in the features.
    """

    @checked
    def __init__(self, heads: int, name: str, features: int, *, hidden: int | None = None) -> None:
        super().__init__()
        check_whole(heads=heads, features=features)
        check_whole(hidden=hidden, or_none=True)
        self.heads, self.name, self.features = heads, name, features
        self.net = (
            nn.Linear(features, heads, bias=False)
            if hidden is None
            else nn.Sequential(
                nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, heads, bias=False)
            )
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        last = self.net if isinstance(self.net, nn.Linear) else self.net[-1]
        assert isinstance(last, nn.Linear)
        nn.init.trunc_normal_(last.weight, std=0.02)

    def compute(self, edges: EdgeList) -> Tensor:
        """Compute the table, (Σ n², F), once, where the space was not given one; see `edges.memo`.

        Raises:
            ValueError: nothing is known from which to compute it.
        """
        raise ValueError(
            f"there is no table {self.name!r}: give Graph(..., pair_attr={{{self.name!r}: ...}})"
        )

    def table(self, edges: EdgeList) -> Tensor:
        """Return the table (Σ n², F): the one given, or the one computed.

        Raises:
            ValueError: the one given does not have F features, or none is given.
        """
        given = edges.pair_attr.get(self.name)
        if given is None:
            return self.compute(edges)
        given = given[:, None] if given.ndim == 1 else given
        if given.ndim != 2 or given.shape[1] != self.features or not given.is_floating_point():
            raise ValueError(
                f"{type(self).__name__} needs float pair_attr[{self.name!r}] of "
                f"{self.features} features a pair, got {given.dtype} {tuple(given.shape)}"
            )
        return given

    def score(self, pairs: Pairs) -> Tensor:
        row, space = pairs.pair, pairs.spaces[1]
        assert space.edges is not None  # or `pair` had been refused
        table = self.table(space.edges)
        if is_exporting() and self.name not in space.edges.pair_attr:
            row = space.edges.pair_of_all(pairs.take("nodes", "query"), pairs.take("nodes", "key"))
        elif not is_exporting() and row.numel() < len(table):  # few of the pairs are asked for
            table = table[row.clamp(min=0).flatten()]
            row = torch.where(
                row < 0, -1, torch.arange(row.numel(), device=row.device).view_as(row)
            )
        scores = self.net(table.to(next(self.net.parameters()).dtype))
        between_graphs = scores.new_zeros(1, scores.shape[1])
        row = torch.where(row < 0, scores.shape[0], row)
        return by_head(torch.cat([scores, between_graphs]), row, pairs.head)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, name={self.name!r}, features={self.features}"


class RandomWalkBias(PairBias):
    """A learned score from the walks from key to query (RRWP: Ma et al., GRIT, 2023).

    The table is "rrwp" of the space (transform `AddRelativeWalks`), or computed when first needed.
    On a graph too large for n² pairs, the walks along its edges are features of these:
    ``AddRelativeWalks(steps, of="edges")`` and `EdgeBias`.

    Args:
        heads: number of query heads.
        steps: number of steps K, 0 to K - 1.
        hidden: as in `PairBias`.
    """

    @checked
    def __init__(self, heads: int, steps: int, *, hidden: int | None = None) -> None:
        check_whole(steps=steps)
        super().__init__(heads, "rrwp", steps, hidden=hidden)

    def compute(self, edges: EdgeList) -> Tensor:
        steps = self.features
        return edges.memo(("rrwp", steps), lambda: walk_table(edges, steps))


class PathBias(PairBias):
    """A learned score from the edges on the shortest path from key to query (edge encoding: Ying et
    al., Graphormer, 2021): the mean over the path of a weight per position and edge type, or of the
    edge's features with weights per position. See `path_features`.

    The table is "path" of the space (transform `AddPaths`), or computed from its `edge_attr`.

    Args:
        heads: number of query heads.
        max_hops: number of positions; of longer paths the part at the query counts.
        types: number of edge types, for `edge_attr` of integers (E,).
        features: number of edge features F, for `edge_attr` of floats (E, F).
    """

    @checked
    def __init__(
        self,
        heads: int,
        max_hops: int,
        *,
        types: int | None = None,
        features: int | None = None,
    ) -> None:
        if (types is None) == (features is None):
            raise ValueError(
                f"PathBias needs one of types= and features=, of edges, got {types}, {features}"
            )
        check_whole(max_hops=max_hops)
        check_whole(types=types, features=features, or_none=True)
        super().__init__(heads, "path", max_hops * (types or features or 0))
        self.max_hops, self.types = max_hops, types

    def compute(self, edges: EdgeList) -> Tensor:
        key = ("path", self.max_hops, self.types, self.features)
        return edges.memo(key, lambda: self._paths(edges))

    def _paths(self, edges: EdgeList) -> Tensor:
        if edges.attr is None:
            raise ValueError("PathBias needs Graph(..., edge_attr=...) or pair_attr={'path': ...}")
        features = edge_rows(edges.attr, self.types)
        if features.shape[1] * self.max_hops != self.features:
            raise ValueError(
                f"PathBias was built for features={self.features // self.max_hops}, edge_attr is "
                f"{tuple(edges.attr.shape)}"
            )
        return path_features(edges, features, self.max_hops)


def edge_rows(attr: Tensor, types: int | None) -> Tensor:
    """Return features (E, F) of edges: one-hot where they have one of so many `types`.

    Raises:
        TypeError, ValueError: `attr` is of the other kind, or names a type that there is none of.
    """
    if (types is not None) == attr.is_floating_point():
        wanted = "integer types (E,)" if types is not None else "float features (E, F)"
        raise TypeError(f"edge_attr must hold {wanted}, got {attr.dtype} {tuple(attr.shape)}")
    if types is None:
        return attr[:, None] if attr.ndim == 1 else attr.flatten(1)
    if attr.ndim != 1:
        raise ValueError(f"edge_attr must hold a type per edge, (E,), got {tuple(attr.shape)}")
    if may_look(attr) and attr.numel() and not 0 <= int(attr.min()) <= int(attr.max()) < types:
        raise ValueError(
            f"edge_attr names types {int(attr.min())} to {int(attr.max())}, but types={types}: "
            f"they are 0 to {types - 1}"
        )
    return nn.functional.one_hot(attr.long(), types).float()


class SpectralBias(Bias):
    """A learned weight for each eigenvector times its product at query and key.

    With `spectral_coordinates` as the coordinates of the Graph. The product does not change with an
    eigenvector's sign, and is large and positive for nodes of one region of the graph.

    Args:
        heads: number of query heads.
        axes: number of coordinates.
    """

    @checked
    def __init__(self, heads: int, axes: int) -> None:
        super().__init__()
        check_whole(heads=heads, axes=axes)
        self.heads, self.axes = heads, axes
        #: (axes, H)
        self.weight = nn.Parameter(torch.empty(axes, heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=0.02)

    def score(self, pairs: Pairs) -> Tensor:
        if pairs.spaces[1].axes != self.axes:
            raise ValueError(
                f"SpectralBias has {self.axes} axes, {pairs.spaces[1].describe()} has "
                f"{pairs.spaces[1].axes}: give Graph(..., coordinates=spectral_coordinates(...))"
            )
        query, key = (
            pairs.take("coordinates", side).to(self.weight.dtype).unbind(-1)
            for side in ("query", "key")
        )
        # Axis by axis, so that no tensor of pairs times axes comes about
        products = (
            weight[pairs.head] * (q * k)
            for weight, q, k in zip(self.weight, query, key, strict=True)
        )
        return sum(products, torch.zeros((), dtype=self.weight.dtype, device=pairs.key.device))

    def extra_repr(self) -> str:
        return f"heads={self.heads}, axes={self.axes}"
