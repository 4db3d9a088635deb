"""Samples that share a row of tokens, or have rows with padding: each attends to itself alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attention_core.job import Job
from attention_core.masks import Causal, Mask, Neighborhood
from attention_core.masks.algebra import _And
from attention_core.spaces import Space

#: How far a token sees back and ahead among those of its sample; -1 for all the way.
Window = tuple[int, int]
WHOLE, CAUSAL = (-1, -1), (-1, 0)


@dataclass(frozen=True)
class Samples:
    """N samples, one after the other in the rows of tokens.

    Attributes:
        lengths: the tokens of each.
        starts: (N + 1,) int32 on the CPU, where each sample begins, and where the last one ends,
            among the tokens that are no padding.
        window: what each token sees of its sample.
        tokens: (T,) which of the B · L tokens are no padding; None: all.
    """

    lengths: list[int]
    starts: Tensor
    window: Window
    tokens: Tensor | None

    def __len__(self) -> int:
        return len(self.lengths)


def window_of(mask: Mask | None, space: Space) -> Window | None:
    """Return what of a row each token sees, where the mask is a window for tokens whose places
    follow each other; None where it is none."""
    if mask is None:
        return WHOLE
    if mask == Causal():
        return CAUSAL
    if type(mask) is _And:
        first, second = window_of(mask.first, space), window_of(mask.second, space)
        if first is None or second is None:
            return None
        sides = ([n for n in side if n >= 0] for side in zip(first, second, strict=True))
        back, ahead = (min(side, default=-1) for side in sides)
        return back, ahead
    if type(mask) is Neighborhood and mask.border == "cut" and space.chebyshev and space.axes == 1:
        (radius,) = mask.radius if isinstance(mask.radius, tuple) else (mask.radius,)
        reach = -1 if math.isinf(radius) else int(radius)
        return reach, reach
    return None


def find(job: Job, takes: Callable[[Window, bool], bool]) -> Samples | None:
    """Find the samples of a job whose mask leaves each of them a window; None: there are none.

    Args:
        takes: whether it is worth finding samples of that window, with padding or without.
    """
    query, key = job.spaces
    if query is not key or job.bias is not None:
        return None
    everything = job.mask is None or job.mask.allows_all(job.spaces)
    window = WHOLE if everything else window_of(job.mask, key)
    if window is None or not key.length or not takes(window, key.valid is not None):
        return None
    if window in (WHOLE, CAUSAL) and key.segments is None and key.valid is None:
        return None  # a row is a sample, which needs no finding
    if window != WHOLE and (
        not key.ordered or key.special is not None or key.axes != 1 or any(key.wrap)
    ):
        return None
    key = key.host
    segments, valid, rows = key.segments, key.valid, key.batch or 1
    shape = rows, key.length
    if rows == 1 and segments is not None:
        sample = segments.flatten()
    else:
        sample = torch.arange(rows)[:, None] * key.num_segments
        sample = (sample if segments is None else sample + segments).expand(shape).flatten()
    tokens = None if valid is None else valid.expand(shape).flatten().nonzero()[:, 0]
    sample = sample if tokens is None else sample[tokens]
    steps = sample.diff()
    if not len(sample) or (len(steps) and int(steps.min()) < 0):
        return None
    if window != WHOLE:
        assert key.coordinates is not None
        at = key.coordinates.select(-1, 0)
        at = at if rows == 1 and at.ndim == 1 else at.expand(shape).flatten()
        apart = (at if tokens is None else at[tokens]).diff()
        # To see what is near, places have to follow each other; to see what is before, to rise
        wrong = apart < 1 if window == CAUSAL else apart != 1
        if bool((wrong & (steps == 0)).any()):
            return None
    lengths = sample.unique_consecutive(return_counts=True)[1]
    starts = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return Samples(lengths.tolist(), starts, window, tokens)


def each(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None,
    samples: Samples,
    attention: Callable[..., Tensor],
) -> Tensor:
    """Compute `attention` of one sample after the other, (B, H, L, Dv)."""
    parts = (x.split(samples.lengths, dim=2) for x in (q, k, v))
    outputs = [attention(*own, sink) for own in zip(*parts, strict=True)]
    # Joined as tokens of all heads, which is how layers go on
    return torch.cat([one.transpose(1, 2) for one in outputs], dim=1).transpose(1, 2)
