"""What is added to the score of a pair: relative positions and edge features.

A bias of your own overrides one method::

    class Gravity(Bias):
        def score(self, pairs):
            return -self.strength[pairs.head] * pairs.distance**2

Special tokens sit nowhere, so a bias on a pair with one is 0, or has a row of its own
(`RelativeTable(special=True)`). Biases are computed in float32 or better under any autocast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence as Listing
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.compiler import is_exporting

from attention_core.annotated import checked
from attention_core.checks import check_whole, check_whole_each
from attention_core.masks.pairwise import check_pairwise, take_pairwise
from attention_core.spaces import BlockKey, Pairs, Space
from attention_core.tables import by_head, by_offset
from attention_core.transfer import constant

#: Rows of a table that several make together, at most.
_MOST_ROWS = 1024


class Lookup(NamedTuple):
    """Scores that are numbers of a table: ``table[rows(pairs), head]``.

    Attributes:
        rows: gives int64 that broadcasts to pairs, the same for all heads.
        table: (rows, H).
        key: equal where the rows of the same pairs are; None where that is not known.
    """

    rows: Callable[[Pairs], Tensor]
    table: Tensor
    key: Hashable


class Bias(nn.Module):
    """Scores of pairs; `+` adds two biases. Override `score`.

    A score of -inf forbids the pair.

    Attributes:
        heads: for how many query heads it is made; None for any number.
    """

    heads: int | None = None

    def score(self, pairs: Pairs) -> Tensor:
        """Compute the score of pairs without special tokens, float that broadcasts to `pairs`."""
        raise NotImplementedError(f"{type(self).__name__} must define score(self, pairs)")

    def special_score(self, pairs: Pairs) -> Tensor | float:
        """Return the score of pairs with a special token."""
        return 0.0

    def block_key(self, space: Space) -> BlockKey | None:
        """Return what of tokens decides the score, None if unknown. (Being special always may.)"""
        return None

    def tensors(self) -> list[Tensor]:
        """Return the tensors that scores are made of, which may need a gradient."""
        return list(self.parameters())

    @property
    def learned(self) -> bool:
        """Whether it has anything that needs a gradient."""
        return any(tensor.requires_grad for tensor in self.tensors())

    @property
    def needs_end(self) -> bool:
        """Whether a score depends on where its sample ends, so that tokens which are still to come
        change it: a `Decoder` with a cache then refuses the bias."""
        return False

    @property
    def depends_on_others(self) -> bool:
        """Whether a score depends on which other tokens there are, so that it may be another after
        some were dropped, and layers cannot leave any out."""
        return False

    def lookup(self) -> Lookup | None:
        """Return what scores are looked up in, if they are numbers of a table; else None.

        So that a kernel can look them up, and no score of every pair and head is ever stored.
        """
        return None

    def leaves(self) -> list[Bias]:
        """Return the biases that it is the sum of, in order; itself if it is none."""
        return [self]

    def check_heads(self, pairs: Pairs) -> None:
        """Raise ValueError if it is made for another number of heads."""
        if self.heads not in (None, pairs.shape[1]):
            raise ValueError(
                f"{type(self).__name__} has heads={self.heads}, but attention has "
                f"{pairs.shape[1]} query heads"
            )

    def forward(self, pairs: Pairs) -> Tensor:
        """Compute the score of every pair, in float32 or better.

        Raises:
            ValueError: it is made for another number of heads.
        """
        self.check_heads(pairs)
        # The loop that searches hops in an exported program cannot lie in such a region
        loops = is_exporting() and pairs.spaces[1].searched
        exact = nullcontext() if loops else torch.autocast(pairs.key.device.type, enabled=False)
        with exact:
            score, special = self.score(pairs), pairs.special
            if special is not None:
                score = torch.where(special, self.special_score(pairs), score)
        indices = (pairs.batch, pairs.head, pairs.query, pairs.key)
        shape = torch.broadcast_shapes(*(index.shape for index in indices))
        sizes = zip(reversed(score.shape), reversed(shape), strict=False)
        if score.ndim > len(shape) or any(n not in (1, size) for n, size in sizes):
            raise ValueError(
                f"{type(self).__name__} scores {tuple(score.shape)}, but the pairs have the shape "
                f"{tuple(shape)}: compute it from pairs.distance, pairs.offset, pairs.head, ..."
            )
        return score

    def __add__(self, other: Bias) -> Bias:
        if not isinstance(other, Bias):
            raise TypeError(f"biases add to biases, got {type(other).__name__}; see DenseBias")
        return _Sum(self, other)


class _Sum(Bias):
    def __init__(self, *terms: Bias) -> None:
        super().__init__()
        self.terms: Iterable[Bias] = nn.ModuleList(terms)  # type: ignore[assignment]
        self.heads = next((term.heads for term in terms if term.heads is not None), None)

    @property
    def needs_end(self) -> bool:
        return any(term.needs_end for term in self.terms)

    @property
    def depends_on_others(self) -> bool:
        return any(term.depends_on_others for term in self.terms)

    def leaves(self) -> list[Bias]:
        return [leaf for term in self.terms for leaf in term.leaves()]

    def forward(self, pairs: Pairs) -> Tensor:
        first, *rest = (term(pairs) for term in self.terms)
        return sum(rest, first)

    def block_key(self, space: Space) -> BlockKey | None:
        return BlockKey.joined(*(term.block_key(space) for term in self.terms))

    def tensors(self) -> list[Tensor]:
        return [tensor for term in self.terms for tensor in term.tensors()]

    def lookup(self) -> Lookup | None:
        found = [term.lookup() for term in self.terms]
        known = [one for one in found if one is not None]
        if len(known) < len(found) or math.prod(len(one.table) for one in known) > _MOST_ROWS:
            return None
        first, *rest = known
        for one in rest:
            first = _both(first, one)
        return first


def _both(first: Lookup, second: Lookup) -> Lookup:
    """The lookup of sums, a row for each pair of rows."""

    def rows(pairs: Pairs) -> Tensor:
        return first.rows(pairs) * len(second.table) + second.rows(pairs)

    table = (first.table[:, None] + second.table).flatten(0, 1)
    known = first.key is not None and second.key is not None
    return Lookup(rows, table, (first.key, second.key) if known else None)


def as_bias(bias: Bias | Tensor | None) -> Bias | None:
    """Make a `DenseBias` of a float tensor; anything else that is no bias raises TypeError."""
    if bias is None or isinstance(bias, Bias):
        return bias
    if isinstance(bias, Tensor):
        return DenseBias(bias)
    raise TypeError(f"bias must be a Bias or a float tensor, got {type(bias).__name__}")


class ALiBi(Bias):
    """A penalty proportional to distance (Press et al., ALiBi, 2022): ``-slope[head] · distance``.

    Slopes are 2^(-8/H), 2^(-16/H), ...; for H not a power of two, those of the next lower power
    and then every other one of its double, as published. Unconnected nodes of a graph are
    infinitely far, so it forbids them.
    """

    @checked
    def __init__(self, heads: int) -> None:
        super().__init__()
        check_whole(heads=heads)
        self.heads = heads

        def geometric(n: int) -> list[float]:
            return [2 ** (-8 * (i + 1) / n) for i in range(n)]

        power = 2 ** int(math.log2(heads))
        slopes = geometric(power) + geometric(2 * power)[0::2][: heads - power]
        # Numbers rather than a buffer, which `model.bfloat16()` would round
        self._slopes = slopes

    @property
    def slopes(self) -> Tensor:
        """(H,) in float32."""
        return torch.tensor(self._slopes)

    def score(self, pairs: Pairs) -> Tensor:
        slopes = constant(self._slopes, pairs.head.device)
        return -slopes[pairs.head] * pairs.distance

    def block_key(self, space: Space) -> BlockKey | None:
        return BlockKey.of_distance(space)

    def extra_repr(self) -> str:
        return f"heads={self.heads}"


class RelativeTable(Bias):
    """A learned score for each bucket of relative position and each head.

    Build it with the constructor of a bucketing: `t5`, `swin` or `hops`.

    Args:
        heads: number of query heads H.
        buckets: number of buckets.
        bucket: maps pairs to bucket indices, int64 in the broadcast shape of `pairs`.
        special: learn rows of their own for special tokens: as query, as key, and as both
            (Bao et al., BEiT, 2022); otherwise their scores are 0.
    """

    @checked
    def __init__(
        self, heads: int, buckets: int, bucket: Callable[[Pairs], Tensor], *, special: bool = False
    ) -> None:
        super().__init__()
        check_whole(heads=heads, buckets=buckets)
        self.heads, self.bucket = heads, bucket
        self.table = nn.Parameter(torch.empty(buckets, heads))
        self.special_table = nn.Parameter(torch.empty(3, heads)) if special else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.table, std=0.02)
        if self.special_table is not None:
            nn.init.trunc_normal_(self.special_table, std=0.02)

    def score(self, pairs: Pairs) -> Tensor:
        by = pairs.by_offset if self._is_known else None
        if by is None:
            return by_head(self.table, self.bucket(pairs), pairs.head)
        return by_offset(self.table, self.bucket(by).flatten(), pairs)

    @property
    def _is_known(self) -> bool:
        """Whether buckets follow from offset and distance, as those of a user's own need not."""
        return isinstance(self.bucket, _T5Bucket | _OffsetBucket | _HopBucket)

    def block_key(self, space: Space) -> BlockKey | None:
        if isinstance(self.bucket, _HopBucket):
            return BlockKey.of_distance(space)
        known = isinstance(self.bucket, _T5Bucket | _OffsetBucket)
        return BlockKey.of_place(space) if known else None

    def special_score(self, pairs: Pairs) -> Tensor | float:
        if self.special_table is None:
            return 0.0
        return self.special_table[self._special_row(pairs), pairs.head]

    def _special_row(self, pairs: Pairs) -> Tensor:
        """The row of `special_table`, of pairs with a special token."""
        roles = pairs.key.new_zeros(1)
        for role, (space, side) in enumerate(zip(pairs.spaces, ("query", "key"), strict=True)):
            if space.special is not None:
                roles = roles + (role + 1) * pairs.take("special", side)
        return (roles - 1).clamp(min=0)

    def lookup(self) -> Lookup | None:
        if type(self) is not RelativeTable:  # a subclass may score otherwise
            return None
        special, count = self.special_table, len(self.table)
        last = self.table.new_zeros(1, self.table.shape[1]) if special is None else special

        def rows(pairs: Pairs) -> Tensor:
            row, is_special = self.bucket(pairs), pairs.special
            if is_special is None:
                return row
            return torch.where(
                is_special, count + (0 if special is None else self._special_row(pairs)), row
            )

        own = (type(self.bucket), *vars(self.bucket).values(), count, special is None)
        return Lookup(rows, torch.cat([self.table, last]), own if self._is_known else None)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, buckets={len(self.table)}"

    @classmethod
    @checked
    def t5(
        cls,
        heads: int,
        buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = True,
        *,
        special: bool = False,
    ) -> RelativeTable:
        """Make a table, exact for near offsets, logarithmic up to `max_distance` (T5, 2020)."""
        check_whole(heads=heads, buckets=buckets, max_distance=max_distance)
        if buckets < (4 if bidirectional else 2) or max_distance <= buckets // 2:
            raise ValueError(
                f"T5 needs max_distance > buckets / 2, and 4 buckets (2 one way); got "
                f"buckets={buckets}, max_distance={max_distance}"
            )
        bucketing = _T5Bucket(buckets, max_distance, bidirectional)
        return cls(heads, buckets, bucketing, special=special)

    @classmethod
    @checked
    def swin(
        cls, heads: int, window: int | tuple[int, ...], *, special: bool = False
    ) -> RelativeTable:
        """Make a table of a row for each offset inside a window (Liu et al., Swin, 2021).

        Offsets beyond the window, where a mask lets them through, share the border's row.

        Args:
            heads: number of query heads.
            window: size per axis, or one size for two axes.
        """
        sizes = tuple(window) if isinstance(window, Listing) else (window, window)
        check_whole_each(window=sizes)
        buckets = math.prod(2 * size - 1 for size in sizes)
        return cls(heads, buckets, _OffsetBucket(sizes), special=special)

    @classmethod
    @checked
    def hops(cls, heads: int, max_hops: int, *, special: bool = False) -> RelativeTable:
        """Make a row for each distance up to `max_hops`, one beyond, one for "unreachable".

        On a Graph this is Graphormer's spatial encoding (Ying et al., 2021).
        """
        check_whole(max_hops=max_hops)
        return cls(heads, max_hops + 3, _HopBucket(max_hops), special=special)


class _T5Bucket:
    def __init__(self, buckets: int, max_distance: int, bidirectional: bool) -> None:
        self.buckets, self.max_distance, self.bidirectional = buckets, max_distance, bidirectional

    def __call__(self, pairs: Pairs) -> Tensor:
        offset = pairs.offset
        if offset.shape[-1] != 1:
            raise TypeError(f"T5's buckets need a Sequence, got {pairs.spaces[1].describe()}")
        offset = offset.squeeze(-1)
        buckets = self.buckets
        if self.bidirectional:
            buckets //= 2
            first, far = (offset > 0) * buckets, offset.abs()
        else:
            first, far = torch.zeros_like(offset), (-offset).clamp(min=0)
        exact = buckets // 2
        # float32, in the order of operations of the published code, so that no bucket moves
        ratio = torch.log(far.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        coarse = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
        return first + torch.where(far < exact, far.long(), coarse)


class _OffsetBucket:
    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes

    def __call__(self, pairs: Pairs) -> Tensor:
        offset = pairs.offset
        if offset.shape[-1] != len(self.sizes) or offset.is_floating_point():
            raise TypeError(
                f"a table of offsets in a window of {self.sizes} needs a Grid with "
                f"{len(self.sizes)} axes, got {pairs.spaces[1].describe()}"
            )
        bucket = torch.zeros_like(offset[..., 0])
        for axis, size in enumerate(self.sizes):
            # Swin's tables run over query minus key
            bucket = bucket * (2 * size - 1) + (-offset[..., axis]).clamp(1 - size, size - 1)
            bucket = bucket + size - 1
        return bucket


class _HopBucket:
    def __init__(self, max_hops: int) -> None:
        self.max_hops = max_hops

    def __call__(self, pairs: Pairs) -> Tensor:
        distance = pairs.distance
        far = distance.clamp(max=self.max_hops + 1).long()
        if distance.is_floating_point():
            far = far + distance.isinf()
        return far


class ContinuousBias(Bias):
    """A small network of the log-spaced offset (Liu et al., Swin v2, 2022).

    ``16 · sigmoid(MLP(sign(Δ) · log2(1 + 8 |Δ| / extent) / 3))``, one output per head.

    It extends to offsets that training did not see, and works wherever there are offsets: grids,
    sequences and point clouds. On whole-number coordinates the network runs once per distinct
    offset, not once per pair.

    Args:
        heads: number of query heads.
        extent: the largest offset along each axis, such as window size - 1; sets the axes.
        hidden: width of the hidden layer.
    """

    @checked
    def __init__(self, heads: int, extent: tuple[float, ...], hidden: int = 512) -> None:
        super().__init__()
        check_whole(heads=heads, hidden=hidden)
        if not extent or any(not 0 <= e < math.inf for e in extent):
            raise ValueError(f"extent must be a number per axis, at least 0, got {extent}")
        # a window of one token has extent 0 and the only offset 0, which must not become 0/0
        self.heads, self.extent = heads, tuple(max(float(e), 1.0) for e in extent)
        self.mlp = nn.Sequential(
            nn.Linear(len(extent), hidden), nn.ReLU(), nn.Linear(hidden, heads, bias=False)
        )

    def score(self, pairs: Pairs) -> Tensor:
        offset = pairs.offset
        if offset.shape[-1] != len(self.extent):
            raise ValueError(
                f"ContinuousBias has {len(self.extent)} axes, {pairs.spaces[1].describe()} has "
                f"{offset.shape[-1]}"
            )
        flat = offset.reshape(-1, offset.shape[-1])
        # How many offsets are distinct depends on values, which an exported program cannot look at
        if flat.is_floating_point() or is_exporting() or not len(flat):
            row = torch.arange(len(flat), device=flat.device)
        elif flat.device.type != "cpu":
            flat, row = _in_box(flat, pairs.spaces)
        else:
            flat, row = _distinct(flat)
        dtype = next(self.mlp.parameters()).dtype
        scaled = 8 * flat.to(dtype) / constant(self.extent, flat.device, dtype)
        table = 16 * torch.sigmoid(self.mlp(scaled.sign() * torch.log2(1 + scaled.abs()) / 3))
        return by_head(table, row.view(offset.shape[:-1]), pairs.head)

    def block_key(self, space: Space) -> BlockKey | None:
        return BlockKey.of_place(space)


def _distinct(offset: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets (M, A) that hold each of `offset` (N, A) once, and the row of each in them."""
    ends = offset.amin(0), offset.amax(0)
    low, sizes = ends[0].tolist(), (ends[1] - ends[0] + 1).tolist()
    if math.prod(sizes) > len(offset):
        distinct, row = offset.unique(dim=0, return_inverse=True)
        return distinct, row
    return _of_box(offset, low, sizes)


def _of_box(offset: Tensor, low: list[int], sizes: list[int]) -> tuple[Tensor, Tensor]:
    """All offsets of a box, which needs no sorting, and the row of each of `offset` in them.

    It differs from batch to batch, so its numbers are not tensors, which a device would be sent.
    """
    row = offset[..., 0] - low[0]
    for axis in range(1, len(sizes)):
        row = row * sizes[axis] + (offset[..., axis] - low[axis])
    steps = [
        torch.arange(first, first + size, device=offset.device)
        for first, size in zip(low, sizes, strict=True)
    ]
    return torch.cartesian_prod(*steps).reshape(-1, len(sizes)), row


def _in_box(offset: Tensor, spaces: tuple[Space, Space]) -> tuple[Tensor, Tensor]:
    """What `_distinct` gives, of a box that the spaces are known to keep to, without looking at the
    offsets, which are on another device; where the box is larger, all of them."""
    query, key = (space.host.coordinates for space in spaces)
    assert query is not None and key is not None
    ends = [(x.flatten(0, -2).amin(0), x.flatten(0, -2).amax(0)) for x in (query, key)]
    low, high = ends[1][0] - ends[0][1], ends[1][1] - ends[0][0]
    # Where axes wrap, the nearest image may be on the other side
    reach = torch.maximum(-low, high).clamp(min=0)
    low, high = (-reach, reach) if any(spaces[1].wrap) else (low, high)
    sizes = (high - low + 1).tolist()
    if math.prod(sizes) > len(offset):
        return offset, torch.arange(len(offset), device=offset.device)
    return _of_box(offset, low.tolist(), sizes)


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


class DenseBias(Bias):
    """Any bias, given pair by pair; it speaks for special tokens too.

    Args:
        tensor: float, (Lq, Lk), or (B, H, Lq, Lk) where any size may be 1. It may require a
            gradient; given as `nn.Parameter` it is a parameter of this module.
    """

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        if not isinstance(tensor, Tensor):
            raise TypeError(f"bias must be a float tensor, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(f"bias must be float, got {tensor.dtype}; a bool tensor is a mask")
        check_pairwise(tensor, "bias")
        self.tensor = tensor

    def tensors(self) -> list[Tensor]:
        return [self.tensor]

    @property
    def depends_on_others(self) -> bool:
        return True  # of all tokens, in their order

    def forward(self, pairs: Pairs) -> Tensor:
        return take_pairwise(self.tensor, pairs, "bias")
