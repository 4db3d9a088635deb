"""Where tokens sit: sequences, grids, graphs and point sets.

A space holds four things about each token, and nothing about any model:

========================  =====================================================================
``coordinates`` (L, A)    its place along A axes; every position method reads it
``segments`` (L,)         its sample, where several share a row; samples never see each other
``valid`` (L,)            False on padding
``special`` (L,)          True on class, register and virtual-node tokens, which sit nowhere
========================  =====================================================================

Each may carry a leading batch dimension; a space without one serves every sample of a batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch import Tensor

from attention_core.edge_list import EdgeList


class Space:
    """A set of tokens, some or all of which sit somewhere.

    Used as it is, it holds tokens without a place, such as the queries of a pooling layer.

    Args:
        length: number of tokens L.
        coordinates: (L, A) or (B, L, A), integer or float.
        segments: (L,) or (B, L) integers, non-decreasing along L; the sample of each token.
        valid: (L,) or (B, L) bool, False on padding.
        special: (L,) or (B, L) bool, True on tokens that sit nowhere.
    """

    ordered = False
    """Whether "before" and "after" mean something here (they do on a Sequence and a Grid)."""

    #: The tensors that hold one row per token, and their dimensions without a batch.
    _tokenwise = {"coordinates": 2, "segments": 1, "valid": 1, "special": 1}

    def __init__(
        self,
        length: int,
        *,
        coordinates: Tensor | None = None,
        segments: Tensor | None = None,
        valid: Tensor | None = None,
        special: Tensor | None = None,
    ) -> None:
        self.length = length
        self.coordinates = coordinates
        self.segments = segments
        self.valid = valid
        self.special = special
        #: The full extent along each axis where every place is taken once, in order, and every
        #: special token comes first; None once tokens were dropped or several samples were packed.
        self.size: tuple[int, ...] | None = None
        self.start: tuple[int, ...] = ()
        self._check()
        self.num_segments = 1 if segments is None else int(segments.max()) + 1 if length else 0

    def _check(self) -> None:
        for name, dims in self._tokenwise.items():
            tensor = getattr(self, name)
            if tensor is None:
                continue
            if tensor.ndim not in (dims, dims + 1) or tensor.shape[tensor.ndim - dims] != self.length:
                raise ValueError(
                    f"{name} must have shape {'(L, A)' if dims == 2 else '(L,)'} with L={self.length}, "
                    f"or that with a batch in front; got {tuple(tensor.shape)}"
                )
            if name in ("valid", "special") and tensor.dtype != torch.bool:
                raise TypeError(f"{name} must be bool (True: {name}), got {tensor.dtype}")
        batches = {t.shape[0] for t in self._batched()}
        if len(batches) > 1:
            raise ValueError(f"the tensors of a space disagree on the batch size: {sorted(batches)}")

    def _batched(self) -> list[Tensor]:
        tensors = [(getattr(self, name), dims) for name, dims in self._tokenwise.items()]
        return [t for t, dims in tensors if t is not None and t.ndim > dims]

    @property
    def batch(self) -> int | None:
        """Batch size, or None where the space serves every sample of a batch."""
        return next((t.shape[0] for t in self._batched()), None)

    @property
    def axes(self) -> int:
        """Number of coordinates per token; 0 where tokens have no place."""
        return 0 if self.coordinates is None else self.coordinates.shape[-1]

    @property
    def device(self) -> torch.device:
        tensors = (getattr(self, name) for name in self._tokenwise)
        return next((t.device for t in tensors if t is not None), torch.device("cpu"))

    def __len__(self) -> int:
        return self.length

    def to(self, device: torch.device | str) -> Self:
        """The same space with its tensors on `device`."""
        if self.device == torch.device(device):
            return self
        return self._map(lambda t, dims: t.to(device))

    def _map(self, function: Callable[[Tensor, int], Tensor]) -> Self:
        """A copy with `function(tensor, dims without batch)` applied to each per-token tensor."""
        new = copy.copy(self)
        for name, dims in self._tokenwise.items():
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(new, name, function(tensor, dims))
        return new

    def keep(self, index: Tensor) -> Self:
        """Keep the tokens at `index`; their coordinates, segments and validity follow.

        Args:
            index: (K,) positions or (L,) bool, the same for every sample; or (B, K) positions,
                each sample its own.
        """
        if index.dtype == torch.bool:
            if index.shape != (self.length,):
                raise ValueError(
                    f"a bool index must have shape ({self.length},), got {tuple(index.shape)}; "
                    "to keep other tokens in each sample, give positions (B, K)"
                )
            index = index.nonzero().squeeze(-1)
        if index.ndim not in (1, 2) or index.is_floating_point():
            raise ValueError(
                f"index must hold integers of shape (K,) or (B, K), got {index.dtype} "
                f"{tuple(index.shape)}"
            )
        index = index.to(self.device)

        def take(tensor: Tensor, dims: int) -> Tensor:
            if index.ndim == 1:
                return tensor.index_select(tensor.ndim - dims, index)
            if tensor.ndim == dims:
                return tensor[index]
            return tensor[torch.arange(len(index), device=index.device)[:, None], index]

        new = self._map(take)
        new.length = index.shape[-1]
        new.size = None
        return new

    def append(self, other: Space) -> Self:
        """The tokens of this space followed by those of `other`, as a cache of keys holds them."""
        if type(other) is not type(self):
            raise TypeError(f"cannot append a {type(other).__name__} to a {type(self).__name__}")
        new = copy.copy(self)
        batch = self.batch or other.batch
        defaults = {"segments": 0, "valid": True, "special": False}
        for name, dims in self._tokenwise.items():
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine is None and theirs is None:
                continue
            both = []
            for space, tensor in ((self, mine), (other, theirs)):
                if tensor is None:
                    like = theirs if mine is None else mine
                    tensor = like.new_full((space.length,), defaults[name])
                if batch is not None and tensor.ndim == dims:
                    tensor = tensor.expand(batch, *tensor.shape)
                both.append(tensor)
            setattr(new, name, torch.cat(both, dim=both[0].ndim - dims))
        new.length = self.length + other.length
        new.size = None
        return new

    def place(self, tokens: Tensor, special: Tensor) -> Tensor:
        """Put special tokens where this space has them.

        Args:
            tokens: (..., N, D), the tokens that sit somewhere.
            special: (S, D), the S special tokens of a sample.

        Returns: (..., L, D).
        """
        if self.special is None:
            return tokens
        count, total = special.shape[0], self.num_special
        if tokens.shape[-2] + total != self.length or (count == 0) != (total == 0):
            raise ValueError(
                f"{self.describe()} has {self.length - total} places and {total} special tokens; "
                f"got {tokens.shape[-2]} tokens and {count} special ones per sample"
            )
        rows = special.to(tokens.dtype).expand(*tokens.shape[:-2], -1, -1)
        together = torch.cat([rows, tokens], dim=-2)
        if self.size is not None:
            return together
        nth_special = (self.special.cumsum(-1) - 1) % count
        nth_token = (~self.special).cumsum(-1) - 1
        return together.index_select(-2, torch.where(self.special, nth_special, nth_token + count))

    @property
    def num_special(self) -> int:
        """How many tokens of a row are special."""
        if self.special is None:
            return 0
        return int(self.special.sum(-1).max()) if self.length else 0

    @property
    def num_samples(self) -> int:
        """Samples held: batch rows times segments."""
        return (self.batch or 1) * self.num_segments

    def distance(self, pairs: Pairs) -> Tensor:
        """How far apart query and key are, in the broadcast shape of `pairs`."""
        raise TypeError(f"{self.describe()} has no distance: its tokens sit nowhere")

    def matches(self, pairs: Pairs, side: str, position: int | tuple[int, ...]) -> Tensor:
        """Whether the `side` ("query" or "key") of each pair sits at `position`."""
        wanted = torch.as_tensor(position).reshape(-1)
        if len(wanted) != self.axes:
            raise ValueError(f"position {position} needs {self.axes} coordinates in {self.describe()}")
        return (pairs.take("coordinates", side) == wanted.to(self.device)).all(-1)

    def describe(self) -> str:
        """A few words for error messages and `explain`."""
        return self._describe(f"a set of {self.length:,} tokens")

    def _describe(self, words: str) -> str:
        if self.batch is not None:
            words += f" in each of {self.batch} samples"
        elif self.segments is not None:
            words += f" from {self.num_segments} samples in one row"
        if self.num_special:
            words += f", {self.num_special} of them special"
        return words + (", some of them padding" if self.valid is not None else "")

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.describe()}>"


class Sequence(Space):
    """Tokens in a row. Distance is |Δ|.

    Args:
        length: number of places.
        start: position of the first token, or (B,) positions: tokens decoded after a past.
        special: tokens in front that sit nowhere.
    """

    ordered = True

    def __init__(
        self,
        length: int,
        *,
        start: int | Tensor = 0,
        special: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if isinstance(start, Tensor) and start.ndim == 1:
            at = start[:, None] + torch.arange(-special, length, device=start.device)
        else:
            start = int(start)
            at = torch.arange(start - special, start + length, device=device)
        super().__init__(
            length + special,
            coordinates=at[..., None],
            special=_first(special, length + special, device),
        )
        if isinstance(start, int):
            self.size, self.start = (length,), (start,)

    @classmethod
    def padded(
        cls,
        lengths: Iterable[int] | Tensor,
        length: int | None = None,
        *,
        side: str = "right",
        special: int = 0,
        device: torch.device | str = "cpu",
    ) -> Self:
        """A padded batch (B, L): sample b has `lengths[b]` tokens, padding fills the `side`.

        Positions count from 0 at a sample's first token on either side.
        """
        counts = _lengths(lengths, device)
        longest = int(counts.max()) if len(counts) else 0
        length = longest if length is None else length
        if length < longest:
            raise ValueError(f"length={length} is shorter than the longest sample, {longest}")
        if side not in ("left", "right"):
            raise ValueError(f"side must be 'left' or 'right', got {side!r}")
        if side == "left" and special:
            raise ValueError("special tokens come first, so special > 0 needs side='right'")
        new = cls(length, special=special, device=device)
        at = torch.arange(-special, length, device=device)
        if side == "left":
            at = at - (length - counts)[:, None]
            new.coordinates = at.clamp(min=0)[..., None]
            new.valid = at >= 0
        else:
            new.valid = at < counts[:, None]
        new.size = None
        return new

    @classmethod
    def packed(
        cls,
        lengths: Iterable[int] | Tensor,
        *,
        special: int = 0,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Several samples in one row of tokens (T,); positions restart in each."""
        segments, within = _packed(_lengths(lengths, device), special)
        new = cls(0, device=device)
        Space.__init__(
            new,
            len(within),
            coordinates=within[:, None],
            segments=segments,
            special=within < 0 if special else None,
        )
        new.num_segments = len(_lengths(lengths))
        return new

    def append(self, other: Space) -> Self:
        if isinstance(other, Sequence) and self.size and other.size and other.special is None:
            if other.start[0] == self.start[0] + self.size[0]:
                new = super().append(other)
                new.size = (self.size[0] + other.size[0],)
                return new
        return super().append(other)

    def distance(self, pairs: Pairs) -> Tensor:
        return pairs.offset.squeeze(-1).abs()

    def describe(self) -> str:
        return self._describe(f"a sequence of {self.length:,} tokens")


class Grid(Space):
    """Tokens on an n-dimensional grid, row-major (the last axis runs fastest).

    Distance is the Chebyshev distance: a radius is a square, cut at the border.

    Args:
        size: extent of each axis, as `Grid(height, width)` or `Grid(depth, height, width)`.
        special: tokens in front that sit nowhere.
    """

    ordered = True

    def __init__(self, *size: int, special: int = 0, device: torch.device | str = "cpu") -> None:
        if not size or any(not isinstance(n, int) or n < 0 for n in size):
            raise ValueError(f"Grid takes the extent of each axis as whole numbers, got {size}")
        length = math.prod(size) + special
        at = torch.arange(-special, math.prod(size), device=device)
        super().__init__(
            length, coordinates=_unravel(at, [size], None), special=_first(special, length, device)
        )
        self.size, self.start = size, (0,) * len(size)

    @classmethod
    def packed(
        cls,
        sizes: Iterable[tuple[int, ...]],
        *,
        special: int = 0,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Grids of different sizes in one row of tokens, each with its own special tokens."""
        sizes = [tuple(size) for size in sizes]
        if len({len(size) for size in sizes}) != 1:
            raise ValueError(f"packed grids need one number of axes, got sizes {sizes}")
        counts = torch.tensor([math.prod(size) for size in sizes], device=device)
        segments, within = _packed(counts, special)
        new = cls(*(0,) * len(sizes[0]), device=device)
        Space.__init__(
            new,
            len(within),
            coordinates=_unravel(within, sizes, segments),
            segments=segments,
            special=within < 0 if special else None,
        )
        new.num_segments = len(sizes)
        return new

    def distance(self, pairs: Pairs) -> Tensor:
        return pairs.offset.abs().amax(-1)

    def describe(self) -> str:
        extent = f"a {'×'.join(map(str, self.size))} grid, " if self.size else "grids, "
        return self._describe(f"{extent}{self.length:,} tokens")


class Points(Space):
    """Tokens anywhere in space, as in a point cloud. Distance is Euclidean.

    Args:
        coordinates: (N, A) or (B, N, A) float.
        segments: (N,) non-decreasing integers: several clouds in one row.
        valid: (N,) or (B, N) bool, False on padding.
        special: tokens in front of each sample that sit nowhere.
    """

    def __init__(
        self,
        coordinates: Tensor,
        *,
        segments: Tensor | None = None,
        valid: Tensor | None = None,
        special: int = 0,
    ) -> None:
        if coordinates.ndim not in (2, 3) or not coordinates.is_floating_point():
            raise ValueError(
                "coordinates must be float of shape (N, A) or (B, N, A), got "
                f"{coordinates.dtype} {tuple(coordinates.shape)}"
            )
        token_segments, source, is_special = _insert_special(segments, coordinates.shape[-2], special)
        source = source.to(coordinates.device)
        super().__init__(
            len(source),
            coordinates=_rows(coordinates, source, 2, 0.0),
            segments=token_segments,
            valid=None if valid is None else _rows(valid, source, 1, True),
            special=is_special if is_special is None else is_special.to(coordinates.device),
        )

    def distance(self, pairs: Pairs) -> Tensor:
        return torch.linalg.vector_norm(pairs.offset, dim=-1)

    def describe(self) -> str:
        return self._describe(f"{self.length:,} points in {self.axes} dimensions")


class Graph(Space):
    """The nodes of a graph, or of a batch of graphs. Distance is hops along edges, key to query.

    Args:
        edge_index: (2, E) integers as in PyG: row 0 the source (key), row 1 the target (query).
        num_nodes: number of nodes N.
        edge_attr: (E,) or (E, F), features of the edges, for `EdgeBias`.
        segments: (N,) non-decreasing integers, the graph of each node; PyG's `batch.batch`.
        coordinates: (N, A) places of the nodes, such as spectral coordinates for `Rotary`.
        special: virtual nodes in front of each graph's nodes.

    Unconnected nodes are infinitely far apart.
    """

    _tokenwise = Space._tokenwise | {"nodes": 1}

    def __init__(
        self,
        edge_index: Tensor,
        num_nodes: int,
        *,
        edge_attr: Tensor | None = None,
        segments: Tensor | None = None,
        coordinates: Tensor | None = None,
        special: int = 0,
    ) -> None:
        self.edges = EdgeList(edge_index, num_nodes, edge_attr, segments)
        token_segments, source, is_special = _insert_special(segments, num_nodes, special)
        #: (L,) the node at each token, -1 at special tokens.
        self.nodes: Tensor = source.to(edge_index.device)
        super().__init__(
            len(source),
            coordinates=None if coordinates is None else _rows(coordinates, self.nodes, 2, 0.0),
            segments=token_segments,
            special=is_special if is_special is None else is_special.to(edge_index.device),
        )

    @classmethod
    def from_pyg(cls, data: Any, *, special: int = 0) -> Self:
        """From a PyG `Data` or `Batch`: `edge_index`, `edge_attr` and, as segments, `batch`."""
        new = cls(
            data.edge_index,
            data.num_nodes,
            edge_attr=data.edge_attr,
            segments=getattr(data, "batch", None),
            special=special,
        )
        if getattr(data, "batch", None) is not None:
            new.num_segments = data.num_graphs
        return new

    def to(self, device: torch.device | str) -> Self:
        new = super().to(device)
        if new is not self:
            new.edges = self.edges.to(device)
        return new

    def distance(self, pairs: Pairs) -> Tensor:
        return self.edges.hops(*self._ends(pairs))

    def edge(self, pairs: Pairs) -> Tensor:
        """The edge from key to query of each pair, -1 where there is none."""
        return self.edges.find(*self._ends(pairs))

    @staticmethod
    def _ends(pairs: Pairs) -> tuple[Tensor, Tensor]:
        return pairs.take("nodes", "query"), pairs.take("nodes", "key")

    def matches(self, pairs: Pairs, side: str, position: int | tuple[int, ...]) -> Tensor:
        return pairs.take("nodes", side) == position

    def describe(self) -> str:
        return self._describe(
            f"a graph of {self.length:,} nodes and {self.edges.num_edges:,} edges"
        )


class Pairs:
    """Pairs of a query and a key token: what masks and biases see.

    `batch`, `head`, `query` and `key` are index tensors of any broadcastable shape; everything
    computed from them has their broadcast shape. That shape is the only difference between the
    ways of computing attention: all pairs are (B, 1, 1, 1), (1, H, 1, 1), (1, 1, Lq, 1) and
    (1, 1, 1, Lk); the edges of a graph are (E,) each, with heads (H, 1).
    """

    def __init__(
        self,
        spaces: tuple[Space, Space],
        *,
        shape: tuple[int, int, int, int],
        batch: Tensor,
        head: Tensor,
        query: Tensor,
        key: Tensor,
        edge: Tensor | None = None,
        distance: Tensor | None = None,
    ) -> None:
        self.spaces = spaces
        #: (B, H, Lq, Lk): the sizes that the indices run over.
        self.shape = shape
        self.batch, self.head, self.query, self.key = batch, head, query, key
        #: (E,) "edge" and "distance", where the list that the pairs come from knows them.
        self.known = {
            name: value for name, value in (("edge", edge), ("distance", distance)) if value is not None
        }
        self._computed: dict[str, Tensor] = dict(self.known)

    @classmethod
    def all(
        cls,
        spaces: tuple[Space, Space],
        *,
        batch: int = 1,
        heads: int = 1,
        device: torch.device | str = "cpu",
    ) -> Pairs:
        """Every pair, as indices of shape (B, 1, 1, 1), (1, H, 1, 1), (1, 1, Lq, 1), (1, 1, 1, Lk)."""
        return cls(
            spaces,
            shape=(batch, heads, spaces[0].length, spaces[1].length),
            batch=torch.arange(batch, device=device)[:, None, None, None],
            head=torch.arange(heads, device=device)[:, None, None],
            query=torch.arange(spaces[0].length, device=device)[:, None],
            key=torch.arange(spaces[1].length, device=device),
        )

    def take(self, name: str, side: str) -> Tensor:
        """The space's tensor `name` at the "query" or "key" of each pair."""
        space = self.spaces[side == "key"]
        tensor = getattr(space, name, None)
        if tensor is None:
            raise TypeError(f"{space.describe()} has no {name}")
        index: Tensor = getattr(self, side)
        if tensor.ndim == space._tokenwise[name]:
            return tensor[index]
        return tensor[self.batch, index]

    def _memo(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        if name not in self._computed:
            self._computed[name] = compute()
        return self._computed[name]

    def _same_kind(self, what: str) -> Space:
        query, key = self.spaces
        if type(query) is not type(key) or query.axes != key.axes:
            raise TypeError(
                f"there is no {what} between {query.describe()} and {key.describe()}: "
                "give both in one kind of space, or a mask and bias that do not ask for it"
            )
        return key

    @property
    def distance(self) -> Tensor:
        """How far the key is from the query; the space says in what sense."""
        return self._memo("distance", lambda: self._same_kind("distance").distance(self))

    @property
    def offset(self) -> Tensor:
        """Key minus query along each axis, in a last dimension of size A."""
        self._same_kind("offset")
        return self._memo(
            "offset", lambda: self.take("coordinates", "key") - self.take("coordinates", "query")
        )

    @property
    def edge(self) -> Tensor:
        """Index into `edge_index` of the edge from key to query, -1 where there is none."""
        space = self._same_kind("edge")
        if not isinstance(space, Graph):
            raise TypeError(f"{space.describe()} has no edges: Edges and EdgeBias need a Graph")
        return self._memo("edge", lambda: space.edge(self))

    @property
    def edge_attr(self) -> Tensor:
        """Features of the graph's edges, (E,) or (E, F); index it with `edge`."""
        space = self.spaces[1]
        if not isinstance(space, Graph) or space.edges.attr is None:
            raise TypeError(
                f"{space.describe()} has no edge features: give Graph(..., edge_attr=...)"
            )
        return space.edges.attr

    @property
    def precedes(self) -> Tensor:
        """Whether the key is at or before the query in reading order (row-major on a grid)."""
        space = self._same_kind("order")
        if not space.ordered:
            raise TypeError(f"{space.describe()} has no order: Causal needs a Sequence or a Grid")

        def compute() -> Tensor:
            *slow, fastest = self.offset.unbind(-1)
            before = fastest <= 0
            for offset in reversed(slow):
                before = (offset < 0) | ((offset == 0) & before)
            return before

        return self._memo("precedes", compute)

    @property
    def special(self) -> Tensor | None:
        """Whether the query or the key sits nowhere; None where no token does."""
        return self._either("special", torch.logical_or)

    @property
    def valid(self) -> Tensor | None:
        """Whether neither query nor key is padding; None where nothing is."""
        return self._either("valid", torch.logical_and)

    def _either(self, name: str, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
        sides = [
            self.take(name, side)
            for space, side in zip(self.spaces, ("query", "key"), strict=True)
            if getattr(space, name) is not None
        ]
        return join(*sides) if len(sides) == 2 else sides[0] if sides else None

    @property
    def same_sample(self) -> Tensor | None:
        """Whether query and key are in one segment; None where there are no segments."""
        query, key = self.spaces
        if query.segments is None and key.segments is None:
            return None
        if query.segments is None or key.segments is None:
            raise ValueError(
                f"queries and keys must both be in segments or neither: got {query.describe()} "
                f"and {key.describe()}"
            )
        return self.take("segments", "query") == self.take("segments", "key")

    @property
    def sample(self) -> Tensor:
        """The sample of each pair: its segment where samples share a row, else its batch index."""
        return self.batch if self.spaces[0].segments is None else self.take("segments", "query")


def _first(count: int, length: int, device: torch.device | str) -> Tensor | None:
    return torch.arange(length, device=device) < count if count else None


def _lengths(lengths: Iterable[int] | Tensor, device: torch.device | str = "cpu") -> Tensor:
    counts = torch.as_tensor(
        lengths if isinstance(lengths, Tensor) else list(lengths), device=device
    ).reshape(-1)
    if counts.numel() == 0:
        return counts.long()
    if counts.is_floating_point() or bool((counts < 0).any()):
        raise ValueError(f"lengths must be whole numbers of at least 0, got {counts.tolist()}")
    return counts.long()


def _packed(counts: Tensor, special: int) -> tuple[Tensor, Tensor]:
    """The segment of each token of a packed row, and its rank among the segment's located tokens.

    Special tokens come first in their segment and have negative ranks.
    """
    totals = counts + special
    segments = torch.repeat_interleave(totals)
    starts = totals.cumsum(0) - totals
    return segments, torch.arange(len(segments), device=counts.device) - starts[segments] - special


def _unravel(rank: Tensor, sizes: list[tuple[int, ...]], segments: Tensor | None) -> Tensor:
    """Row-major coordinates of the `rank`-th place of a grid, 0 for special tokens (rank < 0)."""
    rank = rank.clamp(min=0)
    extents = torch.tensor(sizes, device=rank.device).clamp(min=1)
    extents = extents[0] if segments is None else extents[segments]
    axes = []
    for axis in reversed(range(extents.shape[-1])):
        axes.append(rank % extents[..., axis])
        rank = rank // extents[..., axis]
    return torch.stack(axes[::-1], dim=-1)


def _insert_special(
    segments: Tensor | None, count: int, special: int
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Segments, source row (-1 at special tokens) and special flag of `count` tokens once
    `special` more stand in front of each segment."""
    if segments is None:
        source = torch.arange(-special, count).clamp(min=-1)
        return None, source, source < 0 if special else None
    if special == 0:
        return segments, torch.arange(count), None
    token_segments, within = _packed(torch.bincount(segments), special)
    is_special = within < 0
    source = torch.where(is_special, -1, (~is_special).cumsum(0) - 1)
    return token_segments, source, is_special


def _rows(tensor: Tensor, source: Tensor, dims: int, fill: float | bool) -> Tensor:
    """Rows of a per-token tensor, `fill` where `source` is -1."""
    rows = tensor.index_select(tensor.ndim - dims, source.clamp(min=0))
    missing = (source < 0).reshape(-1, *(1,) * (dims - 1))
    return rows.masked_fill(missing, fill)
