"""Attention for any domain: where tokens sit, which pairs may attend, what is added to a score."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attention_core.attention import attend as attend
    from attention_core.biases import (
        ALiBi as ALiBi,
        Bias as Bias,
        ContinuousBias as ContinuousBias,
        DenseBias as DenseBias,
        EdgeBias as EdgeBias,
        RelativeTable as RelativeTable,
    )
    from attention_core.cache import KVCache as KVCache
    from attention_core.edge_projection import EdgeProjection as EdgeProjection
    from attention_core.errors import BackendError as BackendError
    from attention_core.job import Plan as Plan
    from attention_core.layers import (
        AttentionPool as AttentionPool,
        Block as Block,
        Decoder as Decoder,
        Encoder as Encoder,
        EncoderOptions as EncoderOptions,
        FeedForward as FeedForward,
        MultiheadAttention as MultiheadAttention,
        Pool as Pool,
        pool as pool,
    )
    from attention_core.masks import (
        Causal as Causal,
        DenseMask as DenseMask,
        Dilated as Dilated,
        Edges as Edges,
        GlobalTokens as GlobalTokens,
        Mask as Mask,
        Nearest as Nearest,
        Neighborhood as Neighborhood,
        PrefixLM as PrefixLM,
        Window as Window,
    )
    from attention_core.models import Model as Model
    from attention_core.planning import explain as explain, plan as plan
    from attention_core.positions import (
        LearnedPosition as LearnedPosition,
        Rotary as Rotary,
        Sinusoidal as Sinusoidal,
    )
    from attention_core.record import (
        AttentionMaps as AttentionMaps,
        record_attention as record_attention,
    )
    from attention_core.rotary_scaling import (
        LinearScaling as LinearScaling,
        Llama3Scaling as Llama3Scaling,
        NTKScaling as NTKScaling,
        YaRN as YaRN,
    )
    from attention_core.score_mods import (
        Multiplier as Multiplier,
        ScalableSoftmax as ScalableSoftmax,
        ScoreMod as ScoreMod,
    )
    from attention_core.scores import Additive as Additive, AdditiveV2 as AdditiveV2, Score as Score
    from attention_core.spaces import (
        Graph as Graph,
        Grid as Grid,
        Pairs as Pairs,
        Points as Points,
        Sequence as Sequence,
        Space as Space,
    )
    from attention_core.weights import PairWeights as PairWeights

# Loaded on first use: `attn --help` must not wait for torch.
_HOMES = {
    "attention": ["attend"],
    "biases": ["ALiBi", "Bias", "ContinuousBias", "DenseBias", "EdgeBias", "RelativeTable"],
    "cache": ["KVCache"],
    "edge_projection": ["EdgeProjection"],
    "errors": ["BackendError"],
    "job": ["Plan"],
    "layers": [
        "AttentionPool",
        "Block",
        "Decoder",
        "Encoder",
        "EncoderOptions",
        "FeedForward",
        "MultiheadAttention",
        "Pool",
        "pool",
    ],
    "masks": [
        "Causal",
        "DenseMask",
        "Dilated",
        "Edges",
        "GlobalTokens",
        "Mask",
        "Nearest",
        "Neighborhood",
        "PrefixLM",
        "Window",
    ],
    "models": ["Model"],
    "planning": ["explain", "plan"],
    "positions": ["LearnedPosition", "Rotary", "Sinusoidal"],
    "record": ["AttentionMaps", "record_attention"],
    "rotary_scaling": ["LinearScaling", "Llama3Scaling", "NTKScaling", "YaRN"],
    "score_mods": ["Multiplier", "ScalableSoftmax", "ScoreMod"],
    "scores": ["Additive", "AdditiveV2", "Score"],
    "spaces": ["Graph", "Grid", "Pairs", "Points", "Sequence", "Space"],
    "weights": ["PairWeights"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
