"""Attention over numbers that are not finite: they show where they may be seen, nowhere else.

Kernels differ in what they make of them. Some drop a row of NaN scores and give 0, all multiply the
weight 0 of another sample with its values, and 0 · NaN is NaN. So where there is such a number,
attention runs without the tokens that hold it, and the rows that may see them are NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attention_core.job import Options, Plan, Result


def isolated(
    run: Callable[..., Result], plan: Plan, q: Tensor, k: Tensor, v: Tensor, options: Options
) -> Result:
    """Return what a backend's `run` gives, with NaN in the rows that may see what is not finite.

    A query that is not finite, and one that may attend to a key or value that is not, has output,
    weights and log-sum-exp NaN; a query without keys stays 0. The gradient of such a query, key or
    value is NaN, and that of all others is as if it were not there.
    """
    wrong_query, wrong_key = _wrong(q), _wrong(k) | _wrong(v)
    if not bool(wrong_query.any() | wrong_key.any()):
        return run(plan, q, k, v, options)
    # Who may attend to such a key is what attention with even weights tells, in any backend, and
    # its gradient tells which of these keys anyone attends to
    even = options._replace(
        bias=None, score=None, softcap=None, sink=None, edge_key=None, edge_value=None,
        dropout_p=0.0, weights=False, lse=True,
    )  # fmt: skip
    nothing = (x.new_zeros(*x.shape[:3], 1, dtype=torch.float32) for x in (q, k))
    value = wrong_key.float().requires_grad_(torch.is_grad_enabled())
    share = run(plan, *nothing, value, even)
    assert share.lse is not None
    wrong_query &= share.lse.detach()[..., None] > -torch.inf
    rows = (share.output.detach() > 0) | wrong_query
    seen_key = wrong_key
    if share.output.requires_grad:
        (gradient,) = torch.autograd.grad(share.output.sum(), value)
        seen_key = wrong_key & (gradient > 0)
    q = _Without.apply(q, _wrong(q), wrong_query)
    k, v = (_Without.apply(x, wrong_key, seen_key) for x in (k, v))
    result = run(plan, q, k, v, options)
    return type(result)(
        result.output.masked_fill(rows, torch.nan),
        None if result.weights is None else result.weights.masked_fill(rows, torch.nan),
        None if result.lse is None else result.lse.masked_fill(rows.squeeze(-1), torch.nan),
    )


def _wrong(x: Tensor) -> Tensor:
    """(B, H, L, 1): which tokens of x (B, H, L, D) hold a number that is not finite."""
    return ~x.detach().isfinite().all(-1, keepdim=True)


class _Without(torch.autograd.Function):
    """Zeros in place of the `wrong` tokens; the gradient of those that are `seen` is NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, wrong: Tensor, seen: Tensor) -> Tensor:
        ctx.save_for_backward(seen)
        return x.masked_fill(wrong, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (seen,) = ctx.saved_tensors
        return grad.masked_fill(seen, torch.nan), None, None
