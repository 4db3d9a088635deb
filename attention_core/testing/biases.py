"""The check of a bias: its scores, and what it tells the plan about them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from attention_core.biases import Bias, DenseBias
from attention_core.score_mods import has_score_mod, modified
from attention_core.spaces import Pairs, Space
from attention_core.testing.agreement import agree
from attention_core.testing.pairs import Asked, answers, kept, ordinary, pair
from attention_core.testing.terms import REFUSED, check_block_key, check_end, on_each_space


def check_bias(bias: Bias, *spaces: Space) -> None:
    """Check that a bias keeps its promises, on `spaces` or on small ones of every kind.

    Its scores, or what a score mod makes of one, are floats and no NaN, the same however pairs are
    laid out, and after `keep`, `append`, `pack` and `pad`; `block_key` and `needs_end` are
    true of them; and every
    backend gives the outputs, weights and gradients of `reference`, those of the bias's own
    parameters included. A bias may refuse a space by a TypeError or ValueError, as it may what is
    left of one; of the small ones, it has to serve one.

    Raises:
        AssertionError: naming the promise that is broken, and tokens that break it.
    """
    if not isinstance(bias, Bias):
        raise TypeError(f"bias must be a Bias, got {type(bias).__name__}")
    heads = bias.heads or 4
    ask = partial(_modified, bias) if has_score_mod(bias) else bias
    on_each_space(bias, spaces, ask, heads, lambda space: _check(bias, ask, space, heads))


def _modified(bias: Bias, pairs: Pairs) -> Tensor:
    """What becomes of one and the same score of every pair."""
    indices = torch.broadcast_tensors(pairs.batch, pairs.head, pairs.query, pairs.key)
    return modified(bias.leaves(), torch.full(indices[0].shape, 0.7), pairs)


def _check(bias: Bias, ask: Asked, space: Space, heads: int) -> None:
    mod, spaces = has_score_mod(bias), (space, space)
    name = f"{type(bias).__name__}.{'modify' if mod else 'score'}"
    scores = answers(name, ask, spaces, heads)
    if not scores.is_floating_point():
        raise AssertionError(f"{name} must return floats, got {scores.dtype}")
    wrong = (scores.isnan() | scores.isposinf()) & ordinary(spaces, special=True)
    if bool(wrong.any()):
        b, h, q, k = wrong.nonzero()[0].tolist()
        raise AssertionError(f"{name} is {scores[b, h, q, k]} at {pair(b, q, k)}")
    check_block_key(bias, "scores", space, scores, ordinary(spaces))
    check_end(bias, name, ask, space, scores, heads)
    if not any(
        isinstance(part, DenseBias) for part in bias.modules()
    ):  # which speaks of places in a tensor
        kept(
            name,
            ask,
            spaces,
            scores,
            hint="ask `pairs` about tokens, for pairs.query and pairs.key are other ones then",
            special=True,
            permuted=mod,
            refused=REFUSED,
        )
    agree(f"{space.describe()}, bias {name}", space, bias=bias, heads=heads)
