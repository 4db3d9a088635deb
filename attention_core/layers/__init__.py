"""The layers that every model is a configuration of.

All take tokens as a batch (B, L, D), or packed (T, D) with a packed space, and give back the same.
"""

from attention_core.layers.attention import AttentionOptions, MultiheadAttention
from attention_core.layers.block import Block, BlockOptions
from attention_core.layers.decoder import Decoder
from attention_core.layers.encoder import Encoder, EncoderOptions
from attention_core.layers.feed_forward import FeedForward
from attention_core.layers.pooling import AttentionPool, Pool, Pooling, make_pool, pool
from attention_core.layers.recorded import RecordedAttention

__all__ = [
    "AttentionOptions",
    "AttentionPool",
    "Block",
    "BlockOptions",
    "Decoder",
    "Encoder",
    "EncoderOptions",
    "FeedForward",
    "MultiheadAttention",
    "Pool",
    "Pooling",
    "RecordedAttention",
    "make_pool",
    "pool",
]
