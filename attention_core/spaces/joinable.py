"""Tokens of several spaces in one: one after another, end to end as samples, padded to a batch."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.compiler import is_exporting

from attention_core.annotated import checked
from attention_core.lasting import computed_names, lasting
from attention_core.spaces.edge_list import EdgeList
from attention_core.spaces.tokens import Tokens

#: What tokens have where a space does not say, once they are joined with some where it does.
_DEFAULTS = {"segments": 0, "valid": True, "special": False, "special_rank": -1}


class Joinable(Tokens):
    """Tokens that can be joined with those of spaces of the same kind: the part of `Space` that
    knows how."""

    #: What spaces may differ in that are joined; all else that they hold has to be the same.
    _DIFFERS: ClassVar[set[str]] = {
        *Tokens._tokenwise,
        *("tokenwise", "_tokenwise", "length", "num_segments", "size", "start", "zeroed"),
        *("num_nodes", "edges", "_origin"),
    }

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
