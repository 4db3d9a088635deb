"""What the operators of `blocks` cost, for torch's `FlopCounterMode`; import this to count them.

In a file of its own because `torch.utils.flop_counter` imports Triton, which takes long.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from attention_core.backends.blocks import operator as operator  # defines the operators


@register_flop_formula(torch.ops.attention_core.block_attention)
def _forward_flops(q: Any, k: Any, v: Any, *rest: Any, **options: Any) -> int:
    return 2 * _pairs(q, rest) * (q[-1] + v[-1])


@register_flop_formula(torch.ops.attention_core.block_attention_backward)
def _backward_flops(
    grad_out: Any, grad_lse: Any, lse: Any, q: Any, k: Any, v: Any, *rest: Any, **options: Any
) -> int:
    return 2 * _pairs(q, rest) * (3 * q[-1] + 2 * v[-1])


def _pairs(q: Any, rest: Any) -> int:
    """Pairs of all heads in all blocks, from the shapes of an operator's arguments after v."""
    _, _, _, _, _, queries, keys, runs, _, samples, *_ = rest
    shapes = zip(queries, keys, runs[::2], runs[1::2], strict=True)
    pairs = sum(n * size * run * m * reach for (n, size), (_, m), run, reach in shapes)
    return int(pairs * samples * q[1])
