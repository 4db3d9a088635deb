"""Weights of others, for every domain: read without running code, renamed and loaded strictly.

A domain writes, for each source, a table from its names to ours. Reading a file, renaming by a
table and copying into a model are here. Lightning is not needed, and not loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attention_core.errors import UsageError
from attention_core.escape import on_one_line
from attention_core.training.serialization import load_safetensors, load_torch

Weights = dict[str, Tensor]

#: How many names an error or a report shows.
SHOWN = 5


@dataclass(frozen=True)
class LoadReport:
    """What became of the weights that were loaded into a model.

    Attributes:
        source: where they come from, such as "timm".
        dropped: each weight that was left out deliberately, by its own name, and why.
        kept: the model's parameters that stay as they were.
    """

    source: str
    dropped: dict[str, str] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"weights: from {self.source}"]
        by_reason: dict[str, list[str]] = {}
        for name, why in self.dropped.items():
            by_reason.setdefault(why, []).append(name)
        lines += [f"  dropped, {why}: {some(names)}" for why, names in by_reason.items()]
        if self.kept:
            lines.append(f"  kept as they were: {some(self.kept)}")
        return "\n".join(map(on_one_line, lines))  # names come from files


def read_weights(weights: Mapping[str, Any] | str | Path) -> Weights:
    """The tensors by name of a file, on the CPU, or of a state dict.

    Args:
        weights: a `.safetensors` file, or one that `torch.load` reads with `weights_only=True`; or
            what it holds. A dict that holds exactly one state dict, such as {"model": ...} beside
            numbers and an optimizer's state, stands for that one. What checksums a file has are
            compared; see `serialization`.

    Raises:
        UsageError: no such file; it is damaged; it holds code; or it is no state dict.
    """
    if isinstance(weights, Mapping):
        return _state_dict(weights, "what was given")
    path = Path(weights)
    if not path.is_file():
        raise UsageError(f"weights: {str(path)!r} is no file.")
    if path.suffix == ".safetensors":
        return load_safetensors(path, "weights")
    return _state_dict(load_torch(path, "weights", ours=False), repr(str(path)))


def _state_dict(content: Any, what: str) -> Weights:
    if _is_state_dict(content):
        return dict(content)
    if not isinstance(content, Mapping):
        raise UsageError(
            f"weights: {what} is no state dict, a dict of tensors by name, but a "
            f"{type(content).__name__}."
        )
    inner = [key for key, value in content.items() if _is_state_dict(value)]
    if len(inner) == 1:
        return dict(content[inner[0]])
    keys = some([repr(key) for key in content])
    if inner:
        raise UsageError(
            f"weights: {what} holds several state dicts, {some([repr(key) for key in inner])}. "
            "Give the one that you mean."
        )
    raise UsageError(
        f"weights: {what} is no state dict, a dict of tensors by name; it holds {keys or 'nothing'}"
    )


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    )


def without_prefix(weights: Mapping[str, Tensor], *prefixes: str) -> Weights:
    """`weights` with the first of `prefixes` that a name starts with cut off."""
    pattern = re.compile("^(?:" + "|".join(map(re.escape, prefixes)) + ")")
    return {pattern.sub("", name): value for name, value in weights.items()}


def split_off(
    weights: Mapping[str, Tensor], reasons: Mapping[str, str]
) -> tuple[Weights, dict[str, str]]:
    """`weights` without those that a pattern of `reasons` matches, and these with the reason."""
    dropped = {
        name: why
        for name in weights
        for pattern, why in reasons.items()
        if re.fullmatch(pattern, name)
    }
    return {name: value for name, value in weights.items() if name not in dropped}, dropped


def rename(weights: Mapping[str, Tensor], table: Mapping[str, str]) -> Weights:
    """`weights` by the names that `table` gives them.

    Args:
        table: their name to ours. `#` stands for the number of a layer, the first number in a
            name, and an entry for a module is one for its `.weight` and its `.bias`, too.

    Raises:
        UsageError: a name is in no entry, or two become the same.
    """
    renamed: Weights = {}
    unknown = []
    for name, value in weights.items():
        ours = _look_up(name, table)
        if ours is None:
            unknown.append(f"{name} {tuple(value.shape)}")
        elif ours in renamed:
            raise UsageError(f"weights: two of them are {ours}; the second is {name}.")
        else:
            renamed[ours] = value
    if unknown:
        raise UsageError(
            f"weights: {len(unknown)} of {len(weights)} have no place here: {some(unknown)}."
        )
    return renamed


def _look_up(name: str, table: Mapping[str, str]) -> str | None:
    number = re.search(r"(?<=[._])\d+(?=\.)", name)
    layer = "" if number is None else number[0]
    pattern = name if number is None else f"{name[: number.start()]}#{name[number.end() :]}"
    module, _, kind = pattern.rpartition(".")
    if pattern in table:
        return table[pattern].replace("#", layer)
    if kind in ("weight", "bias") and module in table:
        return f"{table[module]}.{kind}".replace("#", layer)
    return None


def inside(prefix: str, table: Mapping[str, str]) -> dict[str, str]:
    """`table` with `prefix` in front of their names."""
    return {prefix + theirs: ours for theirs, ours in table.items()}


def join_projections(weights: Mapping[str, Tensor]) -> Weights:
    """`weights` with the projections of attention and of gated networks as ours are.

    `*.qkv` is split in thirds; `*.key` and `*.value` become `*.key_value`, `*.gate` and `*.linear`
    become `*.up`. What a linear layer of ours has a bias for and theirs has none is zero.
    """
    ours = dict(weights)
    for prefix in modules(ours, "qkv"):
        for kind in ("weight", "bias"):
            fused = ours.pop(f"{prefix}qkv.{kind}", None)
            if fused is not None:
                parts = zip(("query", "key", "value"), fused.chunk(3), strict=True)
                ours.update({f"{prefix}{name}.{kind}": part for name, part in parts})
    for prefix in modules(ours, "value"):
        _join_keys_and_values(ours, prefix)
    for prefix in set(modules(ours, "gate")) & set(modules(ours, "linear")):
        for kind in ("weight", "bias"):
            halves = [ours.pop(f"{prefix}{half}.{kind}", None) for half in ("gate", "linear")]
            given = [half for half in halves if half is not None]
            if given:
                ours[f"{prefix}up.{kind}"] = torch.cat(given)
    return ours


def _join_keys_and_values(ours: Weights, prefix: str) -> None:
    """Keys, then values; a bias of the values alone stays by itself, as in `key_bias=False`."""
    key, value = (ours.pop(f"{prefix}{part}.weight", None) for part in ("key", "value"))
    if key is None or value is None:
        raise UsageError(f"weights: {prefix}* has keys or values, but not both.")
    ours[f"{prefix}key_value.weight"] = torch.cat([key, value])
    key_bias, value_bias = (ours.pop(f"{prefix}{part}.bias", None) for part in ("key", "value"))
    if key_bias is not None and value_bias is not None:
        ours[f"{prefix}key_value.bias"] = torch.cat([key_bias, value_bias])
    elif value_bias is not None:
        ours[f"{prefix}value_bias"] = value_bias
    elif f"{prefix}out.bias" in ours:  # ours has a bias everywhere but for keys, or nowhere
        ours[f"{prefix}value_bias"] = value.new_zeros(len(value))
        ours[f"{prefix}query.bias"] = value.new_zeros(len(value))


def modules(weights: Mapping[str, Tensor], part: str) -> list[str]:
    """What stands in front of every `part`.weight."""
    found = (re.fullmatch(rf"(.*\.){part}\.weight", name) for name in weights)
    return [match[1] for match in found if match]


def load_strictly(model: nn.Module, weights: Weights, *, keep: Iterable[str] = ()) -> None:
    """Copies `weights` into `model`, all of them or, where something does not fit, none.

    Args:
        weights: for each parameter and persistent buffer of the model that is not empty, by its
            name there.
        keep: names of those that stay as they are.

    Raises:
        UsageError: names are missing or surplus, or shapes differ; the message has the first ones.
    """
    own = model.state_dict()
    kept = set(keep)
    missing = [
        f"{name} {tuple(value.shape)}"
        for name, value in own.items()
        if name not in weights and name not in kept and value.numel()
    ]
    surplus = [f"{name} {tuple(value.shape)}" for name, value in weights.items() if name not in own]
    differing = [
        f"{name} is {tuple(value.shape)}, the model's {tuple(own[name].shape)}"
        for name, value in weights.items()
        if name in own and value.shape != own[name].shape
    ]
    wrong = [
        f"{len(names)} {what}: {some(names)}"
        for what, names in (
            ("missing", missing),
            ("surplus", surplus),
            ("of another shape", differing),
        )
        if names
    ]
    if wrong:
        raise UsageError(
            f"weights: they do not fit this {type(model).__name__}; {'; '.join(wrong)}."
        )
    model.load_state_dict({**own, **weights})


def some(names: list[str]) -> str:
    """The first few of `names`, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
