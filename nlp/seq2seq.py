"""From one text to another: an encoder, and a decoder that attends to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn, Unpack

import torch
from torch import Tensor, nn

from attention_core import Decoder, Encoder, KVCache, Sequence, Space
from attention_core.annotated import checked
from attention_core.checks import (
    check_chance,
    check_dense,
    check_number,
    check_whole,
)
from attention_core.layers import EncoderOptions
from attention_core.pretrained import names
from attention_core.transfer import on_host
from nlp.base import LanguageModel
from nlp.batches import Side, pad, token_space
from nlp.embeddings import Positions, TokenEmbedding, TokenScores, attention_positions
from nlp.generation import GenerationOptions, generate
from nlp.pretrained import SEQ2SEQ


class Seq2SeqTransformer(LanguageModel):
    """An encoder-decoder (Vaswani et al., 2017; Raffel et al., T5, 2020).

    Source, target and scores share one table of embeddings. Texts come packed, end to end in one
    row, or padded; the outputs are the same.

    Args:
        vocab_size: number of token ids.
        dim: size D of a token.
        depth: number of blocks of the encoder, and of the decoder unless `decoder_depth` is given.
        heads: number of heads.
        decoder_depth: number of blocks of the decoder.
        positions: "learned" or "sinusoidal" (the paper), added to tokens; "rotary", "t5" (a table
            each for encoder and decoder, shared by their layers) or "alibi", inside
            self-attention; None: none.
        max_length: number of "learned" positions, shared by both sides.
        tied: compute scores from the table of the embedding.
        scores_scale: factor on tokens in front of the scores; T5 has 1/√D where they are tied.
        embedding_scale: factor on embedded ids; √D by default with sinusoidal positions, as in the
            paper, else 1.
        embedding_dropout: on embedded tokens.
        block: further options of `Encoder` and `Decoder`, `Block` and `MultiheadAttention`, for
            both sides.

    Raises:
        ValueError: unknown `positions`; the message lists the known ones.

    Example::

        model = Seq2SeqTransformer(8192, dim=128, depth=3, heads=4)
        model(ids, lengths, target_ids, target_lengths)         # packed -> (T, 8192)
        model.generate(ids, lengths, start=1, stop=2, beams=4)  # a list of ids for each source
    """

    #: Sizes alone, of the paper (Vaswani et al., 2017).
    presets = {
        "base": {"dim": 512, "depth": 6, "heads": 8, "hidden": 2048},
        "big": {"dim": 1024, "depth": 6, "heads": 16, "hidden": 4096},
    }
    families = SEQ2SEQ
    parts = {names.SCORES: "head"}

    @checked(
        cross="its decoder alone attends to a context, the encoded source",
        context_dim="its decoder attends to what its encoder gives, of size dim",
    )
    def __init__(
        self,
        vocab_size: int,
        dim: int,
        depth: int,
        heads: int,
        *,
        decoder_depth: int | None = None,
        positions: Positions | None = "sinusoidal",
        max_length: int = 512,
        tied: bool = True,
        scores_scale: float = 1.0,
        embedding_scale: float | None = None,
        embedding_dropout: float = 0.0,
        **block: Unpack[EncoderOptions],
    ) -> None:
        super().__init__()
        check_whole(decoder_depth=decoder_depth, or_none=True)
        check_number(scores_scale=scores_scale)
        added, options = attention_positions(positions, heads, bidirectional=True)
        _, causal_options = attention_positions(positions, heads, bidirectional=False)
        check_chance(embedding_dropout=embedding_dropout)
        check_number(above=0, embedding_scale=embedding_scale, or_none=True)
        self.embedding = TokenEmbedding(
            vocab_size,
            dim,
            positions=added,
            max_length=max_length,
            scale=embedding_scale,
            dropout=embedding_dropout,
        )
        of_encoder: EncoderOptions = {**options, **block}
        of_decoder: EncoderOptions = {**causal_options, **block}
        self.encoder = Encoder(dim, depth, heads, **of_encoder)
        decoder_depth = depth if decoder_depth is None else decoder_depth
        self.decoder = Decoder(dim, decoder_depth, heads, cross=True, **of_decoder)
        self.head = TokenScores(vocab_size, dim, tied=tied, scale=scores_scale)

    @checked
    def embed(
        self, ids: Tensor, lengths: Tensor | None = None, *, side: Side = "right"
    ) -> tuple[Tensor, Sequence]:
        """Return the embedded source, (T, D) or (B, L, D), and where it sits.

        Arguments are those of `TextEncoder.embed`.
        """
        space = token_space(ids, lengths, side)
        return self.embedding(ids, space), space

    def read(self, tokens: Tensor, space: Space) -> NoReturn:
        """Refuse: what `encode` gives are the sources, and outputs are of targets.

        Raises:
            TypeError: always; it says what to call.
        """
        raise TypeError(
            "a Seq2SeqTransformer's outputs are of targets, not of what it encodes: call it, "
            "or scores(decode(...))"
        )

    @checked
    def decode(
        self,
        ids: Tensor,
        space: Sequence,
        context: Tensor,
        context_space: Sequence,
        *,
        cache: KVCache | None = None,
        backend: str | None = None,
    ) -> Tensor:
        """Return the target's tokens in front of the scores, (T, D) or (B, L, D).

        Args:
            ids: of the target, (T,) or (B, L), where `space` has them.
            space: where they sit.
            context: the encoded source, (Ts, D) packed as the target is, or (B, Ls, D).
            context_space: where it sits.
            cache: of what was decoded before, to which these are added.
            backend: a name to override the plan's choice.
        """
        tokens: Tensor = self.decoder(
            self.embedding(ids, space),
            space,
            context=context,
            context_space=context_space,
            cache=cache,
            backend=backend,
        )
        return tokens

    @checked
    def forward(
        self,
        ids: Tensor,
        lengths: Tensor | None,
        target_ids: Tensor,
        target_lengths: Tensor | None = None,
        *,
        side: Side = "right",
        target_side: Side = "right",
        backend: str | None = None,
    ) -> Tensor:
        """Return the scores (T, V) or (B, L, V) of what follows each token of the target.

        Args:
            ids: of the sources, (Ts,) packed or (B, Ls) padded.
            lengths: (B,) tokens of each source; None where there is one, or no padding.
            target_ids: of the targets, packed or padded as the sources are. They begin with a
                start token, as each token's scores are for the next one.
            target_lengths: (B,) tokens of each target.
            side, target_side: of padded ids, where the padding is.
            backend: a name to override the plan's choice.

        Raises:
            TypeError, ValueError: ids or lengths of another shape, kind or range, or sources and
                targets that do not fit each other.
        """
        if ids.ndim != target_ids.ndim:
            raise ValueError(
                "ids and target_ids must both be packed (T,) or both padded (B, L), got "
                f"{tuple(ids.shape)} and {tuple(target_ids.shape)}"
            )
        space = token_space(target_ids, target_lengths, target_side, of="target_")
        where = token_space(ids, lengths, side)
        if ids.ndim == 1:
            sources, targets = where.num_segments, space.num_segments
        else:
            sources, targets = len(ids), len(target_ids)
        if sources != targets:
            raise ValueError(
                f"there are {sources} sources, but {targets} targets, in ids and target_ids"
            )
        context = self.encoder(self.embedding(ids, where), where, backend=backend)
        target = self.embedding(target_ids, space, name="target_ids")
        decoded = self.decoder(target, space, context=context, context_space=where, backend=backend)
        return self.scores(decoded)

    @checked
    def generate(
        self,
        ids: Tensor,
        lengths: Tensor | None = None,
        *,
        start: int,
        side: Side = "right",
        **options: Unpack[GenerationOptions],
    ) -> list[Tensor]:
        """Generate the target of each source: ids (n,) without the start and stop token.

        Args:
            ids, lengths, side: the sources, packed or padded, as in `forward`.
            start: the token that targets begin with.
            options: those of `nlp.generate`.
        """
        check_whole(0, start=start)
        if start >= self.embedding.table.num_embeddings:
            raise ValueError(
                f"start={start}: there is no such token; the model has "
                f"{self.embedding.table.num_embeddings}"
            )
        check_dense(ids=ids)
        target = _Target(self, ids, lengths, side)
        starts = ids.new_full((target.sources, 1), start)
        return generate(target, starts, **options)


class _Target:
    """A model with its sources encoded: what `generate` asks for the next token."""

    def __init__(
        self, model: Seq2SeqTransformer, ids: Tensor, lengths: Tensor | None, side: Side
    ) -> None:
        self.model, self.source = model, (ids, lengths, side)
        self.sources = len(ids) if ids.ndim == 2 else 1 if lengths is None else len(lengths)
        self.max_length = model.max_length
        self._encoded: tuple[Tensor, Tensor | None, Side] | None = None
        self._context, self._where = ids.new_empty(0), Sequence(0)

    def modules(self) -> Iterator[nn.Module]:
        return self.model.modules()

    def new_cache(self, max_length: int | None = None) -> KVCache:
        return self.model.decoder.new_cache(max_length)

    def context(self, rows: int) -> tuple[Tensor, Sequence]:
        """The encoded sources and where they sit, each `rows` / sources times on end: for beams."""
        if self._encoded is None:
            self._encoded = self._encode()
        if len(self._context) != rows:
            each = rows // self.sources
            context, lengths, side = self._encoded
            lengths = None if lengths is None else on_host(lengths).repeat_interleave(each)
            self._context = context.repeat_interleave(each, 0)
            self._where = token_space(self._context[..., 0], lengths, side)
        return self._context, self._where

    def _encode(self) -> tuple[Tensor, Tensor | None, Side]:
        ids, lengths, side = self.source
        encoded, _ = self.model.encode(ids, lengths, side=side)
        if ids.ndim == 2:
            return encoded, lengths, side
        lengths = torch.tensor([len(ids)]) if lengths is None else on_host(lengths)
        return pad(encoded, lengths), lengths, "right"

    def next_scores(self, ids: Tensor, lengths: Tensor | None, cache: KVCache | None) -> Tensor:
        context, where = self.context(len(ids))
        if cache is not None and cache.length:
            space = cache.next_space(ids.shape[1], ids.device)
        else:
            space = token_space(ids, lengths, "left")
        tokens = self.model.decode(ids, space, context, where, cache=cache)
        return self.model.scores(tokens[:, -1])
