"""Understanding texts: configurations of `attention_core.Encoder` over a `Sequence`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Unpack

import torch
from torch import Tensor, nn
from torch.compiler import is_exporting
from torch.nn import functional as F

from attention_core import Encoder, Sequence, pool
from attention_core.annotated import checked
from attention_core.checks import check_chance, check_choice, check_index, check_number, check_whole
from attention_core.evaluation import evaluating
from attention_core.layers import EncoderOptions, Pooling, make_pool
from attention_core.pretrained import Pretrained, names
from nlp.batches import Side, first_tokens, pad, token_space, unpad, window_lengths
from nlp.embeddings import (
    Positions,
    TokenEmbedding,
    TokenScores,
    Transform,
    attention_positions,
)
from nlp.pretrained import ENCODERS
from nlp.tokenizer import Tokenizer


class TokenEncoderOptions(EncoderOptions, total=False):
    """Options of `TokenEncoder`, which `TextEncoder` and `MaskedLanguageModel` pass on."""

    positions: Positions | None
    max_length: int
    windowed: bool
    num_token_types: int
    embedding_dim: int | None
    embedding_scale: float | None
    embedding_norm: bool
    embedding_dropout: float
    first_norm: bool


class TokenEncoder(Pretrained):
    """A bidirectional transformer from token ids to tokens that have read each other.

    Texts come packed, end to end in one row, or padded; the outputs are the same. `TextEncoder`
    and `MaskedLanguageModel` add what they say about them.

    Args:
        vocab_size: number of token ids.
        dim: size D of a token.
        depth: number of blocks.
        heads: number of heads.
        positions: "learned" or "sinusoidal", added to tokens; "rotary" (Su et al., RoFormer,
            2021), "t5" (Raffel et al., 2020, one table for all layers) or "alibi" (Press et al.,
            2022; here it sees distance alone, not direction), inside attention; None: no order,
            or that of a ``rotary=`` or ``bias=`` of one's own.
        max_length: number of "learned" positions.
        windowed: read a text that is longer than the learned positions in windows of `max_length`
            tokens that do not see each other, instead of raising ValueError.
        num_token_types: number of token types (BERT: 2), 0 for none.
        embedding_dim: size of a row of the embedding's table, see `TokenEmbedding`.
        embedding_scale: factor on embedded ids, see `TokenEmbedding`.
        embedding_norm: normalise embedded tokens, as BERT does.
        embedding_dropout: on embedded tokens.
        first_norm: False leaves out the normalisation in front of the first attention, whose
            tokens the embedding has normalised (ModernBERT).
        encoder: options of `Encoder`, `Block` and `MultiheadAttention`; `mask=[None,
            Neighborhood(64)]` alternates full and local layers (ModernBERT, 2024).

    Raises:
        ValueError: unknown `positions`; the message lists the known ones. Or `windowed` without
            "learned" ones.
    """

    @checked
    def __init__(
        self,
        vocab_size: int,
        dim: int,
        depth: int,
        heads: int,
        *,
        positions: Positions | None = "rotary",
        max_length: int = 512,
        windowed: bool = False,
        num_token_types: int = 0,
        embedding_dim: int | None = None,
        embedding_scale: float | None = None,
        embedding_norm: bool = False,
        embedding_dropout: float = 0.0,
        first_norm: bool = True,
        **encoder: Unpack[EncoderOptions],
    ) -> None:
        super().__init__()
        added, options = attention_positions(positions, heads, bidirectional=True)
        if windowed and added != "learned":
            raise ValueError(
                "windowed=True reads texts that are longer than learned positions, but "
                f"positions={positions!r} end nowhere"
            )
        norm, eps = encoder.get("norm", "layer"), encoder.get("eps", 1e-6)
        self.windowed = windowed
        check_chance(embedding_dropout=embedding_dropout)
        check_number(above=0, embedding_scale=embedding_scale, or_none=True)
        self.embedding = TokenEmbedding(
            vocab_size,
            dim,
            positions=added,
            max_length=max_length,
            num_token_types=num_token_types,
            embedding_dim=embedding_dim,
            scale=embedding_scale,
            norm=norm if embedding_norm else None,
            eps=eps,
            dropout=embedding_dropout,
        )
        encoder = {**options, **encoder}
        self.encoder = Encoder(dim, depth, heads, **encoder)
        if not first_norm:
            self.encoder.blocks[0].attention_residual.norm = nn.Identity()

    @checked
    def encode(
        self,
        ids: Tensor,
        lengths: Tensor | None = None,
        *,
        side: Side = "right",
        types: Tensor | None = None,
    ) -> Tensor:
        """The encoded tokens, (T, D) or (B, L, D) with zeros on padding.

        Args:
            ids: (T,) packed, all texts end to end; or (B, L) padded, with any id in the padding.
            lengths: (B,) tokens of each text; without it, packed ids are one text and padded ids
                have no padding.
            side: of padded ids, where the padding is.
            types: in the shape of ids, the type of each token; 0 by default.

        Raises:
            TypeError, ValueError: ids, lengths or types of another shape, kind or range.
        """
        space = token_space(ids, lengths, side)
        limit = self.embedding.max_length
        if self.windowed and limit is not None and not is_exporting() and ids.shape[-1] > limit:
            return self._encode_windows(ids, lengths, side, types, limit)
        encoded: Tensor = self.encoder(self.embedding(ids, space, types), space)
        return encoded

    def _encode_windows(
        self,
        ids: Tensor,
        lengths: Tensor | None,
        side: Side,
        types: Tensor | None,
        limit: int,
    ) -> Tensor:
        if lengths is None:
            rows = 1 if ids.ndim == 1 else len(ids)
            lengths = ids.new_full((rows,), ids.shape[-1])
        if ids.ndim == 1:
            space = Sequence.packed(window_lengths(lengths, limit), device=ids.device)
            encoded: Tensor = self.encoder(self.embedding(ids, space, types), space)
            return encoded
        types = None if types is None else unpad(types, lengths, side)
        packed = self._encode_windows(unpad(ids, lengths, side), lengths, side, types, limit)
        return pad(packed, lengths, side=side, length=ids.shape[1])


class TextEncoder(TokenEncoder):
    """A bidirectional transformer over texts, with one output per text (Devlin et al., BERT, 2019).

    Args:
        vocab_size, dim, depth, heads: as in `TokenEncoder`.
        num_classes: number of outputs per text; None returns the pooled text itself, (B, D).
        pooling: "class", the first token (BERT's [CLS]); "mean", "sum" or "max" over tokens;
            "attention", a learned query; or "map", the same with a feed-forward network.
        pooler: "tanh" (BERT), "gelu" or "relu": a linear layer and this function after pooling;
            by default there is none.
        tokens: further options of `TokenEncoder`.

    Raises:
        ValueError: an unknown `positions`, `pooling` or `pooler`; the message lists the known ones.

    Example::

        model = TextEncoder(4096, dim=128, depth=4, heads=4, num_classes=3)
        model(ids, lengths)                    # (T,) packed, lengths (B,) -> (B, 3)
        model(padded, lengths)                 # (B, L) padded on the right -> the same
        model(padded, lengths, side="left")    # padded on the left
    """

    families = ENCODERS
    parts = {names.POOLER: "pooler", names.CLASSIFIER: "head", "pool": "pool"}

    @checked
    def __init__(
        self,
        vocab_size: int,
        dim: int,
        depth: int,
        heads: int,
        *,
        num_classes: int | None,
        pooling: Pooling = "mean",
        pooler: Literal["tanh", "gelu", "relu"] | None = None,
        **tokens: Unpack[TokenEncoderOptions],
    ) -> None:
        super().__init__(vocab_size, dim, depth, heads, **tokens)
        check_whole(num_classes=num_classes, or_none=True)
        check_choice(("tanh", "gelu", "relu", None), pooler=pooler)
        if pooling == "special":
            raise ValueError("pooling='special': texts have no special tokens; give 'class'")
        self.pooling = pooling
        like = self.encoder.blocks[0].feed_forward
        self.pool = make_pool(pooling, dim, heads, like=like, eps=tokens.get("eps", 1e-6))
        self.pooler = nn.Identity() if pooler is None else Transform(dim, pooler)
        self.head = nn.Identity() if num_classes is None else nn.Linear(dim, num_classes)

    @checked
    def forward(
        self,
        ids: Tensor,
        lengths: Tensor | None = None,
        *,
        side: Side = "right",
        types: Tensor | None = None,
    ) -> Tensor:
        """The outputs (B, num_classes) of B texts; arguments are those of `encode`.

        The mean and maximum of a text of length 0 are zeros; it has no first token.
        """
        tokens = self.encode(ids, lengths, side=side, types=types)
        output: Tensor = self.head(self.pooler(self._pool(tokens, ids, lengths, side)))
        return output

    @torch.no_grad()
    @checked
    def embed(
        self, texts: Iterable[str], tokenizer: Tokenizer, *, batch: int = 32, normalize: bool = True
    ) -> Tensor:
        """A vector for each text, (N, D): its pooled tokens (Reimers & Gurevych, 2019).

        It is computed without dropout and without the head, on the model's device.

        Args:
            texts: N of them.
            tokenizer: that of the model.
            batch: texts that are read at a time, packed.
            normalize: to length 1, so that a product of two is their cosine.

        Raises:
            ValueError: a text is longer than the model's positions, unless it is `windowed`; or
                `batch` is below 1.
        """
        check_whole(batch=batch)
        rows = [torch.tensor(row, dtype=torch.long) for row in tokenizer.encode(texts)]
        limit = None if self.windowed else self.embedding.max_length
        for index, row in enumerate(rows):
            if limit is not None and len(row) > limit:
                raise ValueError(
                    f"texts[{index}] has {len(row)} tokens, but the model has positions for "
                    f"{limit}: one made with windowed=True reads such a text in windows"
                )
        device = self.embedding.table.weight.device
        with evaluating(self.modules()):
            pooled = [
                self.embedding.table.weight.new_empty(
                    0, self.encoder.blocks[0].attention.out.out_features
                )
            ]
            for start in range(0, len(rows), batch):
                some = rows[start : start + batch]
                ids, lengths = torch.cat(some).to(device), torch.tensor([len(row) for row in some])
                tokens = self.encode(ids, lengths.to(device))
                pooled.append(self.pooler(self._pool(tokens, ids, lengths.to(device), "right")))
        vectors = torch.cat(pooled)
        return F.normalize(vectors, dim=-1) if normalize else vectors

    def _pool(self, tokens: Tensor, ids: Tensor, lengths: Tensor | None, side: Side) -> Tensor:
        if self.pooling == "class":
            return first_tokens(tokens, lengths, side)
        space = token_space(ids, lengths, side)
        if self.pool is not None:
            pooled: Tensor = self.pool(tokens, space)
            return pooled
        return pool(tokens, space, self.pooling)


class MaskedLanguageModel(TokenEncoder):
    """A bidirectional transformer that names masked tokens (Devlin et al., BERT, 2019).

    The scores come from the table of the embedding.

    Args:
        vocab_size, dim, depth, heads: as in `TokenEncoder`.
        transform: "gelu", "gelu-tanh" or "relu": a linear layer, this function and a normalisation
            in front of the scores.
        transform_bias: whether that linear layer has one.
        tokens: further options of `TokenEncoder`.

    Example::

        model = MaskedLanguageModel(4096, dim=128, depth=4, heads=4)
        model(ids, lengths)                # (T,) packed -> (T, 4096)
        model(ids, lengths, at=masked)     # of the masked tokens alone: (M, 4096)
    """

    families = ENCODERS
    parts = {names.TRANSFORM: "transform", names.SCORES: "head"}

    @checked
    def __init__(
        self,
        vocab_size: int,
        dim: int,
        depth: int,
        heads: int,
        *,
        transform: Literal["gelu", "gelu-tanh", "relu"] = "gelu",
        transform_bias: bool = True,
        **tokens: Unpack[TokenEncoderOptions],
    ) -> None:
        super().__init__(vocab_size, dim, depth, heads, **tokens)
        check_choice(("gelu", "gelu-tanh", "relu"), transform=transform)
        size = self.embedding.table.embedding_dim
        self.transform = Transform(
            dim,
            transform,
            out=size,
            norm=tokens.get("norm", "layer"),
            eps=tokens.get("eps", 1e-6),
            projection_bias=transform_bias,
        )
        self.head = TokenScores(vocab_size, size, projection_bias=True)

    def scores(self, tokens: Tensor) -> Tensor:
        """The scores of all ids, (..., V), for encoded tokens (..., D)."""
        scores: Tensor = self.head(self.transform(tokens), self.embedding.table.weight)
        return scores

    @checked
    def forward(
        self,
        ids: Tensor,
        lengths: Tensor | None = None,
        *,
        side: Side = "right",
        types: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """The scores (T, V) or (B, L, V) of each token; arguments are those of `encode`.

        Args:
            at: (M,) places in the flattened ids: the scores (M, V) of these tokens alone.
        """
        tokens = self.encode(ids, lengths, side=side, types=types)
        if at is None:
            return self.scores(tokens)
        tokens = tokens.flatten(0, -2)
        check_index(len(tokens), "(M,)", at=at)
        return self.scores(tokens[at])
