"""From token ids to tokens, and from tokens to the scores of ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attention_core import ALiBi, LearnedPosition, RelativeTable, Rotary, Sequence, Sinusoidal
from attention_core.annotated import checked
from attention_core.checks import (
    check_chance,
    check_choice,
    check_dense,
    check_number,
    check_whole,
    may_look,
)
from attention_core.layers import EncoderOptions
from attention_core.layers.residual import Norm, make_norm

Positions = Literal["learned", "sinusoidal", "rotary", "t5", "alibi"]
Added = Literal["learned", "sinusoidal"]


def attention_positions(
    positions: Positions | None, heads: int, *, bidirectional: bool
) -> tuple[Added | None, EncoderOptions]:
    """Return which of `positions` is added to tokens, and the options of attention for the others.

    Raises:
        ValueError: unknown positions; the message lists the known ones.
    """
    check_choice((*get_args(Positions), None), positions=positions)
    if positions == "learned" or positions == "sinusoidal":
        return positions, {}
    if positions == "t5":
        return None, {"bias": RelativeTable.t5(heads, bidirectional=bidirectional)}
    if positions == "alibi":
        return None, {"bias": ALiBi(heads)}
    return None, {"rotary": Rotary()} if positions == "rotary" else {}


class TokenEmbedding(nn.Module):
    """A learned vector per id, and optionally one per position and one per type of token.

    Args:
        vocab_size: number of ids.
        dim: size D of a token.
        positions: "learned" (BERT), "sinusoidal" (Vaswani et al., 2017), or None where attention
            itself knows about positions.
        max_length: number of learned positions.
        num_token_types: such as BERT's 2, for the texts of a pair; 0 for none.
        embedding_dim: size E of these vectors where a linear layer then makes D of it
            (Lan et al., ALBERT, 2020); `dim` by default.
        scale: factor on an id's vector; √E by default with sinusoidal positions, as in the paper,
            else 1.
        norm: normalise the sum: "layer", "layer-no-bias" or "rms"; by default nothing does.
        eps: of this normalisation.
        dropout: on the sum.
    """

    @checked
    def __init__(
        self,
        vocab_size: int,
        dim: int,
        *,
        positions: Added | None = None,
        max_length: int = 512,
        num_token_types: int = 0,
        embedding_dim: int | None = None,
        scale: float | None = None,
        norm: Norm | None = None,
        eps: float = 1e-6,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_whole(vocab_size=vocab_size, dim=dim, max_length=max_length)
        check_whole(embedding_dim=embedding_dim, or_none=True)
        check_number(above=0, scale=scale, or_none=True)
        check_number(least=0, eps=eps)
        check_chance(dropout=dropout)
        check_whole(0, num_token_types=num_token_types)
        size = int(dim if embedding_dim is None else embedding_dim)
        self.table = nn.Embedding(vocab_size, size)
        # Rows of length about 1, so that positions, drawn smaller, do not drown the words
        nn.init.normal_(self.table.weight, std=size**-0.5)
        self.positions: LearnedPosition | Sinusoidal | None = None
        if positions == "learned":
            self.positions = LearnedPosition(max_length, size)
        elif positions == "sinusoidal":
            self.positions = Sinusoidal(size)
        else:
            check_choice((*get_args(Added), None), positions=positions)
        self.max_length = max_length if positions == "learned" else None
        self.scale = scale or (size**0.5 if positions == "sinusoidal" else 1.0)
        self.types = nn.Embedding(num_token_types, size) if num_token_types else None
        if self.types is not None:
            nn.init.normal_(self.types.weight, std=0.02)
        self.norm = nn.Identity() if norm is None else make_norm(norm, size, eps)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Identity() if embedding_dim is None else nn.Linear(size, dim)

    @checked
    def forward(
        self, ids: Tensor, space: Sequence, types: Tensor | None = None, *, name: str = "ids"
    ) -> Tensor:
        """Embed ids (T,) or (B, L), where `space` has them, as tokens (T, D) or (B, L, D).

        Args:
            ids: token ids.
            space: where they sit.
            types: in the shape of ids, the type of each token; 0 by default.
            name: what an error calls the ids.

        Raises:
            TypeError: ids that are no integers.
            ValueError: an id outside the vocabulary, a type that there is not, or a place beyond
                the learned positions. Ids and types are looked at on a CPU alone: to look at
                another device would be to wait for it.
        """
        _check(name, ids, self.table)
        if ids.ndim < 1 or ids.shape[-1] != space.length:
            raise ValueError(
                f"{name} are {tuple(ids.shape)}, but their space is {space.describe()}"
            )
        tokens: Tensor = self.table(ids)
        if self.scale != 1:
            tokens = tokens * self.scale
        if self.positions is not None:
            tokens = tokens + self.positions(space).to(tokens.dtype)
        if self.types is not None:
            types = torch.zeros_like(ids) if types is None else types
            _check("types", types, self.types)
            if types.shape != ids.shape:
                raise ValueError(
                    f"types must have the shape of {name}, {tuple(ids.shape)}, got "
                    f"{tuple(types.shape)}"
                )
            tokens = tokens + self.types(types)
        elif types is not None:
            raise ValueError("types were given, but the model was made without token types")
        projected: Tensor = self.project(self.dropout(self.norm(tokens)))
        return projected


def _check(name: str, ids: Tensor, table: nn.Embedding) -> None:
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be integers, of int64 or int32, got {ids.dtype}")
    check_dense(or_meta=table.weight.is_meta, **{name: ids})
    if not may_look(ids) or not ids.numel():
        return
    low, high, count = int(ids.min()), int(ids.max()), table.num_embeddings
    if not 0 <= low <= high < count:
        what = "the number of token types is" if name == "types" else "the vocabulary has"
        raise ValueError(
            f"{name} run from {low} to {high}, but {what} {count}: {name} are 0 to {count - 1}"
        )


class Transform(nn.Module):
    """A linear layer, a function and optionally a normalisation: BERT's pooler, and what stands
    before the scores of masked tokens.

    Args:
        dim: size of a token.
        activation: "tanh", "gelu", "gelu-tanh" or "relu".
        out: size of the result; `dim` by default.
        norm: "layer", "layer-no-bias", "rms", or None.
        eps: of the normalisation.
        projection_bias: whether the linear layer has a bias.
    """

    @checked
    def __init__(
        self,
        dim: int,
        activation: Literal["tanh", "gelu", "gelu-tanh", "relu"],
        *,
        out: int | None = None,
        norm: Norm | None = None,
        eps: float = 1e-6,
        projection_bias: bool = True,
    ) -> None:
        super().__init__()
        check_choice(_FUNCTIONS, activation=activation)
        self.activation = activation
        out = dim if out is None else out
        self.linear = nn.Linear(dim, out, bias=projection_bias)
        self.norm = nn.Identity() if norm is None else make_norm(norm, out, eps)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens (..., D) to (..., out)."""
        normed: Tensor = self.norm(_FUNCTIONS[self.activation](self.linear(x)))
        return normed

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}"


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class TokenScores(nn.Module):
    """The scores (logits) of all ids, from the table of the embedding or one of its own.

    Args:
        vocab_size: number of ids.
        dim: size of a row of the table.
        tied: use the embedding's table (Press & Wolf, 2017).
        projection_bias: learn a score for each id.
        scale: factor on tokens; T5 (2020) has 1/√D where it is tied.
    """

    @checked
    def __init__(
        self,
        vocab_size: int,
        dim: int,
        *,
        tied: bool = True,
        projection_bias: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.weight = None if tied else nn.Parameter(torch.empty(vocab_size, dim))
        if self.weight is not None:
            nn.init.normal_(self.weight, std=dim**-0.5)
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if projection_bias else None

    def forward(self, tokens: Tensor, table: Tensor) -> Tensor:
        """Score tokens (..., D), (..., V); `table` (V, D) is the embedding's."""
        tokens = tokens if self.scale == 1 else tokens * self.scale
        return F.linear(tokens, table if self.weight is None else self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"tied={self.weight is None}, scale={self.scale:g}"
