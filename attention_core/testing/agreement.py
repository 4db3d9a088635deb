"""Attention by every backend beside `reference`: values, weights and gradients."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from attention_core.attention import attend
from attention_core.biases import Bias
from attention_core.errors import BackendError
from attention_core.masks import Mask
from attention_core.planning import BACKENDS
from attention_core.score_mods import has_score_mod
from attention_core.spaces import Space
from attention_core.testing.pairs import batch_of

_DIM = 8


def agree(
    what: str,
    space: Space | tuple[Space, Space],
    mask: Mask | None = None,
    bias: Bias | None = None,
    heads: int = 2,
) -> None:
    """Check that all backends give the outputs, weights and gradients of `reference`.

    Also where the space was used in inference mode first, as by `predict` before training.

    Args:
        what: says what is attended with, for messages.
        space: of all tokens, or that of the queries and that of the keys.

    Raises:
        AssertionError: naming the backend, and what differs by how much.
    """
    spaces = space if isinstance(space, tuple) else (space, space)
    batch = batch_of(spaces)
    generator = torch.Generator().manual_seed(2)
    # Layers in a score mod get scores of their own dtype in use, so here, too
    single = has_score_mod(bias) and bias is not None and len(list(bias.parameters())) > 0
    dtype, close = (torch.float32, 1e-4) if single else (torch.float64, 1e-5)
    q, k, v = (
        torch.randn(batch, heads, of.length, _DIM, generator=generator, dtype=dtype)
        for of in (*spaces, spaces[1])
    )

    def run(backend: str | None) -> dict[str, Tensor]:
        name = f"backend={backend!r}" if backend else "the backend that plan chooses"
        try:
            return _all(q, k, v, space, mask, bias, backend)
        except BackendError:
            raise
        except Exception as error:
            raise AssertionError(
                f"{what}: {name} raises {type(error).__name__}: {error}"
            ) from error

    with torch.inference_mode(), contextlib.suppress(Exception):  # it is raised again below
        attend(q, k, v, space=space, mask=mask, bias=bias)
    wanted = run("reference")
    for part, value in wanted.items():
        if part != "log-sum-exp" and not bool(value.isfinite().all()):
            raise AssertionError(f"{what}: {part} are not finite, with any backend")
    for backend in (*BACKENDS, None):
        name = f"backend={backend!r}" if backend else "the backend that plan chooses"
        try:
            found = run(backend)
        except BackendError:
            continue
        for part, value in found.items():
            if not torch.allclose(value, wanted[part], rtol=close, atol=close):
                apart = (value - wanted[part]).abs().nan_to_num(torch.inf).max()
                raise AssertionError(
                    f"{what}: {part} of {name} differ from those of backend='reference' by "
                    f"{apart:.2g}"
                )


def _all(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    space: Space | tuple[Space, Space],
    mask: Mask | None,
    bias: Bias | None,
    backend: str | None,
) -> dict[str, Tensor]:
    tokens = [x.clone().requires_grad_() for x in (q, k, v)]
    learned = {} if bias is None else dict(bias.named_parameters())
    out, weights, lse = attend(
        *tokens,
        space=space,
        mask=mask,
        bias=bias,
        backend=backend,
        return_weights=True,
        return_lse=True,
    )
    alone = attend(*tokens, space=space, mask=mask, bias=bias, backend=backend)
    inputs = [*tokens, *(x for x in learned.values() if x.requires_grad)]
    weighing = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    grads = torch.autograd.grad((alone * weighing).sum(), inputs, allow_unused=True)
    found = {"outputs": alone, "outputs beside weights": out, "weights": weights}
    found["log-sum-exp"] = lse
    named = ["q", "k", "v", *(name for name, x in learned.items() if x.requires_grad)]
    for name, grad, value in zip(named, grads, inputs, strict=True):
        found[f"gradients of {name}"] = torch.zeros_like(value) if grad is None else grad
    return {name: value.detach().double() for name, value in found.items()}
