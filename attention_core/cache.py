"""Keys and values of the tokens that a decoder has seen."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from attention_core.annotated import checked
from attention_core.checks import check_flag, check_whole
from attention_core.finite import all_finite, can_look, mark_finite
from attention_core.spaces import Sequence, Space
from attention_core.static_cache import Past, Step, buffers


class LayerCache:
    """One layer's memory: keys and values (B, Hkv, L, D) of past tokens, and of the context."""

    def __init__(self, max_length: int | None, window: int | None, static: bool = False) -> None:
        self.max_length, self.window, self.static = max_length, window, static
        #: Where the next tokens are written, of a static one.
        self.columns: Tensor | None = None
        self.context: tuple[Tensor, Tensor] | None = None
        self._length = 0
        #: Whether all that was added is finite, which then need not be looked at with each token.
        self._finite = True
        self._held: tuple[Tensor, Tensor] | None = None

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens; returns those of all tokens held and new."""
        if not can_look(k):
            return self._update(k, v)
        self._finite = self._finite and all_finite(k, v)
        k, v = self._update(k, v)
        if self._finite:
            mark_finite(k, v)
        return k, v

    def _update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.static:
            return self._write(k, v)
        if self.max_length is None:
            if self._held is not None:
                old_k, old_v = (_last(x, self.window) for x in self._held)
                k, v = torch.cat([old_k, k], dim=2), torch.cat([old_v, v], dim=2)
            self._held = (k, v)
            return k, v
        if self._held is None:
            k_buffer, v_buffer = (
                x.new_zeros(*x.shape[:2], self.max_length, x.shape[3]) for x in (k, v)
            )
            self._held = (k_buffer, v_buffer)
        start, self._length = self._length, self._length + k.shape[2]
        for buffer, new in zip(self._held, (k, v), strict=True):
            buffer[:, :, start : self._length] = new
        k, v = (buffer[:, :, : self._length] for buffer in self._held)
        return k, v

    def _write(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self._held is None or self.columns is None:
            assert self.max_length is not None
            self._held = buffers(k, v, self.max_length)
            return k, v  # the first tokens attend to themselves alone
        for buffer, new in zip(self._held, (k, v), strict=True):
            buffer.index_copy_(2, self.columns, new.to(buffer.dtype))
        return self._held

    def reorder(self, index: Tensor) -> None:
        """Make sample `index[b]` the new sample b."""
        if self.static:  # in the same memory
            for pair in (self._held, self.context):
                for x in pair or ():
                    x.copy_(x.index_select(0, index))
            return
        self._held, self.context = (
            None
            if pair is None
            else (pair[0].index_select(0, index), pair[1].index_select(0, index))
            for pair in (self._held, self.context)
        )


def _last(x: Tensor, window: int | None) -> Tensor:
    return x if window is None else x[:, :, max(x.shape[2] - window, 0) :]


def _after(space: Space, length: int) -> Sequence:
    """The places of `length` more tokens, after the last one of each sample that is no padding."""
    assert space.coordinates is not None
    places = space.coordinates.squeeze(-1)
    if space.valid is not None:
        places = places.masked_fill(~space.valid, -1)
    return Sequence(length, start=places.amax(-1) + 1)


class KVCache:
    """The past of a `Decoder`: where its tokens sit, and each layer's keys and values.

    Queries find their keys by coordinates, so decoding in pieces of any length equals one pass,
    whatever the cache holds. For inference: it overwrites what a backward pass would need.

    Args:
        max_length: allocate once for this many tokens; more raise ValueError. None grows.
        window: keep only the last `window` tokens, which suffices where every layer's mask reaches
            no further back: ``KVCache(window=n)`` for ``Causal() & Neighborhood(n)``.
            `Decoder.new_cache` chooses it, and a `Decoder` refuses one that is too small.
        static: attend to all `max_length` columns, of which those that are not written yet are
            hidden. No step differs from the next one in anything but numbers,
            so that ``torch.compile(decoder, fullgraph=True)`` and CUDA graphs serve all steps. Of
            a Sequence, whole or padded. A step that is compiled does not see that it is full.

    Example::

        cache = KVCache(max_length=512)
        y = decoder(prompt, cache=cache)            # (B, L, D)
        y = decoder(next_token, cache=cache)        # (B, 1, D)
    """

    @checked
    def __init__(
        self, max_length: int | None = None, *, window: int | None = None, static: bool = False
    ) -> None:
        if max_length is not None and window is not None:
            raise ValueError(
                "give max_length or window, not both: a window bounds the cache already"
            )
        check_whole(window=window, or_none=True)
        check_whole(0, max_length=max_length, or_none=True)
        check_flag(static=static)
        if static and max_length is None:
            raise ValueError("a static cache has one size: give max_length")
        self.max_length, self.window, self.static = max_length, window, static
        self._past: Past | None = None
        self.space: Space | None = None
        """Where the tokens sit that the cache holds."""
        self._layers: dict[int, LayerCache] = {}

    @property
    def length(self) -> int:
        """Tokens held; of a static cache on a GPU, it has to be waited for."""
        if self._past is not None:
            return int(self._past.length)
        return 0 if self.space is None else self.space.length

    @property
    def empty(self) -> bool:
        """Whether it holds nothing yet."""
        return self.space is None or not self.space.length

    @property
    def past(self) -> Past | None:
        """Return what a static cache holds, None before it holds something."""
        return self._past

    def __getitem__(self, layer: int) -> LayerCache:
        if layer not in self._layers:
            self._layers[layer] = LayerCache(self.max_length, self.window, self.static)
        return self._layers[layer]

    @checked
    def next_space(self, length: int, device: torch.device | str = "cpu") -> Sequence:
        """Return the places of the next `length` tokens: each sample goes on after its last one."""
        space = self.space
        if self._past is not None:
            return self._past.locate(length)
        if space is None:
            return Sequence(length, device=device)
        if not isinstance(space, Sequence) or space.coordinates is None:
            raise TypeError(f"the cache holds {space.describe()}; give the space of the new tokens")
        if space.size is not None:
            return Sequence(length, start=space.start[0] + space.size[0], device=device)
        new = _after(space, length)
        if space._made_on_host:
            new.keep_host(partial(_after, space.host, length))
        return new

    def begin(self, space: Space) -> None:
        """Make the memory of a static cache, once its first tokens have gone through all layers."""
        assert self.max_length is not None
        self._past = Past(space, self.max_length)
        self.space = self._past.keys

    def write(self, count: int) -> Step:
        """Add the places of so many tokens to a static cache, which holds some."""
        assert self._past is not None
        step = self._past.write(count)
        for layer in self._layers.values():
            layer.columns = step.columns
        return step

    @checked
    def extend(self, space: Space) -> Space:
        """Add the places of new tokens; returns those of all tokens held and new."""
        valid = None if self.window is None else space.host.valid
        if valid is not None and not valid[..., -1].all():
            raise ValueError(
                "a cache with a window drops the oldest columns, so prompts of different lengths "
                "must be padded on the left: Sequence.padded(lengths, side='left')"
            )
        held = self.space
        if held is not None:
            if self.window is not None and held.length > self.window:
                held = held.last(self.window)
            space = held.append(space)
            space.zeroed = True  # each layer's cache got zeros for padding
        if self.max_length is not None and space.length > self.max_length:
            raise ValueError(
                f"the cache has room for max_length={self.max_length} tokens, got {space.length}"
            )
        self.space = space
        return space

    @checked
    def reorder(self, index: Tensor) -> None:
        """Make sample `index[b]` the new sample b, as beam search does. index: (B,) integers."""
        if self._past is not None:
            self._past.reorder(index)
        elif self.space is not None and self.space.batch is not None:
            self.space = self.space.rows(index)
        for layer in self._layers.values():
            layer.reorder(index)
