"""Attention for any domain: where tokens sit, which pairs may attend, what is added to a score."""

from attention_core.attend import attend
from attention_core.biases import ALiBi, Bias, ContinuousBias, DenseBias, EdgeBias, RelativeTable
from attention_core.cache import KVCache
from attention_core.layers import (
    AttentionPool,
    Block,
    Decoder,
    Encoder,
    FeedForward,
    MultiheadAttention,
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
from attention_core.planning import BackendError, Plan, explain, plan
from attention_core.positions import LearnedPosition, Rotary, Sinusoidal
from attention_core.record import AttentionMaps, record_attention
from attention_core.scores import Additive, AdditiveV2, Score
from attention_core.spaces import Graph, Grid, Pairs, Points, Sequence, Space

__all__ = [
    "ALiBi",
    "Additive",
    "AdditiveV2",
    "AttentionMaps",
    "AttentionPool",
    "BackendError",
    "Bias",
    "Block",
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
    "Mask",
    "MultiheadAttention",
    "Neighborhood",
    "Pairs",
    "Plan",
    "Points",
    "PrefixLM",
    "RelativeTable",
    "Rotary",
    "Score",
    "Sequence",
    "Sinusoidal",
    "Space",
    "Window",
    "attend",
    "explain",
    "plan",
    "pool",
    "record_attention",
]
