"""What a compiler made of a structure is compared with `blocks`, once, before it decides anything.

FlexAttention's kernels have had wrong gradients for some structures, and none here has been run on
every device. So the first time that a structure is compiled on a device, it runs on random queries,
keys and values of the same shapes, forward and, in training, backward. If it differs, that is one
warning, and `blocks` computes such attention from then on.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from attention_core.backends import blocks
from attention_core.backends.flex import compiled
from attention_core.job import Options, Plan, Result
from attention_core.spaces import Space

#: By how much results may differ, of their largest number: float32 may be TF32 on a GPU.
_TOLERANCES = {torch.bfloat16: 4e-2, torch.float16: 1e-2}
_TOLERANCE = 5e-3

#: Where FlexAttention is compiled for inference alone.
_FORWARD_ONLY = {"cpu"}
#: Why each structure is not to be trusted; None where it is.
_PROVEN: dict[Hashable, str | None] = {}
_LOCK = threading.RLock()

Attended = Callable[[Plan, Tensor, Tensor, Tensor, Options], tuple[Tensor, Tensor | None]]


def holds(
    attended: Attended, plan: Plan, q: Tensor, k: Tensor, v: Tensor, options: Options
) -> bool:
    """Return whether the compiled kernel of a call is right, which is tried the first time.

    Args:
        attended: what runs it.
    """
    key = _key(plan, q, k, v, options)
    if key not in _PROVEN:
        with _LOCK:
            if key not in _PROVEN:
                why = _differs(attended, plan, q, k, v, options)
                _PROVEN[key] = why
                if why is not None:
                    _warn(plan, q, why)
    return _PROVEN[key] is None


def distrust(plan: Plan, q: Tensor, k: Tensor, v: Tensor, options: Options, why: str) -> None:
    """Have `blocks` compute what a kernel was compiled for, and say so."""
    _PROVEN[_key(plan, q, k, v, options)] = why
    _warn(plan, q, why)


def _warn(plan: Plan, q: Tensor, why: str) -> None:
    job = plan.job
    bias = (
        "no bias" if job.bias is None else " + ".join(type(x).__name__ for x in job.bias.leaves())
    )
    warnings.warn(
        f"FlexAttention, compiled on {q.device} for mask {job.mask} and {bias}, {why}; "
        "backend='blocks' computes such attention from now on",
        stacklevel=2,
    )


def by_blocks(plan: Plan, q: Tensor, k: Tensor, v: Tensor, options: Options) -> Result:
    """Compute the attention of a plan for FlexAttention with `blocks` instead."""
    return blocks.run(_other(plan), q, k, v, options)


def _other(plan: Plan) -> Plan:
    return plan.memo("blocks", lambda: Plan(plan.job, "blocks", blocks.prepare(plan.job)))


def _key(plan: Plan, q: Tensor, k: Tensor, v: Tensor, options: Options) -> Hashable:
    prepared = plan.prepared
    score = prepared.score(plan, options, torch.promote_types(q.dtype, torch.float32))
    return (
        None if prepared.mask is None else prepared.mask.source,
        tuple(score.lines),
        (prepared.size, q.dtype, q.device),
        (q.shape[1] // k.shape[1], q.shape[-1], v.shape[-1]),
        (options.lse, options.sink is not None, options.dropout_p > 0),
        _learns(q, k, v, options),
    )


def _learns(q: Tensor, k: Tensor, v: Tensor, options: Options) -> bool:
    learned = options.bias is not None and options.bias.learned
    tensors = (q, k, v) if options.sink is None else (q, k, v, options.sink)
    return (
        q.device.type not in _FORWARD_ONLY
        and torch.is_grad_enabled()
        and (learned or any(x.requires_grad for x in tensors))
    )


def _differs(
    attended: Attended, plan: Plan, q: Tensor, k: Tensor, v: Tensor, options: Options
) -> str | None:
    """In what the kernel differs from `blocks`, in words; None where it does not."""
    generator = torch.Generator(q.device).manual_seed(0)
    learns = _learns(q, k, v, options)
    query, key = plan.job.spaces

    def drawn(x: Tensor, space: Space) -> Tensor:
        made = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        return space.zero_heads(made).requires_grad_(learns)

    q, k, v = drawn(q, query), drawn(k, key), drawn(v, key)
    given = [q, k, v]
    # Of a chance of 0 the code is the same, as the chance is captured
    tried = options._replace(dropout_p=1e-30 if options.dropout_p else 0.0, weights=False)
    exact = options._replace(dropout_p=0.0, weights=False)
    plans = plan.renewed(), _other(plan).renewed()
    learned = [] if options.bias is None else [x for x in options.bias.tensors() if x.requires_grad]
    try:
        found = _results(lambda: attended(plans[0], q, k, v, tried), given, learned, learns)
    except compiled.NotCompiled as error:
        return str(error)
    except Exception as error:  # whatever a kernel raises must not end a training
        return f"raises {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]:.200}"

    def by_blocks() -> tuple[Tensor, Tensor | None]:
        result = blocks.run(plans[1], q, k, v, exact)
        return result.output, result.lse

    wanted = _results(by_blocks, given, learned, learns)
    tolerance = _TOLERANCES.get(q.dtype, _TOLERANCE)
    for name, one, other in zip(_names(learned), found, wanted, strict=True):
        if one is None or other is None:
            continue
        apart = _apart(one.detach().float(), other.detach().float())
        if not apart <= tolerance:
            return f"differs from backend='blocks' by {apart:.2g} of the largest number in {name}"
    return None


def _names(learned: list[Tensor]) -> list[str]:
    gradients = [f"the gradient of {name}" for name in ("q", "k", "v")]
    return ["the output", "the log-sum-exp", *gradients, *["that of the bias"] * len(learned)]


def _results(
    run: Callable[[], tuple[Tensor, Tensor | None]],
    given: list[Tensor],
    learned: list[Tensor],
    learns: bool,
) -> list[Tensor | None]:
    """Output, log-sum-exp and, if any is to be learned, gradients."""
    with torch.set_grad_enabled(learns):
        output, lse = run()
        gradients: list[Tensor | None] = [None] * (len(given) + len(learned))
        if learns:
            even = torch.linspace(-1, 1, output.shape[-1], device=output.device)
            loss = (output.float() * even).sum()
            found = torch.autograd.grad(loss, [*given, *learned], allow_unused=True)
            gradients = list(found)
    return [output, lse, *gradients]


def _apart(one: Tensor, other: Tensor) -> float:
    """The greatest difference, of the greatest number; infinite where one is no number."""
    if not one.numel():
        return 0.0
    same = (one == other) | (one.isnan() & other.isnan())  # as minus infinity is
    apart = (one - other).masked_fill(same, 0).abs().max()
    largest = other.masked_fill(~other.isfinite(), 0).abs().max().clamp(min=1e-6)
    return float((apart / largest).nan_to_num(nan=torch.inf))
