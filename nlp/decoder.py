"""Continuing texts: a configuration of `attention_core.Decoder` over a `Sequence`."""

from __future__ import annotations

from collections.abc import Sequence as Listing
from typing import Unpack

from torch import Tensor

from attention_core import Decoder, Encoder, KVCache, Neighborhood, Sequence
from attention_core.annotated import checked
from attention_core.checks import check_chance, check_number, check_whole
from attention_core.layers import EncoderOptions
from attention_core.pretrained import names
from nlp.base import LanguageModel
from nlp.batches import Side, token_space
from nlp.embeddings import Positions, TokenEmbedding, TokenScores, attention_positions
from nlp.generation import GenerationOptions, generate
from nlp.pretrained import DECODERS


class TextDecoder(LanguageModel):
    """A causal language model (Radford et al., GPT-2, 2019; Touvron et al., Llama, 2023).

    Texts come packed, end to end in one row, or padded on either side; the outputs are the same.

    Args:
        vocab_size: number of token ids.
        dim: size D of a token.
        depth: number of blocks.
        heads: number of query heads.
        window: how many tokens before itself a token sees, or a list that the layers take in
            turn: [None, 64] alternates full and local layers. None: all of them. (A published
            "sliding window" of n counts the token itself: give n - 1.)
        positions: "learned" (GPT-2) or "sinusoidal", added to tokens; "rotary" (Llama), "t5" (one
            table for all layers) or "alibi", inside attention; None: no order but the causal one,
            or that of a ``rotary=`` or ``bias=`` of one's own.
        max_length: number of "learned" positions.
        tied: compute scores from the table of the embedding (Press & Wolf, 2017).
        scores_bias: learn a score for each id.
        embedding_scale: factor on embedded ids, see `TokenEmbedding`.
        embedding_dropout: on embedded tokens.
        decoder: options of `Encoder`, `Block` and `MultiheadAttention`, such as `kv_heads`; a
            `mask` is joined with the causal one.

    Raises:
        ValueError: unknown `positions`; the message lists the known ones. Or both `window` and
            `mask`.

    Example::

        model = TextDecoder(4096, dim=128, depth=4, heads=4)
        model(ids, lengths)                       # (T,) packed, lengths (B,) -> (T, 4096)
        model(padded, lengths, side="left")       # (B, L) -> (B, L, 4096)
        model.generate(padded, lengths, max_tokens=50, temperature=0.8, top_p=0.95)
    """

    #: Sizes alone, of GPT-2 (Radford et al., 2019).
    presets = {
        "small": {"dim": 768, "depth": 12, "heads": 12},
        "medium": {"dim": 1024, "depth": 24, "heads": 16},
        "large": {"dim": 1280, "depth": 36, "heads": 20},
        "xl": {"dim": 1600, "depth": 48, "heads": 25},
    }
    families = DECODERS
    parts = {names.SCORES: "head"}

    @checked(cross="a TextDecoder has no context: see Seq2SeqTransformer")
    def __init__(
        self,
        vocab_size: int,
        dim: int,
        depth: int,
        heads: int,
        *,
        window: int | Listing[int | None] | None = None,
        positions: Positions | None = "rotary",
        max_length: int = 1024,
        tied: bool = True,
        scores_bias: bool = False,
        embedding_scale: float | None = None,
        embedding_dropout: float = 0.0,
        **decoder: Unpack[EncoderOptions],
    ) -> None:
        super().__init__()
        check_whole(depth=depth)
        added, options = attention_positions(positions, heads, bidirectional=False)
        if window is not None:
            if decoder.get("mask") is not None:
                raise ValueError(
                    f"give window or mask, not both: window={window} is a mask, Neighborhood"
                )
            windows = list(window) if isinstance(window, Listing) else [window]
            for reach in windows or [0]:
                check_whole(0, window=reach, or_none=True)
            if not 0 < len(windows) <= depth:
                raise ValueError(f"window lists {len(windows)} entries for {depth} layers")
            decoder["mask"] = [
                None if reach is None else Neighborhood(int(reach)) for reach in windows
            ]
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
        decoder = {**options, **decoder}
        self.decoder = Decoder(dim, depth, heads, **decoder)
        self.head = TokenScores(vocab_size, dim, tied=tied, projection_bias=scores_bias)

    @property
    def stack(self) -> Encoder:
        return self.decoder

    @checked
    def new_cache(self, max_length: int | None = None) -> KVCache:
        """Make a cache for `encode` that holds what masks reach, see `Decoder.new_cache`."""
        return self.decoder.new_cache(max_length)

    @checked
    def embed(
        self,
        ids: Tensor,
        lengths: Tensor | None = None,
        *,
        side: Side = "right",
        cache: KVCache | None = None,
    ) -> tuple[Tensor, Sequence]:
        """Return the embedded tokens, (T, D) or (B, L, D), and where they sit.

        Args:
            ids: (T,) packed, all texts end to end; or (B, L) padded, with any id in the padding.
            lengths: (B,) tokens of each text; without it, packed ids are one text and padded ids
                have no padding.
            side: of padded ids, where the padding is.
            cache: from `new_cache`: ids (B, L) go on after what it holds.

        Raises:
            TypeError, ValueError: ids or lengths of another shape, kind or range.
        """
        if cache is None:
            space = token_space(ids, lengths, side)
        elif ids.ndim != 2:
            raise ValueError(f"with a cache, ids must be (B, L), got {tuple(ids.shape)}")
        elif cache.empty:
            space = token_space(ids, lengths, side)
        elif lengths is not None:
            raise ValueError("lengths say what of a prompt is padding: what follows it has none")
        else:
            space = cache.next_space(ids.shape[1], ids.device)
        return self.embedding(ids, space), space

    @checked
    def encode(  # type: ignore[override]
        self,
        ids: Tensor,
        lengths: Tensor | None = None,
        *,
        side: Side = "right",
        cache: KVCache | None = None,
        backend: str | None = None,
    ) -> tuple[Tensor, Sequence]:
        """Return the tokens in front of the scores, (T, D) or (B, L, D), and where they sit.

        Padding is zeros.

        Args:
            ids, lengths, side: as of `embed`.
            cache: from `new_cache`: ids go on after what it holds, and are added to it. A cache
                with a window takes padding on the left alone.
            backend: a name to override the plan's choice.
        """
        tokens, space = self.embed(ids, lengths, side=side, cache=cache)
        return self.decoder(tokens, space, cache=cache, backend=backend), space

    @checked(cache="it reads whole texts, and adds nothing to one")
    def features(  # type: ignore[override]
        self,
        ids: Tensor,
        lengths: Tensor | None = None,
        *,
        side: Side = "right",
        layers: Listing[int] = (-1,),
        norm: bool = True,
        backend: str | None = None,
    ) -> list[Tensor]:
        """Return the tokens after some layers, each (T, D) or (B, L, D) with zeros on padding.

        Args:
            ids, lengths, side: as of `embed`.
            layers, norm, backend: as of `Model.features`.
        """
        return super().features(ids, lengths, side=side, layers=layers, norm=norm, backend=backend)

    @checked
    def forward(
        self,
        ids: Tensor,
        lengths: Tensor | None = None,
        *,
        side: Side = "right",
        cache: KVCache | None = None,
        backend: str | None = None,
    ) -> Tensor:
        """Return the scores (T, V) or (B, L, V) of what follows each token.

        Arguments are those of `encode`.
        """
        return self.read(*self.encode(ids, lengths, side=side, cache=cache, backend=backend))

    def next_scores(self, ids: Tensor, lengths: Tensor | None, cache: KVCache | None) -> Tensor:
        """Return the scores (B, V) of what follows texts (B, L), padded on the left; see
        `generate`.
        """
        tokens, _ = self.encode(ids, lengths, side="left", cache=cache)
        return self.scores(tokens[:, -1])

    def generate(
        self,
        ids: Tensor,
        lengths: Tensor | None = None,
        *,
        side: Side = "right",
        **options: Unpack[GenerationOptions],
    ) -> list[Tensor]:
        """Generate what follows each prompt: ids (n,) for each text.

        Args:
            ids, lengths, side: the prompts, packed or padded, as in `encode`.
            options: those of `nlp.generate`.
        """
        return generate(self, ids, lengths, side=side, **options)
