"""One block of a transformer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

from torch import Tensor, nn

from attention_core.annotated import checked
from attention_core.biases import Bias
from attention_core.cache import LayerCache
from attention_core.checks import check_chance, check_kind, check_tokens, check_whole
from attention_core.job import Plan
from attention_core.layers.attention import AttentionOptions, MultiheadAttention
from attention_core.layers.feed_forward import Activation, FeedForward
from attention_core.layers.residual import Norm, NormOrder, Residual
from attention_core.positions import Rotary
from attention_core.scores import Score, ScoreName
from attention_core.spaces import Sequence


class BlockOptions(AttentionOptions, total=False):
    """Options of `Block` that are alike for every layer of an `Encoder`."""

    edge_dim: int | None
    score: Score | ScoreName | None
    norm_order: NormOrder
    norm: Norm
    eps: float
    layer_scale: float | None
    hidden: int | None
    activation: Activation
    feed_forward_norm: bool
    dropout: float
    attention_dropout: float
    attention_type: Callable[..., MultiheadAttention]


class Block(nn.Module):
    """Self-attention, optionally cross-attention, and a feed-forward network, each residual.

    Args:
        dim: size of a token.
        heads: number of query heads.
        cross: attend to a context, too.
        context_dim: size of a context token; `dim` by default.
        norm_order: "pre", "post" or "res-post"; where the normalisation stands, see `Residual`.
        norm: "layer", "layer-no-bias" or "rms".
        eps: of the normalisation.
        layer_scale: start of LayerScale's factors, or None for no scale.
        hidden, activation: of the feed-forward network.
        feed_forward_norm: normalise inside the feed-forward network, see `FeedForward`.
        dropout: on each sublayer's output and after the activation.
        attention_dropout: on the attention weights.
        drop_path: chance that a sample skips a sublayer in training.
        rotary, score, edge_dim: of `MultiheadAttention`, for self-attention alone; a context has
            places of its own.
        attention_type: what makes the self-attention, with the arguments of `MultiheadAttention`:
            a subclass of it.
        attention: further options of `MultiheadAttention`.
    """

    @checked
    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        cross: bool = False,
        context_dim: int | None = None,
        norm_order: NormOrder = "pre",
        norm: Norm = "layer",
        eps: float = 1e-6,
        layer_scale: float | None = None,
        hidden: int | None = None,
        activation: Activation = "gelu",
        feed_forward_norm: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        rotary: Rotary | None = None,
        score: Score | ScoreName | None = None,
        edge_dim: int | None = None,
        attention_type: Callable[..., MultiheadAttention] = MultiheadAttention,
        **attention: Unpack[AttentionOptions],
    ) -> None:
        super().__init__()
        check_whole(context_dim=context_dim, or_none=True)
        check_chance(attention_dropout=attention_dropout)

        def residual() -> Residual:
            return Residual(
                dim,
                norm_order=norm_order,
                norm=norm,
                eps=eps,
                layer_scale=layer_scale,
                dropout=dropout,
                drop_path=drop_path,
            )

        self.attention = attention_type(
            dim,
            heads,
            attention_dropout=attention_dropout,
            rotary=rotary,
            score=score,
            edge_dim=edge_dim,
            **attention,
        )
        self.attention_residual = residual()
        self.cross_attention: MultiheadAttention | None = None
        if cross:
            self.cross_attention = MultiheadAttention(
                dim,
                heads,
                context_dim=context_dim,
                attention_dropout=attention_dropout,
                **attention,
            )
            self.cross_attention_residual = residual()
        self.feed_forward = FeedForward(
            dim,
            hidden,
            activation=activation,
            dropout=dropout,
            projection_bias=attention.get("projection_bias", True),
            norm=norm if feed_forward_norm else None,
            eps=eps,
        )
        self.feed_forward_residual = residual()

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        plan: Plan | None = None,
        context_plan: Plan | None = None,
        bias: Bias | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Take x, (B, L, D) or (T, D), one block on.

        Args:
            x: tokens.
            context: what the block attends to with `cross`.
            plan: of the self-attention, see `MultiheadAttention.plan`; a plain Sequence without.
                Of queries that are the first tokens of x, the block gives these alone.
            context_plan: of the cross-attention; every pair without.
            bias: relative positions of the self-attention.
            cache: of past keys and values.
        """
        check_tokens(self.attention.query, "(B, L, D), or (T, D) packed", x=x)
        if type(plan) is not Plan or context_plan is not None:
            check_kind(Plan, plan=plan, context_plan=context_plan)
        if (context is None) != (self.cross_attention is None):
            raise ValueError(
                "a block with cross=True needs a context"
                if context is None
                else "a context needs a block with cross=True"
            )
        if plan is None:
            plan = self.attention.plan(x, Sequence(x.shape[-2], device=x.device), bias=bias)
        space = plan.job.spaces[0]
        x = self.attention_residual(
            x, lambda y: self.attention(y, plan=plan, bias=bias, cache=cache), space
        )
        cross = self.cross_attention
        if cross is not None:
            x = self.cross_attention_residual(
                x, lambda y: cross(y, context, plan=context_plan, cache=cache), space
            )
        return self.feed_forward_residual(x, self.feed_forward, space)
