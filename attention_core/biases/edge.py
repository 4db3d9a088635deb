"""A learned score for each edge."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attention_core.annotated import checked
from attention_core.biases.base import Bias, Lookup
from attention_core.checks import check_whole
from attention_core.spaces import Pairs
from attention_core.tables import by_head


class EdgeBias(Bias):
    """A learned score for each edge of a Graph, from its type or its features.

    Pairs without an edge score 0.

    Args:
        heads: number of query heads.
        types: number of edge types, for `edge_attr` of integers (E,).
        features: number of edge features F, for `edge_attr` of floats (E, F).

    Raises:
        ValueError, TypeError: not one of `types` and `features`; or, when it scores, an `edge_attr`
            of the other kind or size, or with a type that there is not.
    """

    @checked
    def __init__(
        self, heads: int, *, types: int | None = None, features: int | None = None
    ) -> None:
        super().__init__()
        if (types is None) == (features is None):
            raise ValueError("EdgeBias needs one of types= and features=")
        check_whole(heads=heads)
        check_whole(types=types, features=features, or_none=True)
        self.heads, self.types = heads, types
        #: (types or features, H)
        self.table = nn.Parameter(torch.empty(types or features or 0, heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.table, std=0.02)

    def score(self, pairs: Pairs) -> Tensor:
        attr, edge = pairs.edge_attr, pairs.edge
        if (self.types is not None) == attr.is_floating_point():
            wanted = "integer types" if self.types is not None else "float features"
            raise TypeError(f"EdgeBias was built for {wanted}, edge_attr is {attr.dtype}")
        if self.types is not None:
            self._check_types(attr)
            scores = nn.functional.embedding(attr.long(), self.table)
        else:
            features = attr[:, None] if attr.ndim == 1 else attr.flatten(1)
            if features.shape[1] != len(self.table):
                raise ValueError(
                    f"EdgeBias was built for features={len(self.table)}, edge_attr is "
                    f"{tuple(attr.shape)}"
                )
            scores = features.to(self.table.dtype) @ self.table
        with_none = torch.cat([scores, scores.new_zeros(1, scores.shape[1])])
        # No edge is the last row. Its number is a symbol in an exported program, as len() is not
        return by_head(with_none, edge.where(edge >= 0, scores.shape[0]), pairs.head)

    def lookup(self) -> Lookup | None:
        if type(self) is not EdgeBias or self.types is None:
            return None

        def rows(pairs: Pairs) -> Tensor:
            attr, special = pairs.edge_attr, pairs.special
            if attr.is_floating_point() or attr.ndim > 1:
                self.score(pairs)  # refuses them
            self._check_types(attr)
            row = torch.cat([attr, attr.new_full((1,), len(self.table))])[pairs.edge].long()
            return row if special is None else row.masked_fill(special, len(self.table))

        nothing = self.table.new_zeros(1, self.table.shape[1])
        return Lookup(rows, torch.cat([self.table, nothing]), None)

    def _check_types(self, attr: Tensor) -> None:
        # A type of -1 would be taken for the last one. To look at another device would wait for it
        if torch.compiler.is_compiling() or attr.device.type != "cpu" or not attr.numel():
            return
        low, high = int(attr.min()), int(attr.max())
        if not 0 <= low <= high < len(self.table):
            raise ValueError(
                f"EdgeBias was built for types={len(self.table)}, so edge_attr must be 0 to "
                f"{len(self.table) - 1}; it runs from {low} to {high}"
            )
