"""Attention for any domain: where tokens sit, which pairs may attend, what is added to a score."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attention_core.attention import attend
    from attention_core.biases import (
        ALiBi,
        Bias,
        ContinuousBias,
        DenseBias,
        EdgeBias,
        RelativeTable,
    )
    from attention_core.cache import KVCache
    from attention_core.errors import BackendError
    from attention_core.job import Plan
    from attention_core.layers import (
        AttentionPool,
        Block,
        Decoder,
        Encoder,
        FeedForward,
        MultiheadAttention,
        RecordedAttention,
        pool,
    )
    from attention_core.masks import (
        Causal,
        DenseMask,
        Dilated,
        Edges,
        GlobalTokens,
        Mask,
        Neighborhood,
        PrefixLM,
        Window,
    )
    from attention_core.planning import explain, plan
    from attention_core.positions import LearnedPosition, Rotary, Sinusoidal
    from attention_core.record import AttentionMaps, record_attention
    from attention_core.rotary_scaling import (
        LinearScaling,
        Llama3Scaling,
        NTKScaling,
        RotaryScaling,
        YaRN,
    )
    from attention_core.scores import Additive, AdditiveV2, Score
    from attention_core.spaces import (
        BlockKey,
        Graph,
        Grid,
        Pairs,
        Points,
        Sequence,
        Space,
        TilePairs,
        TileStatus,
    )
    from attention_core.weights import PairWeights

# Loaded on first use: `attn --help` must not wait for torch.
_HOMES = {
    "attention": ["attend"],
    "biases": ["ALiBi", "Bias", "ContinuousBias", "DenseBias", "EdgeBias", "RelativeTable"],
    "cache": ["KVCache"],
    "errors": ["BackendError"],
    "job": ["Plan"],
    "layers": [
        "AttentionPool",
        "Block",
        "Decoder",
        "Encoder",
        "FeedForward",
        "MultiheadAttention",
        "RecordedAttention",
        "pool",
    ],
    "masks": [
        "Causal",
        "DenseMask",
        "Dilated",
        "Edges",
        "GlobalTokens",
        "Mask",
        "Neighborhood",
        "PrefixLM",
        "Window",
    ],
    "planning": ["explain", "plan"],
    "positions": ["LearnedPosition", "Rotary", "Sinusoidal"],
    "record": ["AttentionMaps", "record_attention"],
    "rotary_scaling": ["LinearScaling", "Llama3Scaling", "NTKScaling", "RotaryScaling", "YaRN"],
    "scores": ["Additive", "AdditiveV2", "Score"],
    "spaces": [
        "Graph",
        "Grid",
        "Pairs",
        "Points",
        "TileStatus",
        "Sequence",
        "Space",
        "TilePairs",
        "BlockKey",
    ],
    "weights": ["PairWeights"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ALiBi",
    "Additive",
    "AdditiveV2",
    "AttentionMaps",
    "AttentionPool",
    "BackendError",
    "Bias",
    "Block",
    "BlockKey",
    "Causal",
    "ContinuousBias",
    "Decoder",
    "DenseBias",
    "DenseMask",
    "Dilated",
    "EdgeBias",
    "Edges",
    "Encoder",
    "FeedForward",
    "GlobalTokens",
    "Graph",
    "Grid",
    "KVCache",
    "LearnedPosition",
    "LinearScaling",
    "Llama3Scaling",
    "Mask",
    "MultiheadAttention",
    "NTKScaling",
    "Neighborhood",
    "PairWeights",
    "Pairs",
    "Plan",
    "Points",
    "PrefixLM",
    "RecordedAttention",
    "RelativeTable",
    "Rotary",
    "RotaryScaling",
    "Score",
    "Sequence",
    "Sinusoidal",
    "Space",
    "TilePairs",
    "TileStatus",
    "Window",
    "YaRN",
    "attend",
    "explain",
    "plan",
    "pool",
    "record_attention",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
