"""Samples of a batch in one kernel, torch's `varlen_attn`: no tensor of pairs, nothing of padding.

It is for CUDA, in float16 and bfloat16. What it takes differs from one release of torch to the
next, so its signature is asked.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_core.backends.derivatives import transformed
from attention_core.backends.samples import CAUSAL, WHOLE, Samples, Window
from attention_core.job import Job, Options
from attention_core.precision import HALVES
from attention_core.transfer import moved

#: The largest head that the kernels know, and what its size has to be a multiple of.
_MOST, _MULTIPLE = 256, 8


def kernel() -> Callable[..., Any] | None:
    """Return torch's `varlen_attn`, None where this torch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


@lru_cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def takes(window: Window) -> bool:
    """Return whether this torch's `varlen_attn` knows such a window."""
    function = kernel()
    if function is None:
        return False
    known = _parameters(function)
    return "window_size" in known or window == WHOLE or (window == CAUSAL and "is_causal" in known)


def on_device(device: torch.device) -> bool:
    """Return whether a device has the kernels: a GPU from Ampere on, or one that is not here."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return device.type == "cuda"
    return torch.cuda.get_device_capability(device) >= (8, 0)


def is_for(job: Job) -> bool:
    """Return whether the kernel may compute a job, as far as that depends on dtype and device."""
    return job.dtype in HALVES and job.head_dim <= _MOST and on_device(job.device)


def serves(q: Tensor, v: Tensor, options: Options) -> bool:
    """Return whether the kernel computes a call: it has no dropout and no sink."""
    return (
        q.dtype in HALVES
        and max(q.shape[-1], v.shape[-1]) <= _MOST
        and options.scale > 0
        and not options.dropout_p
        and options.sink is None
        and not transformed()
    )


@dataclass(frozen=True)
class Rows:
    """The samples of a batch as the kernel wants them, on the device.

    Attributes:
        starts: (N + 1,) int32, where each of the N samples of all rows begins.
        longest: tokens of the longest, which the host knows.
        window: what a token sees of its sample.
        tokens: (T,) which of the B · L tokens are no padding; None: all.
        function: the kernel; known: the names of its arguments.
    """

    starts: Tensor
    longest: int
    window: Window
    tokens: Tensor | None
    function: Callable[..., Any]
    known: frozenset[str]

    @classmethod
    def of(cls, samples: Samples, job: Job) -> Rows:
        """Make them of samples, which every row of the batch has where they have no rows of
        their own."""
        starts, tokens, length = samples.starts, samples.tokens, job.spaces[0].length
        if job.spaces[0].batch is None and job.batch > 1:
            row = torch.arange(job.batch)[:, None]
            ends = starts[1:] + row.int() * starts[-1]
            starts = torch.cat([starts[:1], ends.flatten()])
            tokens = None if tokens is None else (tokens + row * length).flatten()
        starts, tokens = moved((starts, tokens), job.device)
        function = kernel()
        assert function is not None
        known = _parameters(function)
        return cls(starts, max(samples.lengths), samples.window, tokens, function, known)


def attend(rows: Rows, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Compute the attention of q, k, v (B, H, L, D) inside samples, (B, H, L, Dv); padding is 0."""
    known, window = rows.known, rows.window
    batch, heads, length, width = q.shape
    value_width = v.shape[-1]
    size = math.ceil(max(width, value_width) / _MULTIPLE) * _MULTIPLE
    q, k, v = (_tokens(x, rows.tokens, size) for x in (q, k, v))
    given: dict[str, Any] = {}
    if "window_size" in known:
        given["window_size"] = window
    if "is_causal" in known:
        given["is_causal"] = window[1] == 0
    if "scale" in known:
        given["scale"] = scale
    elif scale * size**0.5 != 1:  # the kernel divides by the root of the size
        q = q * (scale * size**0.5)
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in known:
            given["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
    starts, longest = rows.starts, rows.longest
    out: Tensor = rows.function(q, k, v, starts, starts, longest, longest, **given)
    if rows.tokens is not None:
        out = out.new_zeros(batch * length, heads, size).index_copy(0, rows.tokens, out)
    return out[..., :value_width].view(batch, length, heads, value_width).transpose(1, 2)


def _tokens(x: Tensor, tokens: Tensor | None, size: int) -> Tensor:
    """Tokens (T, H, size) of x (B, H, L, D), without padding and with features of 0."""
    x = x.transpose(1, 2).flatten(0, 1)
    if x.shape[-1] < size:
        x = pad(x, (0, size - x.shape[-1]))
    return x if tokens is None else _Taken.apply(x, tokens)


class _Taken(torch.autograd.Function):
    """Rows of x, each at most once, so that there is nothing to add up in their gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = x.shape
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.new_zeros(ctx.shape).index_copy(0, ctx.saved_tensors[0], grad), None
