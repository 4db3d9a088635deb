"""Which module attends over pairs: kernels, in Triton or for a CPU, or plain torch."""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from attention_core.backends.edges import dropout, fast, plain
from attention_core.backends.edges.pairs import Pairs
from attention_core.backends.edges.plain import Inputs
from attention_core.scores import Additive, AdditiveV2, Score

#: Whether triton is there; it is not imported. Looked up once, as programs that are compiled ask.
_INSTALLED = find_spec("triton") is not None


def in_triton(device: torch.device) -> bool:
    """Return whether kernels in Triton do the work on this device."""
    return device.type == "cuda" and _INSTALLED


def reads(x: Tensor, score: Score | None, modified: bool) -> bool:
    """Return whether queries, keys and values of the dtype of x are read as they are.

    Kernels in Triton read bfloat16 and float16, and compute in float32.

    Args:
        modified: whether score mods change scores, which is done outside of kernels.
    """
    known = score is None or isinstance(score, Additive | AdditiveV2)
    return x.dtype in (torch.float32, torch.float64) or (
        in_triton(x.device) and known and not modified
    )


def way(x: Inputs, pairs: Pairs) -> ModuleType:
    """Return the module that does this: one that has `forward` and `backward` as `plain` has."""
    if fast.takes(x, pairs):
        return fast
    if x.keep is not None or not len(pairs.row) or not in_triton(x.v.device):
        return plain
    from attention_core.backends.edges.triton import launch

    return launch


def taken(x: Inputs, pairs: Pairs) -> tuple[Any, Inputs]:
    """Return the module that does this, and the inputs as it takes them."""
    found = way(x, pairs)
    return found, drawn(x, pairs) if found in (plain, fast) else x


def drawn(x: Inputs, pairs: Pairs) -> Inputs:
    """Return the inputs in a dtype to compute in, and with the weights that dropout keeps."""
    if x.seed is not None:
        keep = dropout.kept(x.seed, x.heads, len(pairs.row), x.grow)
        x = x._replace(keep=keep, seed=None)
    exact = torch.promote_types(x.v.dtype, torch.float32)
    if x.v.dtype == exact:
        return x
    wide: dict[str, Any] = {
        name: t.to(exact)
        for name, t in x._asdict().items()
        if isinstance(t, Tensor) and t.is_floating_point()
    }
    return x._replace(**wide)
