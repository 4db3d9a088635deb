"""Attention of gathered blocks whose scores are modified, as an autograd function.

The passes are those of the operators, and second derivatives those of `composite`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attention_core.backends.blocks import composite, passes
from attention_core.backends.blocks.chunks import Blocks, Memory, Work
from attention_core.backends.blocks.mods import Mods
from attention_core.backends.derivatives import refuse_batched


@dataclass
class Call:
    """Hold what an attention needs beside q, k, v and sink, as `block_attention` does."""

    mods: Mods
    blocks: list[Blocks]
    seed: Tensor
    samples: int
    scale: float
    softcap: float | None
    dropout_p: float
    lse: bool
    covers_all_queries: bool
    keys_disjoint: bool
    products: torch.dtype

    def prepare(
        self, q: Tensor, k: Tensor, added: Sequence[Tensor | None]
    ) -> tuple[list[Work], Memory, int]:
        """Return the work on each group, as `passes.prepare` does."""
        blocks = [replace(one, added=own) for one, own in zip(self.blocks, added, strict=True)]
        return passes.prepare(
            q, k, blocks, self.samples, self.softcap, self.dropout_p, self.products, self.mods
        )


def modified_attention(
    call: Call, q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return what `block_attention` does, for scores that are modified before `added`."""
    if torch.compiler.is_compiling():  # not as a decorator, which takes a second to import
        return torch.compiler.disable(_eager)(call, q, k, v, sink)
    return _eager(call, q, k, v, sink)


def _eager(
    call: Call, q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None
) -> tuple[Tensor, Tensor]:
    added = [one.added for one in call.blocks]
    found: tuple[Tensor, Tensor] = _Attention.apply(call, q, k, v, sink, *added, *call.mods.learned)
    return found


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: Call, q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, *others: Tensor
    ) -> tuple[Tensor, Tensor]:
        works, memory, spare = call.prepare(q, k, list(others[: len(call.blocks)]))
        out, lse = passes.forward(
            works, memory, spare, q, k, v, sink, call.seed, call.scale, call.dropout_p, call.lse,
            call.covers_all_queries, call.mods,
        )  # fmt: skip
        ctx.save_for_backward(lse, q, k, v, sink, *others)
        ctx.call = call
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # once, as activation checkpointing makes them anew
        _, q, _, v, *_ = saved
        refuse_batched("blocks", grad_out, grad_lse)
        ctx.call.mods.check_unchanged()
        if grad_out is None:
            grad_out = q.new_zeros(*q.shape[:3], v.shape[-1])
        with torch.autocast(q.device.type, enabled=False):
            gradients = _again if torch.is_grad_enabled() else _first
            found = gradients(ctx, saved, grad_out, grad_lse)
        needed = ctx.needs_input_grad[1:]
        return None, *(x if wanted else None for x, wanted in zip(found, needed, strict=True))


def _first(
    ctx: Any, saved: tuple[Tensor, ...], grad_out: Tensor, grad_lse: Tensor | None
) -> Sequence[Tensor | None]:
    """The gradients of all inputs but the call, by the backward pass."""
    call: Call = ctx.call
    lse, q, k, v, sink, *others = saved
    added = others[: len(call.blocks)]
    learned = ctx.needs_input_grad[5 : 5 + len(added)]
    works, memory, spare = call.prepare(q, k, added)
    return passes.backward(
        works, memory, spare, grad_out, grad_lse, lse, q, k, v, sink, added, learned, call.seed,
        call.scale, call.dropout_p, call.covers_all_queries, call.keys_disjoint, call.mods,
    )  # fmt: skip


def _again(
    ctx: Any, saved: tuple[Tensor, ...], grad_out: Tensor, grad_lse: Tensor | None
) -> Sequence[Tensor | None]:
    """The gradients by torch's own operations, which can be differentiated again."""
    call: Call = ctx.call
    given = saved[1 : 5 + len(call.blocks)]
    # Views, so that what depends on another input counts once; score mods have their own in hand
    views: list[Any] = [None if x is None else x.view_as(x) for x in given]
    q, k, v, sink, *added = views
    inputs = [*views, *call.mods.learned]
    works, _, spare = call.prepare(q, k, added)
    kept = composite.drawn(call.seed, q)
    outputs = composite.forward(works, q, k, v, sink, added, kept, call.scale, spare, call.mods)
    pairs = zip(outputs, (grad_out, grad_lse), strict=True)
    chosen = [(y, of) for y, of in pairs if of is not None and y.requires_grad]
    wanted = [n for n, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
    found = torch.autograd.grad(
        [y for y, _ in chosen], [inputs[n] for n in wanted], [of for _, of in chosen],
        create_graph=True, allow_unused=True,
    )  # fmt: skip
    gradients: list[Tensor | None] = [None] * len(inputs)
    for n, gradient in zip(wanted, found, strict=True):
        gradients[n] = gradient
    return gradients
