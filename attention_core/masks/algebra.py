"""The algebra of masks: what a mask answers, its leaf `DenseMask`, and `&`, `|`, `~`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attention_core.annotated import checked
from attention_core.checks import check_whole
from attention_core.masks.pairwise import check_bool, check_pairwise, take_pairwise
from attention_core.spaces import BlockKey, PairList, Pairs, Space, TilePairs, TileStatus
from attention_core.spaces.pairs import ask

Spaces = tuple[Space, Space]


class Mask:
    """A predicate over pairs of tokens; `&`, `|` and `~` compose.

    Override `allowed`. The other methods tell the plan about structure, so that it need not look
    at every pair; their defaults promise nothing and are always right.
    """

    def allowed(self, pairs: Pairs) -> Tensor:
        """Return whether each query may attend to its key, bool that broadcasts to `pairs`."""
        raise NotImplementedError(f"{type(self).__name__} must define allowed(self, pairs)")

    def at(self, pairs: Pairs, exempt: bool = True) -> Tensor:
        """Return `allowed`, and `exempt` wherever a special token takes part."""
        special = pairs.special
        allowed = ask(self, self.allowed, pairs)
        if not isinstance(allowed, Tensor) or allowed.dtype != torch.bool:
            got = allowed.dtype if isinstance(allowed, Tensor) else type(allowed).__name__
            raise TypeError(f"{type(self).__name__}.allowed must return a bool tensor, got {got}")
        return allowed if special is None else torch.where(special, exempt, allowed)

    def allows_all(self, spaces: Spaces) -> bool:
        """Return whether the structure alone shows that every pair of a sample is allowed."""
        return False

    def count_bound(self, spaces: Spaces) -> float:
        """Return at most how many pairs per batch row are allowed, special tokens aside."""
        return math.inf

    def candidates(self, spaces: Spaces) -> PairList | None:
        """Return pairs that include all allowed ones, special tokens aside; None if unknown. Where
        a batch has other pairs in each row, `batch` tells the row of each."""
        return None

    def names_edges(self, spaces: Spaces) -> bool:
        """Return whether `candidates` knows pairs, and of each the edge that joins it."""
        found = self.candidates(spaces)
        return found is not None and found.edge is not None

    @property
    def lists_candidates(self) -> bool:
        """Whether `candidates` may know the pairs, or all have to be looked at to find them."""
        return type(self).candidates is not Mask.candidates

    def tile_status(self, tiles: TilePairs) -> TileStatus:
        """Return for pairs of tiles whether a pair of tokens may be allowed, and if all are."""
        found = self.candidates(tiles.spaces)
        some = tiles.answer(True) if found is None else tiles.holding(found)
        return TileStatus(some, tiles.answer(False))

    def tile_status_at(self, tiles: TilePairs, exempt: bool = True) -> TileStatus:
        """Return `tile_status`, and `exempt` wherever a special token takes part."""
        some, every = self.tile_status(tiles)
        if all(space.special is None for space in tiles.spaces):
            return TileStatus(some, every)
        special = tiles.either("special", _special)
        if exempt:
            return TileStatus(some | special.any, every | special.all)
        return TileStatus(some & ~special.all, every & ~special.any)

    @property
    def lookback(self) -> float:
        """How far back an allowed key lies on a Sequence at most, special tokens aside."""
        return math.inf

    @property
    def needs_end(self) -> bool:
        """Whether what a query may see depends on where its sample ends, so that tokens which are
        still to come change it: a `Decoder` with a cache then refuses the mask."""
        return False

    @property
    def depends_on_others(self) -> bool:
        """Whether what a query may see depends on which other tokens there are, so that it may be
        another after some were dropped, and layers cannot leave any out."""
        return False

    def block_key(self, space: Space) -> BlockKey | None:
        """Return what of the tokens decides which pairs are allowed, None if unknown."""
        return None

    def partition(self, space: Space) -> Tensor | None:
        """Return integers (L, A) or (B, L, A): where they differ, nothing is allowed."""
        return None

    def __and__(self, other: Mask) -> Mask:
        return _And(self, _a_mask(other))

    def __or__(self, other: Mask) -> Mask:
        return _Or(self, _a_mask(other))

    def __invert__(self) -> Mask:
        return _Not(self)

    def __bool__(self) -> bool:
        raise TypeError("masks compose with &, | and ~; `and`, `or` and `not` would drop one")

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @staticmethod
    @checked
    def from_torch_mha(
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        *,
        heads: int | None = None,
    ) -> Mask:
        """Make a mask of those of `torch.nn.MultiheadAttention`, whose ``True`` means "may not".

        Args:
            attn_mask: bool (Lq, Lk), or (B·heads, Lq, Lk), which needs `heads`.
            key_padding_mask: bool (B, Lk).
        """
        check_whole(heads=heads, or_none=True)
        masks: list[Mask] = []
        if attn_mask is not None:
            check_bool(attn_mask, "attn_mask")
            if attn_mask.ndim == 3:
                if not heads or attn_mask.shape[0] % heads:
                    raise ValueError(
                        f"attn_mask {tuple(attn_mask.shape)} must be (B·heads, Lq, Lk) with heads "
                        f"given; got heads={heads}"
                    )
                attn_mask = attn_mask.unflatten(0, (-1, heads))
            masks.append(DenseMask(~attn_mask))
        if key_padding_mask is not None:
            check_bool(key_padding_mask, "key_padding_mask")
            if key_padding_mask.ndim != 2:
                raise ValueError(
                    f"key_padding_mask must be (B, Lk), got {tuple(key_padding_mask.shape)}"
                )
            masks.append(DenseMask(~key_padding_mask[:, None, None, :]))
        if not masks:
            raise ValueError("from_torch_mha needs attn_mask or key_padding_mask")
        return masks[0] if len(masks) == 1 else masks[0] & masks[1]


def _special(space: Space) -> Tensor:
    if space.special is None:
        return torch.zeros(space.length, dtype=torch.bool, device=space.device)
    return space.special


def _a_mask(value: object) -> Mask:
    if not isinstance(value, Mask):
        raise TypeError(f"masks compose with masks, got {type(value).__name__}; see DenseMask")
    return value


def tuples(mask: Mask, *names: str) -> None:
    """Lists, as configuration files give them, become tuples, so that masks stay hashable."""
    for name in names:
        if isinstance(getattr(mask, name), list):
            object.__setattr__(mask, name, tuple(getattr(mask, name)))


def as_mask(mask: Mask | Tensor | None) -> Mask | None:
    """Make a `DenseMask` of a bool tensor; anything else that is no mask raises TypeError."""
    if mask is None or isinstance(mask, Mask):
        return mask
    if isinstance(mask, Tensor):
        return DenseMask(mask)
    raise TypeError(f"mask must be a Mask or a bool tensor, got {type(mask).__name__}")


@dataclass(frozen=True, eq=False)
class DenseMask(Mask):
    """Any mask, given pair by pair. It speaks for special tokens too, which exempts no one.

    Args:
        tensor: bool, (Lq, Lk), or (B, H, Lq, Lk) where any size may be 1. (B, Lk) and
            three dimensions are ambiguous and refused; padding is `Sequence.padded(lengths)`.
    """

    tensor: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.tensor, Tensor):
            raise TypeError(f"mask must be a bool tensor, got {type(self.tensor).__name__}")
        check_bool(self.tensor, "mask")
        check_pairwise(self.tensor, "mask")

    def at(self, pairs: Pairs, exempt: bool = True) -> Tensor:
        return self.allowed(pairs)

    @property
    def depends_on_others(self) -> bool:
        return True  # its tensor is of all tokens, in their order

    def count_bound(self, spaces: Spaces) -> float:
        queries, keys = (space.length for space in spaces)
        if torch.compiler.is_compiling() or self.tensor.device.type != "cpu":
            return math.inf
        allowed = self.tensor.any(1) if self.tensor.ndim == 4 else self.tensor
        rows = allowed.sum((-2, -1)).max() if allowed.numel() else 0
        return int(rows) * (queries * keys // max(allowed.shape[-2:].numel(), 1))

    def tile_status_at(self, tiles: TilePairs, exempt: bool = True) -> TileStatus:
        return self.tile_status(tiles)

    def allowed(self, pairs: Pairs) -> Tensor:
        return take_pairwise(self.tensor, pairs, "mask")

    def __repr__(self) -> str:
        return f"DenseMask({'×'.join(map(str, self.tensor.shape))})"


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

    @property
    def lists_candidates(self) -> bool:
        return self.first.lists_candidates or self.second.lists_candidates

    def tile_status_at(self, tiles: TilePairs, exempt: bool = True) -> TileStatus:
        first, second = (term.tile_status_at(tiles, exempt) for term in (self.first, self.second))
        return TileStatus(first.any & second.any, first.all & second.all)

    @property
    def lookback(self) -> float:
        return min(self.first.lookback, self.second.lookback)

    @property
    def needs_end(self) -> bool:
        return self.first.needs_end or self.second.needs_end

    @property
    def depends_on_others(self) -> bool:
        return self.first.depends_on_others or self.second.depends_on_others

    def block_key(self, space: Space) -> BlockKey | None:
        return BlockKey.joined(self.first.block_key(space), self.second.block_key(space))

    def partition(self, space: Space) -> Tensor | None:
        found = [term.partition(space) for term in (self.first, self.second)]
        known = [classes for classes in found if classes is not None]
        return torch.cat(known, dim=-1) if known else None

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

    def tile_status_at(self, tiles: TilePairs, exempt: bool = True) -> TileStatus:
        first, second = (term.tile_status_at(tiles, exempt) for term in (self.first, self.second))
        return TileStatus(first.any | second.any, first.all | second.all)

    @property
    def lookback(self) -> float:
        return max(self.first.lookback, self.second.lookback)

    @property
    def needs_end(self) -> bool:
        return self.first.needs_end or self.second.needs_end

    @property
    def depends_on_others(self) -> bool:
        return self.first.depends_on_others or self.second.depends_on_others

    def block_key(self, space: Space) -> BlockKey | None:
        return BlockKey.joined(self.first.block_key(space), self.second.block_key(space))

    def __repr__(self) -> str:
        return f"({self.first} | {self.second})"


@dataclass(frozen=True)
class _Not(Mask):
    """The pairs that `mask` does not allow. Special tokens stay exempt."""

    mask: Mask

    def at(self, pairs: Pairs, exempt: bool = True) -> Tensor:
        return ~self.mask.at(pairs, not exempt)

    def tile_status_at(self, tiles: TilePairs, exempt: bool = True) -> TileStatus:
        some, every = self.mask.tile_status_at(tiles, not exempt)
        return TileStatus(~every, ~some)

    @property
    def needs_end(self) -> bool:
        return self.mask.needs_end

    @property
    def depends_on_others(self) -> bool:
        return self.mask.depends_on_others

    def block_key(self, space: Space) -> BlockKey | None:
        return self.mask.block_key(space)

    def __repr__(self) -> str:
        inner = repr(self.mask)
        return f"~({inner})" if isinstance(self.mask, _And) else f"~{inner}"
