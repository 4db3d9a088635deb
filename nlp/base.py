"""What every model of texts has: an embedding of ids, and perhaps a head that scores them all."""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor

from attention_core.models import Model
from attention_core.spaces import Space
from nlp.embeddings import TokenEmbedding, TokenScores


class TextModel(Model):
    """A model of token ids."""

    embedding: TokenEmbedding

    @property
    def max_length(self) -> int | None:
        """The longest text that there are positions for; None for any."""
        return self.embedding.max_length


class LanguageModel(TextModel):
    """A model whose head scores all ids."""

    head: TokenScores

    def scores(self, tokens: Tensor) -> Tensor:
        """Return the scores of all ids, (..., V), for encoded tokens (..., D)."""
        scores: Tensor = self.head(tokens, self.embedding.table.weight)
        return scores

    def read(self, tokens: Tensor, space: Space) -> Tensor:
        """Return the scores of all ids for each token, (T, V) or (B, L, V)."""
        return self.scores(tokens)

    def _new_head(self, num_classes: int | None) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} scores the ids of its vocabulary and has no classes: give its "
            "weights to a TextEncoder"
        )
