"""What a text model attends to, as exact arrays: between tokens or words, in what is pooled, and
from a translation to its source; and what it makes of a text without a word of it.

A layer's weights take (heads, L, L) numbers for a text of L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Unpack

import torch
from torch import Tensor, nn

import attention_core.interpret.maps as core
from attention_core import Encoder, Sequence as Line
from nlp.decoder import TextDecoder
from nlp.encoder import TextEncoder, TokenEncoder
from nlp.seq2seq import Seq2SeqTransformer
from nlp.tokenizer import Tokenizer
from nlp.word_alignment import words as words_of

#: What can be seen into.
Model = TokenEncoder | TextDecoder | Seq2SeqTransformer


class TextAttention(NamedTuple):
    """The attention between tokens, or words.

    Attributes:
        queries, keys: Lq tokens (or words) that attend, and Lk that are attended to, readable.
        weights: (layers, heads, Lq, Lk); the rows of the last dimension sum to 1, or to less where
            the model attends to a sink.
        layers, heads: which ones, counted from 0.
    """

    queries: list[str]
    keys: list[str]
    weights: Tensor
    layers: list[int]
    heads: list[int]


class WordWeights(NamedTuple):
    """A number for each word of a text, or several.

    Attributes:
        words: W of them, or tokens, each with the white space in front of it: joined they are the
            text. Special tokens are their names.
        special: of each, whether it is a special token.
        weights: (W,), or (heads, W).
    """

    words: list[str]
    special: list[bool]
    weights: Tensor


def attention_maps(
    model: Model,
    inputs: str | Tensor,
    *,
    tokenizer: Tokenizer,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    words: bool = False,
) -> TextAttention:
    """Return who attends to whom in a text. Of a `Seq2SeqTransformer`, in its encoder.

    Args:
        model: in eval mode.
        inputs: the text that it reads; or its ids (L,), special tokens and all.
        tokenizer: that of the model.
        layers: which ones, in the order wanted; negative numbers count from the last. All by
            default; where blocks serve several layers (ALBERT), the last of each block, as the
            others are not told apart.
        heads: which ones, likewise. All by default.
        words: merge the tokens of each word: what they attend to is averaged, what they receive is
            added up.

    Raises:
        TypeError: another kind of model.
        ValueError: there is no such layer or head, or no token; or the model is in training mode.
    """
    ids = _ids(model, tokenizer, inputs)
    chosen = core.attention_layers(_stack(model), wanted=layers)
    found = core.record(model, lambda: model.encode(ids), chosen, heads=heads)
    sides = [_Side(tokenizer, ids.tolist(), words)] * 2
    return _attention(found, sides, list(chosen))


def pooling_attention(
    model: TextEncoder, inputs: str | Tensor, *, tokenizer: Tokenizer, words: bool = True
) -> WordWeights:
    """Return how much of each word reaches the vector of a text in the last step, (heads, W).

    That is the last layer's attention of the first token where that is pooled; that of the learned
    query where pooling is "attention" or "map"; and else the last layer's attention averaged over
    all tokens.

    Args:
        words: add up the tokens of each word.

    Raises: as `attention_maps`.
    """
    _check_pools(model)
    ids = _ids(model, tokenizer, inputs)
    part = model.encoder.blocks[-1].attention
    shares, _ = core.reaching(*_to_pool(model, ids, part))
    return _Side(tokenizer, ids.tolist(), words).weights(shares)


def attention_rollout(
    model: TextEncoder,
    inputs: str | Tensor,
    *,
    tokenizer: Tokenizer,
    words: bool = True,
    **options: Unpack[core.RolloutOptions],
) -> WordWeights:
    """Return how much of each word is in the vector of a text, (W,), going back through all layers:
    see `attention_core.interpret.maps.rollout`, whose `options` these are."""
    _check_pools(model)
    ids = _ids(model, tokenizer, inputs)
    layers, pooled = _to_pool(model, ids, core.all_layers(_stack(model)))
    return _Side(tokenizer, ids.tolist(), words).weights(core.rollout(layers, pooled, **options))


def mean_attention_distance(model: Model, inputs: str | Tensor, *, tokenizer: Tokenizer) -> Tensor:
    """Return how far heads look, (layers, heads): the mean distance in tokens, weighted by
    attention.

    Raises: as `attention_maps`; also where blocks serve several layers.
    """
    ids = _ids(model, tokenizer, inputs)
    found = core.record(model, lambda: model.encode(ids), core.all_layers(_stack(model)))
    return torch.stack([core.mean_distance(one, lambda pairs: pairs.distance) for one in found])


def occlusion(
    model: TextEncoder,
    inputs: str | Tensor,
    *,
    tokenizer: Tokenizer,
    target: int | None = None,
    words: bool = True,
) -> WordWeights:
    """Return how the log-probability of a class changes where a word is left out, (W,): below 0
    where the word speaks for the class.

    Each word is left out alone, and the model reads what is left: so words that say the same stand
    in for each other. Special tokens stay, and have NaN; so has a word that is the whole text.

    Args:
        target: the class; by default the one that the model predicts of the whole text.
        words: leave out all tokens of a word at once.

    Raises: as `attention_maps`; also where the model has no classes, or no class `target`.
    """
    _check_pools(model)
    classes = getattr(model.head, "out_features", 0)
    if classes < 2:
        raise ValueError(f"model must tell classes apart, got one of num_classes={classes or None}")
    if target is not None and not 0 <= target < classes:
        raise ValueError(f"target must be a class from 0 to {classes - 1}, got {target}")
    ids = _ids(model, tokenizer, inputs)
    side = _Side(tokenizer, ids.tolist(), words)

    def log_probabilities(rows: list[Tensor]) -> Tensor:
        logits = model(torch.cat(rows), ids.new_tensor([len(row) for row in rows]))
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    with torch.no_grad():
        wanted = int(log_probabilities([ids]).argmax()) if target is None else target
    parts = [group for group, special in zip(side.groups, side.special, strict=True) if not special]
    found = core.occlusion(lambda rows: log_probabilities(rows)[:, wanted], ids, parts)
    changes = found.new_full((len(side.groups),), torch.nan)
    changes[~torch.tensor(side.special)] = found
    return WordWeights(side.written, side.special, changes)


def alignment(
    model: Seq2SeqTransformer,
    inputs: str | Tensor,
    translation: str | Tensor | None = None,
    *,
    tokenizer: Tokenizer,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    words: bool = True,
    start: int | None = None,
) -> TextAttention:
    """Return what of its source the model looks at when it writes each word of a translation
    (Bahdanau et al., 2015): the weights of cross-attention.

    A row is named after the token that is to be *written*, not after the one that was written last
    and attends. The last row is the end of the translation.

    Args:
        inputs: the source that it reads; or its ids (L,), special tokens and all.
        translation: what it is to write; or its ids (n,), without special tokens. By default, what
            the model writes: the likeliest token at each step, up to 64.
        layers, heads: of the decoder.
        start: the id that translations begin with, the tokenizer's `start` by default.

    Raises: as `attention_maps`.
    """
    if not isinstance(model, Seq2SeqTransformer):
        raise TypeError(f"model must be a Seq2SeqTransformer, got {type(model).__name__}")
    ids = _ids(model, tokenizer, inputs)
    start = tokenizer.start if start is None else start
    if translation is None:
        (written,) = model.generate(ids[None], start=start, stop=tokenizer.end)
    elif isinstance(translation, str):
        (listed,) = tokenizer.encode([translation], special=False)
        written = ids.new_tensor(listed)
    else:
        written = translation.to(ids)
    chosen = core.attention_layers(model.decoder, part="cross_attention", wanted=layers)
    given = torch.cat([ids.new_tensor([start]), written])
    found = core.record(model, lambda: model(ids, None, given), chosen, heads=heads)
    rows = _Side(tokenizer, [*written.tolist(), tokenizer.end], words)
    return _attention(found, [rows, _Side(tokenizer, ids.tolist(), words)], list(chosen))


class _Side:
    """The tokens of a text, or its words."""

    def __init__(self, tokenizer: Tokenizer, ids: list[int], words: bool) -> None:
        spelled, pieces = tokenizer.spell(ids), tokenizer.pieces(ids)
        self.groups = words_of(spelled) if words else [[place] for place in range(len(ids))]
        self.special = [ids[group[0]] in tokenizer.special for group in self.groups]
        self.names: list[str] = []
        self.written: list[str] = []
        for group in self.groups:
            text = b"".join(spelled[place] for place in group).decode("utf-8", "replace")
            name = "".join(pieces[place] for place in group)
            self.written.append(text or name)
            self.names.append((text.strip() if words else "") or name)
        self._index = torch.tensor([n for n, group in enumerate(self.groups) for _ in group])

    def sum(self, weights: Tensor) -> Tensor:
        """(..., L) of tokens, added up to (..., W) of words."""
        summed = weights.new_zeros(*weights.shape[:-1], len(self.groups))
        return summed.index_add(-1, self._index.to(weights.device), weights)

    def weights(self, weights: Tensor) -> WordWeights:
        """(..., L) of tokens as those of what is listed."""
        return WordWeights(self.written, self.special, self.sum(weights))

    def mean(self, weights: Tensor) -> Tensor:
        """(..., L) of tokens, averaged to (..., W) of words."""
        sizes = torch.tensor([len(group) for group in self.groups])
        return self.sum(weights) / sizes.to(weights)


def _attention(
    found: Sequence[core.LayerAttention], sides: Sequence[_Side], layers: list[int]
) -> TextAttention:
    queries, keys = sides
    weights = keys.sum(torch.stack([layer.table for layer in found]))
    weights = queries.mean(weights.mT).mT
    return TextAttention(queries.names, keys.names, weights, layers, found[0].heads)


def _stack(model: Model) -> Encoder:
    if isinstance(model, TextDecoder):
        return model.decoder
    if isinstance(model, TokenEncoder | Seq2SeqTransformer):
        return model.encoder
    raise TypeError(
        "model must be a TextEncoder, MaskedLanguageModel, TextDecoder or Seq2SeqTransformer, got "
        f"{type(model).__name__}"
    )


def _check_pools(model: nn.Module) -> None:
    if not isinstance(model, TextEncoder):
        raise TypeError(f"model must be a TextEncoder, which pools, got {type(model).__name__}")


def _to_pool(
    model: TextEncoder, ids: Tensor, part: nn.Module | dict[int, nn.Module]
) -> tuple[list[core.LayerAttention], core.LayerAttention | Tensor]:
    # The tokens of a text that is read in windows are pooled together
    return core.record_to_pool(model, lambda: model(ids), part, Line(len(ids)))


def _ids(model: Model, tokenizer: Tokenizer, inputs: str | Tensor) -> Tensor:
    """(L,) on the model's device."""
    _stack(model)
    core.check_eval(model)
    if isinstance(inputs, str):
        ids = torch.tensor(tokenizer.encode([inputs])[0], dtype=torch.long)
    else:
        ids = inputs
    if ids.ndim != 1 or not len(ids):
        raise ValueError(
            f"inputs must have at least one token, as ids (L,); got {tuple(ids.shape)}"
        )
    return ids.to(model.embedding.table.weight.device)
