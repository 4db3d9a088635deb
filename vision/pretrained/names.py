"""Our names, to which the tables of all sources lead, and what is split and joined on the way.

A table may also lead to parts that other libraries keep apart and we do not, or the reverse:
`QKV`, `KEY`, `VALUE`, `GATE` and `LINEAR`. `assemble` makes ours of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from attention_core.training.weights import Weights, join_projections, modules

PATCHES = "embedding.project"
CLASS = "class_token"
REGISTERS = "registers"
POSITIONS = "positions.table"
EMBEDDING_NORM = "embedding_norm"
NORM = "encoder.norm"
POOL_NORM = "pool_norm"
HEAD = "head"

BLOCK = "encoder.blocks.#."
ATTENTION_NORM = BLOCK + "attention_residual.norm"
ATTENTION_SCALE = BLOCK + "attention_residual.scale"
ATTENTION = BLOCK + "attention."
QUERY = ATTENTION + "query"
QUERY_NORM = ATTENTION + "query_norm"
KEY_NORM = ATTENTION + "key_norm"
OUT = ATTENTION + "out"
MLP_NORM = BLOCK + "feed_forward_residual.norm"
MLP_SCALE = BLOCK + "feed_forward_residual.scale"
MLP = BLOCK + "feed_forward."
UP = MLP + "up"
MLP_INNER_NORM = MLP + "norm"
DOWN = MLP + "down"

POOL = "pool."
POOL_QUERIES = POOL + "queries"
POOL_QUERY = POOL + "attention.query"
POOL_KEY_VALUE = POOL + "attention.key_value"
POOL_OUT = POOL + "attention.out"
POOL_MLP_NORM = POOL + "feed_forward_residual.norm"
POOL_UP = POOL + "feed_forward.up"
POOL_DOWN = POOL + "feed_forward.down"

# Not ours: queries, keys and values in one; keys and values apart; the two halves of a gated `up`
QKV = ATTENTION + "qkv"
KEY = ATTENTION + "key"
VALUE = ATTENTION + "value"
GATE = MLP + "gate"
LINEAR = MLP + "linear"
POOL_QKV = POOL + "attention.qkv"

# Rows of size `dim`, which others keep with a batch dimension in front
TABLES = (CLASS, REGISTERS, POSITIONS, POOL_QUERIES)


def assemble(weights: Mapping[str, Tensor]) -> Weights:
    """`weights` with projections split and joined as ours are, and tokens as rows of a table.

    What a linear layer of ours has a bias for and theirs has none is zero.
    """
    ours = dict(weights)
    for name in TABLES:
        if name in ours:
            ours[name] = ours[name].reshape(-1, ours[name].shape[-1])
    ours = join_projections(ours)
    if f"{HEAD}.weight" in ours and f"{HEAD}.bias" not in ours:
        ours[f"{HEAD}.bias"] = ours[f"{HEAD}.weight"].new_zeros(len(ours[f"{HEAD}.weight"]))
    return ours


def disassemble(ours: Mapping[str, Tensor]) -> Weights:
    """`ours` with the queries, keys and values of each block in one; without what is empty."""
    fused = {name: value for name, value in ours.items() if value.numel()}
    for prefix in modules(fused, "key_value"):
        if not prefix.startswith("encoder."):
            continue
        for kind in ("weight", "bias"):
            query = fused.pop(f"{prefix}query.{kind}", None)
            both = fused.pop(f"{prefix}key_value.{kind}", None)
            if both is None and f"{prefix}value_bias" in fused:
                value = fused.pop(f"{prefix}value_bias")
                both = torch.cat([torch.zeros_like(value), value])
            if query is not None and both is not None:
                fused[f"{prefix}qkv.{kind}"] = torch.cat([query, both])
    return fused
