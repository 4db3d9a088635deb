"""Packed samples one after the other, as an operator that torch.compile need not look into.

A program that is compiled for a loop over samples is one for their number and lengths, and the next
batch has others. Here their lengths are numbers in a tensor. What a fused kernel of the CPU does
not take (dropout, sinks, other devices) is computed sample by sample from explicit scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from attention_core.backends.derivatives import refuse_batched


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None,
    starts: Tensor,
    causal: bool,
    dropout_p: float,
    scale: float,
) -> Tensor:
    """Compute the attention of q, k, v (B, H, L, D) inside samples, (B, H, L, Dv).

    Args:
        sink: (H,) or None.
        starts: (N + 1,) on the CPU, where samples begin and the last one ends.
    """
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    seed = torch.randint(2**62, ()) if dropout_p else torch.zeros((), dtype=torch.long)
    out, _ = packed_attention(q, k, v, sink, starts, seed, causal, dropout_p, scale)
    return out.transpose(1, 2)


@torch.library.custom_op("attention_core::packed_attention", mutates_args=())
def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None,
    starts: Tensor,
    seed: Tensor,
    causal: bool,
    dropout_p: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Compute what `attend` does, (B, L, H, Dv), and the log-sum-exp (B, H, L) that its backward
    pass needs; `seed` () is that of the dropout, on the CPU."""
    outs, norms = [], []
    fused = _is_fused(q, v, sink, dropout_p)
    generator = torch.Generator(q.device).manual_seed(int(seed)) if dropout_p else None
    for one_q, one_k, one_v in _each(starts, q, k, v):
        if fused:
            out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                one_q, one_k, one_v, 0.0, causal, scale=scale
            )
        else:
            weights, left, lse = _weigh(one_q, one_k, sink, None, causal, scale)
            weights = weights * left
            if generator is not None:
                weights = weights * _kept(weights, dropout_p, generator)
            out = weights @ one_v.to(weights.dtype)
        outs.append(out.transpose(1, 2))
        norms.append(lse)
    return torch.cat(outs, dim=1).to(q.dtype), torch.cat(norms, dim=2).contiguous()


@packed_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    batch, heads, length, _ = q.shape
    exact = torch.promote_types(q.dtype, torch.float32)
    out = q.new_empty(batch, length, heads, v.shape[-1])
    return out, q.new_empty(batch, heads, length, dtype=exact)


@torch.library.custom_op("attention_core::packed_attention_backward", mutates_args=())
def packed_attention_backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None,
    starts: Tensor,
    seed: Tensor,
    causal: bool,
    dropout_p: float,
    scale: float,
) -> list[Tensor]:
    """Compute the gradients of q, k, v and the sink; empty where there is none."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    fused = _is_fused(q, v, sink, dropout_p)
    generator = torch.Generator(q.device).manual_seed(int(seed)) if dropout_p else None
    of_sink = q.new_zeros(0) if sink is None else torch.zeros_like(sink)
    grad, out = grad.transpose(1, 2), out.transpose(1, 2)
    parts = _each(starts, q, k, v, grad, out, lse[..., None])
    for one_q, one_k, one_v, one_grad, one_out, one_lse in parts:
        one_lse = one_lse.squeeze(-1)
        if fused:
            gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                one_grad, one_q, one_k, one_v, one_out, one_lse, 0.0, causal, scale=scale
            )
            found.append(gradients)
            continue
        weights, left, _ = _weigh(one_q, one_k, sink, one_lse, causal, scale)
        weights = used = weights * left
        one_q, one_k, one_v, one_grad = (
            x.to(weights.dtype) for x in (one_q, one_k, one_v, one_grad)
        )
        slopes = one_grad @ one_v.mT
        if generator is not None:
            kept = _kept(weights, dropout_p, generator)
            used, slopes = weights * kept, slopes * kept
        mean = (weights * slopes).sum(-1, keepdim=True)
        slopes = (slopes - mean) * weights * scale
        if sink is not None:
            of_sink -= ((1 - left) * mean).sum((0, 2, 3)).to(of_sink.dtype)
        found.append((slopes @ one_k, slopes.mT @ one_q, used.mT @ one_grad))
    sums = (torch.cat(x, dim=2).to(q.dtype).contiguous() for x in zip(*found, strict=True))
    return [*sums, of_sink]


@packed_attention_backward.register_fake
def _(grad: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor,
      sink: Tensor | None, *rest: Any) -> list[Tensor]:  # fmt: skip
    like = [x.new_empty(x.shape) for x in (q, k, v)]
    return [*like, q.new_empty(0) if sink is None else sink.new_empty(sink.shape)]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.causal, ctx.dropout_p, ctx.scale = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, of_lse: Tensor | None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 9
    refuse_batched("dense", grad)
    out, lse, *tensors = ctx.saved_tensors
    numbers = ctx.causal, ctx.dropout_p, ctx.scale
    of_q, of_k, of_v, of_sink = packed_attention_backward(grad, out, lse, *tensors, *numbers)
    return of_q, of_k, of_v, None if tensors[3] is None else of_sink, *(None,) * 5


packed_attention.register_autograd(_differentiate, setup_context=_remember)


def _each(starts: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    lengths = starts.diff().tolist()
    return zip(*(x.split(lengths, dim=2) for x in tensors), strict=True)


def _is_fused(q: Tensor, v: Tensor, sink: Tensor | None, dropout_p: float) -> bool:
    alike = q.shape[-1] == v.shape[-1]
    return q.device.type == "cpu" and alike and sink is None and not dropout_p


def _weigh(
    q: Tensor, k: Tensor, sink: Tensor | None, lse: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor | float, Tensor]:
    """Weights (B, H, L, L) of one sample in float32 or better, what share of them a sink leaves,
    and the log-sum-exp (B, H, L), if that is not known."""
    exact = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(exact) @ k.to(exact).mT * scale
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    lse = scores.logsumexp(-1) if lse is None else lse
    left: Tensor | float = 1.0
    if sink is not None:
        left = torch.sigmoid(lse - sink.to(exact)[:, None])[..., None]
    return torch.exp(scores - lse[..., None]), left, lse


def _kept(weights: Tensor, dropout_p: float, generator: torch.Generator) -> Tensor:
    """0 where dropout drops a weight, else 1 / (1 - p); the same in forward and backward."""
    share = 1 - dropout_p
    return torch.empty_like(weights).bernoulli_(share, generator=generator).div_(share)
