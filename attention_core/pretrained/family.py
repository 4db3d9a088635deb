"""What is known of a family of published models: names of weights, and what shapes do not tell."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from attention_core.errors import UsageError
from attention_core.pretrained.names import PARTS
from attention_core.pretrained.renaming import (
    Weights,
    join_projections,
    look_up,
    rename,
    split_off,
    without_prefix,
)

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


@dataclass(frozen=True)
class Family:
    """The names of a family, matched after its prefix is cut off, and its settings.

    Attributes:
        recognises: whether weights, without the prefix, are its own.
        table: from its names to ours, see `look_up`; what only some models have leads to one of
            `names.PARTS`.
        settings: the arguments of the model that a checkpoint is for.
        prefixes: what may stand in front of names.
        model_types: what transformers' configurations call it.
        copies: a weight that may be another's copy, to that other.
        unused: pattern of what is dropped, to the reason.
        refused: part that no model of ours reads, to the reason.
        prepare: what is done with values before names are translated; gives what it dropped, too.
        finish: what is done with them under our names.
        fit: the weights of a checkpoint as this model has them, such as at its image size.
    """

    recognises: Callable[[Weights], bool]
    table: Mapping[str, str]
    settings: Callable[[Checkpoint], dict[str, Any]]
    prefixes: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Weights], tuple[Weights, dict[str, str]]] = lambda weights: (weights, {})
    finish: Callable[[Weights], Weights] = lambda weights: weights
    fit: Callable[[nn.Module, Checkpoint], Weights] = lambda model, checkpoint: checkpoint.ours

    def owns(self, weights: Mapping[str, Tensor]) -> bool:
        """Return whether weights are of this family."""
        return self.recognises(without_prefix(weights, *self.prefixes))

    def translate(self, weights: Mapping[str, Tensor], parts: Mapping[str, str]) -> Translated:
        """Return weights by our names.

        Args:
            parts: those of `names.PARTS` that the model reads.

        Raises:
            UsageError: one has no place, or is no copy where it has to be.
        """
        theirs, dropped = self.prepare(without_prefix(weights, *self.prefixes))
        left, unused = split_off(theirs, self.unused)
        dropped |= unused
        names: dict[str, str] = {}
        for name in list(left):
            ours = look_up(name, self.table)
            part = (ours or "").partition(".")[0]
            copied = self.copies.get(name)
            if part in PARTS and part not in parts:
                dropped[name] = f"a model of this type has no {part}"
            elif copied in theirs and ours in (None, look_up(copied, self.table)):
                dropped[name] = same(theirs, name, copied)
            else:
                names[ours or name] = name
                continue
            del left[name]
        ours_of_them = self.finish(join_projections(rename(left, self.table)))
        return Translated(theirs, ours_of_them, names, dropped)


class Translated(NamedTuple):
    """Weights by our names, and what became of theirs; see `Checkpoint`."""

    theirs: Weights
    ours: Weights
    names: dict[str, str]
    dropped: dict[str, str]


def same(weights: Weights, name: str, copied: str) -> str:
    """Return that one weight is the same as another, as a reason to drop it.

    Raises:
        UsageError: it is not.
    """
    if not weights[name].equal(weights[copied]):
        raise UsageError(
            f"weights: {name} is to be the same as {copied}, as the model has one for both, but it "
            "differs."
        )
    return f"the same as {copied}"


@dataclass(frozen=True)
class Checkpoint:
    """A published model, read and recognised.

    Attributes:
        source: the name of its family.
        family: that.
        parts: those of `names.PARTS` that the model to be made reads, to what it calls them.
        theirs: weights by their own names, without a prefix.
        ours: weights by our names; a part's begin with the part.
        names: ours to theirs, of what is not joined.
        dropped: what has no place in any model, and why.
        config: what `config.json` holds, or what was given for it.
        given_config: the latter.
        folder: where the weights lie; None for a state dict.
        heads: the number that was given.
        options: arguments of the model that were given.
    """

    source: str
    family: Family
    parts: Mapping[str, str]
    theirs: Weights
    ours: Weights
    names: Mapping[str, str]
    dropped: Mapping[str, str]
    config: Config = field(default_factory=dict)
    given_config: Config | None = None
    folder: Path | None = None
    heads: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor:
        """Return the weight of ours of this name.

        Raises:
            UsageError: there is none.
        """
        if name not in self.ours:
            raise UsageError(f"weights: {name} is missing.")
        return self.ours[name]

    def length(self, name: str) -> int:
        """Return how many rows the weight of ours of this name has, 0 where there is none."""
        return len(self.ours.get(name, ()))

    def depth(self, stack: str) -> int:
        """Return how many blocks `stack` has, "encoder" or "decoder"."""
        found = (re.match(rf"{stack}\.blocks\.(\d+)\.", name) for name in self.ours)
        numbers = [int(match[1]) for match in found if match]
        if not numbers:
            raise UsageError(f"weights: they have no layer of the {stack}.")
        return max(numbers) + 1

    def sizes(self, stack: str) -> dict[str, Any]:
        """Return `dim`, `depth`, `hidden` and `projection_bias` of "encoder" or "decoder"."""
        first = f"{stack}.blocks.0."
        down = self.tensor(f"{first}feed_forward.down.weight")
        return {
            "dim": len(down),
            "depth": self.depth(stack),
            "hidden": down.shape[1],
            "projection_bias": f"{first}attention.out.bias" in self.ours,
        }

    def number_of_heads(self, dim: int, key: str, size: int) -> int:
        """Return the heads given, or in the configuration under `key`, or else of `size` features.

        Raises:
            UsageError: nothing says how many.
        """
        heads = self.heads or self.config.get(key)
        if heads is None and dim % size:
            raise UsageError(
                f"weights: of dim={dim}, the number of heads cannot be told from shapes; give "
                "heads= or config=."
            )
        return int(heads or dim // size)

    def activation(self, key: str, default: str, known: Mapping[str, str] = PLAIN) -> str:
        """Return our name of the activation that the configuration has under `key`."""
        name = self.config.get(key) or default
        if name not in known:
            raise UsageError(f"config: {key} must be one of {', '.join(known)}, got {name!r}.")
        return known[name]

    def need(self, *keys: str) -> None:
        """Raise UsageError where the configuration lacks what shapes do not tell."""
        lacking = [key for key in keys if self.config.get(key) is None]
        if lacking:
            raise UsageError(
                f"config: {', '.join(lacking)} cannot be told from shapes; give config=, the "
                "model's config.json as a dict, or load from the folder that has it."
            )
