"""Which query may attend to which key, as an algebra: ``Causal() & Neighborhood(128) | ...``.

``True`` means "may attend", everywhere. A mask of your own overrides one method::

    class SameColumn(Mask):
        def allowed(self, pairs):
            return pairs.offset[..., 1] == 0

Masks speak of tokens that sit somewhere. Special tokens (class, register, virtual node) are
exempt: they attend and are attended by everyone in their sample, whatever the composition. So a
causal model must not have any, or they would carry the future to the past. Samples (segments) and
padding are no masks at all: the space keeps them apart, and no ``|`` or ``~`` can undo it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from attention_core.spaces import Graph, Pairs, Space

Spaces = tuple[Space, Space]


class PairList(NamedTuple):
    """Pairs of tokens, (E,) each, with what is known of them."""

    query: Tensor
    key: Tensor
    edge: Tensor | None = None
    distance: Tensor | None = None


class Mask:
    """A predicate over pairs of tokens; `&`, `|` and `~` compose.

    Override `allowed`. The other methods tell the plan about structure, so that it need not look
    at every pair; their defaults promise nothing and are always right.
    """

    def allowed(self, pairs: Pairs) -> Tensor:
        """Bool of (at most) the broadcast shape of `pairs`: may this query attend to this key?"""
        raise NotImplementedError

    def at(self, pairs: Pairs, exempt: bool = True) -> Tensor:
        """`allowed`, and `exempt` wherever a special token takes part."""
        special = pairs.special
        allowed = self.allowed(pairs)
        return allowed if special is None else torch.where(special, exempt, allowed)

    def allows_all(self, spaces: Spaces) -> bool:
        """Whether the structure alone shows that every pair of a sample is allowed."""
        return False

    def count_bound(self, spaces: Spaces) -> float:
        """At most how many pairs per batch row are allowed, special tokens aside."""
        return math.inf

    def candidates(self, spaces: Spaces) -> PairList | None:
        """A list of pairs that holds all allowed ones, special tokens aside; None if unknown."""
        return None

    def __and__(self, other: Mask) -> Mask:
        return _And(self, _a_mask(other))

    def __or__(self, other: Mask) -> Mask:
        return _Or(self, _a_mask(other))

    def __invert__(self) -> Mask:
        return _Not(self)

    @staticmethod
    def from_torch_mha(
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        *,
        heads: int | None = None,
    ) -> Mask:
        """From the masks of `torch.nn.MultiheadAttention`, whose ``True`` means "may not".

        Args:
            attn_mask: bool (Lq, Lk), or (B·heads, Lq, Lk), which needs `heads`.
            key_padding_mask: bool (B, Lk).
        """
        masks: list[Mask] = []
        if attn_mask is not None:
            _check_bool(attn_mask, "attn_mask")
            if attn_mask.ndim == 3:
                if not heads or attn_mask.shape[0] % heads:
                    raise ValueError(
                        f"attn_mask {tuple(attn_mask.shape)} is (B·heads, Lq, Lk); got heads={heads}"
                    )
                attn_mask = attn_mask.unflatten(0, (-1, heads))
            masks.append(DenseMask(~attn_mask))
        if key_padding_mask is not None:
            _check_bool(key_padding_mask, "key_padding_mask")
            if key_padding_mask.ndim != 2:
                raise ValueError(
                    f"key_padding_mask must be (B, Lk), got {tuple(key_padding_mask.shape)}"
                )
            masks.append(DenseMask(~key_padding_mask[:, None, None, :]))
        if not masks:
            raise ValueError("from_torch_mha needs attn_mask or key_padding_mask")
        return masks[0] if len(masks) == 1 else masks[0] & masks[1]


def _a_mask(value: object) -> Mask:
    if not isinstance(value, Mask):
        raise TypeError(f"masks compose with masks, got {type(value).__name__}; see DenseMask")
    return value


def as_mask(mask: Mask | Tensor | None) -> Mask | None:
    """A bool tensor becomes a `DenseMask`; anything else that is no mask raises TypeError."""
    if mask is None or isinstance(mask, Mask):
        return mask
    if isinstance(mask, Tensor):
        return DenseMask(mask)
    raise TypeError(f"mask must be a Mask or a bool tensor, got {type(mask).__name__}")


def _tuples(mask: Mask, *names: str) -> None:
    """Lists, as configuration files give them, become tuples, so that masks stay hashable."""
    for name in names:
        if isinstance(getattr(mask, name), list):
            object.__setattr__(mask, name, tuple(getattr(mask, name)))


def _check_bool(mask: Tensor, name: str) -> None:
    if mask.dtype != torch.bool:
        raise TypeError(
            f"{name} must be bool (True: may attend), got {mask.dtype}; scores to add belong in "
            "bias=DenseBias(...)"
        )


@dataclass(frozen=True)
class _And(Mask):
    """Both::

    Causal()    &  Neighborhood(1)  =
    ■ · · ·        ■ ■ · ·             ■ · · ·
    ■ ■ · ·        ■ ■ ■ ·             ■ ■ · ·
    ■ ■ ■ ·        · ■ ■ ■             · ■ ■ ·
    ■ ■ ■ ■        · · ■ ■             · · ■ ■
    """

    first: Mask
    second: Mask

    def at(self, pairs: Pairs, exempt: bool = True) -> Tensor:
        return self.first.at(pairs, exempt) & self.second.at(pairs, exempt)

    def allows_all(self, spaces: Spaces) -> bool:
        return self.first.allows_all(spaces) and self.second.allows_all(spaces)

    def count_bound(self, spaces: Spaces) -> float:
        return min(self.first.count_bound(spaces), self.second.count_bound(spaces))

    def candidates(self, spaces: Spaces) -> PairList | None:
        terms = sorted((self.first, self.second), key=lambda term: term.count_bound(spaces))
        found = (term.candidates(spaces) for term in terms)
        return next((pairs for pairs in found if pairs is not None), None)

    def __repr__(self) -> str:
        return f"{self.first} & {self.second}"


@dataclass(frozen=True)
class _Or(Mask):
    """Either."""

    first: Mask
    second: Mask

    def at(self, pairs: Pairs, exempt: bool = True) -> Tensor:
        return self.first.at(pairs, exempt) | self.second.at(pairs, exempt)

    def allows_all(self, spaces: Spaces) -> bool:
        return self.first.allows_all(spaces) or self.second.allows_all(spaces)

    def count_bound(self, spaces: Spaces) -> float:
        return self.first.count_bound(spaces) + self.second.count_bound(spaces)

    def __repr__(self) -> str:
        return f"({self.first} | {self.second})"


@dataclass(frozen=True)
class _Not(Mask):
    """The pairs that `mask` does not allow. Special tokens stay exempt."""

    mask: Mask

    def at(self, pairs: Pairs, exempt: bool = True) -> Tensor:
        return ~self.mask.at(pairs, not exempt)

    def __repr__(self) -> str:
        inner = repr(self.mask)
        return f"~({inner})" if isinstance(self.mask, _And) else f"~{inner}"


@dataclass(frozen=True)
class Causal(Mask):
    """Attend to oneself and what comes before, in reading order; a Grid reads row by row::

        ■ · · ·
        ■ ■ · ·
        ■ ■ ■ ·
        ■ ■ ■ ■
    """

    def allowed(self, pairs: Pairs) -> Tensor:
        return pairs.precedes

    def allows_all(self, spaces: Spaces) -> bool:
        query, key = spaces
        if not (query.ordered and query.size and key.size and type(query) is type(key)):
            return False
        last_key = key.start[0] + key.size[0] - 1
        return len(key.size) == 1 and query.start[0] >= last_key

    def __repr__(self) -> str:
        return "Causal()"


@dataclass(frozen=True)
class Neighborhood(Mask):
    """Attend within `radius`, both ends included::

        Neighborhood(1) on a Sequence   on a Grid(3, 3), its centre   on a Graph a–b–c–d, from b
        ■ ■ · ·                         ■ ■ ■                         a b c ·
        ■ ■ ■ ·                         ■ ■ ■
        · ■ ■ ■                         ■ ■ ■
        · · ■ ■

    A sliding window (Beltagy et al., Longformer, 2020) on a Sequence, neighborhood attention
    (Hassani et al., 2023) cut at the border on a Grid, k-hop attention on a Graph (the node itself
    is at distance 0), a ball around Points.

    Args:
        radius: in the space's distance; one per axis gives a box on a Sequence, Grid or Points.
    """

    radius: float | tuple[float, ...]

    def __post_init__(self) -> None:
        _tuples(self, "radius")
        radii = self.radius if isinstance(self.radius, tuple) else (self.radius,)
        if not radii or any(isinstance(r, bool) or not r >= 0 for r in radii):
            raise ValueError(f"radius must be at least 0, got {self.radius}")

    def allowed(self, pairs: Pairs) -> Tensor:
        if not isinstance(self.radius, tuple):
            return pairs.distance <= self.radius
        offset = pairs.offset
        if offset.shape[-1] != len(self.radius):
            raise ValueError(
                f"radius {self.radius} has {len(self.radius)} axes, {pairs.spaces[1].describe()} "
                f"has {offset.shape[-1]}"
            )
        return (offset.abs() <= torch.tensor(self.radius, device=offset.device)).all(-1)

    def _per_axis(self, space: Space) -> tuple[float, ...]:
        return self.radius if isinstance(self.radius, tuple) else (self.radius,) * space.axes

    def allows_all(self, spaces: Spaces) -> bool:
        query, key = spaces
        if not (query.size and key.size and type(query) is type(key)):
            return False
        return all(
            radius >= max(k0 + kn - 1 - q0, q0 + qn - 1 - k0)
            for radius, q0, qn, k0, kn in zip(
                self._per_axis(key), query.start, query.size, key.start, key.size, strict=True
            )
        )

    def count_bound(self, spaces: Spaces) -> float:
        query, key = spaces
        if isinstance(key, Graph):
            if isinstance(self.radius, tuple) or self.radius >= 2:
                return math.inf
            return key.length + (key.edges.num_edges if self.radius >= 1 else 0)
        if not key.ordered:
            return math.inf
        return query.length * math.prod(2 * r + 1 for r in self._per_axis(key))

    def candidates(self, spaces: Spaces) -> PairList | None:
        query, key = spaces
        if query is not key:
            return None
        if isinstance(key, Graph):
            if isinstance(self.radius, tuple):
                return None
            target, source, hops = key.edges.within(self.radius)
            token = _token_of_node(key)
            queries, keys = token[target], token[source]
            kept = (queries >= 0) & (keys >= 0)  # dropped tokens are in no pair
            return PairList(queries[kept], keys[kept], distance=hops[kept])
        if not key.size:
            return None
        return _regular_neighbors(key, self._per_axis(key))

    def __repr__(self) -> str:
        return f"Neighborhood({self.radius})"


@dataclass(frozen=True)
class Edges(Mask):
    """Attend along exactly the listed edges of a Graph, from target (query) to source (key).

    A node attends to itself only where a self-loop is listed; `Neighborhood(1)` adds the node.
    """

    def allowed(self, pairs: Pairs) -> Tensor:
        return pairs.edge >= 0

    def count_bound(self, spaces: Spaces) -> float:
        return spaces[1].edges.num_edges if isinstance(spaces[1], Graph) else math.inf

    def candidates(self, spaces: Spaces) -> PairList | None:
        space = spaces[1]
        if not isinstance(space, Graph) or spaces[0] is not space or space.batch is not None:
            return None
        edges, token = space.edges, _token_of_node(space)
        edge = torch.arange(edges.num_edges, device=edges.source.device)
        query, key = token[edges.target], token[edges.source]
        kept = (query >= 0) & (key >= 0)  # dropped tokens have no edges
        return PairList(query[kept], key[kept], edge=edge[kept])

    def __repr__(self) -> str:
        return "Edges()"


@dataclass(frozen=True)
class Window(Mask):
    """Attend within one's window; windows tile the space and may be shifted (Liu et al., Swin, 2021)::

        Window(2)      Window(2, shift=1)
        ■ ■ · ·        ■ · · ·
        ■ ■ · ·        · ■ ■ ·
        · · ■ ■        · ■ ■ ·
        · · ■ ■        · · · ■

    A shift moves the tiling towards the end; what it cuts off at the border stays a window of its
    own, which is what rolling, partitioning and masking the seam does in the paper.

    Args:
        size: window size, one number or one per axis.
        shift: how far the tiling is moved, one number or one per axis.
    """

    size: int | tuple[int, ...]
    shift: int | tuple[int, ...] = 0

    def __post_init__(self) -> None:
        _tuples(self, "size", "shift")
        sizes = self.size if isinstance(self.size, tuple) else (self.size,)
        if not sizes or any(size < 1 for size in sizes):
            raise ValueError(f"size must be at least 1, got {self.size}")

    def allowed(self, pairs: Pairs) -> Tensor:
        axes = pairs.spaces[1].axes
        for name in ("size", "shift"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != axes:
                raise ValueError(
                    f"{name}={value} needs one number per axis of {pairs.spaces[1].describe()}"
                )
        pairs.offset  # noqa: B018  raises where query and key have no common axes
        size, shift = (
            torch.tensor(n, device=pairs.spaces[1].device) for n in (self.size, self.shift)
        )
        query, key = (
            torch.div(pairs.take("coordinates", side) - shift, size, rounding_mode="floor")
            for side in ("query", "key")
        )
        return (query == key).all(-1)

    def count_bound(self, spaces: Spaces) -> float:
        if not spaces[1].ordered:
            return math.inf
        sizes = self.size if isinstance(self.size, tuple) else (self.size,) * spaces[1].axes
        return spaces[0].length * math.prod(sizes)

    def __repr__(self) -> str:
        return f"Window({self.size}{f', shift={self.shift}' if self.shift else ''})"


@dataclass(frozen=True, eq=False)
class PrefixLM(Mask):
    """Attend to the first `n` places and to what comes before (Raffel et al., T5, 2020)::

        PrefixLM(2)
        ■ ■ · ·
        ■ ■ · ·
        ■ ■ ■ ·
        ■ ■ ■ ■

    Args:
        n: prefix length on a Sequence, or (samples,) integers, one for each sample.
    """

    n: int | Tensor

    def allowed(self, pairs: Pairs) -> Tensor:
        if pairs.spaces[1].axes != 1:
            raise TypeError(f"PrefixLM needs a Sequence, got {pairs.spaces[1].describe()}")
        n = self.n
        if isinstance(n, Tensor):
            n = n.to(pairs.batch.device)[pairs.sample] if n.ndim else n
        return pairs.precedes | (pairs.take("coordinates", "key").squeeze(-1) < n)

    def __repr__(self) -> str:
        return f"PrefixLM({self.n if isinstance(self.n, int) else '...'})"


@dataclass(frozen=True)
class Dilated(Mask):
    """Attend at offsets that are multiples of `step` along each axis (Child et al., 2019)::

        Dilated(2)
        ■ · ■ ·
        · ■ · ■
        ■ · ■ ·
        · ■ · ■

    With a reach: ``Dilated(2) & Neighborhood(6)``.
    """

    step: int | tuple[int, ...]

    def __post_init__(self) -> None:
        _tuples(self, "step")
        steps = self.step if isinstance(self.step, tuple) else (self.step,)
        if not steps or any(step < 1 for step in steps):
            raise ValueError(f"step must be at least 1, got {self.step}")

    def allowed(self, pairs: Pairs) -> Tensor:
        offset = pairs.offset
        return (offset % torch.tensor(self.step, device=offset.device) == 0).all(-1)

    def __repr__(self) -> str:
        return f"Dilated({self.step})"


@dataclass(frozen=True, init=False)
class GlobalTokens(Mask):
    """Tokens that attend everywhere and are attended by everyone (Beltagy et al., 2020)::

        GlobalTokens(1)
        · ■ · ·
        ■ ■ ■ ■
        · ■ · ·
        · ■ · ·

    Usually added to a local mask: ``Neighborhood(64) | GlobalTokens(0)``.

    Args:
        positions: places on a Sequence, nodes of a Graph, or tuples of coordinates on a Grid.
    """

    positions: tuple[int | tuple[int, ...], ...]

    def __init__(self, *positions: int | tuple[int, ...]) -> None:
        places = tuple(tuple(p) if isinstance(p, list) else p for p in positions)
        object.__setattr__(self, "positions", places)

    def allowed(self, pairs: Pairs) -> Tensor:
        found = torch.zeros((), dtype=torch.bool, device=pairs.query.device)
        for position, (side, space) in product(
            self.positions, zip(("query", "key"), pairs.spaces, strict=True)
        ):
            found = found | space.matches(pairs, side, position)
        return found

    def __repr__(self) -> str:
        return f"GlobalTokens({', '.join(map(str, self.positions))})"


@dataclass(frozen=True, eq=False)
class DenseMask(Mask):
    """Any mask, given pair by pair; it speaks for special tokens too.

    Args:
        tensor: bool, (Lq, Lk), or (B, H, Lq, Lk) where any size may be 1. (B, Lk) and
            three dimensions are ambiguous and refused; padding is `Sequence.padded(lengths)`.
    """

    tensor: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.tensor, Tensor):
            raise TypeError(f"DenseMask takes a bool tensor, got {type(self.tensor).__name__}")
        _check_bool(self.tensor, "mask")
        check_pairwise(self.tensor, "mask")

    def at(self, pairs: Pairs, exempt: bool = True) -> Tensor:
        return self.allowed(pairs)

    def allowed(self, pairs: Pairs) -> Tensor:
        return take_pairwise(self.tensor, pairs, "mask")

    def __repr__(self) -> str:
        return f"DenseMask({'×'.join(map(str, self.tensor.shape))})"


def check_pairwise(tensor: Tensor, name: str) -> None:
    """Refuse shapes that do not say which dimension is which."""
    if tensor.ndim not in (2, 4):
        raise ValueError(
            f"{name} must have shape (Lq, Lk) or (B, H, Lq, Lk), got {tuple(tensor.shape)}, which "
            "is ambiguous: put a 1 where the batch or the heads are missing"
        )


def take_pairwise(tensor: Tensor, pairs: Pairs, name: str) -> Tensor:
    """The entries of a (Lq, Lk) or (B, H, Lq, Lk) tensor at `pairs`; sizes of 1 broadcast."""
    have, want = tuple(tensor.shape), pairs.shape
    if have != want[2:]:
        if tensor.ndim == 2 or any(n not in (1, size) for n, size in zip(have, want, strict=True)):
            raise ValueError(
                f"{name} has shape {have}, but attention has (B, H, Lq, Lk) = {want}; what depends "
                "on the key alone is padding: see Sequence.padded(lengths)"
            )
    else:
        tensor = tensor[None, None]
    indices = (pairs.batch, pairs.head, pairs.query, pairs.key)
    at = [torch.zeros_like(i) if n == 1 else i for i, n in zip(indices, tensor.shape, strict=True)]
    return tensor.to(pairs.key.device)[tuple(at)]


def _token_of_node(space: Graph) -> Tensor:
    """(N,) the token of each node of a graph without a batch dimension, -1 where dropped."""
    token = space.nodes.new_full((space.edges.num_nodes,), -1)
    at = (space.nodes >= 0).nonzero().squeeze(-1)
    token[space.nodes[at]] = at
    return token


def _regular_neighbors(space: Space, radii: tuple[float, ...]) -> PairList:
    """All pairs of a full sequence or grid at most `radii` apart, axis by axis."""
    assert space.coordinates is not None and space.size is not None
    size, device = space.size, space.device
    first = space.length - math.prod(size)  # special tokens stand in front
    places = space.coordinates[first:] - torch.tensor(space.start, device=device)
    reach = [min(r, n) for r, n in zip(radii, size, strict=True)]
    steps = [torch.arange(-int(r), int(r) + 1, device=device) for r in reach]
    offsets = torch.cartesian_prod(*steps).reshape(-1, len(size))
    neighbors = places[:, None] + offsets
    inside = ((neighbors >= 0) & (neighbors < torch.tensor(size, device=device))).all(-1)
    strides = [math.prod(size[axis + 1 :]) for axis in range(len(size))]
    key = (neighbors * torch.tensor(strides, device=device)).sum(-1)[inside]
    return PairList(inside.nonzero()[:, 0] + first, key + first)
