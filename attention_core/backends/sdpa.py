"""`scaled_dot_product_attention` with what its kernels need, and what they lack said in words."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from attention_core.backends import derivatives
from attention_core.precision import HALVES


def attended(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    dropout_p: float,
    scale: float,
    *,
    unfused: bool = False,
) -> Tensor:
    """Compute attention of q, k, v (B, H, L, D) by a fused kernel where there is one.

    Args:
        mask: bool, or what is added to scores, broadcastable to (B, H, Lq, Lk).
        causal: whether the kernel has a mask of its own.
        unfused: not by a fused kernel.
    """
    if torch.is_autocast_enabled(q.device.type):  # which would round the bias
        with torch.autocast(q.device.type, enabled=False):
            return attended(q, k, v, mask, causal, dropout_p, scale, unfused=unfused)
    grouped = q.shape[1] != k.shape[1]
    if grouped and not _serves_groups(q, v, mask):
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        grouped = False
    # Fused kernels have first derivatives alone, and no tangents
    unfused = unfused or derivatives.transformed()
    with sdpa_kernel(SDPBackend.MATH) if unfused else nullcontext():
        output: Tensor = scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=causal,
            dropout_p=dropout_p,
            scale=scale,
            enable_gqa=grouped,
        )
    refuse_second(output)
    return output


def refuse_second(output: Tensor) -> None:
    """Have second derivatives of what a fused kernel gave refused in words."""
    if output.requires_grad and not torch.compiler.is_compiling():
        derivatives.refuse_second("dense", output)


def _serves_groups(q: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Whether a fused kernel shares keys between heads. On a GPU, flash does alone, which takes no
    mask; torch would compute the scores of all pairs, without a word."""
    if q.device.type != "cuda":
        return True
    return mask is None and q.dtype in HALVES and q.shape[-1] == v.shape[-1] <= 256


def with_sink(
    mask: Tensor | None, q: Tensor, k: Tensor, v: Tensor, sink: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Add a key with value 0 to mask, keys and values, whose score is the sink's logit."""
    if mask is None:
        mask = q.new_zeros(1, 1, 1, 1)
    elif mask.dtype == torch.bool:
        mask = q.new_zeros(()).masked_fill(~mask, -torch.inf)
    shape = torch.broadcast_shapes(mask.shape, (1, q.shape[1], q.shape[2], k.shape[2]))
    # An infinite one takes all weight; the kernel would find NaN
    sink = sink.to(mask.dtype).masked_fill(sink == torch.inf, torch.finfo(mask.dtype).max)
    column = sink[:, None, None].expand(*shape[:-1], 1)
    mask = torch.cat([mask.expand(shape), column], dim=-1)
    nothing = k.new_zeros(*k.shape[:2], 1, k.shape[-1]), v.new_zeros(*v.shape[:2], 1, v.shape[-1])
    return mask, torch.cat([k, nothing[0]], dim=-2), torch.cat([v, nothing[1]], dim=-2)
