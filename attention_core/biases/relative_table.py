"""A learned score for each bucket of relative position."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence as Listing

import torch
from torch import Tensor, nn

from attention_core.annotated import checked
from attention_core.biases.base import Bias, Lookup
from attention_core.checks import check_whole, check_whole_each
from attention_core.spaces import BlockKey, Pairs, Space
from attention_core.tables import by_head, by_offset


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
