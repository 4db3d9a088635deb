"""Features of edges that are projected to heads where they are asked for, not for every edge.

q · (W e) = (Wᵀ q) · e and Σ p (W e) = W Σ p e, so the features e of an edge need no projection W
of their own: queries are projected back, and sums of features forth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attention_core.checks import check_kind


class EdgeProjection(NamedTuple):
    """Keys or values (E, Hkv, D) of edges, as features and their projection: ``weight @ attr[e]``.

    In place of the tensor, as `edge_key` or `edge_value` of `attend`: the backend `edges` then has
    no E · H · D numbers in memory, and gives each of both its gradient. What a bias of the
    projection would add is one more feature, a 1.

    Attributes:
        attr: (E, F) float, the features of each edge.
        weight: (Hkv, D, F) float, the projection to each head.
    """

    attr: Tensor
    weight: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(E, Hkv, D), as of the tensor."""
        return self.attr.shape[0], self.weight.shape[0], self.weight.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.attr.dtype

    def check(self, name: str) -> None:
        """Raise ValueError or TypeError, naming the argument, unless both can be multiplied."""
        check_kind(
            Tensor, or_none=False, **{f"{name}.attr": self.attr, f"{name}.weight": self.weight}
        )
        sizes = tuple(self.attr.shape), tuple(self.weight.shape)
        if len(sizes[0]) != 2 or len(sizes[1]) != 3 or sizes[0][1] != sizes[1][2]:
            raise ValueError(
                f"{name} must be EdgeProjection(attr (E, F), weight (Hkv, D, F)), got attr "
                f"{sizes[0]} and weight {sizes[1]}"
            )
        if self.attr.dtype != self.weight.dtype:
            raise ValueError(
                f"{name} must have one dtype, got attr {self.attr.dtype} and weight "
                f"{self.weight.dtype}"
            )

    def tensor(self) -> Tensor:
        """Compute the tensor (E, Hkv, D)."""
        return F.linear(self.attr, self.weight.flatten(0, 1)).unflatten(1, self.weight.shape[:2])


#: Keys or values of edges (E, Hkv, D).
EdgeFeatures = Tensor | EdgeProjection


def as_tensor(features: EdgeFeatures, dtype: torch.dtype | None = None) -> Tensor:
    """Return keys or values of edges as a tensor (E, Hkv, D), computed in `dtype` or their own."""
    dtype = features.dtype if dtype is None else dtype
    if isinstance(features, EdgeProjection):
        return EdgeProjection(features.attr.to(dtype), features.weight.to(dtype)).tensor()
    return features.to(dtype)


def rows(features: EdgeFeatures, index: Tensor) -> Tensor:
    """Compute keys or values of the edges that `index` (C,) names, (C, Hkv, D)."""
    if isinstance(features, EdgeProjection):
        return features._replace(attr=features.attr.index_select(0, index)).tensor()
    return features.index_select(0, index)


def widened(features: EdgeFeatures) -> EdgeFeatures:
    """Return keys or values of edges with one more number, 0, in each head."""
    if isinstance(features, EdgeProjection):
        return features._replace(weight=F.pad(features.weight, (0, 0, 0, 1)))
    return F.pad(features, (0, 1))


def tensors_of(*features: EdgeFeatures | None) -> list[Tensor]:
    """Return the tensors that keys or values of edges are made of."""
    found: list[Tensor] = []
    for one in features:
        if isinstance(one, EdgeProjection):
            found += one
        elif one is not None:
            found.append(one)
    return found


class Apart(NamedTuple):
    """Keys and values of edges: tensors, and projections (Hkv, D, F) of common features (M, F)."""

    attr: Tensor | None
    edge_key: Tensor | None
    of_keys: Tensor | None
    edge_value: Tensor | None
    of_values: Tensor | None


def apart(edge_key: EdgeFeatures | None, edge_value: EdgeFeatures | None) -> Apart:
    """Return the parts of keys and values of edges."""
    keys = edge_key if isinstance(edge_key, EdgeProjection) else None
    values = edge_value if isinstance(edge_value, EdgeProjection) else None
    found = Apart(
        None,
        None if isinstance(edge_key, EdgeProjection) else edge_key,
        None if keys is None else keys.weight,
        None if isinstance(edge_value, EdgeProjection) else edge_value,
        None if values is None else values.weight,
    )
    if keys is None or values is None:
        one = values if keys is None else keys
        return found if one is None else found._replace(attr=one.attr)
    if keys.attr is values.attr:
        return found._replace(attr=keys.attr)
    # Of two kinds of features, side by side, each projection takes its own
    first, second = keys.attr.shape[1], values.attr.shape[1]
    return found._replace(
        attr=torch.cat([keys.attr, values.attr], 1),
        of_keys=F.pad(keys.weight, (0, second)),
        of_values=F.pad(values.weight, (first, 0)),
    )


def changed(
    edge_key: EdgeFeatures | None,
    edge_value: EdgeFeatures | None,
    of_edges: Callable[[Tensor], Tensor],
    of_weight: Callable[[Tensor], Tensor],
) -> tuple[EdgeFeatures | None, EdgeFeatures | None]:
    """Change what has a row for each edge, and projections. Features that are shared stay so."""

    def one(features: EdgeFeatures | None) -> EdgeFeatures | None:
        if isinstance(features, EdgeProjection):
            return EdgeProjection(of_edges(features.attr), of_weight(features.weight))
        return None if features is None else of_edges(features)

    key = one(edge_key)
    if (
        isinstance(edge_key, EdgeProjection)
        and isinstance(edge_value, EdgeProjection)
        and edge_key.attr is edge_value.attr
    ):
        assert isinstance(key, EdgeProjection)
        return key, EdgeProjection(key.attr, of_weight(edge_value.weight))
    return key, one(edge_value)


def joined(parts: Sequence[EdgeFeatures | int], like: Tensor) -> EdgeFeatures:
    """Bring keys or values of several kinds of edges into one; of a number of edges, zeros.

    Kinds of features lie side by side, with zeros for edges of another kind, unless that is more
    than keys or values themselves.

    Args:
        parts: of each kind, in order.
        like: (0, Hkv, D).
    """
    projections = [part for part in parts if isinstance(part, EdgeProjection)]
    width = sum(part.attr.shape[1] for part in projections)
    if width > like.shape[1] * like.shape[2] or any(isinstance(part, Tensor) for part in parts):
        every = [
            like.new_zeros(p, *like.shape[1:]) if isinstance(p, int) else as_tensor(p)
            for p in parts
        ]
        return torch.cat(every)
    attrs, first = [], 0
    for part in parts:
        if isinstance(part, EdgeProjection):
            size = part.attr.shape[1]
            attrs.append(F.pad(part.attr, (first, width - first - size)))
            first += size
        else:
            assert isinstance(part, int)
            attrs.append(like.new_zeros(part, width))
    return EdgeProjection(torch.cat(attrs), torch.cat([p.weight for p in projections], dim=-1))


def project(layer: nn.Module, attr: Tensor, heads: int) -> EdgeFeatures:
    """Project features of edges (E, F) to heads by a linear layer without bias.

    A layer that does more than to multiply, such as an adapter's or one with hooks, is called.
    """
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    if type(layer) is nn.Linear and layer.bias is None and not hooked:
        return EdgeProjection(attr, layer.weight.unflatten(0, (heads, -1)))
    found: Tensor = layer(attr)
    return found.unflatten(-1, (heads, -1))
