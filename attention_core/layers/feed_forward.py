"""The position-wise network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import (
    Literal,
)

from torch import Tensor, nn
from torch.nn import functional as F

from attention_core.annotated import checked
from attention_core.checks import check_chance, check_number, check_tokens, check_whole
from attention_core.layers.residual import Norm, dropped, make_norm

Activation = Literal["gelu", "gelu-tanh", "quick-gelu", "relu", "swiglu", "geglu", "geglu-tanh"]


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu-tanh": partial(F.gelu, approximate="tanh"),
    "quick-gelu": lambda x: x * (1.702 * x).sigmoid(),
    "relu": F.relu,
    "swiglu": F.silu,
    "geglu": F.gelu,
    "geglu-tanh": partial(F.gelu, approximate="tanh"),
}


def check_activation(activation: object) -> None:
    """Raise ValueError unless it names a function of a feed-forward network."""
    if not isinstance(activation, str) or activation not in _FUNCTIONS:
        raise ValueError(f"activation must be one of {', '.join(_FUNCTIONS)}, got {activation!r}")


class FeedForward(nn.Module):
    """The position-wise network: plain, or gated (Shazeer, GLU Variants, 2020).

    Args:
        dim: size of a token.
        hidden: width; 4·dim by default, 8/3·dim for the gated forms, which have a third matrix.
        activation: "gelu", "gelu-tanh", "quick-gelu" (x · σ(1.702 x), OpenAI's CLIP), "relu", or
            gated "swiglu", "geglu", "geglu-tanh" (T5 v1.1).
        dropout: after the activation.
        projection_bias: whether the linear layers have a bias.
        norm: "layer" or "rms" normalises what the activation gives (sub-LN, Wang et al., Magneto,
            2022; EVA-02); by default nothing does.
        eps: of this normalisation.
    """

    @checked
    def __init__(
        self,
        dim: int,
        hidden: int | None = None,
        *,
        activation: Activation = "gelu",
        dropout: float = 0.0,
        projection_bias: bool = True,
        norm: Norm | None = None,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        check_chance(dropout=dropout)
        check_number(least=0, eps=eps)
        check_activation(activation)
        self.activation, self._function = activation, _FUNCTIONS[activation]
        self.gated = activation in ("swiglu", "geglu", "geglu-tanh")
        if hidden is None:
            check_whole(dim=dim)
            hidden = 8 * max(round(dim / 3), 1) if self.gated else 4 * dim
        check_whole(dim=dim, hidden=hidden)
        self.up = nn.Linear(dim, hidden * (2 if self.gated else 1), bias=projection_bias)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.Identity() if norm is None else make_norm(norm, hidden, eps)
        self.down = nn.Linear(hidden, dim, bias=projection_bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in (*self.up.weight.split(self.down.in_features), self.down.weight):
            nn.init.xavier_uniform_(weight)
        for layer in (self.up, self.down):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token, (..., D) to (..., D)."""
        check_tokens(self.up, "(..., D)", x=x)
        x = self.up(x)
        if self.gated:
            gate, x = x.chunk(2, dim=-1)
            x = self._function(gate) * x
        else:
            x = self._function(x)
        x = dropped(x, self.dropout)
        return self.down(self.norm(x))

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}"
