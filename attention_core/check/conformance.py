"""Each backend on a device beside `reference` in float64 on the CPU: values and gradients."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attention_core.attention import attend
from attention_core.check.cases import DIM, HEADS, Case, Given
from attention_core.errors import BackendError
from attention_core.precision import HALVES
from attention_core.spaces import Space

#: Largest difference that is rounding, in parts of 1 + the largest number of the right answer.
#: bfloat16 has 8 bits; in float32 a sum over a few hundred keys loses a few of 24.
TOLERANCES = {torch.float32: 2e-4, torch.bfloat16: 3e-2, torch.float16: 6e-3}


class Outcome(NamedTuple):
    """One case by one backend: how far the part that differs most is off, or what was raised.

    Attributes:
        status: "passed", "failed", or "refused" where the backend says that it cannot do it.
        worst: that part, such as "output" or "gradient of q".
        said: the error, or what the backend refuses with.
    """

    case: str
    backend: str
    dtype: str
    status: str
    difference: float = 0.0
    worst: str = ""
    said: str = ""


def right_answer(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return what `reference` gives in float64 on the CPU, for inputs that `dtype` holds."""
    return _results(case.make(), "reference", dtype, torch.float64, torch.device("cpu"))


def compare(
    case: Case, backend: str, dtype: torch.dtype, device: torch.device, right: dict[str, Tensor]
) -> Outcome:
    """Compare a backend with the right answer; what it raises is an outcome."""
    about = case.name, backend, str(dtype).removeprefix("torch.")
    try:
        found = _results(case.make(), backend, dtype, dtype, device)
    except BackendError as refusal:
        return Outcome(*about, "refused", said=str(refusal))
    except Exception as error:
        return Outcome(*about, "failed", said=f"{type(error).__name__}: {error}"[:2000])
    off = {name: _difference(found[name], wanted) for name, wanted in right.items()}
    worst = max(off, key=lambda name: off[name])
    status = "passed" if off[worst] <= TOLERANCES[dtype] else "failed"
    return Outcome(*about, status, off[worst], worst)


def _difference(found: Tensor, wanted: Tensor) -> float:
    found = found.detach().to("cpu", torch.float64)
    if found.shape != wanted.shape:
        return torch.inf
    if not wanted.numel():
        return 0.0
    same = (found == wanted) & wanted.isinf()  # the log-sum-exp of an empty row
    finite = wanted.masked_fill(wanted.isinf(), 0)
    apart = (found - wanted).masked_fill(same, 0).abs().nan_to_num(torch.inf, torch.inf).max()
    return float(apart / (1 + finite.abs().max()))


def _results(
    given: Given, backend: str, dtype: torch.dtype, computed_in: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Output, log-sum-exp and gradients, of numbers that `dtype` holds exactly."""
    space = given.space
    spaces = (space, space) if isinstance(space, Space) else space
    batch = next((one.batch for one in spaces if one.batch is not None), given.batch)
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=generator).to(dtype)
        return drawn.to(device, computed_in).requires_grad_()

    # Parameters of biases and scores are float32 in use, whatever the queries are
    learned_in = torch.promote_types(computed_in, torch.float32)
    bias, score = (_moved(one, device, learned_in) for one in (given.bias, given.score))
    inputs = {
        "q": draw(batch, HEADS, spaces[0].length, DIM),
        "k": draw(batch, given.kv_heads, spaces[1].length, DIM),
        "v": draw(batch, given.kv_heads, spaces[1].length, DIM),
    }
    options: dict[str, Any] = {}
    if given.sink:
        options["sink"] = draw(HEADS)
    if given.edge_features:
        assert spaces[1].edges is not None
        for name in ("edge_key", "edge_value"):
            options[name] = draw(spaces[1].edges.num_edges, given.kv_heads, DIM)
    if score is not None and computed_in in HALVES:
        score = score.to(computed_in)
    output, lse = attend(
        *inputs.values(), space=space, mask=given.mask, bias=bias, score=score,
        softcap=given.softcap, backend=backend, return_lse=True, **options,
    )  # fmt: skip
    for name, module in (("bias", bias), ("score", score)):
        if module is not None:
            inputs |= {f"{name}.{key}": x for key, x in module.named_parameters()}
    inputs |= options
    weight = torch.linspace(-1, 1, output.numel()).view(output.shape).to(output)
    grads = torch.autograd.grad((output * weight).sum(), list(inputs.values()), allow_unused=True)
    found = {"output": output.detach(), "log-sum-exp": lse.detach()}
    for (name, x), grad in zip(inputs.items(), grads, strict=True):
        found[f"gradient of {name}"] = torch.zeros_like(x) if grad is None else grad
    return {name: x.detach() for name, x in found.items()}


def _moved(module: nn.Module | None, device: torch.device, dtype: torch.dtype) -> Any:
    return None if module is None else copy.deepcopy(module).to(device, dtype)
