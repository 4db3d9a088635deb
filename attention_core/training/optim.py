"""Decay groups and learning-rate schedules; the optimizers themselves are torch's.

A configuration's `optimizer` is a partial of any `torch.optim` class, its `schedule` a partial of
a function below (or of any torch scheduler that takes `total_steps`). The task calls

    optimizer = optimizer(decay_groups(model, weight_decay))
    schedule = schedule(optimizer, total_steps=...)      # stepped once per optimizer step
"""

import math
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from attention_core.training.errors import UsageError


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Splits the trainable parameters into a decayed and an undecayed group.

    The rule: **decay what multiplies activations**, that is a parameter of two or more dimensions
    whose name ends in `weight`, outside `nn.Embedding`. Everything else is a table or an offset
    that is added or looked up (biases, norms, embeddings, class tokens, position and
    relative-position tables, scales), where decay would pull towards a meaningless zero.

    Returns:
        At most two optimizer groups `{"params": [...], "weight_decay": ...}`, none of them empty.

    Raises:
        UsageError: the model has no parameter that requires a gradient.
    """
    tables = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for parameter in module.parameters(recurse=False)
    }
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        multiplies = parameter.ndim >= 2 and name.endswith("weight") and id(parameter) not in tables
        (decayed if multiplies else undecayed).append(parameter)
    if not decayed and not undecayed:
        raise UsageError(f"model: {type(model).__name__} has no parameter to train.")
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def warmup_cosine(
    optimizer: Optimizer, *, total_steps: int, warmup: float = 0.1, final: float = 0.0
) -> LambdaLR:
    """Linear warmup to the optimizer's learning rate, then half a cosine down (Loshchilov &
    Hutter, SGDR, 2017).

    Args:
        total_steps: optimizer steps of the whole run.
        warmup: the share of `total_steps` spent rising; the first step is never at rate 0.
        final: the rate of the last step, as a share of the peak.

    Raises:
        UsageError: `warmup` or `final` outside [0, 1], or no step to take.
    """
    _check_total(total_steps)
    for name, value in (("warmup", warmup), ("final", final)):
        if not 0 <= value <= 1:
            raise UsageError(f"schedule.{name} is a share between 0 and 1, got {value}.")
    rising = round(warmup * total_steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        progress = min(1.0, (step - rising) / max(1, total_steps - 1 - rising))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def constant(optimizer: Optimizer, *, total_steps: int) -> LambdaLR:
    """The optimizer's own learning rate throughout."""
    _check_total(total_steps)
    return LambdaLR(optimizer, lambda step: 1.0)


def _check_total(total_steps: int) -> None:
    if total_steps < 1:
        raise UsageError(f"schedule: a run needs at least one step, got total_steps={total_steps}.")
