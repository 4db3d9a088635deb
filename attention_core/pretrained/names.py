"""Our names, to which the tables of all families lead, below the prefix of a block.

A table may also lead to parts that others keep apart and we do not, or the reverse: `QKV`, `KEY`,
`VALUE` and `GATE`. `join_projections` makes ours of them.
"""

from __future__ import annotations

from collections.abc import Mapping

ATTENTION_NORM = "attention_residual.norm"
ATTENTION_SCALE = "attention_residual.scale"
QUERY = "attention.query"
QUERY_NORM = "attention.query_norm"
KEY_NORM = "attention.key_norm"
OUT = "attention.out"
CROSS_NORM = "cross_attention_residual.norm"
MLP_NORM = "feed_forward_residual.norm"
MLP_SCALE = "feed_forward_residual.scale"
UP = "feed_forward.up"
MLP_INNER_NORM = "feed_forward.norm"
DOWN = "feed_forward.down"

# Not ours: queries, keys and values in one; keys and values apart; the gate, the first half of a
# gated `UP`
QKV = "attention.qkv"
KEY = "attention.key"
VALUE = "attention.value"
GATE = "feed_forward.gate"

#: What only some models have. Tables lead to these names; which of them a model reads, and what it
#: calls them, is its `parts`.
POOLER, CLASSIFIER, DISTILLED = "pooler", "classifier", "distilled"
TRANSFORM, SCORES = "transform", "scores"
PARTS = frozenset({POOLER, CLASSIFIER, DISTILLED, TRANSFORM, SCORES})


def layers(theirs: str, ours: str, table: Mapping[str, str]) -> dict[str, str]:
    """Return `table` with `theirs` in front of their names and block # of `ours` of ours.

    Args:
        theirs: such as "encoder.layer.#.".
        ours: "encoder" or "decoder".
    """
    return {theirs + name: f"{ours}.blocks.#.{own}" for name, own in table.items()}
