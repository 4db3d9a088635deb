"""What changes the score of a pair in other ways than adding to it, as FlexAttention's score_mod.

A score mod is a `Bias`, given wherever a bias is, and added to others in the order in which they
act. One of your own overrides one method::

    class Softcap(ScoreMod):  # of each head its own
        def modify(self, score, pairs):
            cap = self.caps[pairs.head]
            return cap * torch.tanh(score / cap)

    bias = ALiBi(8) + Softcap(...)  # caps what ALiBi gave; Softcap(...) + ALiBi(8) what it gets

Special tokens sit nowhere, so a pair with one keeps its score, unless `special_modify` says
otherwise. Scores are float32 or better under any autocast.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import NoReturn

import torch
from torch import Tensor, nn

from attention_core.annotated import checked
from attention_core.biases import Bias
from attention_core.checks import check_flag, check_kind, check_whole
from attention_core.spaces import Pairs, Sequence
from attention_core.spaces.pairs import ask


class ScoreMod(Bias):
    """A function of the score of a pair and of the pair. Override `modify`.

    A result of -inf forbids the pair. What a gradient is needed of, apart from parameters, has to
    be among `tensors()`.

    Attributes:
        heads: for how many query heads it is made; None for any number.
    """

    def modify(self, score: Tensor, pairs: Pairs) -> Tensor:
        """Compute the new score of pairs without special tokens.

        It may be asked about pairs that may not attend, with a score of 0 in place of theirs:
        let it be finite for them, too, or gradients of its parameters are not.

        Args:
            score: what scale, softcap and earlier biases made of the score, in the shape of
                `pairs`, heads included. It must not be changed in place.
            pairs: indices of any broadcastable shape, and what can be told from them.

        Returns: float that broadcasts to the shape of `score`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define modify(self, score, pairs)")

    def special_modify(self, score: Tensor, pairs: Pairs) -> Tensor:
        """Return the new score of pairs with a special token; the score itself by default."""
        return score

    def forward(self, pairs: Pairs) -> NoReturn:
        name = type(self).__name__
        raise TypeError(f"{name} has no scores to add: it modifies scores, {name}.modified(...)")

    def modified(self, score: Tensor, pairs: Pairs) -> Tensor:
        """Return what becomes of the score of every pair, in its shape and dtype.

        Raises:
            ValueError: it is made for another number of heads, or gives another shape.
        """
        self.check_heads(pairs)
        with torch.autocast(score.device.type, enabled=False):
            found = self._of_all(score, pairs)
        sizes = zip(reversed(found.shape), reversed(score.shape), strict=False)
        if found.ndim > score.ndim or any(n not in (1, size) for n, size in sizes):
            raise ValueError(
                f"{type(self).__name__}.modify gives {tuple(found.shape)} for scores of shape "
                f"{tuple(score.shape)}: compute it from score, pairs.distance, pairs.head, ..."
            )
        return found.to(score.dtype).expand_as(score)

    def _of_all(self, score: Tensor, pairs: Pairs) -> Tensor:
        found, special = ask(self, lambda of: self.modify(score, of), pairs), pairs.special
        if special is None:
            return found
        return torch.where(special, self.special_modify(score, pairs), found)


class Multiplier(ScoreMod):
    """Multiply a score by 1 + what a bias gives for the pair.

    With `RelativeTable`, a learned factor for each relative position (Huang et al., Improve
    Transformer Models with Better Relative Position Embeddings, 2020, methods 1 and 2); with
    `EdgeBias`, a learned gate for each type of edge. Where the bias is 0, as on special tokens and
    pairs without an edge, a score is what it was.

    Args:
        bias: any but a score mod.
    """

    def __init__(self, bias: Bias) -> None:
        super().__init__()
        check_kind(Bias, bias=bias)
        if bias is None or has_score_mod(bias):
            raise TypeError(f"Multiplier needs a bias that gives numbers, got {bias}")
        self.bias, self.heads = bias, bias.heads

    def tensors(self) -> list[Tensor]:
        return self.bias.tensors()

    @property
    def needs_end(self) -> bool:
        return self.bias.needs_end

    @property
    def depends_on_others(self) -> bool:
        return self.bias.depends_on_others

    def _of_all(self, score: Tensor, pairs: Pairs) -> Tensor:
        return score * (1 + self.bias(pairs))


class ScalableSoftmax(ScoreMod):
    """Multiply the scores of a query that sees n keys by ``s[head] · log n``, s learned.

    A softmax over more keys is flatter, which this undoes (Nakanishi, Scalable-Softmax Is Superior
    for Attention, 2025; Chiang and Cholak, Overcoming a Theoretical Limitation of Self-Attention,
    2022). s starts at 1 / log(length): at `length` keys, scores are what they were. Special tokens
    are keys like others.

    Args:
        heads: number of query heads H.
        length: a usual number of keys, such as that of training.
        causal: n is the place of the query on its Sequence, counted from 1, as `Causal()` lets it
            see; otherwise the number of keys of its sample.
    """

    @checked
    def __init__(self, heads: int, length: int, *, causal: bool = False) -> None:
        super().__init__()
        check_whole(heads=heads)
        check_whole(2, length=length)
        check_flag(causal=causal)
        self.heads, self.length, self.causal = heads, length, causal
        self.slope = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.slope, 1 / math.log(self.length))

    @property
    def needs_end(self) -> bool:
        return not self.causal

    @property
    def depends_on_others(self) -> bool:
        return True  # on how many

    def _of_all(self, score: Tensor, pairs: Pairs) -> Tensor:
        keys = self._keys(pairs).to(score.dtype).clamp(min=1)
        return score * (self.slope[pairs.head] * keys.log())

    def _keys(self, pairs: Pairs) -> Tensor:
        """How many keys the query of a pair sees, broadcasts to `pairs`."""
        if not self.causal:
            return _sample_sizes(pairs)
        if not isinstance(pairs.spaces[0], Sequence):
            raise TypeError(
                "ScalableSoftmax(causal=True) counts places on a Sequence, got "
                f"{pairs.spaces[0].describe()}"
            )
        place = pairs.take("coordinates", "query")[..., 0] + 1
        if pairs.spaces[0].special is None:
            return place
        # A special token sees its whole sample
        return torch.where(pairs.take("special", "query"), _sample_sizes(pairs), place)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, length={self.length}, causal={self.causal}"


def _sample_sizes(pairs: Pairs) -> Tensor:
    """How many keys the sample of a pair has, broadcasts to `pairs`."""
    key = pairs.spaces[1]
    ones = torch.ones(key.length, dtype=torch.long, device=pairs.key.device)
    if key.valid is not None:
        ones = key.valid.long()
    if key.segments is None:
        sizes = ones.sum(-1)
        return sizes[pairs.batch] if sizes.ndim else sizes
    samples = max(space.num_segments for space in pairs.spaces)
    ones, segments = torch.broadcast_tensors(ones, key.segments)
    sizes = ones.new_zeros(*ones.shape[:-1], samples).scatter_add(-1, segments, ones)
    return sizes[pairs.sample] if sizes.ndim == 1 else sizes[pairs.batch, pairs.sample]


def has_score_mod(bias: Bias | None) -> bool:
    """Return whether a bias does more to a score than to add to it."""
    return bias is not None and any(isinstance(leaf, ScoreMod) for leaf in bias.leaves())


def split(bias: Bias | None) -> tuple[list[Bias], Bias | None]:
    """Split a bias into what needs to see the score, and what is added after that.

    Returns: the terms of the sum up to its last score mod, in order; and the sum of the others.
    """
    if bias is None or not has_score_mod(bias):
        return [], bias
    leaves = bias.leaves()
    last = max(n for n, leaf in enumerate(leaves) if isinstance(leaf, ScoreMod))
    rest = leaves[last + 1 :]
    return leaves[: last + 1], functools.reduce(operator.add, rest) if rest else None


def modified(
    terms: list[Bias], score: Tensor, pairs: Pairs, hidden: Tensor | None = None
) -> Tensor:
    """Return what the first terms of a bias, see `split`, make of the scores of pairs, in order.

    Args:
        hidden: bool that broadcasts to score, True where a pair may not attend. What its score is
            must change nothing, not even the gradient of a parameter, so they see a 0.
    """
    if not terms:
        return score
    if hidden is not None:
        score = score.masked_fill(hidden, 0)
    for term in terms:
        if isinstance(term, ScoreMod):
            score = term.modified(score, pairs)
        else:
            score = score + term(pairs).to(score.dtype)
    return score
