"""Understanding texts: configurations of `attention_core.Encoder` over a `Sequence`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence as Listing
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn
from torch.compiler import is_exporting
from torch.nn import functional as F

from attention_core import Encoder, Sequence, Space
from attention_core.annotated import checked
from attention_core.checks import check_chance, check_choice, check_index, check_number, check_whole
from attention_core.evaluation import evaluating
from attention_core.layers import EncoderOptions, Pooling, make_pool
from attention_core.pretrained import names
from nlp.base import LanguageModel, TextModel
from nlp.batches import Side, pad, token_space, unpad, window_lengths
from nlp.embeddings import (
    Positions,
    TokenEmbedding,
    TokenScores,
    Transform,
    attention_positions,
)
from nlp.pretrained import ENCODERS
from nlp.tokenizer import Tokenizer

#: Sizes alone, of BERT (Devlin et al., 2019) and of its smaller ones (Turc et al., 2019).
BERT_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 128, "depth": 2, "heads": 2},
    "mini": {"dim": 256, "depth": 4, "heads": 4},
    "small": {"dim": 512, "depth": 4, "heads": 8},
    "medium": {"dim": 512, "depth": 8, "heads": 8},
    "base": {"dim": 768, "depth": 12, "heads": 12},
    "large": {"dim": 1024, "depth": 24, "heads": 16},
}


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


class TokenEncoder(TextModel):
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

    presets = BERT_SIZES

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
    def embed(
        self,
        ids: Tensor,
        lengths: Tensor | None = None,
        *,
        side: Side = "right",
        types: Tensor | None = None,
    ) -> tuple[Tensor, Sequence]:
        """Return the embedded tokens, (T, D) or (B, L, D), and where they sit.

        Texts that are read in windows are packed, the windows of a text as samples of their own.

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
        limit = self._window(ids)
        if limit is not None:
            lengths = _lengths(ids, lengths)
            if ids.ndim == 2:
                types = None if types is None else unpad(types, lengths, side)
                ids = unpad(ids, lengths, side)
            space = Sequence.packed(window_lengths(lengths, limit), device=ids.device)
        return self.embedding(ids, space, types), space

    @checked
    def encode(  # type: ignore[override]
        self,
        ids: Tensor,
        lengths: Tensor | None = None,
        *,
        side: Side = "right",
        types: Tensor | None = None,
        backend: str | None = None,
    ) -> tuple[Tensor, Sequence]:
        """Return the encoded tokens, (T, D) or (B, L, D) with zeros on padding, and their space.

        Args:
            ids, lengths, side, types: as of `embed`.
            backend: a name to override the plan's choice.
        """
        tokens, space = self.embed(ids, lengths, side=side, types=types)
        tokens = self.encoder(tokens, space, backend=backend)
        if self._window(ids) is None:
            return tokens, space
        return self._joined(tokens, ids, lengths, side), token_space(ids, lengths, side)

    @checked
    def features(  # type: ignore[override]
        self,
        ids: Tensor,
        lengths: Tensor | None = None,
        *,
        side: Side = "right",
        types: Tensor | None = None,
        layers: Listing[int] = (-1,),
        norm: bool = True,
        backend: str | None = None,
    ) -> list[Tensor]:
        """Return the tokens after some layers, each (T, D) or (B, L, D) with zeros on padding.

        Args:
            ids, lengths, side, types: as of `embed`.
            layers, norm, backend: as of `Model.features`.
        """
        found = super().features(
            ids, lengths, side=side, types=types, layers=layers, norm=norm, backend=backend
        )
        if self._window(ids) is None:
            return found
        return [self._joined(x, ids, lengths, side) for x in found]

    def _window(self, ids: Tensor) -> int | None:
        """The size of the windows that ids are read in; None where they are read as they are."""
        limit = self.max_length
        if not self.windowed or limit is None or is_exporting() or ids.shape[-1] <= limit:
            return None
        return limit

    def _joined(self, tokens: Tensor, ids: Tensor, lengths: Tensor | None, side: Side) -> Tensor:
        """The packed tokens of all windows in the shape of ids."""
        if ids.ndim == 1:
            return tokens
        return pad(tokens, _lengths(ids, lengths), side=side, length=ids.shape[1])


def _lengths(ids: Tensor, lengths: Tensor | None) -> Tensor:
    rows = 1 if ids.ndim == 1 else len(ids)
    return torch.full((rows,), ids.shape[-1]) if lengths is None else lengths


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
        check_choice(("tanh", "gelu", "relu", None), pooler=pooler)
        if pooling == "special":
            raise ValueError("pooling='special': texts have no special tokens; give 'class'")
        self.pooling = pooling
        like = self.encoder.blocks[0].feed_forward
        self.pool = make_pool(pooling, dim, heads, like=like, eps=tokens.get("eps", 1e-6))
        self.pooler = nn.Identity() if pooler is None else Transform(dim, pooler)
        self.reset_head(num_classes)

    def read(self, tokens: Tensor, space: Space) -> Tensor:
        """Return the outputs (B, num_classes) for encoded tokens (B, L, D), or (T, D) packed."""
        output: Tensor = self.head(self.pooler(self.pool(tokens, space)))
        return output

    @checked
    def forward(
        self,
        ids: Tensor,
        lengths: Tensor | None = None,
        *,
        side: Side = "right",
        types: Tensor | None = None,
        backend: str | None = None,
    ) -> Tensor:
        """Return the outputs (B, num_classes) of B texts; arguments are those of `encode`.

        The mean and maximum of a text of length 0 are zeros; it has no first token.
        """
        return self.read(*self.encode(ids, lengths, side=side, types=types, backend=backend))

    @torch.no_grad()
    @checked
    def embed_texts(
        self, texts: Iterable[str], tokenizer: Tokenizer, *, batch: int = 32, normalize: bool = True
    ) -> Tensor:
        """Return a vector for each text, (N, D): its pooled tokens (Reimers & Gurevych, 2019).

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
        limit = None if self.windowed else self.max_length
        for index, row in enumerate(rows):
            if limit is not None and len(row) > limit:
                raise ValueError(
                    f"texts[{index}] has {len(row)} tokens, but the model has positions for "
                    f"{limit}: one made with windowed=True reads such a text in windows"
                )
        table = self.embedding.table.weight
        with evaluating(self.modules()):
            pooled = [table.new_empty(0, self.encoder.dim)]
            for start in range(0, len(rows), batch):
                some = rows[start : start + batch]
                lengths = torch.tensor([len(row) for row in some])
                tokens, space = self.encode(torch.cat(some).to(table.device), lengths)
                pooled.append(self.pooler(self.pool(tokens, space)))
        vectors = torch.cat(pooled)
        return F.normalize(vectors, dim=-1) if normalize else vectors


class MaskedLanguageModel(TokenEncoder, LanguageModel):
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
        return super().scores(self.transform(tokens))

    @checked
    def forward(
        self,
        ids: Tensor,
        lengths: Tensor | None = None,
        *,
        side: Side = "right",
        types: Tensor | None = None,
        at: Tensor | None = None,
        backend: str | None = None,
    ) -> Tensor:
        """Return the scores (T, V) or (B, L, V) of each token; arguments are those of `encode`.

        Args:
            at: (M,) places in the flattened ids: the scores (M, V) of these tokens alone.
        """
        tokens, _ = self.encode(ids, lengths, side=side, types=types, backend=backend)
        if at is None:
            return self.scores(tokens)
        tokens = tokens.flatten(0, -2)
        check_index(len(tokens), "(M,)", at=at)
        return self.scores(tokens[at])
