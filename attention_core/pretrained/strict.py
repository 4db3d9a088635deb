"""Weights in a model: all of them or none."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from attention_core.errors import UsageError
from attention_core.pretrained.renaming import Weights, some


def load_strictly(model: nn.Module, weights: Weights, *, keep: Iterable[str] = ()) -> None:
    """Copy `weights` into `model`, all of them or, where something does not fit, none.

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
