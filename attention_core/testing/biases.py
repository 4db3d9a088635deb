"""The check of a bias: its scores, and what it tells the plan about them."""

from __future__ import annotations

from attention_core.biases import Bias, DenseBias
from attention_core.spaces import Space
from attention_core.testing.agreement import agree
from attention_core.testing.pairs import answers, kept, ordinary, pair
from attention_core.testing.terms import REFUSED, check_block_key, on_each_space


def check_bias(bias: Bias, *spaces: Space) -> None:
    """Check that a bias keeps its promises, on `spaces` or on small ones of every kind.

    Its scores are floats and no NaN, the same however pairs are laid out, and after `keep`,
    `append`, `pack` and `pad`; `block_key` is true of them; and every backend gives the outputs,
    weights and gradients of `reference`, those of the bias's own parameters included. A bias may
    refuse a space by a TypeError or ValueError, as it may what is left of one; of the small ones,
    it has to serve one.

    Raises:
        AssertionError: naming the promise that is broken, and tokens that break it.
    """
    if not isinstance(bias, Bias):
        raise TypeError(f"bias must be a Bias, got {type(bias).__name__}")
    heads = bias.heads or 4
    on_each_space(bias, spaces, bias, heads, lambda space: _check(bias, space, heads))


def _check(bias: Bias, space: Space, heads: int) -> None:
    spaces, name = (space, space), f"{type(bias).__name__}.score"
    scores = answers(name, bias, spaces, heads)
    if not scores.is_floating_point():
        raise AssertionError(f"{name} must return floats, got {scores.dtype}")
    wrong = (scores.isnan() | scores.isposinf()) & ordinary(spaces, special=True)
    if bool(wrong.any()):
        b, h, q, k = wrong.nonzero()[0].tolist()
        raise AssertionError(f"{name} is {scores[b, h, q, k]} at {pair(b, q, k)}")
    check_block_key(bias, "scores", space, scores, ordinary(spaces))
    if not isinstance(bias, DenseBias):  # which speaks of places in a tensor
        kept(
            name,
            bias,
            spaces,
            scores,
            hint="ask `pairs` about tokens, for pairs.query and pairs.key are other ones then",
            special=True,
            refused=REFUSED,
        )
    agree(f"{space.describe()}, bias {name}", space, bias=bias, heads=heads)
