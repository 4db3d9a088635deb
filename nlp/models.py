"""Text models: configurations of `attention_core.Encoder` over a `Sequence`."""

from __future__ import annotations

from collections.abc import Sequence as Listing
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.compiler import is_exporting

from attention_core import (
    ALiBi,
    AttentionPool,
    Bias,
    Encoder,
    Mask,
    RelativeTable,
    Rotary,
    Sequence,
    pool,
)
from nlp.embeddings import TokenEmbedding

Positions = Literal["learned", "sinusoidal", "rotary", "t5", "alibi"]
Pooling = Literal["mean", "max", "first", "attention"]


class TextEncoder(nn.Module):
    """A bidirectional transformer over texts, with one output per text (Devlin et al., BERT, 2019).

    Texts come packed, end to end in one row, or padded; the outputs are the same.

    Args:
        vocabulary: number of token ids.
        dim: size D of a token.
        depth: number of blocks.
        heads: number of heads.
        classes: number of outputs per text; None returns the pooled text itself, (B, D).
        positions: "learned" or "sinusoidal", added to tokens; "rotary" (Su et al., RoFormer,
            2021), "t5" (Raffel et al., 2020, one table for all layers) or "alibi" (Press et al.,
            2022; here it sees distance alone, not direction), inside attention; None: no order.
        max_length: number of "learned" positions.
        mask: for every layer, or a list that the layers take in turn: [None, Neighborhood(64)]
            alternates full and local layers (ModernBERT, 2024).
        pooling: "mean" or "max" over tokens, "first" token, or "attention", a learned query.
        embedding_dropout: on embedded tokens.
        encoder: further options of `Encoder`, `Block` and `MultiheadAttention`.

    Raises:
        ValueError: an unknown `positions` or `pooling`; the message lists the known ones.

    Example::

        model = TextEncoder(4096, dim=128, depth=4, heads=4, classes=3)
        model(ids, lengths)                    # (T,) packed, lengths (B,) -> (B, 3)
        model(padded, lengths)                 # (B, L) padded on the right -> the same
    """

    def __init__(
        self,
        vocabulary: int,
        dim: int,
        depth: int,
        heads: int,
        *,
        classes: int | None,
        positions: Positions | None = "rotary",
        max_length: int = 512,
        mask: Mask | Listing[Mask | None] | None = None,
        pooling: Pooling = "mean",
        embedding_dropout: float = 0.0,
        **encoder: Any,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("positions", positions, (*get_args(Positions), None)),
            ("pooling", pooling, get_args(Pooling)),
        ):
            if value not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, known))}; got {value!r}"
                )
        added = positions if positions in ("learned", "sinusoidal") else None
        bias: Bias | None = None
        if positions == "t5":
            bias = RelativeTable.t5(heads)
        elif positions == "alibi":
            bias = ALiBi(heads)
        elif positions == "rotary":
            encoder = {"rotary": Rotary(), **encoder}
        self.pooling = pooling
        self.embedding = TokenEmbedding(
            vocabulary, dim, positions=added, max_length=max_length, dropout=embedding_dropout
        )
        self.encoder = Encoder(dim, depth, heads, mask=mask, bias=bias, **encoder)
        self.pool = AttentionPool(dim, heads) if pooling == "attention" else None
        self.head = nn.Identity() if classes is None else nn.Linear(dim, classes)

    @staticmethod
    def space(ids: Tensor, lengths: Tensor | None = None) -> Sequence:
        """Where the tokens of `ids` sit; arguments are those of `forward`.

        Raises:
            ValueError: ids and lengths do not fit.
        """
        if ids.ndim not in (1, 2):
            raise ValueError(f"ids must be (T,) packed or (B, L) padded, got {tuple(ids.shape)}")
        if lengths is None:
            return Sequence(ids.shape[-1], device=ids.device)
        if lengths.ndim != 1 or lengths.is_floating_point():
            raise ValueError(
                f"lengths must hold an integer per text, shape (B,), got {lengths.dtype} "
                f"{tuple(lengths.shape)}"
            )
        if ids.ndim == 1:
            if int(lengths.sum()) != len(ids):
                raise ValueError(
                    f"packed ids hold {len(ids)} tokens, but lengths sum to {int(lengths.sum())}"
                )
            return Sequence.packed(lengths, device=ids.device)
        if lengths.shape[0] != ids.shape[0]:  # len() would fix the batch of an exported program
            raise ValueError(
                f"padded ids hold {len(ids)} texts, but there are {len(lengths)} lengths"
            )
        return Sequence.padded(lengths, ids.shape[1], device=ids.device)

    def encode(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The encoded tokens, (T, D) or (B, L, D) with zeros on padding; arguments as `forward`."""
        space = self.space(ids, lengths)
        encoded: Tensor = self.encoder(self.embedding(ids, space), space)
        return encoded

    def forward(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The outputs (B, classes) of B texts.

        Args:
            ids: (T,) packed, all texts end to end; or (B, L) padded on the right, with any id.
            lengths: (B,) tokens of each text; without it, packed ids are one text and padded ids
                have no padding. The mean and maximum of a text of length 0 are zeros.

        Raises:
            TypeError, ValueError: ids or lengths of another shape, kind or range.
        """
        space = self.space(ids, lengths)
        tokens = self.encoder(self.embedding(ids, space), space)
        output: Tensor = self.head(self._pool(tokens, space, lengths))
        return output

    def _pool(self, tokens: Tensor, space: Sequence, lengths: Tensor | None) -> Tensor:
        if self.pool is not None:
            pooled: Tensor = self.pool(tokens, space)
            return pooled
        if self.pooling == "first":
            if lengths is not None and not is_exporting() and bool((lengths < 1).any()):
                text = int((lengths < 1).nonzero()[0])
                raise ValueError(f"pooling='first' needs a first token: text {text} has length 0")
            if tokens.ndim == 3:
                return tokens[:, 0]
            if lengths is None:
                return tokens[:1]
            return tokens[(lengths.cumsum(0) - lengths).to(tokens.device)]
        return pool(tokens, space, "max" if self.pooling == "max" else "mean")


def pad(ids: Tensor, lengths: Tensor, value: int = 0) -> Tensor:
    """Packed ids (T,) as padded ids (B, L), with `value` on the right."""
    rows = ids.split(lengths.tolist())
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
