"""From token ids to tokens."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.compiler import is_exporting

from attention_core import LearnedPosition, Sequence, Sinusoidal


class TokenEmbedding(nn.Module):
    """A learned vector per id, and optionally one per position.

    Args:
        vocabulary: number of ids.
        dim: size D of a token.
        positions: "learned" (BERT), "sinusoidal" (Vaswani et al., 2017), or None where attention
            itself knows about positions.
        max_length: number of learned positions.
        dropout: on the sum.
    """

    def __init__(
        self,
        vocabulary: int,
        dim: int,
        *,
        positions: Literal["learned", "sinusoidal"] | None = None,
        max_length: int = 512,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if vocabulary < 1:
            raise ValueError(f"vocabulary must be at least 1, got {vocabulary}")
        self.table = nn.Embedding(vocabulary, dim)
        # Rows of length about 1, so that positions, drawn smaller, do not drown the words
        nn.init.normal_(self.table.weight, std=dim**-0.5)
        self.positions: LearnedPosition | Sinusoidal | None = None
        if positions == "learned":
            self.positions = LearnedPosition(max_length, dim)
        elif positions == "sinusoidal":
            self.positions = Sinusoidal(dim)
        elif positions is not None:
            raise ValueError(
                f"positions must be 'learned', 'sinusoidal' or None, got {positions!r}"
            )
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor, space: Sequence) -> Tensor:
        """Ids (T,) or (B, L) where `space` has them, to tokens (T, D) or (B, L, D).

        Raises:
            TypeError: ids that are no integers.
            ValueError: an id outside the vocabulary, or a place beyond the learned positions.
        """
        if ids.is_floating_point():
            raise TypeError(f"ids must be integers, got {ids.dtype}")
        if not is_exporting() and ids.numel():  # an exported program cannot look at values
            low, high = int(ids.min()), int(ids.max())
            if not 0 <= low <= high < self.table.num_embeddings:
                raise ValueError(
                    f"ids run from {low} to {high}, but the vocabulary has "
                    f"{self.table.num_embeddings}: ids are 0 to {self.table.num_embeddings - 1}"
                )
        tokens: Tensor = self.table(ids)
        if self.positions is not None:
            tokens = tokens + self.positions(space).to(tokens.dtype)
        dropped: Tensor = self.dropout(tokens)
        return dropped
