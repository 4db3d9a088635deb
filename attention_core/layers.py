"""The layers that every model is a configuration of.

All take tokens as a batch (B, L, D), or packed (T, D) with a packed space, and give back the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence as Listing
from contextvars import ContextVar
from typing import Any, Literal, Protocol, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attention_core.attend import attend
from attention_core.biases import Bias
from attention_core.cache import KVCache, LayerCache
from attention_core.masks import Causal, Mask, as_mask
from attention_core.planning import Plan, plan
from attention_core.positions import Rotary, rotate
from attention_core.scores import Score
from attention_core.spaces import Sequence, Space

Norm = Literal["layer", "rms"]
NormOrder = Literal["pre", "post"]
Activation = Literal["gelu", "gelu-tanh", "relu", "swiglu", "geglu"]
QKNorm = Literal["layer", "rms", "cosine"]


class _Recorder(Protocol):
    def wants(self, module: nn.Module) -> bool: ...
    def add(self, module: nn.Module, weights: Tensor) -> None: ...


#: Set by `record_attention`.
recorder: ContextVar[_Recorder | None] = ContextVar("recorder", default=None)


class AttentionOptions(TypedDict, total=False):
    """Options of `MultiheadAttention` that a `Block` or `Encoder` passes on."""

    kv_heads: int | None
    head_dim: int | None
    rotary: Rotary | None
    score: Score | None
    qk_norm: bool | QKNorm
    gate: bool
    sink: bool
    softcap: float | None
    projection_bias: bool


class MultiheadAttention(nn.Module):
    """Multi-head attention (Vaswani et al., 2017) in any space.

    Args:
        dim: size D of a token.
        heads: number of query heads.
        kv_heads: number of key and value heads, a divisor of `heads` (grouped-query attention,
            Ainslie et al., 2023); `heads` by default.
        head_dim: size of a head; dim / heads by default.
        context_dim: size of a context token, for cross-attention; `dim` by default.
        rotary: rotary positions of queries and keys.
        bias: relative positions that this layer adds to its scores.
        score: another score than the dot product, such as GAT's `Additive`.
        qk_norm: normalise each head's queries and keys: "layer" (Dehghani et al., ViT-22B, 2023),
            "rms" or True (Qwen3, 2025), or "cosine", which learns a temperature per head
            (Liu et al., Swin v2, 2022).
        gate: multiply the output of each head by a learned sigmoid of its token (Qiu et al., 2025).
        sink: learn a logit per head that takes weight and gives nothing (gpt-oss, 2025).
        softcap: limit scores to ± this (Gemma 2, 2024).
        dropout: chance that an attention weight is dropped in training.
        projection_bias: whether the linear layers have a bias.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        context_dim: int | None = None,
        rotary: Rotary | None = None,
        bias: Bias | None = None,
        score: Score | None = None,
        qk_norm: bool | QKNorm = False,
        gate: bool = False,
        sink: bool = False,
        softcap: float | None = None,
        dropout: float = 0.0,
        projection_bias: bool = True,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if heads < 1 or kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"heads={heads} must be a multiple of kv_heads={kv_heads}")
        if head_dim is None:
            if dim % heads:
                raise ValueError(f"dim={dim} must be a multiple of heads={heads}, or give head_dim")
            head_dim = dim // heads
        if qk_norm not in (False, True, "layer", "rms", "cosine"):
            raise ValueError(f"qk_norm must be 'layer', 'rms', 'cosine' or a bool, got {qk_norm!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.rotary, self.bias, self.score = rotary, bias, score
        self.softcap, self.dropout = softcap, dropout
        inner, kv_inner = heads * head_dim, kv_heads * head_dim
        self.query = nn.Linear(dim, inner, bias=projection_bias)
        self.key_value = nn.Linear(context_dim or dim, 2 * kv_inner, bias=projection_bias)
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
        """The plan of this layer for queries from x, which layers of the same shape can share."""
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
            backend=backend,
        )

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
            plan: made before by `plan`, instead of space, mask and backend.

        Returns: the shape of x; zeros on padding.
        """
        packed = x.ndim == 2
        if packed:
            x = x[None]
            context = None if context is None else context[None]
        if x.ndim != 3 or x.shape[-1] != self.query.in_features:
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
        q = self._heads(self.query(x), self.heads)
        k, v = self._keys_values(source, cache, plan, is_context=context is not None)
        if self.query_norm is not None:
            q = self.query_norm(q)
        if self.log_temperature is not None:
            # The published clamp keeps a temperature from running away
            q = F.normalize(q, dim=-1) * self.log_temperature.clamp(max=math.log(100.0)).exp()
        q = self._rotate(q, plan, plan.job.spaces[0])
        recording = recorder.get()
        record = recording is not None and recording.wants(self)
        out = attend(
            q,
            k,
            v,
            bias=self._biases(bias),
            score=self.score,
            scale=None if self.log_temperature is None else 1.0,
            softcap=self.softcap,
            sink=self.sink,
            dropout_p=self.dropout if self.training else 0.0,
            return_weights=record,
            plan=plan,
        )
        if record:
            out, weights = out
            recording.add(self, weights)
        out = out.transpose(1, 2).flatten(2)
        if self.gate is not None:
            out = out * torch.sigmoid(self.gate(x))
        out = zero_padding(self.out(out), plan.job.spaces[0])
        return out[0] if packed else out

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
        k, v = (self._heads(x, self.kv_heads) for x in self.key_value(source).chunk(2, dim=-1))
        if self.key_norm is not None:
            k = self.key_norm(k)
        if self.log_temperature is not None:
            k = F.normalize(k, dim=-1)
        appended = cache is not None and not is_context
        k = self._rotate(k, plan, plan.job.spaces[0 if appended else 1])
        if cache is not None and is_context:
            cache.context = (k, v)
        return cache.update(k, v) if cache is not None and not is_context else (k, v)

    @staticmethod
    def _heads(x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    def _rotate(self, x: Tensor, plan: Plan, space: Space) -> Tensor:
        rotary = self.rotary
        if rotary is None:
            return x
        angle = plan.once(("angles", rotary, space), lambda: rotary.angles(space, self.head_dim))
        return rotate(x, angle, rotary.layout)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, kv_heads={self.kv_heads}, head_dim={self.head_dim}"


class FeedForward(nn.Module):
    """The position-wise network: plain, or gated (Shazeer, GLU Variants, 2020).

    Args:
        dim: size of a token.
        hidden: width; 4·dim by default, 8/3·dim for the gated forms, which have a third matrix.
        activation: "gelu", "gelu-tanh", "relu", or gated "swiglu", "geglu".
        dropout: after the activation.
        bias: whether the linear layers have one.
    """

    def __init__(
        self,
        dim: int,
        hidden: int | None = None,
        *,
        activation: Activation = "gelu",
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        functions: dict[str, Callable[[Tensor], Tensor]] = {
            "gelu": F.gelu,
            "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
            "relu": F.relu,
            "swiglu": F.silu,
            "geglu": F.gelu,
        }
        if activation not in functions:
            raise ValueError(f"activation must be one of {', '.join(functions)}, got {activation!r}")
        self.activation, self._function = activation, functions[activation]
        self.gated = activation in ("swiglu", "geglu")
        if hidden is None:
            hidden = 8 * round(dim / 3) if self.gated else 4 * dim
        self.up = nn.Linear(dim, hidden * (2 if self.gated else 1), bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(hidden, dim, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in (*self.up.weight.split(self.down.in_features), self.down.weight):
            nn.init.xavier_uniform_(weight)
        for layer in (self.up, self.down):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        x = self.up(x)
        if self.gated:
            gate, x = x.chunk(2, dim=-1)
            x = self._function(gate) * x
        else:
            x = self._function(x)
        return self.down(self.dropout(x))

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}"


class Residual(nn.Module):
    """What stands around each sublayer of a block: normalisation, scale, dropout, residual.

    Args:
        dim: size of a token.
        order: "pre" is x + f(norm(x)) (Xiong et al., 2020), "post" is norm(x + f(x)) (2017).
        norm: "layer" (Ba et al., 2016) or "rms" (Zhang & Sennrich, 2019).
        eps: of the normalisation.
        layer_scale: start of a learned factor per feature (Touvron et al., CaiT, 2021), or None.
        dropout: on f's output.
        drop_path: chance that a sample skips f in training (Huang et al., 2016).
    """

    def __init__(
        self,
        dim: int,
        *,
        order: NormOrder = "pre",
        norm: Norm = "layer",
        eps: float = 1e-6,
        layer_scale: float | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if order not in ("pre", "post"):
            raise ValueError(f"norm must be 'pre' or 'post', got {order!r}")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {drop_path}")
        self.order, self.drop_path = order, drop_path
        self.norm = make_norm(norm, dim, eps)
        self.scale = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, f: Callable[[Tensor], Tensor], space: Space) -> Tensor:
        """x, (B, L, D) or (T, D), after one residual step through `f`."""
        branch = f(self.norm(x) if self.order == "pre" else x)
        if self.scale is not None:
            branch = branch * self.scale
        branch = self.dropout(branch)
        if self.training and self.drop_path:
            branch = drop_path(branch, self.drop_path, space)
        return x + branch if self.order == "pre" else self.norm(x + branch)


class Block(nn.Module):
    """Self-attention, optionally cross-attention, and a feed-forward network, each residual.

    Args:
        dim: size of a token.
        heads: number of query heads.
        cross: attend to a context, too.
        context_dim: size of a context token; `dim` by default.
        norm: "pre" or "post".
        norm_layer: "layer" or "rms".
        eps: of the normalisation.
        layer_scale: start of LayerScale's factors, or None for no scale.
        hidden, activation: of the feed-forward network.
        dropout: on each sublayer's output and after the activation.
        attention_dropout: on the attention weights.
        drop_path: chance that a sample skips a sublayer in training.
        attention: options of `MultiheadAttention`. Rotary positions and `score` serve
            self-attention alone; a context has places of its own.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        cross: bool = False,
        context_dim: int | None = None,
        norm: NormOrder = "pre",
        norm_layer: Norm = "layer",
        eps: float = 1e-6,
        layer_scale: float | None = None,
        hidden: int | None = None,
        activation: Activation = "gelu",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        **attention: Unpack[AttentionOptions],
    ) -> None:
        super().__init__()

        def residual() -> Residual:
            return Residual(
                dim,
                order=norm,
                norm=norm_layer,
                eps=eps,
                layer_scale=layer_scale,
                dropout=dropout,
                drop_path=drop_path,
            )

        self.attention = MultiheadAttention(dim, heads, dropout=attention_dropout, **attention)
        self.attention_residual = residual()
        self.cross_attention: MultiheadAttention | None = None
        if cross:
            without_places: Any = {k: v for k, v in attention.items() if k not in ("rotary", "score")}
            self.cross_attention = MultiheadAttention(
                dim, heads, context_dim=context_dim, dropout=attention_dropout, **without_places
            )
            self.cross_attention_residual = residual()
        self.feed_forward = FeedForward(
            dim,
            hidden,
            activation=activation,
            dropout=dropout,
            bias=attention.get("projection_bias", True),
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
        """x, (B, L, D) or (T, D), one block on.

        Args:
            x: tokens.
            context: what the block attends to with `cross`.
            plan: of the self-attention, see `MultiheadAttention.plan`; a plain Sequence without.
            context_plan: of the cross-attention; every pair without.
            bias: relative positions of the self-attention.
            cache: of past keys and values.
        """
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


class Encoder(nn.Module):
    """A stack of blocks over tokens in any space.

    Args:
        dim: size of a token.
        depth: number of blocks.
        heads: number of query heads.
        mask: for every layer, or a list of masks (or None) that the layers take in turn:
            ``[None, Neighborhood(64)]`` alternates full and local layers.
        bias: relative positions: one module, shared by all layers (T5), or a list that the layers
            take in turn; with `depth` entries each layer has its own (Swin).
        drop_path: chance that a sample skips a sublayer of the last block; it grows linearly from
            0 at the first.
        final_norm: normalise the output; by default where `norm` is "pre".
        block: options of `Block` and `MultiheadAttention`, alike for every layer.
    """

    #: Added to every layer's mask.
    _always: Mask | None = None

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        *,
        mask: Mask | Listing[Mask | None] | None = None,
        bias: Bias | Listing[Bias] | None = None,
        drop_path: float = 0.0,
        final_norm: bool | None = None,
        **block: Any,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        rates = [drop_path * layer / max(depth - 1, 1) for layer in range(depth)]
        self.blocks = nn.ModuleList(Block(dim, heads, drop_path=rate, **block) for rate in rates)
        masks = list(mask) if isinstance(mask, Listing) else [mask]
        biases = list(bias) if isinstance(bias, Listing) else [] if bias is None else [bias]
        for name, values in (("mask", masks), ("bias", biases)):
            if not 0 <= len(values) <= depth or (name == "mask" and not values):
                raise ValueError(f"{name} lists {len(values)} entries for {depth} layers")
        self.masks = [_both(self._always, masks[layer % len(masks)]) for layer in range(depth)]
        self.biases = nn.ModuleList(biases)
        if final_norm is None:
            final_norm = block.get("norm", "pre") == "pre"
        norm = make_norm(block.get("norm_layer", "layer"), dim, block.get("eps", 1e-6))
        self.norm = norm if final_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        space: Space | None = None,
        *,
        mask: Mask | Tensor | None = None,
        backend: str | None = None,
    ) -> Tensor:
        """Encode x.

        Args:
            x: (B, L, D), or (T, D) packed.
            space: where the tokens sit; a Sequence by default.
            mask: of this call, joined to each layer's own with `&`.
            backend: a name to override the plan's choice.

        Returns: the shape of x; zeros on padding.
        """
        space = Sequence(x.shape[-2], device=x.device) if space is None else space
        return self._run(x, (space, space), mask, backend)

    def _run(
        self,
        x: Tensor,
        spaces: tuple[Space, Space],
        mask: Mask | Tensor | None,
        backend: str | None,
        context: Tensor | None = None,
        context_plan: Plan | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        if x.ndim not in (2, 3):
            raise ValueError(f"x must be (B, L, D), or (T, D) packed, got {tuple(x.shape)}")
        if x.shape[-2] != spaces[0].length:
            raise ValueError(f"x is {tuple(x.shape)}, but its space is {spaces[0].describe()}")
        extra = as_mask(mask)
        plans: dict[tuple[Mask | None, type], Plan] = {}
        for layer, block in enumerate(self.blocks):
            bias = self.biases[layer % len(self.biases)] if len(self.biases) else None
            # Layers whose masks are equal and whose biases are alike share a plan
            kind = (self.masks[layer], type(bias))
            if kind not in plans:
                joined = _both(self.masks[layer], extra)
                plans[kind] = block.attention.plan(x, spaces, joined, bias, backend)
            x = block(
                x,
                context,
                plan=plans[kind],
                context_plan=context_plan,
                bias=bias,
                cache=None if cache is None else cache[layer],
            )
        return zero_padding(self.norm(x), spaces[0])


class Decoder(Encoder):
    """A causal stack of blocks; with `cross=True` it also attends to a context.

    Arguments are those of `Encoder`, with `cross` and `context_dim` as in `Block`; masks are joined
    with `Causal()`.
    """

    _always = Causal()

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        space: Space | None = None,
        *,
        mask: Mask | Tensor | None = None,
        context: Tensor | None = None,
        context_space: Space | None = None,
        cache: KVCache | None = None,
        backend: str | None = None,
    ) -> Tensor:
        """Decode x.

        Args:
            x: (B, L, D), or (T, D) packed; with a cache, the new tokens.
            space: where the tokens sit; a Sequence that goes on after the cache by default.
            mask: of this call, joined to each layer's own with `&`.
            context: (B, Lc, Dc), or (Tc, Dc) packed.
            context_space: where the context sits, which says what of it is padding.
            cache: keys and values of the past, to which those of x are added.
            backend: a name to override the plan's choice.

        Returns: the shape of x; zeros on padding.
        """
        if space is None:
            length = x.shape[-2]
            space = Sequence(length) if cache is None else cache.next_space(length)
        space = space.to(x.device)
        context_plan = None
        if context is not None:
            if context_space is None:
                context_space = Space(context.shape[-2])
            cross = self.blocks[0].cross_attention
            if cross is None:
                raise ValueError("a context needs a Decoder with cross=True")
            context_plan = cross.plan(x, (space, context_space), backend=backend)
        keys = space if cache is None else cache.extend(space)
        return self._run(x, (space, keys), mask, backend, context, context_plan, cache)


class AttentionPool(nn.Module):
    """Learned queries that attend to all tokens of a sample (Lee et al., Set Transformer, 2019).

    Args:
        dim: size of a token.
        heads: number of heads.
        queries: how many learned queries.
        attention: options of `MultiheadAttention`.
    """

    def __init__(
        self, dim: int, heads: int, *, queries: int = 1, **attention: Unpack[AttentionOptions]
    ) -> None:
        super().__init__()
        if queries < 1:
            raise ValueError(f"queries must be at least 1, got {queries}")
        self.queries = nn.Parameter(torch.empty(queries, dim))
        nn.init.trunc_normal_(self.queries, std=dim**-0.5)
        self.attention = MultiheadAttention(dim, heads, **attention)

    def forward(self, x: Tensor, space: Space | None = None) -> Tensor:
        """Pool (B, L, D), or (T, D) packed, to (samples, D); (samples, queries, D) if several."""
        space = Sequence(x.shape[-2]) if space is None else space
        count, dim = self.queries.shape
        segments = space.segments
        if x.ndim == 2:
            rows = space.num_segments * count
            queries = self.queries.repeat(space.num_segments, 1)
        elif segments is None:
            rows, queries = count, self.queries.expand(x.shape[0], -1, -1)
        else:
            raise ValueError("pool packed samples as (T, D), without a batch dimension")
        own = None if segments is None else torch.arange(rows, device=segments.device) // count
        nowhere = torch.ones(rows, dtype=torch.bool, device=space.device)
        where = Space(rows, segments=own, special=nowhere)
        pooled = self.attention(queries, x, space=(where, space)).reshape(-1, count, dim)
        return pooled.squeeze(1) if count == 1 else pooled


def pool(x: Tensor, space: Space, how: Literal["mean", "sum", "max", "special"] = "mean") -> Tensor:
    """One vector for each sample: (B, L, D), or (T, D) packed, to (samples, D).

    Args:
        x: tokens.
        space: where they sit; padding has no part.
        how: "mean", "sum" or "max" over the tokens that sit somewhere, or "special" for the mean
            of the special ones (the class token). A sample without such tokens gives 0.
    """
    if how not in ("mean", "sum", "max", "special"):
        raise ValueError(f"how must be 'mean', 'sum', 'max' or 'special', got {how!r}")
    space = space.to(x.device)
    batch = x.shape[0] if x.ndim == 3 else 1
    counted = torch.ones(batch, space.length, dtype=torch.bool, device=x.device)
    if space.valid is not None:
        counted = counted & space.valid
    if how == "special" and space.special is None:
        raise ValueError(f"{space.describe()} has no special tokens to pool")
    if space.special is not None:
        counted = counted & (space.special if how == "special" else ~space.special)
    sample = torch.arange(batch, device=x.device)[:, None] * space.num_segments
    sample = (sample if space.segments is None else sample + space.segments).expand(counted.shape)
    rows, index = x.reshape(-1, x.shape[-1])[counted.flatten()], sample[counted]
    pooled = x.new_zeros(batch * space.num_segments, x.shape[-1])
    if how == "max":
        index = index[:, None].expand_as(rows)
        return pooled.scatter_reduce(0, index, rows, "amax", include_self=False)
    pooled = pooled.index_add(0, index, rows)
    if how == "sum":
        return pooled
    return pooled / torch.bincount(index, minlength=len(pooled)).clamp(min=1)[:, None].to(x.dtype)


def zero_padding(x: Tensor, space: Space) -> Tensor:
    """x, (B, L, D) or (T, D), with zeros where the space has padding."""
    return x if space.valid is None else x.masked_fill(~space.valid.to(x.device)[..., None], 0)


def drop_path(x: Tensor, rate: float, space: Space) -> Tensor:
    """Zero whole samples of (B, L, D) or packed (T, D) with chance `rate`, and scale up the rest."""
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
    if norm not in ("layer", "rms"):
        raise ValueError(f"norm_layer must be 'layer' or 'rms', got {norm!r}")
    return nn.LayerNorm(dim, eps=eps) if norm == "layer" else nn.RMSNorm(dim, eps=eps)


def _both(first: Mask | None, second: Mask | None) -> Mask | None:
    if first is None or second is None:
        return second if first is None else first
    return first & second
