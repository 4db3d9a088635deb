"""Weights of others by our names: renamed by a table, with projections joined as ours are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor

from attention_core.errors import UsageError

Weights = dict[str, Tensor]

#: How many names an error or a report shows.
SHOWN = 5


def without_prefix(weights: Mapping[str, Tensor], *prefixes: str) -> Weights:
    """Return `weights` with the first of `prefixes` that a name starts with cut off."""
    pattern = re.compile("^(?:" + "|".join(map(re.escape, prefixes)) + ")")
    return {pattern.sub("", name): value for name, value in weights.items()}


def split_off(
    weights: Mapping[str, Tensor], reasons: Mapping[str, str]
) -> tuple[Weights, dict[str, str]]:
    """Return `weights` without those that a pattern of `reasons` matches, and their reasons."""
    dropped = {
        name: why
        for name in weights
        for pattern, why in reasons.items()
        if re.fullmatch(pattern, name)
    }
    return {name: value for name, value in weights.items() if name not in dropped}, dropped


def rename(weights: Mapping[str, Tensor], table: Mapping[str, str]) -> Weights:
    """Return `weights` by the names that `table` gives them, see `look_up`.

    Raises:
        UsageError: a name is in no entry, or two become the same.
    """
    renamed: Weights = {}
    unknown = []
    for name, value in weights.items():
        ours = look_up(name, table)
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


def look_up(name: str, table: Mapping[str, str]) -> str | None:
    """Return what `table` calls the weight `name`, or None.

    Args:
        table: their name to ours. Each `#` stands for a number, such as that of a layer, and is the
            same in both. An entry for a module is one for its `.weight` and its `.bias`, too.
    """
    numbers = list(re.finditer(r"(?<=[._])\d+(?=\.)", name))
    for count in range(len(numbers) + 1):
        for chosen in combinations(numbers, count):
            pattern = name
            for number in reversed(chosen):
                pattern = f"{pattern[: number.start()]}#{pattern[number.end() :]}"
            module, _, kind = pattern.rpartition(".")
            ours = table.get(pattern)
            if ours is None and kind in ("weight", "bias") and module in table:
                ours = f"{table[module]}.{kind}"
            if ours is not None:
                for number in chosen:
                    ours = ours.replace("#", number[0], 1)
                return ours
    return None


def join_projections(weights: Mapping[str, Tensor]) -> Weights:
    """Return `weights` with the projections of attention and of gated networks as ours are.

    `*.qkv` is split in thirds; `*.key` and `*.value` become `*.key_value`, `*.gate` and `*.up`
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
    for prefix in set(modules(ours, "gate")) & set(modules(ours, "up")):
        for kind in ("weight", "bias"):
            halves = [ours.pop(f"{prefix}{half}.{kind}", None) for half in ("gate", "up")]
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


def without_key_bias(weights: Mapping[str, Tensor], why: str) -> tuple[Weights, dict[str, str]]:
    """Return `weights` with each `*qkv.bias` as `*q_bias` and `*v_bias`, and what was dropped."""
    split, dropped = dict(weights), {}
    for name in [name for name in weights if name.endswith("qkv.bias")]:
        query, _, value = split.pop(name).chunk(3)
        module = name.removesuffix("qkv.bias")
        split |= {f"{module}q_bias": query, f"{module}v_bias": value}
        dropped[f"{name} (of keys)"] = why
    return split, dropped


def modules(weights: Mapping[str, Tensor], part: str) -> list[str]:
    """Return what stands in front of every `part`.weight."""
    found = (re.fullmatch(rf"(.*\.){part}\.weight", name) for name in weights)
    return [match[1] for match in found if match]


def some(names: list[str]) -> str:
    """Return the first few of `names`, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
