"""Multi-head attention."""

from __future__ import annotations

import math
from typing import (
    Literal,
    TypedDict,
)

import torch
from torch import Tensor, nn

from attention_core.annotated import checked
from attention_core.biases import Bias
from attention_core.cache import LayerCache
from attention_core.checks import (
    check_chance,
    check_kind,
    check_number,
    check_tokens,
    check_whole,
)
from attention_core.edge_projection import EdgeProjection
from attention_core.job import Plan
from attention_core.layers.recorded import RecordedAttention
from attention_core.layers.residual import Norm, make_norm, unit
from attention_core.masks import Mask
from attention_core.planning import BACKENDS, plan
from attention_core.positions import Rotary, turn
from attention_core.precision import product_dtype
from attention_core.scores import Score, ScoreName, make_score
from attention_core.spaces import Sequence, Space

QKNorm = Literal["layer", "rms", "cosine"]


class AttentionOptions(TypedDict, total=False):
    """Options of `MultiheadAttention` that serve self-attention and cross-attention alike."""

    kv_heads: int | None
    head_dim: int | None
    scale: float | None
    qk_norm: bool | QKNorm
    gate: bool
    sink: bool
    softcap: float | None
    projection_bias: bool
    key_bias: bool


class MultiheadAttention(RecordedAttention):
    """Multi-head attention (Vaswani et al., 2017) in any space.

    Args:
        dim: size D of a token.
        heads: number of query heads.
        kv_heads: number of key and value heads, a divisor of `heads` (grouped-query attention,
            Ainslie et al., 2023); `heads` by default.
        head_dim: size of a head; dim / heads by default.
        context_dim: size of a context token, for cross-attention; `dim` by default.
        edge_dim: size F of the edges' features, `Graph(..., edge_attr=...)` of floats (E, F). A
            linear layer without bias makes of them what is added to keys, after `qk_norm` and
            `rotary`, and to values along each edge (Shi et al., UniMP, 2021). None: no features.
        rotary: rotary positions of queries and keys.
        bias: relative positions that this layer adds to its scores.
        score: another score than the dot product: a `Score`, or "additive" (GAT) or "additive_v2"
            (GATv2) for one with weights of this layer.
        scale: factor on the score, 1/√(head_dim) by default; T5 (2020) has 1.
        qk_norm: normalise each head's queries and keys: "layer" (Dehghani et al., ViT-22B, 2023),
            "rms" or True (Qwen3, 2025), or "cosine", which learns a temperature per head
            (Liu et al., Swin v2, 2022).
        gate: multiply the output of each head by a learned sigmoid of its token (Qiu et al., 2025).
        sink: learn a logit per head that takes weight and gives nothing (gpt-oss, 2025).
        softcap: limit scores to ± this (Gemma 2, 2024).
        attention_dropout: chance that an attention weight is dropped in training.
        projection_bias: whether the linear layers have a bias.
        key_bias: whether that of the keys has one, too. Without rotary positions or a norm of the
            keys it changes nothing; Swin v2, EVA and DINOv3 leave it out.
    """

    #: What a subclass that takes neither a context nor a cache says where one is given.
    _no_context = ""

    @checked
    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        context_dim: int | None = None,
        edge_dim: int | None = None,
        rotary: Rotary | None = None,
        bias: Bias | None = None,
        score: Score | ScoreName | None = None,
        scale: float | None = None,
        qk_norm: bool | QKNorm = False,
        gate: bool = False,
        sink: bool = False,
        softcap: float | None = None,
        attention_dropout: float = 0.0,
        projection_bias: bool = True,
        key_bias: bool = True,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        check_whole(dim=dim, heads=heads, kv_heads=kv_heads)
        check_whole(head_dim=head_dim, context_dim=context_dim, edge_dim=edge_dim, or_none=True)
        check_number(scale=scale, or_none=True)
        check_number(above=0, softcap=softcap, or_none=True)
        if heads % kv_heads:
            raise ValueError(f"heads={heads} must be a multiple of kv_heads={kv_heads}")
        if head_dim is None:
            if dim % heads:
                raise ValueError(f"dim={dim} must be a multiple of heads={heads}, or give head_dim")
            head_dim = dim // heads
        if not isinstance(qk_norm, bool | str) or qk_norm not in (
            False,
            True,
            "layer",
            "rms",
            "cosine",
        ):
            raise ValueError(f"qk_norm must be 'layer', 'rms', 'cosine' or a bool, got {qk_norm!r}")
        if qk_norm == "cosine" and scale is not None:
            raise ValueError(f"qk_norm='cosine' learns its scale; got scale={scale}, too")
        check_chance(attention_dropout=attention_dropout)
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.rotary, self.bias = rotary, bias
        self.score = make_score(score, heads, head_dim, edge=edge_dim is not None)
        self.scale = 1.0 if qk_norm == "cosine" else scale
        self.softcap, self.attention_dropout = softcap, attention_dropout
        inner, kv_inner = heads * head_dim, kv_heads * head_dim
        self.query = nn.Linear(dim, inner, bias=projection_bias)
        context_dim = dim if context_dim is None else context_dim
        self.key_value = nn.Linear(context_dim, 2 * kv_inner, bias=projection_bias and key_bias)
        self.value_bias: nn.Parameter | None = None
        if projection_bias and not key_bias:
            self.value_bias = nn.Parameter(torch.zeros(kv_inner))
        self.edge_key_value: nn.Linear | None = None
        if edge_dim is not None:
            self.edge_key_value = nn.Linear(edge_dim, 2 * kv_inner, bias=False)
        self.gate = nn.Linear(dim, inner, bias=projection_bias) if gate else None
        self.out = nn.Linear(inner, dim, bias=projection_bias)
        self.sink = nn.Parameter(torch.zeros(heads)) if sink else None
        self.query_norm = self.key_norm = self.log_temperature = None
        if qk_norm == "cosine":
            self.log_temperature = nn.Parameter(torch.full((heads, 1, 1), math.log(10.0)))
        elif qk_norm:
            kind: Norm = "layer" if qk_norm == "layer" else "rms"
            self.query_norm, self.key_norm = (make_norm(kind, head_dim) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # Queries, keys and values as projections of their own, so that fusing them changes nothing
        width = self.key_value.out_features // 2
        for weight in (
            self.query.weight,
            *self.key_value.weight.split(width),
            *(() if self.edge_key_value is None else self.edge_key_value.weight.split(width)),
            *(layer.weight for layer in (self.gate, self.out) if layer is not None),
        ):
            nn.init.xavier_uniform_(weight)
        for layer in (self.query, self.key_value, self.gate, self.out):
            if layer is not None and layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def plan(
        self,
        x: Tensor,
        space: Space | tuple[Space, Space],
        mask: Mask | Tensor | None = None,
        bias: Bias | None = None,
        backend: str | None = None,
    ) -> Plan:
        """Make the plan for queries from x, which layers of the same shape can share."""
        return plan(
            space,
            mask,
            self._biases(bias),
            score=self.score,
            heads=self.heads,
            head_dim=self.head_dim,
            batch=x.shape[0] if x.ndim == 3 else 1,
            device=x.device,
            grad=torch.is_grad_enabled(),
            softcap=self.softcap,
            edge_features=self.edge_key_value is not None,
            dtype=product_dtype(x),
            backend=backend,
        )

    def masks(self, mask: Mask | None) -> list[Mask | None]:
        """Return the masks of the attentions that this layer computes with a plan for `mask`."""
        return [mask]

    def _biases(self, bias: Bias | None) -> Bias | None:
        if bias is None or self.bias is None:
            return self.bias if bias is None else bias
        return self.bias + bias

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        space: Space | tuple[Space, Space] | None = None,
        mask: Mask | Tensor | None = None,
        bias: Bias | None = None,
        cache: LayerCache | None = None,
        backend: str | None = None,
        plan: Plan | None = None,
    ) -> Tensor:
        """Attend from x to x, or to the context.

        Args:
            x: (B, L, D), or (T, D) packed.
            context: (B, Lc, Dc), or (Tc, Dc) packed, for cross-attention.
            space: where x sits, or (where x sits, where the context sits).
            mask: which pairs may attend.
            bias: added to the layer's own bias.
            cache: of past keys and values; the space is then (new tokens, all tokens).
            backend: a name to override the plan's choice.
            plan: made before by `plan`, instead of space, mask and backend. Where its space of
                queries holds fewer tokens than x, they are the first of x; all are keys.

        Returns: the shape of x, or of its tokens that are queries; zeros on padding.

        Raises:
            ValueError, TypeError: shapes do not fit, or the space has no features of edges of size
                `edge_dim`; the message names them.
        """
        check_tokens(self.query, "(B, L, D), or (T, D) packed", x=x)
        if self._no_context and (context is not None or cache is not None):
            raise ValueError(self._no_context)
        if context is not None:
            self.check_context(x, context)
        if plan is not None:
            check_kind(Plan, plan=plan)
        if cache is not None:
            check_kind(LayerCache, cache=cache)
        packed = x.ndim == 2
        if packed:
            x = x[None]
            context = None if context is None else context[None]
        if x.ndim != 3:
            raise ValueError(f"x must be (B, L, {self.query.in_features}), got {tuple(x.shape)}")
        source = x if context is None else context
        if source.shape[-1] != self.key_value.in_features:
            raise ValueError(
                f"keys come from tokens of size {self.key_value.in_features}, got "
                f"{tuple(source.shape)}"
            )
        if plan is None:
            plan = self.plan(x, self._spaces(x, context, space), mask, bias, backend)
        elif space is not None or mask is not None or backend is not None:
            raise ValueError("a plan has its space, mask and backend; give either them or plan=")
        out = self._forward(x, context, bias=bias, cache=cache, plan=plan)
        return out[0] if packed else out

    def _forward(
        self,
        x: Tensor,
        context: Tensor | None,
        *,
        bias: Bias | None,
        cache: LayerCache | None,
        plan: Plan,
    ) -> Tensor:
        """Attend by a plan from x (B, L, D) to x, or to the context (B, Lc, Dc); for subclasses."""
        source = x if context is None else context
        x = x[:, : plan.job.spaces[0].length]
        q = self._heads(self.query(x), self.heads)
        k, v = self._keys_values(source, cache, plan, is_context=context is not None)
        if self.query_norm is not None:
            q = self.query_norm(q)
        if self.log_temperature is not None:
            # The published clamp keeps a temperature from running away
            q = unit(q) * self.log_temperature.clamp(max=math.log(100.0)).exp()
        q = self._rotate(q, plan, plan.job.spaces[0])
        edge_key = edge_value = None
        if self.edge_key_value is not None:
            edge_key, edge_value = self._edge_keys_values(self.edge_key_value, plan.job.spaces[1])
        out, _ = self.attend(
            q,
            k,
            v,
            bias=self._biases(bias),
            score=self.score,
            scale=self.scale,
            softcap=self.softcap,
            sink=self.sink,
            edge_key=edge_key,
            edge_value=edge_value,
            dropout_p=self.attention_dropout if self.training else 0.0,
            plan=plan,
        )
        out = out.transpose(1, 2).flatten(2)
        if self.gate is not None:
            out = out * torch.sigmoid(self.gate(x))
        return plan.job.spaces[0].zero_padding(self.out(out))

    def check_context(self, x: Tensor, context: Tensor) -> None:
        """Raise ValueError or TypeError where `context` cannot be what the tokens x attend to."""
        check_tokens(self.key_value, "(B, Lc, D), or (Tc, D) packed", context=context)
        if context.ndim != x.ndim:
            raise ValueError(
                f"context must have as many dimensions as x, {tuple(x.shape)}, got "
                f"{tuple(context.shape)}"
            )

    def _spaces(
        self, x: Tensor, context: Tensor | None, space: Space | tuple[Space, Space] | None
    ) -> tuple[Space, Space]:
        if isinstance(space, tuple):
            return space
        if context is None:
            own = Sequence(x.shape[1], device=x.device) if space is None else space
            return own, own
        if space is not None:
            raise ValueError(
                "cross-attention needs space=(space of x, space of the context), got one space"
            )
        return Space(x.shape[1]), Space(context.shape[1])

    def _keys_values(
        self, source: Tensor, cache: LayerCache | None, plan: Plan, *, is_context: bool
    ) -> tuple[Tensor, Tensor]:
        if cache is not None and is_context and cache.context is not None:
            return cache.context
        k, v = self.key_value(source).chunk(2, dim=-1)
        if self.value_bias is not None:
            v = v + self.value_bias.to(v.dtype)
        k, v = (self._heads(x, self.kv_heads) for x in (k, v))
        if self.key_norm is not None:
            k = self.key_norm(k)
        if self.log_temperature is not None:
            k = unit(k)
        appended = cache is not None and not is_context
        space = plan.job.spaces[0 if appended else 1]
        k = self._rotate(k, plan, space)
        if cache is None:
            return k, v
        if is_context:
            cache.context = (k, v)
            return k, v
        return cache.update(space.zero_heads(k), space.zero_heads(v))

    def _edge_keys_values(
        self, layer: nn.Linear, space: Space
    ) -> tuple[EdgeProjection, EdgeProjection]:
        attr = space.edge_attr
        shape = f"(E, {layer.in_features})"
        if attr is None:
            raise TypeError(
                f"edge_dim={layer.in_features} asks for Graph(..., edge_attr=...) of floats "
                f"{shape}, got {space.describe()} without edge_attr"
            )
        if not attr.is_floating_point() or attr.shape[1:] != (layer.in_features,):
            raise ValueError(
                f"edge_attr must be float {shape} for edge_dim={layer.in_features}, got "
                f"{attr.dtype} {tuple(attr.shape)}"
            )
        attr = attr.to(layer.weight.dtype)
        key, value = (weight.unflatten(0, (self.kv_heads, -1)) for weight in layer.weight.chunk(2))
        return EdgeProjection(attr, key), EdgeProjection(attr, value)

    @staticmethod
    def _heads(x: Tensor, heads: int) -> Tensor:
        return x.view(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)

    def _rotate(self, x: Tensor, plan: Plan, space: Space) -> Tensor:
        if self.rotary is None:
            return x
        return turn(x, self._rotation(self.rotary, plan, space), self.rotary.layout)

    def _rotation(self, rotary: Rotary, plan: Plan, space: Space) -> tuple[Tensor, Tensor]:
        """Once for queries and keys, and for all layers that share the plan."""
        return plan.memo(("rotation", rotary, space), lambda: rotary.rotation(space, self.head_dim))

    def share(self, plan: Plan, bias: Bias | None, dtype: torch.dtype) -> None:
        """Compute what layers share by a plan, whose queries will be of `dtype`.

        Before layers that are compiled: in a program, the first one, which computes it, would be
        another than those that find it, and how many blocks or samples there are would be part
        of it.
        """
        if self.rotary is not None:
            for space in dict.fromkeys(plan.job.spaces):
                self._rotation(self.rotary, plan, space)
        if self.bias is None:  # which is this layer's alone, and sharded with it
            BACKENDS[plan.backend].share(plan, bias, self.kv_heads, dtype)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, kv_heads={self.kv_heads}, head_dim={self.head_dim}"
