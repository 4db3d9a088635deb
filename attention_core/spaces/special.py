"""Special tokens of a space, which sit nowhere: where they are put, and how they are taken away."""

from __future__ import annotations

import copy
import math
from typing import Self

import torch
from torch import Tensor

from attention_core.checks import may_look
from attention_core.lasting import lasting
from attention_core.spaces.linked import Linked
from attention_core.transfer import moved


class Special(Linked):
    """Tokens of which some may sit nowhere: the part of `Space` that knows these."""

    def place(self, tokens: Tensor, special: Tensor) -> Tensor:
        """Put special tokens where this space has them, before any token is dropped.

        Args:
            tokens: (..., N, D), the tokens that sit somewhere.
            special: (S, D), the S special tokens of a sample.

        Returns: (..., L, D).
        """
        if self.special is None or self.special_rank is None:
            return tokens
        count, total = special.shape[0], self.num_special
        if tokens.shape[-2] + total != self.length or total != count * self.num_segments:
            raise ValueError(
                f"{self.describe()} has {self.length - total} places and {total} special tokens; "
                f"got {tokens.shape[-2]} tokens and {count} special ones per sample"
            )
        rows = special.to(tokens.dtype).expand(*tokens.shape[:-2], -1, -1)
        together = torch.cat([rows, tokens], dim=-2)
        if self.size is not None:
            return together
        nth_token = (~self.special).cumsum(-1) - 1
        source = torch.where(self.special, self.special_rank, nth_token + count)
        return together.index_select(-2, source)

    def without_special(self, tokens: Tensor) -> tuple[Tensor, Self]:
        """Take special tokens away, as `place` has put them there.

        Args:
            tokens: (..., L, D).

        Returns: (..., N, D), those that sit somewhere, and the space of these.

        Raises:
            ValueError: the samples of a batch have different numbers of special tokens.
        """
        if self.special is None:
            return tokens, self
        kept, index = (self.host if self._made_on_host else self)._ordinary()
        kept, index = moved((kept, index), self.device)
        index = index.to(tokens.device)
        if index.ndim == 1:
            return tokens.index_select(-2, index), kept
        return tokens[torch.arange(len(index), device=index.device)[:, None], index], kept

    def _ordinary(self) -> tuple[Self, Tensor]:
        """The space of the tokens that sit somewhere, and which they are, (N,) or (B, N)."""
        special = self.special
        assert special is not None
        if self.size is not None:
            index = torch.arange(self.num_special, self.length, device=self.device)
        elif special.ndim == 1 and may_look(special):
            index = (~special).nonzero().squeeze(-1)
        else:
            counts = special.sum(-1)
            if may_look(special) and int(counts.min()) < int(counts.max()):
                raise ValueError(
                    f"{self.describe()}: samples have {int(counts.min())} to {int(counts.max())}"
                )
            index = special.long().argsort(dim=-1, stable=True)
            index = index[..., : self.length - self.num_special]
        kept = self.keep(index)
        kept.special = kept.special_rank = None
        kept.size = self.size
        return kept, index

    @lasting
    def special_as_padding(self) -> Self:
        """Return this space with its special tokens as padding: nobody attends to them."""
        if self.special is None:
            return self
        if self._made_on_host:
            return self.host.special_as_padding().to(self.device)
        new = copy.copy(self)
        new.valid = ~self.special if self.valid is None else self.valid & ~self.special
        new.special = new.special_rank = None
        if self._is_away() and self.has_host:
            new.keep_host(self.host.special_as_padding)
        return new

    @property
    def num_special(self) -> int:
        """How many tokens of a row are special."""
        if self.special is None:
            return 0
        if self.size is not None:  # they come first, and every place is taken
            return self.length - math.prod(self.size)
        special = self.host.special
        return int(special.sum(-1).max()) if self.length and special is not None else 0
