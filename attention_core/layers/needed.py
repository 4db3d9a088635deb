"""Which tokens each layer has to compute, where the outputs of some are asked for alone."""

from __future__ import annotations

from collections.abc import Sequence as Listing

import torch
from torch import Tensor

from attention_core.checks import check_kind, may_look
from attention_core.job import is_ours
from attention_core.masks import Mask
from attention_core.spaces import Space
from attention_core.transfer import moved

#: A layer that needs a greater share of the tokens computes all of them, in the order they have.
_MOST = 0.9


class Needed:
    """The tokens that each layer of a stack needs for the outputs of some.

    Tokens are brought into one order, those asked for first, then what the last layer needs
    beside them, and so on to the first layer: each layer takes a prefix of the tokens and gives a
    shorter one. Layers that need nearly all come before that, and see the tokens as they stand.

    Args:
        asked: (K,) different positions.
        space: where the tokens sit.
        masks: of each layer, those of its attentions; a pair that one of them allows counts.

    Attributes:
        counts: (depth + 1,) how many tokens each layer takes, and how many the last one gives;
            that of all tokens where they are as they stand.
    """

    def __init__(self, asked: Tensor, space: Space, masks: Listing[Listing[Mask | None]]) -> None:
        self._space, self._length = space, space.length
        # Each look at a number would be waited for on another device
        ours = all(is_ours(mask) for layer in masks for mask in layer)
        self._host = host = space.host if ours else space
        self._given, asked = asked, asked.to(host.device)
        found = torch.zeros(space.length, dtype=torch.bool, device=asked.device)
        found[asked] = True
        order, self.counts = asked, [self._known(len(asked))]
        for layer in reversed(masks):
            if self.counts[0] < self._length:
                more = _reached(order, found, host, moved(list(layer), host.device))
                if more is not None and self._known(len(order) + len(more)) < self._length:
                    order = torch.cat([order, more])
                    found[more] = True
                    self.counts.insert(0, len(order))
                    continue
            self.counts.insert(0, self._length)
        order = torch.cat([order, (~found).nonzero().squeeze(-1)])
        sorted_already = torch.equal(order, torch.arange(self._length, device=order.device))
        self._order_on_host = None if sorted_already else order
        self._order = moved(self._order_on_host, space.device)
        self._spaces: dict[int, Space] = {}

    def _known(self, count: int) -> int:
        return self._length if count > _MOST * self._length else count

    def trimmed(self, layer: int) -> bool:
        """Return whether the layer gives fewer than all tokens."""
        return self.counts[layer + 1] < self._length

    def enter(self, x: Tensor, layer: int) -> Tensor:
        """Return what the layer takes, of the tokens x that there are before it."""
        count = self.counts[layer]
        if not self.trimmed(layer) or (count < self._length and layer):
            return x
        return self._first(x, count)

    def leave(self, x: Tensor) -> Tensor:
        """Return those asked for, of the tokens x behind the last layer."""
        if self.trimmed(len(self.counts) - 2):
            return x
        return x.index_select(-2, moved(self._given, x.device))

    def spaces(self, layer: int) -> tuple[Space, Space]:
        """Return where the layer's queries and keys sit."""
        if not self.trimmed(layer):
            return self._space, self._space
        return self._prefix(self.counts[layer + 1]), self._prefix(self.counts[layer])

    def _prefix(self, count: int) -> Space:
        if count == self._length and self._order is None:
            return self._space
        if count not in self._spaces:
            new = self._spaces[count] = self._space.keep(_first(self._order, count, self._space))
            if self._host is not self._space:
                new.keep_host(self._host.keep(_first(self._order_on_host, count, self._host)))
        return self._spaces[count]

    def _first(self, x: Tensor, count: int) -> Tensor:
        if self._order is None:
            return x.narrow(-2, 0, count)
        return x.index_select(-2, self._order[:count])


def _first(order: Tensor | None, count: int, space: Space) -> Tensor:
    """The first tokens in this order, None for that in which they stand."""
    return torch.arange(count, device=space.device) if order is None else order[:count]


def check_positions(keep: Tensor, space: Space) -> Tensor:
    """Return `keep`; raise TypeError or ValueError unless it is different positions in the
    space."""
    check_kind(Tensor, keep=keep)
    if keep.ndim != 1 or keep.is_floating_point() or keep.dtype == torch.bool:
        raise ValueError(
            f"keep must hold integers of shape (K,), got {keep.dtype} {tuple(keep.shape)}"
        )
    if not may_look(keep) or not len(keep):
        return keep
    if int(keep.min()) < 0 or int(keep.max()) >= space.length or len(keep.unique()) < len(keep):
        raise ValueError(
            f"keep must hold different positions of 0 to {space.length - 1}, got "
            f"{keep.tolist()!s:.80}"
        )
    return keep


def _reached(
    order: Tensor, found: Tensor, space: Space, masks: Listing[Mask | None]
) -> Tensor | None:
    """The tokens that queries at `order` may attend to, beside those found; None: all."""
    reached = found.clone()
    if space.special is not None:
        if bool((space.special & found).any()):
            return None  # it attends to all
        reached |= space.special
    queries = space.keep(order)
    for mask in masks:
        pairs = None if mask is None else mask.candidates((queries, space))
        if pairs is None:
            return None
        reached[pairs.key] = True
    return (reached & ~found).nonzero().squeeze(-1)
