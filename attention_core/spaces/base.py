"""What every space has: what is known of each of its tokens, edges between them, a distance."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from functools import cached_property
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    NamedTuple,
)

import torch
from torch import Tensor

from attention_core.annotated import checked
from attention_core.checks import check_dense, check_whole
from attention_core.errors import counted
from attention_core.lasting import kept, lasting
from attention_core.spaces.packing import count_samples, ranks_of_special
from attention_core.spaces.special import Special
from attention_core.transfer import constant

if TYPE_CHECKING:
    from attention_core.spaces.pairs import Pairs


class PairList(NamedTuple):
    """Hold pairs of tokens, (E,) each, with what is known of them; `batch` is the row of each,
    where the rows of a batch have pairs of their own, and None where all have the same."""

    query: Tensor
    key: Tensor
    edge: Tensor | None = None
    distance: Tensor | None = None
    batch: Tensor | None = None


class Space(Special):
    """A set of tokens, some or all of which sit somewhere.

    Used as it is, it holds tokens without a place, such as the queries of a pooling layer. A space
    of your own defines `distance`, from what it gives `tokenwise`; every mask, bias and backend is
    then right, looking at all pairs. `norm`, `reach` and `reach_bound` let them look at fewer::

        class Tree(Space):
            def __init__(self, entity, table):  # (L,) and (entities, entities)
                super().__init__(len(entity), tokenwise={"entity": entity})
                self.table = table

            def distance(self, pairs):
                return self.table[pairs.take("entity", "query"), pairs.take("entity", "key")]

    What a class promises about its distance is void in a subclass with another one: a subclass of
    `Points` that defines `distance` alone has no `norm`.

    Args:
        length: number of tokens L.
        coordinates: (L, A) or (B, L, A), integer or float.
        segments: (L,) or (B, L) integers, the sample of each token.
        valid: (L,) or (B, L) bool, False on padding.
        special: (L,) or (B, L) bool, True on tokens that sit nowhere.
        num_segments: how many samples `segments` tells apart, where the last ones may have no
            tokens; by default as many as it names.
        tokenwise: data of one row per token, by name: (L, ...), or (B, L, ...) where the second
            size is L. They follow `keep`, `append`, `pack`, `pad` and `to`, and
            `pairs.take(name, side)` reads them. What is no row per token, such as a table of
            distances between entities, is an attribute, which follows `to` and is shared.
        edge_index, edge_attr, pair_attr: edges between tokens, as `with_edges` takes them.
    """

    ordered = False
    """Whether "before" and "after" mean something here (they do on a Sequence and a Grid)."""

    #: Whether keys and values of padding are zeros already, as those that a cache holds are.
    zeroed = False

    moving: ClassVar[bool] = False
    """Whether tensors change in place, so that nothing found in them is kept: those of a static
    cache."""

    #: What is said about the distance: void in a class that redefines what it is said of.
    _PROMISES: ClassVar[dict[str, tuple[str, ...]]] = {
        "norm": ("distance",),
        "reach": ("distance", "norm"),
        "reach_from": ("distance", "norm"),
        "reach_bound": ("distance", "norm"),
        "reach_bound_from": ("distance", "norm"),
        "nearest_from": ("distance", "norm"),
        "distance_along": ("distance", "norm"),
        "searched": ("distance", "norm"),
        "chebyshev": ("distance", "norm"),
    }

    #: Which axes wrap: what is beyond one end comes in at the other. Only those of a Grid may.
    wrap: tuple[bool, ...] = ()

    searched: ClassVar[bool] = False
    """Whether distances are searched, so that those of all pairs are too many to know."""

    chebyshev: ClassVar[bool] = False
    """Whether coordinates are whole numbers, and the distance is their greatest difference."""

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)

        def depth(name: str) -> int:
            return next(n for n, one in enumerate(cls.__mro__) if name in vars(one))

        for promise, about in cls._PROMISES.items():
            if depth(promise) > min(map(depth, about)):
                setattr(cls, promise, vars(Space)[promise])

    @lasting
    @checked
    def __init__(
        self,
        length: int,
        *,
        coordinates: Tensor | None = None,
        segments: Tensor | None = None,
        valid: Tensor | None = None,
        special: Tensor | None = None,
        num_segments: int | None = None,
        tokenwise: Mapping[str, Tensor] | None = None,
        edge_index: Tensor | None = None,
        edge_attr: Tensor | None = None,
        pair_attr: Mapping[str, Tensor] | None = None,
    ) -> None:
        check_whole(0, length=length)
        check_whole(0, num_segments=num_segments, or_none=True)
        check_dense(
            or_meta=True,
            coordinates=coordinates,
            segments=segments,
            valid=valid,
            special=special,
        )
        for name, flags in (("valid", valid), ("special", special)):
            if flags is not None and flags.dtype != torch.bool:
                raise TypeError(f"{name} must be bool (True: {name}), got {flags.dtype}")
        self.length = length
        # Layers use them in training, whatever mode the space was made in
        self.coordinates, self.segments = kept(coordinates), kept(segments)
        self.valid, self.special = kept(valid), kept(special)
        self.special_rank = (
            None if special is None else ranks_of_special(special, segments, num_segments)
        )
        self.size, self.start = None, ()
        self.tokenwise = {}
        self._hold(tokenwise or {})
        self.num_segments = 1 if segments is None else count_samples(segments, num_segments)
        if edge_index is not None:
            self._link(edge_index, edge_attr, pair_attr)
        elif edge_attr is not None or pair_attr is not None:
            given = "pair_attr" if edge_attr is None else "edge_attr"
            raise ValueError(f"{given} needs edge_index, which says what its rows are of")

    @property
    def axes(self) -> int:
        """Number of coordinates per token; 0 where tokens have no place."""
        return 0 if self.coordinates is None else self.coordinates.shape[-1]

    @property
    def extent(self) -> Tensor | None:
        """The size of the grid that each token comes from, (L, A) or what broadcasts to it; None
        off a grid."""
        return None

    @property
    def period(self) -> Tensor | None:
        """After how many places each axis begins anew, (A,), (L, A) or (B, L, A), and 0 along one
        that ends; None where all end."""
        return None

    def zero_padding(self, x: Tensor) -> Tensor:
        """Zero x, (B, L, D) or (T, D), where this space has padding."""
        return x if self.valid is None else x.masked_fill(~self.valid.to(x.device)[..., None], 0)

    def zero_heads(self, x: Tensor) -> Tensor:
        """Zero queries, keys or values x, (B, H, L, D), where this space has padding."""
        if self.valid is None or self.zeroed:
            return x
        valid = self.valid if self.valid.ndim == 1 else self.valid[:, None]
        return x.masked_fill(~valid[..., None], 0)

    @property
    def num_samples(self) -> int:
        """Samples held: batch rows times segments."""
        return (self.batch or 1) * self.num_segments

    def distance(self, pairs: Pairs) -> Tensor:
        """Return how far apart query and key are, in the broadcast shape of `pairs`."""
        if self.coordinates is None:
            own = type(self) is not Space
            reason = f"{type(self).__name__} must define distance(self, pairs)" if own else ""
            raise TypeError(
                f"{self.describe()} has no distance: {reason or 'its tokens sit nowhere'}"
            )
        return self.norm(pairs.offset)

    def norm(self, offset: Tensor) -> Tensor:
        """Return the distance that an offset (..., A) spans, (...), rising with each component.

        It is `distance`, where that depends on the offset alone: with it, blocks of tokens that are
        too far apart are never looked at.
        """
        raise TypeError(
            f"{self.describe()} has no distance: {type(self).__name__} must define "
            "distance(self, pairs), or norm(self, offset) of its coordinates"
        )

    @property
    def has_norm(self) -> bool:
        """Whether the distance is a `norm` of the offset."""
        return type(self).norm is not Space.norm

    def reach(self, radius: float) -> PairList | None:
        """List pairs that include all at most `radius` apart, special tokens aside; None: unknown.

        Their `distance` may be given, if it is that of `distance(pairs)`.
        """
        return None

    def reach_from(self, queries: Space, radius: float) -> PairList | None:
        """List pairs as `reach` does, whose queries are tokens of another space of this kind."""
        return self.reach(radius) if queries is self else None

    def reach_bound(self, radius: float) -> float:
        """Return at most how many pairs are `radius` apart or less, special tokens aside; of a
        batch, in each of its rows."""
        return math.inf

    def reach_bound_from(self, queries: Space, radius: float) -> float:
        """Bound pairs as `reach_bound` does, whose queries are tokens of another space of this
        kind."""
        return self.reach_bound(radius) if queries is self or self.searched else math.inf

    def nearest_from(self, queries: Space, k: int, loop: bool) -> PairList | None:
        """List the k keys of this space that are nearest to each query of another one, or of
        itself, as `Nearest(k, loop)` means it; None: all pairs are to be looked at."""
        return None

    @cached_property
    def _nearest(self) -> dict[Hashable, Any]:
        """What `Nearest` has found of these tokens."""
        return {}

    def distance_along(self, edge: Tensor) -> Tensor | None:
        """Return the distance along edges (E,), indices into those of this space; None: unknown."""
        return None

    def sits_at(self, position: int | tuple[int, ...]) -> Tensor:
        """Return whether each token sits at `position`, (L,) or (B, L)."""
        wanted = position if isinstance(position, tuple) else (position,)
        if self.coordinates is None or len(wanted) != self.axes:
            raise ValueError(
                f"position {position} needs {self.axes} coordinates in {self.describe()}"
            )
        return (self.coordinates == constant(wanted, self.device)).all(-1)

    def describe(self) -> str:
        """Return a few words for error messages and `explain`."""
        what = "a set" if type(self) is Space else type(self).__name__
        return self._describe(f"{what} of {counted(self.length, 'token')}")

    def _describe(self, words: str) -> str:
        if self.batch is not None:
            words += f" in each of {counted(self.batch, 'sample')}"
        elif self.segments is not None:
            words += f" from {counted(self.num_segments, 'sample')} in one row"
        if self.num_special:
            words += f", {self.num_special} of them special"
        return words + (", some of them padding" if self.valid is not None else "")

    def __repr__(self) -> str:
        if "length" not in vars(self):  # an __init__ of its own has not called ours, or not yet
            return f"<{type(self).__name__} without a length>"
        return f"<{type(self).__name__}: {self.describe()}>"
