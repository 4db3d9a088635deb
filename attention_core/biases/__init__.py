"""What is added to the score of a pair: relative positions and edge features.

A bias of your own overrides one method::

    class Gravity(Bias):
        def score(self, pairs):
            return -self.strength[pairs.head] * pairs.distance**2

Special tokens sit nowhere, so a bias on a pair with one is 0, or has a row of its own
(`RelativeTable(special=True)`). Biases are computed in float32 or better under any autocast.
"""

# Also where models that were pickled as wholes look for what has an underscore
from attention_core.biases.alibi import ALiBi
from attention_core.biases.base import Bias, Lookup, _Sum as _Sum
from attention_core.biases.continuous import ContinuousBias
from attention_core.biases.dense import DenseBias, as_bias
from attention_core.biases.edge import EdgeBias
from attention_core.biases.relative_table import (
    RelativeTable,
    _HopBucket as _HopBucket,
    _OffsetBucket as _OffsetBucket,
    _T5Bucket as _T5Bucket,
)
from attention_core.tables import by_head

__all__ = [
    "ALiBi",
    "Bias",
    "ContinuousBias",
    "DenseBias",
    "EdgeBias",
    "Lookup",
    "RelativeTable",
    "as_bias",
    "by_head",
]
