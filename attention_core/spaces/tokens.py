"""Data of one row per token, and what is done to all of it alike: keep, append, pack, pad, move."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_exporting

from attention_core.annotated import checked
from attention_core.checks import check_dense
from attention_core.lasting import computed_names, kept, lasting
from attention_core.spaces.edge_list import EdgeList
from attention_core.spaces.origin import OnHost
from attention_core.transfer import original

#: What tokens have where a space does not say, once they are joined with some where it does.
_DEFAULTS = {"segments": 0, "valid": True, "special": False, "special_rank": -1}


class Tokens(OnHost):
    """The tokens of a space, and what is known of each: the part of `Space` that has no geometry.

    Attributes:
        length: number of tokens L.
        segments, valid, special, coordinates, tokenwise: as in `Space`.
        special_rank: (L,) which of its sample's special tokens each one is; it stays theirs when
            others go.
        nodes: (L,) the node of the edges that each token is, -1 at special ones; None without.
        num_segments: samples in a row.
        size: the full extent along each axis where every place is taken once, in order, and every
            special token comes first; None once tokens were dropped or several samples were packed.
        start: the first place along each axis, where `size` is known.
    """

    length: int
    coordinates: Tensor | None
    segments: Tensor | None
    valid: Tensor | None
    special: Tensor | None
    special_rank: Tensor | None
    nodes: Tensor | None = None
    tokenwise: dict[str, Tensor]
    num_segments: int
    size: tuple[int, ...] | None
    start: tuple[int, ...]

    #: The tensors that hold one row per token, and their dimensions without a batch.
    _tokenwise: ClassVar[dict[str, int]] = {
        "coordinates": 2,
        "segments": 1,
        "valid": 1,
        "special": 1,
        "special_rank": 1,
        "nodes": 1,
    }

    #: What spaces may differ in that are joined; all else that they hold has to be the same.
    _DIFFERS: ClassVar[set[str]] = {
        *_tokenwise,
        *("tokenwise", "_tokenwise", "length", "num_segments", "size", "start", "zeroed"),
        *("num_nodes", "edges", "_origin"),
    }

    def tensors(self) -> Iterator[tuple[str, Tensor, int]]:
        """Yield what holds one row per token: name, tensor, and its dimensions without a batch."""
        for name, dims in self._tokenwise.items():
            tensor = self.tensor(name)
            if tensor is not None:
                yield name, tensor, dims

    def tensor(self, name: str) -> Tensor | None:
        """Return what holds one row per token under this name; None where nothing does."""
        if name in self.tokenwise:
            return self.tokenwise[name]
        return getattr(self, name) if name in Tokens._tokenwise else None

    def _put(self, name: str, tensor: Tensor) -> None:
        if name in Tokens._tokenwise:
            setattr(self, name, tensor)
        else:
            self.tokenwise[name] = tensor

    def _hold(self, tensors: Mapping[str, Tensor]) -> None:
        """Take data per token, and check that all tensors fit each other."""
        dims = dict(self._tokenwise)
        self.tokenwise = dict(self.tokenwise)
        for name, tensor in tensors.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise TypeError(
                    f"tokenwise must hold tensors by name, got {type(tensor).__name__} for {name!r}"
                )
            if name in Tokens._tokenwise or hasattr(type(self), name) or name in vars(self):
                raise ValueError(f"tokenwise names {name!r}, which a {type(self).__name__} has")
            check_dense(or_meta=True, **{f"tokenwise[{name!r}]": tensor})
            batched = tensor.ndim > 1 and tensor.shape[1] == self.length
            self.tokenwise[name] = kept(tensor)
            dims[name] = tensor.ndim - batched
        if tensors:
            self._tokenwise = dims  # type: ignore[misc]
        self._check()

    def _check(self) -> None:
        for name, tensor, dims in self.tensors():
            row = tensor.ndim - dims
            if not dims or row not in (0, 1) or tensor.shape[row] != self.length:
                own = name in self.tokenwise
                shape = f"({self.length}, ...)" if own else f"({self.length}, A)"
                raise ValueError(
                    f"{f'tokenwise[{name!r}]' if own else name} must have shape "
                    f"{shape if own or dims == 2 else f'({self.length},)'}, perhaps with a batch "
                    f"in front; got {tuple(tensor.shape)}"
                )
        batches = [t.shape[0] for t in self._batched()]  # no set: they may be symbols
        if any(batch != batches[0] for batch in batches):
            raise ValueError(
                f"the tensors of a space disagree on the batch size: {sorted(set(batches))}"
            )

    def _batched(self) -> list[Tensor]:
        return [tensor for _, tensor, dims in self.tensors() if tensor.ndim > dims]

    @property
    def batch(self) -> int | None:
        """Batch size, or None where the space serves every sample of a batch."""
        for _, tensor, dims in self.tensors():
            if tensor.ndim > dims:
                return tensor.shape[0]
        return None

    @property
    def device(self) -> torch.device:
        for _, tensor, _ in self.tensors():
            return tensor.device
        for value in vars(self).values():
            if isinstance(value, Tensor):
                return value.device
        return torch.device("cpu")

    def __len__(self) -> int:
        return self.length

    def describe(self) -> str:
        """Return a few words for error messages and `explain`."""
        return f"{self.length:,} tokens"

    @lasting
    @checked
    def with_tokenwise(self, tensors: Mapping[str, Tensor]) -> Self:
        """Return this space with more data of one row per token, by name: (L, ...), (B, L, ...).

        Special tokens have rows, too.
        """
        new = copy.copy(self)
        new._hold(tensors)
        return new

    def _copy(self) -> Self:
        """A copy that is about to hold other tokens: it forgets what was computed of these."""
        new = copy.copy(self)
        for name in computed_names(self):
            del new.__dict__[name]
        new.tokenwise = {}
        return new

    @lasting
    def _map(self, function: Callable[[Tensor, int], Tensor]) -> Self:
        """A copy with `function(tensor, dims without batch)` applied to each per-token tensor."""
        new = self._copy()
        for name, tensor, dims in self.tensors():
            new._put(name, function(tensor, dims))
        return new

    @lasting
    @checked
    def keep(self, index: Tensor) -> Self:
        """Keep the tokens at `index`; their coordinates, segments and validity follow.

        Args:
            index: (K,) positions or (L,) bool, the same for every sample; or (B, K) positions,
                each sample its own.
        """
        if self._made_on_host:
            known = original(index)
            if known is not None:
                return self.host.keep(known).to(self.device)
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
        if index.ndim == 2 and self.batch not in (None, index.shape[0]):
            raise ValueError(
                f"index keeps tokens in {index.shape[0]} samples, but got {self.describe()}"
            )
        if index.device.type == "cpu" and index.numel() and not is_compiling():
            least, most = int(index.min()), int(index.max())
            if least < 0 or most >= self.length:
                raise ValueError(
                    f"index must hold positions of 0 to {self.length - 1}, got {least} to {most} "
                    f"for {self.describe()}"
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
    def append(self, other: Self) -> Self:
        """Return the tokens of this space and then those of `other`, as a cache holds them.

        Raises:
            TypeError: they are of different kinds, or hold different tables or edges.
        """
        new = self._appended(other)
        if self._made_on_host and other._made_on_host:
            new.keep_host(partial(self.host.append, other.host))
        return new

    def _appended(self, other: Self) -> Self:
        new = self._joined([self, other], "append", edges=True)
        new.num_segments = max(self.num_segments, other.num_segments)
        return new

    @lasting
    def last(self, count: int) -> Self:
        """Return the last `count` tokens, or all where there are fewer, as `keep` does."""
        first = max(self.length - count, 0)
        new = self._map(lambda x, dims: x.narrow(x.ndim - dims, first, self.length - first))
        new.length, new.size = self.length - first, None
        if self._made_on_host:
            new.keep_host(partial(self.host.last, count))
        return new

    @lasting
    def rows(self, index: Tensor) -> Self:
        """Make sample `index[b]` of a batch the new sample b. index: (B,) integers."""
        new = self._map(lambda x, dims: x.index_select(0, index) if x.ndim > dims else x)
        if self._made_on_host:
            known = original(index)
            if known is not None:
                new.keep_host(partial(self.host.rows, known))
        return new

    @classmethod
    @lasting
    @checked
    def pack(cls, spaces: Iterable[Self]) -> Self:
        """Put spaces end to end in one row, (Σ L,): each stays a sample of its own, or several.

        Raises:
            TypeError: they are of different kinds, or hold different tables.
            ValueError: there are none, or they are batches.
        """
        samples, first, moved = list(spaces), 0, []
        if not samples:
            raise ValueError("spaces must hold at least one space, got none")
        for space in samples:
            if not isinstance(space, cls):
                raise TypeError(f"spaces must hold {cls.__name__}s, got {type(space).__name__}")
            if space.batch is not None:
                raise ValueError(f"spaces must have no batch to be packed, got {space.describe()}")
        if all(space._made_on_host and space.device == samples[0].device for space in samples):
            return cls.pack(space.host for space in samples).to(samples[0].device)
        for space in samples:
            new = copy.copy(space)
            segments = space.segments
            if segments is None:
                segments = torch.zeros(space.length, dtype=torch.long, device=space.device)
            new.segments = segments + first
            first += space.num_segments
            moved.append(new)
        row = samples[0]._joined(moved, "pack")
        row.num_segments, row.start = first, ()
        row._hold_packed(samples)
        return row

    def _hold_packed(self, spaces: list[Self]) -> None:
        """Take what a kind of space knows of each of `spaces`, whose tokens these are now."""

    @classmethod
    @lasting
    @checked
    def pad(cls, spaces: Iterable[Self]) -> Self:
        """Make a batch (B, L) of spaces of one sample each, with padding behind their tokens."""
        samples = list(spaces)
        if samples and all(isinstance(one, cls) and one._made_on_host for one in samples):
            device = samples[0].device
            if all(space.device == device for space in samples):
                return cls.pad(space.host for space in samples).to(device)
        row = cls.pack(samples)
        if any(space.segments is not None for space in samples):
            raise ValueError("spaces must be of one sample each to be padded, got segments")
        lengths = torch.tensor([space.length for space in samples], device=row.device)
        ends = lengths.cumsum(0)[:, None]
        within = torch.arange(int(lengths.max()), device=row.device)
        new = row.keep((ends - lengths[:, None] + within).clamp(max=max(row.length - 1, 0)))
        real = within < lengths[:, None]
        new.segments, new.num_segments = None, 1
        new.valid = real if new.valid is None else new.valid & real
        if new.special is not None and new.special_rank is not None:
            new.special = new.special & real
            new.special_rank = new.special_rank.masked_fill(~new.special, -1)
        if new.nodes is not None:
            new.nodes = new.nodes.masked_fill(~real, -1)
        return new

    def _check_kind(self, other: object, what: str) -> None:
        if type(other) is not type(self):
            raise TypeError(
                f"cannot {what} a {type(other).__name__} to a {type(self).__name__}: the other one "
                "must be of the same kind"
            )

    def check_shared(self, other: Self, what: str, *, edges: bool = False) -> None:
        """Raise unless `other` has the same tables and numbers, and the same edges if asked.

        Args:
            what: what cannot be done otherwise, for the message.

        Raises:
            TypeError: naming the first that differs.
        """
        shared = vars(self).keys() & vars(other).keys() - self._DIFFERS
        shared -= set(computed_names(self))  # which is of these tokens
        for name in [*sorted(shared), *(["edges"] if edges else [])]:
            if not _equal(getattr(self, name, None), getattr(other, name, None)):
                raise TypeError(
                    f"cannot {what} two spaces whose {name} differ: {self.describe()}, and "
                    f"{other.describe()}"
                )

    def _joined(self, spaces: list[Self], what: str, *, edges: bool = False) -> Self:
        """The tokens of `spaces` one after another; the rest is as in this one."""
        for other in spaces:
            self._check_kind(other, what)
            if other.device != self.device:
                raise ValueError(
                    f"cannot {what} a space on {self.device} and one on {other.device}: move one "
                    "with to(device)"
                )
            self.check_shared(other, what, edges=edges)
        new = self._copy()
        batch = next((space.batch for space in spaces if space.batch is not None), None)
        held = [{name: (x, dims) for name, x, dims in space.tensors()} for space in spaces]
        for name, (like, dims) in {name: of for one in held for name, of in one.items()}.items():
            parts = []
            for space, one in zip(spaces, held, strict=True):
                if name not in one and name not in _DEFAULTS:
                    raise TypeError(
                        f"cannot {what} {space.describe()}, which has no {name}, and one that has"
                    )
                tensor, _ = one.get(name, (None, dims))
                if tensor is None:
                    tensor = like.new_full((space.length,), _DEFAULTS[name])
                if batch is not None and tensor.ndim == dims:
                    tensor = tensor.expand(batch, *tensor.shape)
                parts.append(tensor)
            row = parts[0].ndim - dims
            shapes = {tuple(part.shape[:row] + part.shape[row + 1 :]) for part in parts}
            if len(shapes) > 1:
                raise ValueError(f"cannot {what} spaces whose {name} differ: {sorted(shapes)}")
            new._put(name, torch.cat(parts, dim=row))
        new.length = sum(space.length for space in spaces)
        new.size = None
        return new


def _equal(one: object, two: object) -> bool:
    if one is two:
        return True
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        if one.is_meta or is_exporting():  # there are no values to look at
            return one.shape == two.shape
        return one.shape == two.shape and one.device == two.device and torch.equal(one, two)
    if isinstance(one, EdgeList) and isinstance(two, EdgeList):
        return all(_equal(getattr(one, n), getattr(two, n)) for n in ("source", "target", "attr"))
    if isinstance(one, Tensor) or isinstance(two, Tensor):
        return False
    return bool(one == two)
