"""A causal stack of blocks, with a cache and a context."""

from __future__ import annotations

import math
from typing import Any, Unpack

from torch import Tensor

from attention_core.annotated import checked
from attention_core.cache import KVCache
from attention_core.checks import check_kind, check_whole
from attention_core.layers.block import Block
from attention_core.layers.encoder import Encoder, EncoderOptions
from attention_core.layers.needed import check_positions
from attention_core.masks import Causal, Mask
from attention_core.masks.algebra import as_mask
from attention_core.score_mods import has_score_mod
from attention_core.spaces import Sequence, Space
from attention_core.static_cache import plan_once
from attention_core.transfer import moved


class Decoder(Encoder):
    """A causal stack of blocks; with `cross=True` it also attends to a context.

    Args:
        dim, depth, heads: as in `Encoder`.
        cross, context_dim: as in `Block`.
        options: further ones of `Encoder`; masks are joined with `Causal()`.
    """

    _always = Causal()

    @checked
    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        *,
        cross: bool = False,
        context_dim: int | None = None,
        **options: Unpack[EncoderOptions],
    ) -> None:
        self._context: dict[str, Any] = {"cross": cross, "context_dim": context_dim}
        super().__init__(dim, depth, heads, **options)

    def _block(self, dim: int, heads: int, **options: Any) -> Block:
        return Block(dim, heads, **self._context, **options)

    @property
    def lookback(self) -> float:
        """How far back a token attends at most: the farthest that the mask of any layer reaches."""
        return max(mask.lookback for mask in self.masks if mask is not None)

    @checked
    def new_cache(self, max_length: int | None = None) -> KVCache:
        """Make a cache that holds what the masks of all layers reach, and no more.

        Args:
            max_length: the most tokens there will be, prompt included; allocated at once where
                the masks reach as far.
        """
        check_whole(0, max_length=max_length, or_none=True)
        if self.lookback < (math.inf if max_length is None else max_length):
            return KVCache(window=max(int(self.lookback), 1))
        return KVCache(max_length)

    def forward(
        self,
        x: Tensor,
        space: Space | None = None,
        *,
        mask: Mask | Tensor | None = None,
        context: Tensor | None = None,
        context_space: Space | None = None,
        cache: KVCache | None = None,
        keep: Tensor | None = None,
        backend: str | None = None,
    ) -> Tensor:
        """Decode x.

        Args:
            x: (B, L, D), or (T, D) packed; with a cache, the new tokens.
            space: where the tokens sit; a Sequence that goes on after the cache by default.
            mask: of this call, joined to each layer's own with `&`.
            context: (B, Lc, Dc), or (Tc, Dc) packed.
            context_space: where the context sits, which says what of it is padding.
            cache: keys and values of the past, to which those of x are added; it also keeps those
                of the first call's context, which later calls only have to name.
            keep: as in `Encoder`.
            backend: a name to override the plan's choice.

        Returns: the shape of x, or of its tokens at `keep`; zeros on padding.
        """
        self._check_tokens(x)
        check_kind(Space, space=space, context_space=context_space)
        check_kind(KVCache, cache=cache)
        if cache is not None and cache.past is not None:
            if mask is not None or (space is not None and space is not cache.past.at(x.shape[-2])):
                raise ValueError(
                    "a static cache has one mask for all steps, that of the layers, and says where "
                    "new tokens sit: leave mask and space out"
                )
            out = self._step(x, cache, context, context_space, backend)
            return out if keep is None else out.index_select(-2, keep)
        if space is None:
            length = x.shape[-2]
            space = Sequence(length) if cache is None else cache.next_space(length, x.device)
        if space.special is not None:
            raise ValueError(
                "special tokens see and are seen by all, so they would carry the future to the "
                "past: give a Decoder tokens with places only"
            )
        space = space.to(x.device)
        if keep is not None:
            if context is None and cache is None:
                return super().forward(x, space, mask=mask, keep=keep, backend=backend)
            keep = check_positions(keep, space)
            options: dict[str, Any] = {"context": context, "context_space": context_space}
            out = self(x, space, mask=mask, cache=cache, backend=backend, **options)
            return out.index_select(-2, moved(keep, out.device))
        context_plan = None
        if context is not None:
            cross = self.blocks[0].cross_attention
            if cross is None:
                raise ValueError("a context needs a Decoder with cross=True")
            cross.check_context(x, context)
            if context_space is None:
                context_space = Space(context.shape[-2])
            if context_space.length != context.shape[-2]:
                raise ValueError(
                    f"context is {tuple(context.shape)}, but its context_space is "
                    f"{context_space.describe()}"
                )
            context_plan = cross.plan(x, (space, context_space), backend=backend)
        if cache is None:
            return self._run(x, (space, space), mask, backend, context, context_plan)
        if cache.window is not None and cache.window + 1 <= self.lookback:
            raise ValueError(
                f"a cache with window={cache.window} drops what the masks reach, {self.lookback} "
                "back: new_cache() makes one that fits"
            )
        biases = [leaf for bias in self.biases for leaf in bias.leaves()]
        for term in (*self.masks, as_mask(mask), *biases):
            if term is not None and term.needs_end:
                raise ValueError(
                    f"{term} depends on where a sample ends, which a cache does not know before "
                    "all is decoded: leave the cache out, or give another mask or bias "
                    "(is_causal=True without stride, ScalableSoftmax(causal=True))"
                )
        past = cache.space
        try:
            keys = cache.extend(space)
            out = self._run(x, (space, keys), mask, backend, context, context_plan, cache)
            if cache.static:
                cache.begin(space)
                self._plan_step(x, 1, cache, context_space, backend)
            return out
        except Exception:
            cache.space = past  # a wrong call must not make the next one fail
            raise

    def _step(
        self,
        x: Tensor,
        cache: KVCache,
        context: Tensor | None,
        context_space: Space | None,
        backend: str | None,
    ) -> Tensor:
        """New tokens after those of a static cache: all but numbers is as in the step before."""
        past, count = cache.past, x.shape[-2]
        assert past is not None
        if not past.step(count).plans:
            if context is not None and context_space is None:
                context_space = Space(context.shape[-2])
            self._plan_step(x, count, cache, context_space, backend)
        step = cache.write(count)
        of_layer, context_plan = step.renewed()
        spaces = step.space, past.keys
        out = self._run(x, spaces, None, None, context, context_plan, cache, of_layer=of_layer)
        past.advance(count)
        return out

    def _plan_step(
        self,
        x: Tensor,
        count: int,
        cache: KVCache,
        context_space: Space | None,
        backend: str | None,
    ) -> None:
        """Plan steps of so many tokens, once."""
        assert cache.past is not None
        step, keys = cache.past.step(count), cache.past.keys
        of_kind: dict[Any, int] = {}
        for layer, index in enumerate(self._block_of_layer):
            block = self.blocks[index]
            bias = self.biases[layer % len(self.biases)] if len(self.biases) else None
            kind = self.masks[layer], type(bias), has_score_mod(bias)
            if kind not in of_kind:
                of_kind[kind] = len(step.plans)
                spaces = step.space, keys
                step.plans.append(
                    plan_once(block.attention, x, spaces, self.masks[layer], bias, backend)
                )
            step.of_layer.append(of_kind[kind])
        cross = self.blocks[0].cross_attention
        if cross is not None and context_space is not None:
            of_cross = step.space, context_space.to(x.device)
            step.context = plan_once(cross, x, of_cross, None, None, backend)
