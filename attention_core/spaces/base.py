"""What every space has: coordinates, segments, validity and special tokens of its tokens."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import (
    TYPE_CHECKING,
    ClassVar,
    Self,
)

import torch
from torch import Tensor
from torch.compiler import is_exporting

from attention_core.annotated import checked
from attention_core.checks import check_dense, check_whole
from attention_core.lasting import kept, lasting

if TYPE_CHECKING:
    from attention_core.spaces.pairs import Pairs


class Space:
    """A set of tokens, some or all of which sit somewhere.

    Used as it is, it holds tokens without a place, such as the queries of a pooling layer.

    Args:
        length: number of tokens L.
        coordinates: (L, A) or (B, L, A), integer or float.
        segments: (L,) or (B, L) integers, the sample of each token.
        valid: (L,) or (B, L) bool, False on padding.
        special: (L,) or (B, L) bool, True on tokens that sit nowhere.
        num_segments: how many samples `segments` tells apart, where the last ones may have no
            tokens; by default as many as it names.
    """

    ordered = False
    """Whether "before" and "after" mean something here (they do on a Sequence and a Grid)."""

    #: Whether keys and values of padding are zeros already, as those that a cache holds are.
    zeroed = False

    #: The tensors that hold one row per token, and their dimensions without a batch.
    _tokenwise: ClassVar[dict[str, int]] = {
        "coordinates": 2,
        "segments": 1,
        "valid": 1,
        "special": 1,
        "special_rank": 1,
    }

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
        #: (L,) which of its sample's special tokens each one is; it stays theirs when others go.
        self.special_rank = None if special is None else _ranks(special, segments, num_segments)
        #: The full extent along each axis where every place is taken once, in order, and every
        #: special token comes first; None once tokens were dropped or several samples were packed.
        self.size: tuple[int, ...] | None = None
        self.start: tuple[int, ...] = ()
        self._check()
        self.num_segments = 1
        if segments is not None:
            self.num_segments = _count(segments, num_segments)

    def _check(self) -> None:
        for name, dims in self._tokenwise.items():
            tensor = getattr(self, name)
            if tensor is None:
                continue
            if (
                tensor.ndim not in (dims, dims + 1)
                or tensor.shape[tensor.ndim - dims] != self.length
            ):
                shape = f"({self.length}, A)" if dims == 2 else f"({self.length},)"
                raise ValueError(
                    f"{name} must have shape {shape}, perhaps with a batch in front; got "
                    f"{tuple(tensor.shape)}"
                )
        batches = [t.shape[0] for t in self._batched()]  # no set: they may be symbols
        if any(batch != batches[0] for batch in batches):
            raise ValueError(
                f"the tensors of a space disagree on the batch size: {sorted(set(batches))}"
            )

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
    def extent(self) -> Tensor | None:
        """The size of the grid that each token comes from, (L, A) or what broadcasts to it; None
        off a grid."""
        return None

    @property
    def device(self) -> torch.device:
        tensors = (getattr(self, name) for name in self._tokenwise)
        return next((t.device for t in tensors if t is not None), torch.device("cpu"))

    def __len__(self) -> int:
        return self.length

    def to(self, device: torch.device | str) -> Self:
        """Return the space with its tensors on `device`."""
        if self.device == torch.device(device):
            return self
        return self._map(lambda t, dims: t.to(device))

    @lasting
    def _map(self, function: Callable[[Tensor, int], Tensor]) -> Self:
        """A copy with `function(tensor, dims without batch)` applied to each per-token tensor."""
        new = copy.copy(self)
        for name, dims in self._tokenwise.items():
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(new, name, function(tensor, dims))
        return new

    @lasting
    @checked
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

    @lasting
    @checked
    def append(self, other: Space) -> Self:
        """Return the tokens of this space and then those of `other`, as a cache holds them."""
        if type(other) is not type(self):
            raise TypeError(f"cannot append a {type(other).__name__} to a {type(self).__name__}")
        new = copy.copy(self)
        batch = self.batch or other.batch
        defaults = {"segments": 0, "valid": True, "special": False, "special_rank": -1}
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
        special = self.special
        if self.size is not None:
            index = torch.arange(self.num_special, self.length, device=self.device)
        elif special.ndim == 1 and not is_exporting():
            index = (~special).nonzero().squeeze(-1)
        else:
            counts = special.sum(-1)
            if not is_exporting() and int(counts.min()) < int(counts.max()):
                raise ValueError(
                    f"{self.describe()}: samples have {int(counts.min())} to {int(counts.max())}"
                )
            index = special.long().argsort(dim=-1, stable=True)
            index = index[..., : self.length - self.num_special]
        kept = self.keep(index)
        kept.special = kept.special_rank = None
        kept.size = self.size
        index = index.to(tokens.device)
        if index.ndim == 1:
            return tokens.index_select(-2, index), kept
        return tokens[torch.arange(len(index), device=index.device)[:, None], index], kept

    @lasting
    def special_as_padding(self) -> Self:
        """Return this space with its special tokens as padding: nobody attends to them."""
        if self.special is None:
            return self
        new = copy.copy(self)
        new.valid = ~self.special if self.valid is None else self.valid & ~self.special
        new.special = new.special_rank = None
        return new

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
    def num_special(self) -> int:
        """How many tokens of a row are special."""
        if self.special is None:
            return 0
        if self.size is not None:  # they come first, and every place is taken
            return self.length - math.prod(self.size)
        return int(self.special.sum(-1).max()) if self.length else 0

    @property
    def num_samples(self) -> int:
        """Samples held: batch rows times segments."""
        return (self.batch or 1) * self.num_segments

    def distance(self, pairs: Pairs) -> Tensor:
        """Return how far apart query and key are, in the broadcast shape of `pairs`."""
        if self.coordinates is None:
            raise TypeError(f"{self.describe()} has no distance: its tokens sit nowhere")
        return self.norm(pairs.offset)

    def norm(self, offset: Tensor) -> Tensor:
        """Return the distance that an offset (..., A) spans, (...), rising with each component."""
        raise NotImplementedError(f"{type(self).__name__} must define norm(self, offset)")

    def edge(self, pairs: Pairs) -> Tensor:
        """Return the edge from key to query, an index into those of this space, or -1.

        In the broadcast shape of `pairs`.
        """
        raise TypeError(f"{self.describe()} has no edges: Edges and EdgeBias need a Graph")

    @property
    def edge_attr(self) -> Tensor | None:
        """(E,) or (E, F), features of the edges; None where there are none."""
        return None

    def pair(self, pairs: Pairs) -> Tensor:
        """Return the row of each pair in tables of pairs, in the broadcast shape of `pairs`."""
        raise TypeError(f"{self.describe()} has no pair_attr: tables of pairs need a Graph")

    def sits_at(self, position: int | tuple[int, ...]) -> Tensor:
        """Return whether each token sits at `position`, (L,) or (B, L)."""
        wanted = torch.as_tensor(position).reshape(-1)
        if self.coordinates is None or len(wanted) != self.axes:
            raise ValueError(
                f"position {position} needs {self.axes} coordinates in {self.describe()}"
            )
        return (self.coordinates == wanted.to(self.device)).all(-1)

    def describe(self) -> str:
        """Return a few words for error messages and `explain`."""
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


def _count(segments: Tensor, known: int | None) -> int:
    """How many samples there are, of which those without tokens have to be `known`."""
    if known is not None and is_exporting():
        return known
    named = int(segments.max()) + 1 if segments.numel() else 0
    if known is not None and known < named:
        raise ValueError(f"num_segments={known}, but segments name {named} samples")
    return named if known is None else known


def _ranks(special: Tensor, segments: Tensor | None, num_segments: int | None) -> Tensor:
    """Rank of each special token among those of its segment."""
    running = special.long().cumsum(-1) - 1
    if segments is None or not segments.numel():
        return running
    if segments.ndim < special.ndim:
        segments = segments.expand_as(special)
    count = running.new_zeros(*segments.shape[:-1], _count(segments, num_segments))
    count = count.scatter_add(-1, segments, special.long().expand_as(segments))
    return running - (count.cumsum(-1) - count).gather(-1, segments)
