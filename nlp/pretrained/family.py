"""What is known of a family of published models: names of weights, and what shapes do not tell."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from attention_core.errors import UsageError
from attention_core.training.weights import Weights

Config = Mapping[str, Any]

#: transformers' name of an activation to ours, of plain and of gated networks.
PLAIN = {
    "gelu": "gelu",
    "gelu_new": "gelu-tanh",
    "gelu_fast": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
    "quick_gelu": "quick-gelu",
    "relu": "relu",
}
GATED = {"silu": "swiglu", "gelu": "geglu", "gelu_new": "geglu-tanh"}

# What a block consists of, below its prefix. `qkv`, `key`, `value`, `gate` and `linear` are not
# ours: `join_projections` makes ours of them.
ATTENTION_NORM = "attention_residual.norm"
QKV = "attention.qkv"
QUERY = "attention.query"
KEY = "attention.key"
VALUE = "attention.value"
OUT = "attention.out"
CROSS_NORM = "cross_attention_residual.norm"
MLP_NORM = "feed_forward_residual.norm"
UP = "feed_forward.up"
GATE = "feed_forward.gate"
LINEAR = "feed_forward.linear"
DOWN = "feed_forward.down"


@dataclass(frozen=True)
class Family:
    """The names of a family, matched after its prefix is cut off.

    Attributes:
        recognises: whether weights, without the prefix, are its own.
        table: from its names to ours, see `attention_core.training.weights.rename`.
        settings: a model's arguments, from its weights by their own names, configuration and heads.
        prefixes: what may stand in front of names.
        parts: patterns of what only some models have: "pooler", "classifier", "transform" and
            "scores".
        copies: pattern of a weight that may be another's copy, to that other.
        unused: pattern of what is dropped, to the reason.
        prepare: what is done with values before names are translated; gives what it dropped, too.
    """

    recognises: Callable[[Weights], bool]
    table: Mapping[str, str]
    settings: Callable[[Weights, Config, int | None], dict[str, Any]]
    prefixes: tuple[str, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Weights], tuple[Weights, dict[str, str]]] = lambda weights: (weights, {})

    def has(self, weights: Weights, part: str) -> bool:
        """Whether weights have one of `parts`."""
        pattern = self.parts.get(part)
        return pattern is not None and any(re.fullmatch(pattern, name) for name in weights)


def block(ours: str, table: Mapping[str, str]) -> dict[str, str]:
    """`table` with our names below block # of `ours`, "encoder" or "decoder"."""
    return {theirs: f"{ours}.blocks.#.{name}" for theirs, name in table.items()}


def depth(weights: Weights, prefix: str) -> int:
    """How many blocks `prefix`0., `prefix`1., ... there are."""
    found = (re.match(re.escape(prefix) + r"(\d+)\.", name) for name in weights)
    numbers = [int(match[1]) for match in found if match]
    if not numbers:
        raise UsageError(f"weights: they have no layer {prefix}0.")
    return max(numbers) + 1


def tensor(weights: Weights, name: str) -> Tensor:
    """The weight of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in weights:
        raise UsageError(f"weights: {name} is missing.")
    return weights[name]


def activation(config: Config, key: str, default: str, known: Mapping[str, str] = PLAIN) -> str:
    """Our name of the activation that a configuration names."""
    name = config.get(key) or default
    if name not in known:
        raise UsageError(f"config: {key} must be one of {', '.join(known)}, got {name!r}.")
    return known[name]


def number_of_heads(dim: int, given: int | None, config: Config, key: str, default: int) -> int:
    """Given, or of the configuration, or else heads of `default` features."""
    heads = given or config.get(key)
    if heads is None:
        if dim % default:
            raise UsageError(
                f"weights: of dim={dim}, the number of heads cannot be told from shapes; give "
                "heads= or config=."
            )
        heads = dim // default
    return int(heads)


def needed(config: Config, *keys: str) -> None:
    """Raises UsageError where the configuration lacks what shapes do not tell."""
    lacking = [key for key in keys if config.get(key) is None]
    if lacking:
        raise UsageError(
            f"config: {', '.join(lacking)} cannot be told from shapes; give config=, the model's "
            "config.json as a dict, or load from the folder that has it."
        )
