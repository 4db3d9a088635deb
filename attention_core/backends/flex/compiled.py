"""FlexAttention, compiled once for each structure."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from attention_core.backends.flex.lists import Lists
from attention_core.backends.flex.program import Program

#: Its code is made anew for each structure: torch.compile counts recompilations by code, and runs
#: what has too many of them without compiling, for all pairs of tokens.
_SOURCE = """
def flex(attention, q, k, v, score_mod, block_mask, options):
    return attention(q, k, v, score_mod=score_mod, block_mask=block_mask, **options)
"""


#: The sides of a kernel's tiles, forward and backward, and the most that they are by themselves.
_TILES = ("BLOCK_M", "BLOCK_N", "BLOCK_M1", "BLOCK_N1", "BLOCK_M2", "BLOCK_N2")
_TILE = 128


#: Of torch.compile.
_COMPILER = "inductor"


class NotCompiled(RuntimeError):
    """A structure cannot be compiled, or was for as many shapes as torch.compile allows."""


@cache
def _compiled(structure: tuple[Any, ...]) -> Callable[..., Any]:
    scope: dict[str, Any] = {}
    exec(compile(_SOURCE, f"<flex kernel {hash(structure) & 0xFFFFFF:x}>", "exec"), scope)
    made: Callable[..., Any] = torch.compile(scope["flex"], backend=_COMPILER, fullgraph=True)
    return made


def structure(
    q: Tensor, k: Tensor, mask: Program | None, score: Program | None, needs_lse: bool
) -> tuple[Any, ...]:
    """Return what a kernel is compiled for, sizes aside."""
    return (
        None if mask is None else mask.source,
        None if score is None else score.source,
        q.dtype,
        q.device,
        q.shape[1] == k.shape[1],
        q.shape[-1],
        needs_lse,
    )


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: Lists | None,
    size: int,
    mask: Program | None,
    score: Program | None,
    scale: float,
    needs_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the output (B, H, Lq, Dv) and, if it is needed, the log-sum-exp (B, H, Lq).

    Args:
        q, k, v: of whole blocks.
        lists, size: the blocks of keys that each block of queries sees; None: all.
        mask, score: the mask_mod and score_mod, where there is one.

    Raises:
        NotCompiled: it cannot be, or torch.compile would run it for all pairs from now on.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
    from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

    block_mask = None
    if lists is not None and mask is not None:
        block_mask = BlockMask(
            seq_lengths=(q.shape[2], k.shape[2]),
            BLOCK_SIZE=(size, size),
            mask_mod=mask.mod,
            **lists._asdict(),
        )
    options: dict[str, Any] = {"scale": scale, "enable_gqa": q.shape[1] != k.shape[1]}
    if needs_lse:
        options["return_aux"] = AuxRequest(lse=True)
    if size < _TILE and q.device.type != "cpu":  # a kernel's tiles have to fit into a block
        options["kernel_options"] = dict.fromkeys(_TILES, size)
    flex = _compiled(structure(q, k, mask, score, needs_lse))
    value_dim = v.shape[-1]
    q, k, v = (_widened(x) for x in (q, k, v))
    score_mod = None if score is None else score.mod
    try:
        found = flex(flex_attention, q, k, v, score_mod, block_mask, options)
    except FailOnRecompileLimitHit as error:
        limit = torch._dynamo.config.recompile_limit
        raise NotCompiled(
            f"was compiled for {limit} shapes, torch._dynamo.config.recompile_limit: raise it, or "
            "give batches fewer lengths"
        ) from error
    except TorchDynamoException as error:
        words = str(error).strip().splitlines() or [""]
        raise NotCompiled(f"raises {type(error).__name__}: {words[0]:.200}") from error
    output, lse = (found[0], found[1].lse) if needs_lse else (found, None)
    return output[..., :value_dim], lse


def _widened(x: Tensor) -> Tensor:
    """Fill heads up to a power of two of at least 16 numbers, which the kernels' products need."""
    dim = x.shape[-1]
    wanted = max(16, 1 << (dim - 1).bit_length())
    return torch.nn.functional.pad(x, (0, wanted - dim)) if wanted > dim else x
