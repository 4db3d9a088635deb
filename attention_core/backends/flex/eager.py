"""What FlexAttention computes, by torch's own operations: for CPUs, whose FlexAttention has no
backward pass, and to prove what is compiled elsewhere.

Keys are gathered by the lists of blocks, so no pair is computed that is in none of them, and a list
that lacks a block is seen in the result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attention_core.backends.flex.lists import Lists
from attention_core.backends.flex.program import Mod

#: Scores that are computed together.
_CHUNK = 1 << 17


def attend_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: Lists,
    size: int,
    mask_mod: Mod | None,
    score_mod: Mod | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return the output (B, H, Lq, Dv) and the log-sum-exp (B, H, Lq), with gradients.

    Args:
        q, k, v: (B, H, Lq, D), (B, Hkv, Lk, D), (B, Hkv, Lk, Dv), of whole blocks.
        lists: which blocks of keys each block of queries sees.
        size: tokens in a block.
        mask_mod, score_mod: as FlexAttention takes them, of indices that broadcast.
        scale: factor on scores.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    own, keys, values = (x.to(dtype).unflatten(2, (-1, size)) for x in (q, k, v))
    listed = _both(lists)
    scores = q.shape[0] * q.shape[1] * size * size * listed[0].shape[-1]
    parts = []
    for blocks in torch.arange(own.shape[2], device=q.device).split(max(_CHUNK // scores, 1)):
        few = [x[:, :, blocks] for x in listed]
        parts.append(_chunk(own, keys, values, blocks, few, mask_mod, score_mod, scale))
    output, lse = (torch.cat(part, 2) for part in zip(*parts, strict=True))
    return output.flatten(2, 3).to(q.dtype), lse.flatten(2, 3)


def _chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    listed: list[Tensor],
    mask_mod: Mod | None,
    score_mod: Mod | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The same for some blocks of queries, of tokens in blocks, (B, H, blocks, size, D)."""
    batch, heads, size, device = q.shape[0], q.shape[1], q.shape[3], q.device
    index, is_full, is_block = listed
    within = torch.arange(size, device=device)

    def gathered(x: Tensor) -> Tensor:
        at = index.expand(batch, -1, -1, -1)[:, 0]
        rows = x.movedim(2, 1)[torch.arange(batch, device=device)[:, None, None], at]
        # (B, blocks, listed, Hkv, size, D) to (B, H, blocks, listed · size, D)
        rows = rows.permute(0, 3, 1, 2, 4, 5).flatten(3, 4)
        return rows.repeat_interleave(heads // x.shape[1], dim=1)

    def of_keys(flags: Tensor) -> Tensor:
        return flags.repeat_interleave(size, dim=-1)[:, :, :, None]

    scores = q[:, :, blocks] @ gathered(k).mT * scale
    pairs = (
        torch.arange(batch, device=device).view(-1, 1, 1, 1, 1),
        torch.arange(heads, device=device).view(1, -1, 1, 1, 1),
        (blocks[:, None] * size + within)[None, None, :, :, None],
        (index[..., None] * size + within).flatten(-2)[:, :, :, None],
    )
    allowed = of_keys(is_block)
    if mask_mod is not None:
        allowed = allowed & (of_keys(is_full) | mask_mod(*pairs))
    if score_mod is not None:
        scores = score_mod(scores.masked_fill(~allowed, 0), *pairs).expand_as(scores)
    scores = scores.masked_fill(~allowed, -torch.inf)
    top = scores.detach().amax(-1, keepdim=True)
    empty = top == -torch.inf
    top = top.masked_fill(empty, 0)
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdim=True).masked_fill(empty, 1)
    lse = (total.log() + top).masked_fill(empty, -torch.inf).squeeze(-1)
    return weights / total @ gathered(v), lse


def _both(lists: Lists) -> list[Tensor]:
    """The blocks that are listed, (rows, 1, blocks, width), those whose pairs are all allowed last;
    which these are, and which are no filling behind a shorter list."""
    parts = []
    for count, index in (
        (lists.kv_num_blocks, lists.kv_indices),
        (lists.full_kv_num_blocks, lists.full_kv_indices),
    ):
        parts.append(torch.arange(index.shape[-1], device=index.device) < count[..., None])
    index = torch.cat([lists.kv_indices, lists.full_kv_indices], -1).long()
    full = torch.cat([torch.zeros_like(parts[0]), torch.ones_like(parts[1])], -1)
    return [index, full, torch.cat(parts, -1)]
