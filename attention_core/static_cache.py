"""The past of a decoder in memory of one size, written in place: a step that CUDA graphs capture.

How many tokens there are is a tensor, so that no step differs from the next one in anything but
numbers. Nothing is asked about them on the host: what a query may see is computed with each step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attention_core.biases import Bias
from attention_core.errors import BackendError
from attention_core.finite import can_look
from attention_core.job import Plan
from attention_core.lasting import lasting
from attention_core.masks import Mask
from attention_core.spaces import Sequence, Space


class MovingSequence(Sequence):
    """Tokens whose places change in place, (L,) or (B, L).

    Args:
        places: integers, kept and not copied.
        valid: bool, likewise; None: all are tokens.
    """

    moving = True

    @lasting
    def __init__(self, places: Tensor, valid: Tensor | None = None) -> None:
        Space.__init__(self, places.shape[-1], coordinates=places[..., None], valid=valid)
        self.zeroed = True


@dataclass
class Step:
    """Hold what steps of n tokens share.

    Attributes:
        space: where the new tokens sit.
        columns: (n,) where they are written.
        plans: of the layers that differ, and which of them is whose; with `backend` as given.
        context: the plan of the attention to a context.
    """

    space: MovingSequence
    columns: Tensor
    plans: list[Plan] = field(default_factory=list)
    of_layer: list[int] = field(default_factory=list)
    context: Plan | None = None

    def renewed(self) -> tuple[list[Plan], Plan | None]:
        """Return the plan of each layer, and that of the context, for one forward pass."""
        plans = [plan.renewed() for plan in self.plans]
        context = None if self.context is None else self.context.renewed()
        return [plans[n] for n in self.of_layer], context


class Past:
    """Where the tokens of a static cache sit.

    Args:
        space: of the first tokens.
        max_length: for how many there is room.

    Attributes:
        keys: the places of all columns, of which those written are valid.
        length: () columns written.
        following: () or (B,) the place after each sample's last token.
    """

    @lasting
    def __init__(self, space: Space, max_length: int) -> None:
        if not isinstance(space, Sequence) or space.segments is not None:
            raise TypeError(
                f"a static cache takes a Sequence, whole or padded, got {space.describe()}"
            )
        assert space.coordinates is not None
        places, count = space.coordinates[..., 0], space.length
        written = places.new_ones(count, dtype=torch.bool) if space.valid is None else space.valid
        shape = torch.broadcast_shapes(places.shape, written.shape)
        all_places = places.new_zeros(*shape[:-1], max_length)
        all_places[..., :count] = places
        valid = written.new_zeros(*shape[:-1], max_length)
        valid[..., :count] = written
        self.keys = MovingSequence(all_places, valid)
        before = torch.where(written, places, -1).expand(shape)
        self.following = before.amax(-1) + 1 if count else places.new_zeros(shape[:-1])
        self.length = torch.full((), count, device=places.device)
        self.max_length = max_length
        self._steps: dict[int, Step] = {}
        _same_memory(all_places, valid, self.following, self.length)
        self.step(1)

    @lasting
    def step(self, count: int) -> Step:
        """Return what steps of so many tokens share."""
        found = self._steps.get(count)
        if found is None:
            columns = torch.arange(count, device=self.length.device)
            places = self.following.new_zeros(*self.following.shape, count)
            found = self._steps[count] = Step(MovingSequence(places), columns)
            _same_memory(places, columns)
        return found

    def at(self, count: int) -> MovingSequence | None:
        """Return the space of the next tokens, None where there was none of so many before."""
        step = self._steps.get(count)
        return None if step is None else step.space

    def locate(self, count: int) -> MovingSequence:
        """Return where the next tokens sit."""
        step, steps = self.step(count), torch.arange(count, device=self.length.device)
        assert step.space.coordinates is not None
        step.space.coordinates.copy_((self.following[..., None] + steps)[..., None])
        return step.space

    def write(self, count: int) -> Step:
        """Add the next tokens to the keys; their columns are those of the step that is returned."""
        step, steps = self.step(count), torch.arange(count, device=self.length.device)
        # Elsewhere to look is to wait, and a compiled step looks at nothing
        if can_look(self.length) and int(self.length) + count > self.max_length:
            raise ValueError(
                f"the cache has room for max_length={self.max_length} tokens, got "
                f"{int(self.length) + count}"
            )
        space = self.locate(count)
        keys = self.keys
        assert keys.coordinates is not None and keys.valid is not None
        assert space.coordinates is not None
        step.columns.copy_(self.length + steps)
        keys.coordinates.index_copy_(-2, step.columns, space.coordinates)
        keys.valid.index_fill_(-1, step.columns, True)
        return step

    def advance(self, count: int) -> None:
        """Go on after tokens that all layers have seen."""
        self.length.add_(count)
        self.following.add_(count)

    def reorder(self, index: Tensor) -> None:
        """Make sample `index[b]` the new sample b."""
        keys = self.keys
        assert keys.coordinates is not None and keys.valid is not None
        if self.following.ndim:
            for x in (keys.coordinates, keys.valid, self.following):
                x.copy_(x.index_select(0, index))


def plan_once(
    attention: Any,
    x: Tensor,
    spaces: tuple[Space, Space],
    mask: Mask | None,
    bias: Bias | None,
    backend: str | None,
) -> Plan:
    """Return the plan of a layer for all steps from x, by a backend that asks anew who is allowed.

    Raises:
        BackendError: `backend` is another one.
        RuntimeError: in a program that is compiled, which cannot plan.
    """
    known = ("dense", "reference")
    if backend is not None and backend not in known:
        raise BackendError(
            f"backend={backend!r} cannot do this: a static cache is for {' and '.join(known)}"
        )
    if torch.compiler.is_compiling():
        raise RuntimeError(
            f"the first step of {x.shape[-2]} tokens after a static cache plans what the others "
            "repeat: take it before the decoder is compiled"
        )
    try:
        made: Plan = attention.plan(x, spaces, mask, bias, backend or "dense")
    except BackendError:
        if backend is not None:
            raise
        made = attention.plan(x, spaces, mask, bias, "reference")
    return made


def _same_memory(*tensors: Tensor) -> None:
    """Tell compiled programs that these stay where they are, as captured ones need."""
    if not torch.compiler.is_compiling():
        for x in tensors:
            torch._dynamo.mark_static_address(x)


def buffers(k: Tensor, v: Tensor, max_length: int) -> tuple[Tensor, Tensor]:
    """Return memory for the keys and values of a layer, which begins with these (B, H, L, D)."""
    made = []
    for x in (k, v):
        buffer = x.new_zeros(*x.shape[:2], max_length, x.shape[3])
        buffer[:, :, : x.shape[2]] = x
        _same_memory(buffer)
        made.append(buffer)
    return made[0], made[1]
