"""What a text model attends to, as exact arrays: between tokens or words, in what is pooled, and
from a translation to its source.

The model runs on its fused path, and the weights are recorded beside it: (heads, L, L) numbers for
each layer of a text of L tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attention_core import AttentionPool, Encoder, record_attention
from nlp.decoder import TextDecoder
from nlp.encoder import TextEncoder, TokenEncoder
from nlp.seq2seq import Seq2SeqTransformer
from nlp.tokenizer import Tokenizer
from nlp.word_alignment import words as words_of

#: What can be seen into.
Model = TokenEncoder | TextDecoder | Seq2SeqTransformer


class TextAttention(NamedTuple):
    """What attends to what.

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


class PooledAttention(NamedTuple):
    """How much of each word reaches a text's vector.

    Attributes:
        words: W of them, or tokens, each with the white space in front of it: joined they are the
            text. Special tokens are their names.
        special: of each, whether it is a special token.
        weights: (heads, W).
    """

    words: list[str]
    special: list[bool]
    weights: Tensor


def attention_maps(
    model: Model,
    tokenizer: Tokenizer,
    text: str | Tensor,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    words: bool = False,
) -> TextAttention:
    """Who attends to whom in a text. Of a `Seq2SeqTransformer`, in its encoder.

    Args:
        model: in eval mode.
        tokenizer: that of the model.
        text: what it reads; or its ids (L,), special tokens and all.
        layers: which ones, negative numbers count from the last. All by default; where blocks serve
            several layers (ALBERT), the last of each block, as the others are not told apart.
        heads: which ones, likewise. All by default.
        words: merge the tokens of each word: what they attend to is averaged, what they receive is
            added up.

    Raises:
        TypeError: another kind of model.
        ValueError: there is no such layer or head, or no token; or the model is in training mode.
    """
    stack = _stack(model)
    ids = _ids(model, tokenizer, text)
    taken = _last_uses(stack, layers)
    part = nn.ModuleList([stack.blocks[block].attention for block in taken.values()])
    with record_attention(part) as maps, torch.no_grad():
        model.encode(ids)
    weights, heads = _of_heads(maps, heads)
    sides = [_Side(tokenizer, ids.tolist(), words)] * 2
    return _attention(weights, sides, list(taken), heads)


def pooling_attention(
    model: TextEncoder, tokenizer: Tokenizer, text: str | Tensor, *, words: bool = True
) -> PooledAttention:
    """How much of each word reaches the vector of a text in the last step, per head.

    That is the last layer's attention of the first token where that is pooled; that of the learned
    query where pooling is "attention"; and where it is "mean" or "max", the last layer's attention
    averaged over all tokens.

    Args:
        model: in eval mode.
        tokenizer: that of the model.
        text: what it reads; or its ids (L,), special tokens and all.
        words: add up the tokens of each word.

    Raises: as `attention_maps`.
    """
    if not isinstance(model, TextEncoder):
        raise TypeError(f"model must be a TextEncoder, which pools, got {type(model).__name__}")
    ids = _ids(model, tokenizer, text)
    part = model.pool if isinstance(model.pool, AttentionPool) else model.encoder.blocks[-1]
    with record_attention(part) as maps, torch.no_grad():
        model(ids)
    weights = _wide(maps[0])[0]
    weights = weights[:, 0] if model.pooling in ("class", "attention", "map") else weights.mean(1)
    side = _Side(tokenizer, ids.tolist(), words)
    return PooledAttention(side.written, side.special, side.sum(weights))


def alignment(
    model: Seq2SeqTransformer,
    tokenizer: Tokenizer,
    source: str | Tensor,
    translation: str | Tensor | None = None,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    words: bool = True,
    start: int | None = None,
) -> TextAttention:
    """What of its source the model looks at when it writes each word of a translation (Bahdanau et
    al., 2015): the weights of cross-attention.

    A row is named after the token that is to be *written*, not after the one that was written last
    and attends. The last row is the end of the translation.

    Args:
        model: in eval mode.
        tokenizer: that of the model.
        source: what it reads; or its ids (L,), special tokens and all.
        translation: what it is to write; or its ids (n,), without special tokens. By default, what
            the model writes: the likeliest token at each step, up to 64.
        layers, heads: of the decoder, see `attention_maps`.
        words: merge the tokens of each word, see `attention_maps`.
        start: the id that translations begin with, the tokenizer's `start` by default.

    Raises: as `attention_maps`.
    """
    if not isinstance(model, Seq2SeqTransformer):
        raise TypeError(f"model must be a Seq2SeqTransformer, got {type(model).__name__}")
    ids = _ids(model, tokenizer, source)
    start = tokenizer.start if start is None else start
    if translation is None:
        (written,) = model.generate(ids[None], start=start, stop=tokenizer.end)
    elif isinstance(translation, str):
        (listed,) = tokenizer.encode([translation], special=False)
        written = ids.new_tensor(listed)
    else:
        written = translation.to(ids)
    taken = _last_uses(model.decoder, layers)
    part = nn.ModuleList()
    for block in taken.values():
        part.append(model.decoder.blocks[block].cross_attention)  # type: ignore[arg-type]
    with record_attention(part) as maps, torch.no_grad():
        model(ids, None, torch.cat([ids.new_tensor([start]), written]))
    weights, heads = _of_heads(maps, heads)
    rows = _Side(tokenizer, [*written.tolist(), tokenizer.end], words)
    return _attention(weights, [rows, _Side(tokenizer, ids.tolist(), words)], list(taken), heads)


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

    def mean(self, weights: Tensor) -> Tensor:
        """(..., L) of tokens, averaged to (..., W) of words."""
        sizes = torch.tensor([len(group) for group in self.groups])
        return self.sum(weights) / sizes.to(weights)


def _attention(
    weights: Tensor, sides: Sequence[_Side], layers: list[int], heads: list[int]
) -> TextAttention:
    queries, keys = sides
    weights = queries.mean(keys.sum(weights).mT).mT
    return TextAttention(queries.names, keys.names, weights, layers, heads)


def _stack(model: Model) -> Encoder:
    if isinstance(model, TextDecoder):
        return model.decoder
    if isinstance(model, TokenEncoder | Seq2SeqTransformer):
        return model.encoder
    raise TypeError(
        "model must be a TextEncoder, MaskedLanguageModel, TextDecoder or Seq2SeqTransformer, got "
        f"{type(model).__name__}"
    )


def _ids(model: Model, tokenizer: Tokenizer, text: str | Tensor) -> Tensor:
    """(L,) on the model's device."""
    if model.training:
        raise ValueError("model must be in eval mode, so that all it does is seen: model.eval()")
    if isinstance(text, str):
        ids = torch.tensor(tokenizer.encode([text])[0], dtype=torch.long)
    else:
        ids = text
    if ids.ndim != 1 or not len(ids):
        raise ValueError(f"text must have at least one token, as ids (L,); got {tuple(ids.shape)}")
    return ids.to(model.embedding.table.weight.device)


def _last_uses(stack: Encoder, layers: Sequence[int] | None) -> dict[int, int]:
    """The block of each layer wanted."""
    depth, uses = len(stack.masks), len(stack.masks) // len(stack.blocks)
    last = range(uses - 1, depth, uses)
    wanted = list(last) if layers is None else _indices("layer", layers, depth)
    for layer in wanted:
        if layer not in last:
            raise ValueError(
                f"layer {layer} shares its block with layers after it, and is not told apart from "
                f"them: give some of {', '.join(map(str, last))}"
            )
    return {layer: layer // uses for layer in wanted}


def _of_heads(maps: Iterable[Tensor], heads: Sequence[int] | None) -> tuple[Tensor, list[int]]:
    """(layers, heads, Lq, Lk), and which heads these are."""
    weights = torch.stack([_wide(layer)[0] for layer in maps])
    count = weights.shape[1]
    wanted = list(range(count)) if heads is None else _indices("head", heads, count)
    return weights[:, wanted], wanted


def _indices(name: str, values: Sequence[int], count: int) -> list[int]:
    if not values:
        raise ValueError(f"{name}s must name at least one {name}, got {values!r}")
    for value in values:
        if not -count <= value < count:
            raise ValueError(f"there are {count} {name}s, no {name} {value}")
    return [value % count for value in values]


def _wide(weights: Tensor) -> Tensor:
    """In float32, where they are narrower."""
    return weights.to(torch.promote_types(weights.dtype, torch.float32))
