"""Blocks of queries, each with the keys that it can reach: cost follows the allowed pairs.

The plan cuts the tokens into compact tiles (`tiling`), finds which tiles of keys each tile of
queries can reach (`search`), puts blocks of one shape together (`groups`), and looks at the mask
and the bias once for all blocks that are arranged alike (`prepared`). No tensor of all pairs is
ever built.

An example, `Sequence(256)` under `Causal() & Neighborhood(32)`, for which 7,920 of the 65,536 pairs
are allowed. Tiles hold 32 tokens. The first tile of queries reaches one tile of keys, each other
one its own and that before it, so there are two shapes of blocks:

    group       queries     keys        pairs     allowed, for all blocks of the group
    1 block     (1, 32)     (1, 32)      1,024    (1, 1, 32, 32)
    7 blocks    (7, 32)     (7, 64)     14,336    (1, 1, 32, 64)

The seven are arranged alike, so the mask is asked about one of them. The kernel gathers runs of 16
neighbors, the queries of the seven as (7, 2) and the keys as (7, 4), and computes scores (32, 64)
for each head of each block: 15,360 pairs where `dense` has 65,536.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attention_core.backends import reference
from attention_core.backends.blocks.chunks import Blocks
from attention_core.backends.blocks.costs import by_kernels, cost
from attention_core.backends.blocks.flat import Flat, flat_block_attention
from attention_core.backends.blocks.groups import Listed
from attention_core.backends.blocks.modified import Call, modified_attention
from attention_core.backends.blocks.mods import Mods
from attention_core.backends.blocks.operator import block_attention
from attention_core.backends.blocks.prepared import Prepared, prepare
from attention_core.backends.derivatives import refuse_transforms, untouched
from attention_core.biases import Bias
from attention_core.job import Job, Options, Plan, Result
from attention_core.precision import HALVES
from attention_core.score_mods import split
from attention_core.transfer import moved

__all__ = ["Prepared", "cost", "describe", "prepare", "run", "share", "unsupported"]

_OPTIONAL = ("added", "empty_rows", "pattern", "index")


def unsupported(job: Job) -> str | None:
    if job.score is not None:
        return f"blocks compute dot products, no {type(job.score).__name__} score"
    if job.edge_features:
        return "blocks take keys and values of tokens, no edge features"
    return None


def describe(job: Job, prepared: Prepared) -> str:
    pairs = sum(group.pairs for group in prepared.groups)
    count = sum(len(group.queries) for group in prepared.groups)
    text = f"{count:,} blocks of queries with the keys that each can reach, {pairs:,} pairs in all"
    return f"{text}{', by kernels in numba' if by_kernels(job) else ''}."


def share(plan: Plan, bias: Bias | None, kv_heads: int, dtype: torch.dtype) -> None:
    """Compute what calls by a plan share, for programs that are compiled."""
    dtype = torch.promote_types(dtype, torch.float32)
    blocks = _inputs(plan, bias, kv_heads, dtype)
    if not split(bias)[0]:
        like = torch.empty(0, dtype=dtype, device=plan.job.device)
        plan.memo(("flat", bias, kv_heads, dtype), lambda: Flat.of(blocks, like))


def run(plan: Plan, q: Tensor, k: Tensor, v: Tensor, options: Options) -> Result:
    refuse_transforms("blocks", (q, k, v, *(() if options.sink is None else (options.sink,))))
    prepared: Prepared = plan.prepared
    job, bias, kv_heads = plan.job, options.bias, k.shape[1]
    with torch.autocast(q.device.type, enabled=False):
        dtype = torch.promote_types(q.dtype, torch.float32)
        flat: Flat | None = None
        if torch.compiler.is_compiling():
            flat = plan.memo(("flat", bias, kv_heads, dtype), lambda: None)
        blocks = _inputs(plan, bias, kv_heads, dtype) if flat is None else []
        q_own, k_own, v_own = (x.to(dtype) for x in (q, k, v))
        sink = None if options.sink is None else options.sink.to(dtype)
        seed = torch.randint(2**62, ()) if options.dropout_p else torch.zeros((), dtype=torch.long)
        numbers = (
            job.batch if prepared.rows == 1 else 1,
            options.scale,
            options.softcap,
            options.dropout_p,
            options.lse,
            prepared.covers_all_queries,
            prepared.keys_disjoint,
            q.dtype if _in_halves(q) else dtype,
        )
        terms, rest = split(bias)
        if terms:
            refuse_transforms("blocks", (x for term in terms for x in term.tensors()))
            listed = plan.memo("listed", lambda: moved(Listed.of(job.host), job.device))
            mods = Mods(job, terms, listed, adds=rest is not None)
            call = Call(mods, blocks, seed, *numbers)
            output, lse = modified_attention(call, q_own, k_own, v_own, sink)
        elif flat is not None:
            output, lse = flat_block_attention(
                q_own, k_own, v_own, sink, *flat.tensors, flat.layout, seed, *numbers
            )
        else:
            output, lse = block_attention(
                q_own,
                k_own,
                v_own,
                sink,
                *([_given(getattr(group, name), q) for group in blocks] for name in _OPTIONAL),
                [group.queries for group in blocks],
                [group.keys for group in blocks],
                [run for group in blocks for run in (group.query_run, group.key_run)],
                seed,
                *numbers,
            )
        if bias is not None and flat is None and not blocks:
            output = untouched(output, *bias.tensors())
        weights = None
        if options.weights:
            explicit = reference.explicit(plan)
            weights = reference.weigh(plan, explicit, q, k, options)[0].to(q.dtype)
    return Result(output.to(q.dtype), weights, lse)


def _in_halves(q: Tensor) -> bool:
    """Whether halves are multiplied as they are, and summed in float32, as tensor cores do. A CPU
    without those takes longer so."""
    return q.device.type == "cuda" and q.dtype in HALVES


def _inputs(plan: Plan, bias: Bias | None, kv_heads: int, dtype: torch.dtype) -> list[Blocks]:
    """What the kernel takes of each group, which layers share."""
    prepared: Prepared = plan.prepared
    with torch.autocast(plan.job.device.type, enabled=False):
        return plan.memo(
            ("blocks", bias, kv_heads, dtype), lambda: prepared.inputs(bias, kv_heads, dtype)
        )


def _given(tensor: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if tensor is None else tensor
