"""Estimates of how long a backend takes, so that the plan can choose.

All constants are nanoseconds of one core of an x86-64 server with AVX-512 (float32, torch 2.15,
November 2026), for one layer of four that share a plan; `python -m benchmarks.calibrate` compares
them with what it measures. What matters for the choice is their proportion; where another device
differs, `backend=` overrides.
"""

from __future__ import annotations

from typing import NamedTuple

from attention_core.job import Job
from attention_core.score_mods import split


class Rate(NamedTuple):
    """Time for one thing of one head: `fixed` and per number of the head's size, in a forward pass
    and in forward and backward together."""

    forward: float
    forward_per_dim: float
    both: float
    both_per_dim: float

    def of(self, job: Job) -> float:
        """Return the nanoseconds for the heads of `job`, which needs a gradient or not."""
        fixed, per_dim = self[2:] if job.grad else self[:2]
        return job.heads * (fixed + per_dim * job.head_dim)


#: Asking a mask about one pair, for all heads.
MASK = 1.5
#: Scoring one pair for one head, and turning it into what the attention takes.
FIXED_BIAS = 0.4
LEARNED_BIAS = 2.0
#: What score mods make of the score of one pair for one head, by a few operations; and backward.
SCORE_MODS = (3.0, 12.0)


def mask_cost(job: Job, pairs: float) -> float:
    """Return the nanoseconds to ask mask and bias about so many pairs."""
    time = 0.0 if job.mask is None else MASK * pairs
    added = split(job.bias)[1]
    if added is not None:
        time += job.heads * pairs * (LEARNED_BIAS if added.learned else FIXED_BIAS)
    return time


def modify_cost(job: Job, pairs: float) -> float:
    """Return the nanoseconds that score mods take for so many pairs of all samples."""
    return job.heads * pairs * SCORE_MODS[job.grad] if job.modifies else 0.0
