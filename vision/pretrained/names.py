"""Our names, to which the tables of all sources lead, and what is split and joined on the way.

A table may also lead to parts that other libraries keep apart and we do not, or the reverse:
`QKV`, `KEY`, `VALUE`, `GATE` and `LINEAR`. `assemble` makes ours of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from attention_core.training.errors import UsageError
from attention_core.training.weights import Weights

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


def inside(prefix: str, table: Mapping[str, str]) -> dict[str, str]:
    """`table` with `prefix` in front of their names."""
    return {prefix + theirs: ours for theirs, ours in table.items()}


def assemble(weights: Mapping[str, Tensor]) -> Weights:
    """`weights` with projections split and joined as ours are, and tokens as rows of a table.

    What a linear layer of ours has a bias for and theirs has none is zero.
    """
    ours = dict(weights)
    for name in TABLES:
        if name in ours:
            ours[name] = ours[name].reshape(-1, ours[name].shape[-1])
    for prefix in _modules(ours, "qkv"):
        for kind in ("weight", "bias"):
            fused = ours.pop(f"{prefix}qkv.{kind}", None)
            if fused is not None:
                parts = zip(("query", "key", "value"), fused.chunk(3), strict=True)
                ours.update({f"{prefix}{name}.{kind}": part for name, part in parts})
    for prefix in _modules(ours, "value"):
        _join_keys_and_values(ours, prefix)
    for prefix in _modules(ours, "linear"):
        for kind in ("weight", "bias"):
            halves = [ours.pop(f"{prefix}{half}.{kind}", None) for half in ("gate", "linear")]
            given = [half for half in halves if half is not None]
            if given:
                ours[f"{prefix}up.{kind}"] = torch.cat(given)
    if f"{HEAD}.weight" in ours and f"{HEAD}.bias" not in ours:
        ours[f"{HEAD}.bias"] = ours[f"{HEAD}.weight"].new_zeros(len(ours[f"{HEAD}.weight"]))
    return ours


def disassemble(ours: Mapping[str, Tensor]) -> Weights:
    """`ours` with the queries, keys and values of each block in one; without what is empty."""
    fused = {name: value for name, value in ours.items() if value.numel()}
    for prefix in _modules(fused, "key_value"):
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


def _join_keys_and_values(ours: Weights, prefix: str) -> None:
    """Keys, then values; a bias of the values alone stays by itself, as in `key_bias=False`."""
    key, value = (ours.pop(f"{prefix}{part}.weight", None) for part in ("key", "value"))
    if key is None or value is None:
        raise UsageError(f"weights: {prefix}* has keys or values, but not both.")
    ours[f"{prefix}key_value.weight"] = torch.cat([key, value])
    key_bias, value_bias = (ours.pop(f"{prefix}{part}.bias", None) for part in ("key", "value"))
    if key_bias is not None and value_bias is not None:
        ours[f"{prefix}key_value.bias"] = torch.cat([key_bias, value_bias])
    elif value_bias is not None:
        ours[f"{prefix}value_bias"] = value_bias
    elif f"{prefix}out.bias" in ours:  # ours has a bias everywhere but for keys, or nowhere
        ours[f"{prefix}value_bias"] = value.new_zeros(len(value))
        ours[f"{prefix}query.bias"] = value.new_zeros(len(value))


def _modules(weights: Mapping[str, Tensor], part: str) -> list[str]:
    """What stands in front of every `part`.weight."""
    found = (re.fullmatch(rf"(.*\.){part}\.weight", name) for name in weights)
    return [match[1] for match in found if match]
