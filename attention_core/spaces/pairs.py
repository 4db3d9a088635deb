"""Pairs of tokens: all that masks and biases see."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from torch.compiler import is_exporting

from attention_core.backends.derivatives import transformed
from attention_core.lasting import Memory
from attention_core.spaces.base import Space
from attention_core.spaces.sequence import Sequence

#: From so many pairs on it takes less time to look at offsets first.
_MANY = 1 << 14


def same_kind(spaces: tuple[Space, Space], what: str) -> Space:
    """Return the space of the keys, in which there is a `what` to the queries.

    Raises:
        TypeError: queries and keys sit in spaces of different kinds, or such as hold different
            tables or edges.
    """
    query, key = spaces
    if type(query) is not type(key) or query.axes != key.axes:
        raise TypeError(
            f"there is no {what} between {query.describe()} and {key.describe()}: "
            "give both in one kind of space, or a mask and bias that do not ask for it"
        )
    if query is not key and what in ("distance", "edge", "pair"):
        query.check_shared(key, f"find the {what} between", edges=what != "distance")
    return key


def common_period(spaces: tuple[Space, Space]) -> Space:
    """Return the space of the queries, after whose `period` the keys repeat, too.

    Raises:
        TypeError: queries and keys wrap at different places.
    """
    query, key = spaces
    if query is not key and (any(query.wrap) or any(key.wrap)):
        ends = [(space.wrap, *dict.fromkeys(getattr(space, "sizes", ()))) for space in spaces]
        if ends[0] != ends[1]:
            raise TypeError(
                f"there is no offset between {query.describe()} and {key.describe()}: they wrap at "
                "different places"
            )
    return query


def nearest_image(offset: Tensor, period: Tensor) -> Tensor:
    """Return offsets (..., A) between the nearest images of two tokens: along an axis with a period
    n those from -((n - 1) // 2) to n // 2; along one without, which is 0, they stay."""
    half = (period - 1).clamp(min=0) // 2
    return torch.where(period > 0, (offset + half) % period.clamp(min=1) - half, offset)


def in_order(spaces: tuple[Space, Space]) -> Space:
    """Return the space of the keys, in which some are before others.

    Raises:
        TypeError: there is no order, or queries and keys sit in spaces of different kinds.
    """
    space = same_kind(spaces, "order")
    for one in spaces:
        if any(one.wrap):
            raise TypeError(
                f"{one.describe()} has no order, as what wraps has no end: Causal(axes=...) is for "
                "axes that do not"
            )
    if not space.ordered:
        raise TypeError(f"{space.describe()} has no order: Causal needs a Sequence or a Grid")
    return space


def in_segments(spaces: tuple[Space, Space]) -> bool:
    """Return whether queries and keys are in segments.

    Raises:
        ValueError: only the ones or the others are.
    """
    query, key = spaces
    if (query.segments is None) != (key.segments is None):
        raise ValueError(
            f"queries and keys must both be in segments or neither: got {query.describe()} "
            f"and {key.describe()}"
        )
    return query.segments is not None


def ask(part: object, compute: Callable[[Pairs], Tensor], pairs: Pairs) -> Tensor:
    """Return what a mask or bias computes of pairs.

    Raises:
        IndexError: it takes a row or an axis that is not there; says how many axes there are.
    """
    try:
        return compute(pairs)
    except IndexError as error:
        space = pairs.spaces[1]
        if space.coordinates is None or "axis" in str(error):
            raise
        axes = "1 axis" if space.axes == 1 else f"{space.axes} axes"
        raise IndexError(
            f"{type(part).__name__}: {error}. {space.describe()} has {axes}, so the last dimension "
            f"of pairs.offset is {space.axes} here"
        ) from error


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
        #: Whether these are all pairs, in order, so that a tensor of them need not be indexed.
        self.whole = False
        #: (E,) "edge" and "distance", where the list that the pairs come from knows them.
        self.known = {
            name: value
            for name, value in (("edge", edge), ("distance", distance))
            if value is not None
        }
        self._memory = Memory(self.known)

    @classmethod
    def all(
        cls,
        spaces: tuple[Space, Space],
        *,
        batch: int = 1,
        heads: int = 1,
        device: torch.device | str = "cpu",
    ) -> Pairs:
        """Return every pair, as indices that broadcast to (B, H, Lq, Lk)."""
        pairs = cls(
            spaces,
            shape=(batch, heads, spaces[0].length, spaces[1].length),
            batch=torch.arange(batch, device=device)[:, None, None, None],
            head=torch.arange(heads, device=device)[None, :, None, None],
            query=torch.arange(spaces[0].length, device=device)[None, None, :, None],
            key=torch.arange(spaces[1].length, device=device)[None, None, None, :],
        )
        pairs.whole = True
        return pairs

    def in_spaces(self, spaces: tuple[Space, Space]) -> Pairs:
        """Return these pairs in other spaces of the same structure; what was computed of them in
        the old ones is left behind."""
        new = copy.copy(self)
        new.spaces, new._memory = spaces, Memory(self.known)
        return new

    @property
    def by_offset(self) -> Pairs | None:
        """A pair for each offset, from the lowest on, (1, 1, 1, Lq + Lk - 1), where these are all
        pairs of two whole sequences, and many; else None. It knows its offset and distance
        alone."""
        query, key = self.spaces
        # How long sequences are is left open in an exported program
        if not self.whole or is_exporting() or transformed():
            return None
        sequences = type(query) is type(key) is Sequence and query.size and key.size
        if not sequences or query.length * key.length < max(_MANY, 1) or query.length < 2:
            return None
        first = [space.start[0] - space.num_special for space in self.spaces]
        low = first[1] - first[0] - query.length + 1
        ends = low, low + query.length + key.length - 1
        offset = torch.arange(*ends, device=self.key.device)[None, None, None]
        new = copy.copy(self)
        new.whole = False
        new._memory = Memory({"offset": offset[..., None], "distance": offset.abs()})
        return new

    def take(self, name: str, side: str) -> Tensor:
        """Take the space's tensor `name`, one of its own or of `tokenwise`, at the "query" or "key"
        of each pair, in their broadcast shape and that of a row.

        Raises:
            TypeError: the space has none of that name; it names those that it has.
        """
        if side not in ("query", "key"):
            raise ValueError(f"side must be 'query' or 'key', got {side!r}")
        space = self.spaces[side == "key"]
        tensor = space.tensor(name)
        if tensor is None:
            known = ", ".join(known for known, _, _ in space.tensors()) or "nothing"
            reads = ", which pairs.offset reads" if name == "coordinates" else ""
            if name in Space._tokenwise:
                give = f"{name}= where it is made" if name != "nodes" else "with_edges(edge_index)"
            else:
                give = f"tokenwise={{{name!r}: ...}} where it is made, or with_tokenwise"
            raise TypeError(
                f"{space.describe()} has no {name}{reads}: give {give}. What it has of each token: "
                f"{known}"
            )
        return self.pick(tensor, side, dims=space._tokenwise[name])

    def pick(self, values: Tensor, side: str, *, dims: int) -> Tensor:
        """Take the rows of `values`, one per token, at the "query" or "key" of each pair.

        Args:
            dims: dimensions of `values` where it has none for the batch.
        """
        index: Tensor = getattr(self, side)
        return values[index] if values.ndim == dims else values[self.batch, index]

    @property
    def distance(self) -> Tensor:
        """How far the key is from the query; the space says in what sense."""
        return self._memory.memo(
            "distance", lambda: same_kind(self.spaces, "distance").distance(self)
        )

    @property
    def offset(self) -> Tensor:
        """Key minus query along each axis, in a last dimension of size A; where an axis wraps, that
        of the nearest image of the key."""
        same_kind(self.spaces, "offset")
        return self._memory.memo("offset", self._offset)

    def _offset(self) -> Tensor:
        offset = self.take("coordinates", "key") - self.take("coordinates", "query")
        period = common_period(self.spaces).period
        if period is None:
            return offset
        own = period if period.ndim == 1 else self.pick(period, "query", dims=2)
        return nearest_image(offset, own)

    @property
    def edge(self) -> Tensor:
        """Index into `edge_index` of the edge from key to query, -1 where there is none."""
        return self._memory.memo("edge", lambda: same_kind(self.spaces, "edge").edge(self))

    @property
    def edge_attr(self) -> Tensor:
        """Features of the graph's edges, (E,) or (E, F); index it with `edge`."""
        space = self.spaces[1]
        if space.edge_attr is None:
            raise TypeError(
                f"{space.describe()} has no edge features: give edge_attr= with its edge_index"
            )
        return space.edge_attr

    @property
    def pair(self) -> Tensor:
        """Row in the tables of pairs (`pair_attr`), -1 between two samples."""
        return self._memory.memo("pair", lambda: same_kind(self.spaces, "pair").pair(self))

    @property
    def precedes(self) -> Tensor:
        """Whether the key is at or before the query in reading order (row-major on a grid)."""
        in_order(self.spaces)

        def compute() -> Tensor:
            *slow, fastest = self.offset.unbind(-1)
            before = fastest <= 0
            for offset in reversed(slow):
                before = (offset < 0) | ((offset == 0) & before)
            return before

        return self._memory.memo("precedes", compute)

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
        if not in_segments(self.spaces):
            return None
        return self.take("segments", "query") == self.take("segments", "key")

    @property
    def sample(self) -> Tensor:
        """The sample of each pair: its segment where samples share a row, else its batch index."""
        return self.batch if self.spaces[0].segments is None else self.take("segments", "query")
