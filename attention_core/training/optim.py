"""Parameter groups and learning-rate schedules; the optimizers themselves are torch's.

A configuration's `optimizer` is a partial of any `torch.optim` class, its `schedule` a partial of
a function below or of any torch scheduler. The task calls

    optimizer = optimizer(decay_groups(model, weight_decay, layer_decay))
    scale_rates(optimizer)
    schedule = schedule_rates(schedule, optimizer, total_steps=..., mode=...)
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from attention_core.errors import UsageError
from attention_core.layers import Block, Encoder


def decay_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Split the trainable parameters by weight decay and, for a `layer_decay` below 1, by layer.

    The rule of weight decay: **decay what multiplies activations**, that is a parameter of two or
    more dimensions whose name ends in `weight`, outside `nn.Embedding`. Everything else is a table
    or an offset that is added or looked up (biases, norms, embeddings, class tokens, position and
    relative-position tables, scales), where decay would pull towards a meaningless zero.

    Layer-wise rates (Clark et al., ELECTRA, 2020; Bao et al., BEiT, 2022): each layer, as `layers`
    counts them, learns at `layer_decay` times the rate of the one above, so that fine-tuning keeps
    what pretraining has taught the lower ones.

    Args:
        weight_decay: of the decayed parameters.
        layer_decay: the rate of a layer as a share of the one above; 1 gives all the same.

    Returns:
        Optimizer groups `{"params": [...], "weight_decay": ...}`, none of them empty, the topmost
        layer's first. With layer-wise rates each has a `rate_scale`, which `scale_rates` applies.

    Raises:
        UsageError: the model has no parameter that requires a gradient; or `layer_decay` is
            outside (0, 1], or below 1 where the model has no blocks.
    """
    if not 0 < layer_decay <= 1:
        raise UsageError(
            "task.layer_decay is the rate of a layer as a share of the one above, more than 0 and "
            f"at most 1; got {layer_decay}."
        )
    tables = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for parameter in module.parameters(recurse=False)
    }
    layer_of = layers(model) if layer_decay < 1 else {}
    top = max(layer_of.values(), default=0)
    members: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        multiplies = parameter.ndim >= 2 and name.endswith("weight") and id(parameter) not in tables
        below = top - layer_of.get(name, top)
        members.setdefault((below, not multiplies), []).append(parameter)
    if not members:
        raise UsageError(f"model: {type(model).__name__} has no parameter to train.")
    groups: list[dict[str, Any]] = []
    for below, undecayed in sorted(members):
        group = {
            "params": members[below, undecayed],
            "weight_decay": 0.0 if undecayed else weight_decay,
        }
        groups.append({**group, "rate_scale": layer_decay**below} if layer_of else group)
    return groups


def layers(model: nn.Module) -> dict[str, int]:
    """Return the layer of each parameter of `model`, by name.

    Its n blocks are 1 to n, in the order in which they are registered. What is registered before
    the first is 0 (embeddings, class token, positions), what follows the last is n + 1 (final
    norm, pooling, head), and what stands between two belongs to the one before. A relative bias of
    an `Encoder` belongs to the first block that adds it.

    Raises:
        UsageError: the model has no `Block`.
    """
    of_block: dict[int, int] = {}
    outside: dict[int, int] = {}
    count = 0
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            outside.setdefault(id(parameter), count)
        if isinstance(module, Block):
            count += 1
            of_block.update((id(parameter), count) for parameter in module.parameters())
        elif isinstance(module, Encoder):
            for number, bias in enumerate(module.biases, count + 1):
                of_block.update((id(parameter), number) for parameter in bias.parameters())
    if not count:
        raise UsageError(
            f"task.layer_decay: {type(model).__name__} has no attention_core.Block to count "
            "layers by. It learns at one rate, with layer_decay=1."
        )

    def layer(parameter: nn.Parameter) -> int:
        before = outside[id(parameter)]
        return of_block.get(id(parameter), before if before < count else count + 1)

    return {name: layer(parameter) for name, parameter in model.named_parameters()}


def scale_rates(optimizer: Optimizer) -> None:
    """Give each group of a new optimizer its share of the rate, where it has a `rate_scale`."""
    for group in optimizer.param_groups:
        group["lr"] *= group.get("rate_scale", 1.0)


def check_eps(optimizer: Optimizer) -> None:
    """Check that what is added to a norm is a number in the dtype of the weights.

    Adam's 1e-8 is 0 in float16, where a gradient of 0 would be divided by 0. The smallest number
    there would do no better: squares vanish below its root, and steps would be thousands of times
    the rate.

    Raises:
        UsageError: `eps` of a group is more than 0, and rounds to 0.
    """
    for group in optimizer.param_groups:
        eps = group.get("eps")
        for dtype in {parameter.dtype for parameter in group["params"]}:
            if isinstance(eps, float) and eps > 0 and not torch.tensor(eps, dtype=dtype):
                numbers = torch.finfo(dtype)
                enough = math.sqrt(numbers.smallest_normal * numbers.eps)
                raise UsageError(
                    f"optimizer.eps: {eps} is 0 in {dtype}, which the weights are in "
                    "(trainer.precision), and a gradient of 0 would be divided by 0. Give "
                    f"optimizer.eps={enough:.2g} or more, or train with "
                    "trainer.precision=bf16-true."
                )


def schedule_rates(
    schedule: Callable[..., Any], optimizer: Optimizer, *, total_steps: float, mode: str
) -> Any:
    """Make the schedule of a partial for `optimizer`; stepped once per optimizer step, a
    `ReduceLROnPlateau` after each validation.

    Args:
        schedule: gets `total_steps` where it takes it, and a `ReduceLROnPlateau` the `mode`.
        total_steps: optimizer steps of the whole run; infinite where nothing but time ends it.
        mode: "min" or "max", of the task's monitor.

    Raises:
        UsageError: it refuses the arguments.
    """
    target = getattr(schedule, "func", schedule)
    known = inspect.signature(target).parameters
    arguments: dict[str, Any] = {"total_steps": total_steps} if "total_steps" in known else {}
    if target is ReduceLROnPlateau:
        arguments["mode"] = mode
    try:
        return schedule(optimizer, **arguments)
    except UsageError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(f"schedule: {error}") from error


def warmup_cosine(
    optimizer: Optimizer, *, total_steps: int, warmup: float = 0.1, final: float = 0.0
) -> LambdaLR:
    """Warm up linearly to the optimizer's learning rate, then go down half a cosine (Loshchilov &
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


def inverse_sqrt(optimizer: Optimizer, *, total_steps: int, warmup: float = 0.1) -> LambdaLR:
    """Warm up linearly to the optimizer's learning rate, then go down with the inverse square root
    of the step (Vaswani et al., 2017).

    Args:
        total_steps: optimizer steps of the whole run.
        warmup: the share of `total_steps` spent rising; the first step is never at rate 0.

    Raises:
        UsageError: `warmup` outside [0, 1], or no step to take.
    """
    _check_total(total_steps)
    if not 0 <= warmup <= 1:
        raise UsageError(f"schedule.warmup is a share between 0 and 1, got {warmup}.")
    rising = max(1, round(warmup * total_steps))
    return LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, math.sqrt(rising / (step + 1)))
    )


def constant(optimizer: Optimizer, *, total_steps: float) -> LambdaLR:
    """Keep the optimizer's own learning rate throughout."""
    _check_total(total_steps, finite=False)
    return LambdaLR(optimizer, lambda step: 1.0)


def _check_total(total_steps: float, *, finite: bool = True) -> None:
    if finite and total_steps == math.inf:
        raise UsageError(
            "schedule: it needs to know how many steps there are, and nothing says so. Set "
            "trainer.max_epochs or trainer.max_steps, or schedule=constant."
        )
    if total_steps < 1:
        raise UsageError(f"schedule: a run needs at least one step, got total_steps={total_steps}.")
