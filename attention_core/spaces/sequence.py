"""Tokens in a row: whole, padded or packed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Self

import torch
from torch import Tensor
from torch.compiler import is_exporting

from attention_core.annotated import checked
from attention_core.checks import check_dense, check_whole
from attention_core.errors import counted
from attention_core.lasting import lasting
from attention_core.spaces.base import Space
from attention_core.spaces.origin import made_elsewhere
from attention_core.spaces.packing import (
    first_special,
    packed,
    whole_lengths,
)


class Sequence(Space):
    """Tokens in a row. Distance is |Δ|.

    Args:
        length: number of places.
        start: position of the first token, or (B,) positions: tokens decoded after a past.
        special: tokens in front that sit nowhere.
    """

    ordered = True
    chebyshev = True

    @lasting
    @checked
    def __init__(
        self,
        length: int,
        *,
        start: int | Tensor = 0,
        special: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        check_whole(0, length=length, special=special)
        if isinstance(start, Tensor) and start.is_floating_point():
            raise ValueError(f"start must hold whole numbers, got {start.dtype}")
        if isinstance(start, Tensor) and start.ndim == 1:
            check_dense(start=start)
        else:
            check_whole(None, start=start)
        if isinstance(start, Tensor) and start.ndim == 1:
            device = start.device
            at = start[:, None] + torch.arange(-special, length, device=device)
        else:
            start = int(start)
            at = torch.arange(start - special, start + length, device=device)
        super().__init__(
            length + special,
            coordinates=at[..., None],
            special=first_special(special, length + special, device),
        )
        if isinstance(start, int):
            self.size, self.start = (length,), (start,)
            if made_elsewhere(device) and type(self) is Sequence:
                self.keep_host(partial(Sequence, length, start=start, special=special))

    @classmethod
    @lasting
    @checked
    def padded(
        cls,
        lengths: Iterable[int] | Tensor,
        length: int | None = None,
        *,
        side: str = "right",
        special: int = 0,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Make a padded batch (B, L): sample b has `lengths[b]` tokens, padding fills the `side`.

        Positions count from 0 at a sample's first token on either side.
        """
        check_whole(0, special=special)
        check_whole(0, length=length, or_none=True)
        if made_elsewhere(device):
            return cls.padded(lengths, length, side=side, special=special).to(device)
        counts = whole_lengths(lengths, device)
        if length is None and is_exporting() and isinstance(lengths, Tensor):
            raise ValueError(
                "length is needed for a program, which cannot look for the longest of lengths: "
                "Sequence.padded(lengths, length=x.shape[1])"
            )
        if length is None or not is_exporting():  # an exported program cannot look at values
            longest = int(counts.max()) if len(counts) else 0
            length = longest if length is None else length
            if length < longest:
                raise ValueError(
                    f"length={length} is shorter than the longest sample, {longest}, of lengths"
                )
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
    @lasting
    @checked
    def packed(
        cls,
        lengths: Iterable[int] | Tensor,
        *,
        special: int = 0,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Make one row of tokens (T,) of several samples; positions restart in each."""
        check_whole(0, special=special)
        if made_elsewhere(device):
            return cls.packed(lengths, special=special).to(device)
        counts = whole_lengths(lengths, device)
        segments, within = packed(counts, special)
        new = cls(0, device=device)
        Space.__init__(
            new,
            len(within),
            coordinates=within[:, None],
            segments=segments,
            special=within < 0 if special else None,
        )
        new.num_segments = len(counts)
        return new

    def _appended(self, other: Self) -> Self:
        new = super()._appended(other)
        if self.size is None or other.size is None or other.special is not None:
            return new
        if other.start[0] == self.start[0] + self.size[0]:
            new.size = (self.size[0] + other.size[0],)
        return new

    def norm(self, offset: Tensor) -> Tensor:
        return offset.squeeze(-1).abs()

    def describe(self) -> str:
        return self._describe(f"a sequence of {counted(self.length, 'token')}")
