"""torchvision's names of Swin transformers, v1 and v2."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

#: Buffers that follow from the window, at the end of a name.
DROPPED = ("relative_position_index", "relative_coords_table")

# Stage i and what merges its tokens are features 2i + 1 and 2i + 2; feature 0 is the embedding.
_BLOCK = re.compile(r"features\.(\d*[13579])\.(\d+)\.(.+)")
_MERGING = re.compile(r"features\.(\d*[02468])\.((?:norm|reduction)\..+)")
_EMBEDDING = {"features.0.0.": "embedding.project.", "features.0.2.": "embedding_norm."}
_IN_BLOCK = {
    "norm1.": "attention_residual.norm.",
    "attn.proj.": "attention.out.",
    "attn.logit_scale": "attention.log_temperature",
    "norm2.": "feed_forward_residual.norm.",
    "mlp.0.": "feed_forward.up.",
    "mlp.3.": "feed_forward.down.",
}
_IN_BIAS = {"attn.relative_position_bias_table": "table", "attn.cpb_mlp.": "mlp."}


def swin_from_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of torchvision's `swin_*` and `swin_v2_*` under the names of our
    `SwinTransformer`.

    `DROPPED` buffers are left out; names that are not torchvision's stay as they are, so that
    `load_state_dict` lists them.

    Args:
        state_dict: as torchvision's model gives it.
    """
    second = any(name.endswith("attn.logit_scale") for name in state_dict)
    ours: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        if name.endswith(DROPPED):
            continue
        if found := _BLOCK.fullmatch(name):
            stage, block, rest = int(found[1]) // 2, found[2], found[3]
            prefix = f"stages.{stage}.blocks.{block}."
            if rest.startswith("attn.qkv."):
                kind = rest.removeprefix("attn.qkv.")
                ours |= _projections(f"{prefix}attention.", kind, value, key_bias=not second)
                continue
            if rest == "attn.cpb_mlp.0.weight":
                value = -value  # their network takes query minus key, ours key minus query
            if own := _renamed(rest, _IN_BIAS):
                ours[f"stages.{stage}.biases.{block}.{own}"] = value
            elif own := _renamed(rest, _IN_BLOCK):
                ours[prefix + own] = value
            else:
                ours[name] = value
        elif found := _MERGING.fullmatch(name):
            ours[f"stages.{int(found[1]) // 2 - 1}.merging.{found[2]}"] = value
        else:
            ours[_renamed(name, _EMBEDDING) or name] = value
    return ours


def _renamed(name: str, table: Mapping[str, str]) -> str | None:
    for theirs, own in table.items():
        if name.startswith(theirs):
            return own + name.removeprefix(theirs)
    return None


def _projections(prefix: str, kind: str, fused: Tensor, *, key_bias: bool) -> dict[str, Tensor]:
    """Theirs, queries, keys and values in one, as ours: queries, and keys with values."""
    query, key, value = fused.chunk(3)
    if kind == "bias" and not key_bias:  # theirs is zeroed in each forward pass
        return {f"{prefix}query.bias": query, f"{prefix}value_bias": value}
    both = torch.cat([key, value])
    return {f"{prefix}query.{kind}": query, f"{prefix}key_value.{kind}": both}
