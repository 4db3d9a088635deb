"""Attention for any domain: where tokens sit, which pairs may attend, what is added to a score."""

from attention_core.attend import BackendError, attend, explain, plan
from attention_core.biases import ALiBi, Bias, ContinuousBias, DenseBias, EdgeBias, RelativeTable
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
from attention_core.positions import LearnedPosition, Rotary, Sinusoidal
from attention_core.scores import Additive, AdditiveV2, Score
from attention_core.spaces import Graph, Grid, Pairs, Points, Sequence, Space
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
from attention_core.record import AttentionMaps, record_attention
