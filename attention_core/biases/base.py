"""A bias: a score for every pair, and sums of biases."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.compiler import is_exporting

from attention_core.spaces import BlockKey, Pairs, Space
from attention_core.spaces.pairs import ask

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
            score, special = ask(self, self.score, pairs), pairs.special
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
