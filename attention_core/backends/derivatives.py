"""Second derivatives, and those that a backend lacks: refused in words, never a silent 0."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from attention_core.errors import BackendError


def transformed() -> bool:
    """Return whether a transform of torch.func runs, or forward-mode differentiation.

    Not in a program that is compiled, which torch itself refuses where it cannot do it.
    """
    if torch.compiler.is_compiling():
        return False
    in_transform = torch._C._functorch.peek_interpreter_stack() is not None
    return in_transform or forward_ad._current_level >= 0


def refuse_transforms(backend: str, tensors: Iterable[Tensor]) -> None:
    """Refuse tensors that torch.func transforms, and those that have a tangent.

    Operators of torch.library know neither: they would take a tangent for 0 without a word.

    Raises:
        BackendError: naming the backends that can.
    """
    if not transformed():
        return
    for x in tensors:
        if torch._C._functorch.is_functorch_wrapped_tensor(x):
            _refuse(backend, "does not run under torch.func (grad, jvp, vmap, ...)", _COMPOSITE)
        if forward_ad.unpack_dual(x).tangent is not None:
            _refuse(backend, "has no forward-mode derivatives", _COMPOSITE)


def refuse_batched(backend: str, *gradients: Tensor | None) -> None:
    """Refuse gradients that come many at a time, as `is_grads_batched=True` gives them.

    Raises:
        BackendError: naming the backends that can.
    """
    if any(x is not None and torch._C._functorch.is_legacy_batchedtensor(x) for x in gradients):
        what = "differentiates one output at a time (no is_grads_batched=True or vectorize=True)"
        _refuse(backend, what, _COMPOSITE)


#: The backends that are made of torch's own operations.
_COMPOSITE = ("reference", "dense")
#: Those with second derivatives.
_TWICE = ("reference", "blocks", "edges")


def _refuse(backend: str, what: str, others: Iterable[str]) -> NoReturn:
    raise BackendError(
        f"backend={backend!r} {what}: give backend={' or '.join(map(repr, others))} instead"
    )


#: What may stand between a kernel and its output: of `index_copy` the last input is what it copies.
_BEHIND = ("Slice", "View", "Transpose", "ToCopy", "IndexCopy")
_VARLEN = "_varlen_attn"


def refuse_second(backend: str, output: Tensor) -> None:
    """Have the second derivative of `output` refused in words, if its kernel has none."""
    node: Any = output.grad_fn
    while node is not None and node.name().startswith(_BEHIND):
        node = node.next_functions[-1][0]  # what stands behind a kernel that pads its heads
    if node is None or not (node.name().startswith("ScaledDotProduct") or _VARLEN in node.name()):
        return

    def hook(gradients: tuple[Tensor | None, ...], _: Any) -> tuple[Tensor | None, ...] | None:
        if not torch.is_grad_enabled():  # no one will differentiate them
            return None
        return tuple(x if x is None else _Once.apply(x, backend) for x in gradients)

    node.register_hook(hook)


def once_only(backend: str, x: Tensor) -> Tensor:
    """Return x with a gradient that has no derivative: a second one is refused in words, and so are
    gradients that come many at a time."""
    if not x.requires_grad:
        return x

    def hook(gradient: Tensor) -> Tensor | None:
        refuse_batched(backend, gradient)
        return _Once.apply(gradient, backend) if torch.is_grad_enabled() else None

    found = x.view_as(x)
    found.register_hook(hook)
    return found


class _Once(torch.autograd.Function):
    """A gradient that has no derivative."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, backend: str) -> Tensor:
        ctx.backend = backend
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> NoReturn:
        _refuse(ctx.backend, "has no second derivatives", _TWICE)


def untouched(output: Tensor, *tensors: Tensor | None) -> Tensor:
    """Return `output`, which no number of `tensors` has touched, with a gradient of 0 for each.

    A process of several waits for the others' gradient of every parameter, whatever its own batch
    holds.
    """
    nothing = [x.flatten()[:0].sum().to(output.dtype) for x in tensors if x is not None]
    return output + sum(nothing) if torch.is_grad_enabled() else output


def of_backward(
    forward: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    of_outputs: Sequence[Tensor],
    of_gradients: Sequence[Tensor | None],
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Differentiate the backward pass of `forward`, by computing both anew.

    Args:
        forward: outputs of the inputs, by operations that can be differentiated twice.
        inputs: what it is differentiated in.
        of_outputs: gradient of each output.
        of_gradients: gradient of each gradient of the inputs; None for 0.

    Returns: the gradients of the inputs, and those of `of_outputs`.
    """
    further = torch.is_grad_enabled()

    def own(x: Tensor) -> Tensor:  # so that what depends on another input counts once
        return x.view_as(x) if further and x.requires_grad else x.detach().requires_grad_()

    with torch.enable_grad():
        variables = [own(x) for x in (*inputs, *of_outputs)]
        given, of_given = variables[: len(inputs)], variables[len(inputs) :]
        pairs = zip(forward(*given), of_given, strict=True)
        outputs = [(y, of) for y, of in pairs if y.requires_grad]
        nothing: list[Tensor | None] = [None] * len(variables)
        if outputs:
            first = torch.autograd.grad(
                [y for y, _ in outputs], given, [of for _, of in outputs], create_graph=True,
                allow_unused=True,
            )  # fmt: skip
            chosen = [
                (gradient, of)
                for gradient, of in zip(first, of_gradients, strict=True)
                if gradient is not None and of is not None and gradient.requires_grad
            ]
            if chosen:
                nothing = list(
                    torch.autograd.grad(
                        [gradient for gradient, _ in chosen],
                        variables,
                        [of for _, of in chosen],
                        create_graph=further,
                        allow_unused=True,
                    )
                )
    return nothing[: len(inputs)], nothing[len(inputs) :]
