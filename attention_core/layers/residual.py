"""What stands around each sublayer: normalisation, scale, dropout, drop path."""

from __future__ import annotations

from collections.abc import Callable
from typing import (
    Literal,
    get_args,
)

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attention_core.checks import check_chance, check_choice, check_number, check_whole
from attention_core.spaces import Space

Norm = Literal["layer", "layer-no-bias", "rms"]


NormOrder = Literal["pre", "post", "res-post"]


class Residual(nn.Module):
    """The frame of each sublayer of a block: normalisation, scale, dropout, residual.

    Args:
        dim: size of a token.
        norm_order: "pre" is x + f(norm(x)) (Xiong et al., 2020), "post" is norm(x + f(x)) (2017),
            "res-post" is x + norm(f(x)) (Liu et al., Swin v2, 2022).
        norm: "layer" (Ba et al., 2016), "layer-no-bias" (as ModernBERT, 2024) or "rms" (Zhang &
            Sennrich, 2019).
        eps: of the normalisation.
        layer_scale: start of a learned factor per feature (Touvron et al., CaiT, 2021), or None.
        dropout: on f's output.
        drop_path: chance that a sample skips f in training (Huang et al., 2016).
    """

    def __init__(
        self,
        dim: int,
        *,
        norm_order: NormOrder = "pre",
        norm: Norm = "layer",
        eps: float = 1e-6,
        layer_scale: float | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if norm_order not in ("pre", "post", "res-post"):
            raise ValueError(f"norm_order must be 'pre', 'post' or 'res-post', got {norm_order!r}")
        check_chance(drop_path=drop_path, dropout=dropout)
        check_number(layer_scale=layer_scale, or_none=True)
        self.norm_order, self.drop_path = norm_order, drop_path
        self.norm = make_norm(norm, dim, eps)
        self.scale = (
            None if layer_scale is None else nn.Parameter(torch.full((dim,), float(layer_scale)))
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, f: Callable[[Tensor], Tensor], space: Space) -> Tensor:
        """Take x, (B, L, D) or (T, D), one residual step on through `f`.

        `f` may give the first tokens of x alone, which `space` then holds.
        """
        branch = f(self.norm(x) if self.norm_order == "pre" else x)
        if self.norm_order == "res-post":
            branch = self.norm(branch)
        if self.scale is not None:
            branch = branch * self.scale
        branch = dropped(branch, self.dropout)
        if self.training and self.drop_path:
            branch = drop_path(branch, self.drop_path, space)
        x = x[..., : branch.shape[-2], :]
        return self.norm(x + branch) if self.norm_order == "post" else x + branch


def dropped(x: Tensor, dropout: nn.Module) -> Tensor:
    """Return x after a dropout layer, which is called where it does something or has hooks."""
    idle = type(dropout) is nn.Dropout and not (dropout.training and dropout.p)
    if idle and not (dropout._forward_hooks or dropout._forward_pre_hooks):
        return x
    out: Tensor = dropout(x)
    return out


def drop_path(x: Tensor, rate: float, space: Space) -> Tensor:
    """Zero whole samples of (B, L, D) or packed (T, D) with chance `rate`; scale up the rest."""
    rows = x.shape[0] if x.ndim == 3 else 1
    keep = torch.rand(rows, space.num_segments, device=x.device) >= rate
    if space.segments is None:
        kept = keep
    elif space.segments.ndim == 2:
        kept = keep.gather(1, space.segments)
    else:
        kept = keep[:, space.segments]
    kept = kept if x.ndim == 3 else kept[0]
    return x * kept[..., None].to(x.dtype) / (1 - rate)


def make_norm(norm: Norm, dim: int, eps: float = 1e-6) -> nn.Module:
    """Make a normalisation of tokens (..., dim)."""
    check_whole(dim=dim)
    check_number(least=0, eps=eps)
    check_choice(get_args(Norm), norm=norm)
    if norm == "rms":
        return RMSNorm(dim, eps=eps)
    return LayerNorm(dim, eps=eps, bias=norm == "layer")


class LayerNorm(nn.LayerNorm):
    """torch's, with an eps that is a number in the dtype at hand: BERT's 1e-12 is 0 in float16."""

    def forward(self, x: Tensor) -> Tensor:
        eps = _at_least(self.eps, x.dtype)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, eps)


class RMSNorm(nn.RMSNorm):
    """torch's, with an eps that is a number in the dtype at hand."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.eps is not None
        return F.rms_norm(x, self.normalized_shape, self.weight, _at_least(self.eps, x.dtype))


def _at_least(eps: float, dtype: torch.dtype) -> float:
    """eps, or the smallest number above 0 that `dtype` has."""
    if eps >= 1e-7:  # as every dtype has
        return eps
    numbers = torch.finfo(dtype)
    return max(eps, numbers.smallest_normal * numbers.eps)


def unit(x: Tensor) -> Tensor:
    """Return vectors x (..., D) at length 1, computed in float32 or better.

    Vectors of 0, whose direction no one knows, stay 0 and get no gradient: 1 / eps, which torch
    gives them, is more than float16 can hold.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    eps = max(1e-12, torch.finfo(x.dtype).tiny)
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return (wide / length.clamp(min=eps)).masked_fill(length < eps, 0).to(x.dtype)
