"""Data of one row per token, and what is done to all of it alike."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.compiler import is_compiling

from attention_core.annotated import checked
from attention_core.checks import check_dense
from attention_core.errors import counted
from attention_core.lasting import computed_names, kept, lasting
from attention_core.spaces.origin import OnHost
from attention_core.transfer import original


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

    def tensors(self) -> Iterator[tuple[str, Tensor, int]]:
        """Yield what holds one row per token: name, tensor, and its dimensions without a batch.

        Raises:
            TypeError: the class has an `__init__` of its own that leaves out that of `Space`.
        """
        if not hasattr(self, "tokenwise"):
            raise TypeError(
                f"{type(self).__name__}.__init__ must call super().__init__(length), with the "
                "number of its tokens, before all else"
            )
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
        return counted(self.length, "token")

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
