"""timm's `vit_*`: ViT, DeiT, DINOv2, CLIP and SigLIP by its names; and back to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from attention_core.errors import UsageError
from attention_core.pretrained import Checkpoint, names
from attention_core.pretrained.renaming import Weights, modules, rename, some
from vision.positions import ResampledPosition
from vision.pretrained import vit
from vision.pretrained.positions import CLASS, POSITIONS, REGISTERS, TABLES

if TYPE_CHECKING:
    from vision.models import VisionTransformer

TABLE = {
    "cls_token": CLASS,
    "reg_token": REGISTERS,
    "pos_embed": POSITIONS,
    "patch_embed.proj": vit.PATCHES,
    "norm_pre": vit.EMBEDDING_NORM,
    "norm": vit.NORM,
    "fc_norm": vit.POOL_NORM,
    "attn_pool.latent": vit.POOL_QUERIES,
    "attn_pool.q": "pool.attention.query",
    "attn_pool.kv": "pool.attention.key_value",
    "attn_pool.proj": "pool.attention.out",
    "attn_pool.norm": "pool.feed_forward_residual.norm",
    "attn_pool.mlp.fc1": "pool.feed_forward.up",
    "attn_pool.mlp.fc2": "pool.feed_forward.down",
    "head": names.CLASSIFIER,
    **names.layers(
        "blocks.#.",
        "encoder",
        {
            "norm1": names.ATTENTION_NORM,
            "attn.qkv": names.QKV,
            "attn.q_norm": names.QUERY_NORM,
            "attn.k_norm": names.KEY_NORM,
            "attn.proj": names.OUT,
            "ls1.gamma": names.ATTENTION_SCALE,
            "norm2": names.MLP_NORM,
            "mlp.fc1": names.UP,
            "mlp.fc2": names.DOWN,
            "ls2.gamma": names.MLP_SCALE,
        },
    ),
}

#: What other models have beside patches: windows, a norm of other eps in front of the blocks, or
#: two heads.
_OTHERS = frozenset({"patch_embed.norm.weight", "norm_pre.weight", "dist_token"})

TIMM = vit.vit_family(
    recognises=lambda w: "patch_embed.proj.weight" in w and _OTHERS.isdisjoint(w),
    table=TABLE,
    settings=vit.vit_settings,
)


def _distilled(checkpoint: Checkpoint) -> dict[str, Any]:
    found = vit.vit_settings(checkpoint)
    return {name: found[name] for name in found if name not in ("class_token", "pooling")}


TIMM_DISTILLED = vit.vit_family(
    recognises=lambda w: "dist_token" in w,
    table={**TABLE, "dist_token": REGISTERS, "head_dist": names.DISTILLED},
    settings=_distilled,
)


def to_timm(model: VisionTransformer) -> Weights:
    """Return the weights of `model` by the names of timm's `VisionTransformer`, which loads them
    strictly.

    timm's model must be made with what has no weights: `num_heads`, `global_pool`, the `eps` of
    `norm_layer`, `act_layer`. Where there are registers, the vector for the place of the class
    token becomes a part of the token, and timm's model takes `no_embed_class=True`. Where theirs
    was made with `qkv_bias=False`, ours has biases that may have been trained, and theirs takes
    them with `qkv_bias=True`.

    Raises:
        UsageError: timm's has no such form; the message says of what.
    """
    without = [name for name, used in _unknown_to_timm(model).items() if used]
    if without:
        raise UsageError(f"to_timm: timm's VisionTransformer has no {some(without)}.")
    weights = _fused({name: value.detach() for name, value in model.state_dict().items()})
    positions = model.positions
    if isinstance(positions, ResampledPosition) and positions.special and len(model.registers):
        weights[CLASS] = weights[CLASS] + weights[POSITIONS][:1]
        weights[POSITIONS] = weights[POSITIONS][1:]
    for name in TABLES:
        if name in weights:
            weights[name] = weights[name][None]
    back = {ours: theirs for theirs, ours in TABLE.items()}
    back[model.parts[names.CLASSIFIER]] = back.pop(names.CLASSIFIER)
    return {name: value.clone() for name, value in rename(weights, back).items()}


def _fused(ours: Weights) -> Weights:
    """With the queries, keys and values of each block in one; without what is empty."""
    fused = {name: value for name, value in ours.items() if value.numel()}
    for prefix in modules(fused, "key_value"):
        if not prefix.startswith("encoder."):
            continue
        for kind in ("weight", "bias"):
            query = fused.pop(f"{prefix}query.{kind}", None)
            both = fused.pop(f"{prefix}key_value.{kind}", None)
            if both is None and f"{prefix}value_bias" in fused:
                value = fused.pop(f"{prefix}value_bias")
                both = torch.cat([torch.zeros_like(value), value])
            if query is not None and both is not None:
                fused[f"{prefix}qkv.{kind}"] = torch.cat([query, both])
    return fused


def _unknown_to_timm(model: VisionTransformer) -> dict[str, bool]:
    """Return which parts of `model` are unknown to timm and have no weights to show it by."""
    block = model.encoder.blocks[0]
    attention = block.attention
    return {
        "blocks that serve several layers": len(model.encoder.blocks) < len(model.encoder.masks),
        "mask": any(mask is not None for mask in model.encoder.masks),
        "relative positions": len(model.encoder.biases) > 0,
        "rotary positions": attention.rotary is not None,
        "fixed positions": not isinstance(model.positions, ResampledPosition | None),
        "grouped keys": attention.kv_heads != attention.heads,
        "score, scale or softcap": any(
            part is not None for part in (attention.score, attention.scale, attention.softcap)
        ),
        "norm after a block": block.attention_residual.norm_order != "pre",
        "pooling by attention without a feed-forward network": model.pooling == "attention",
        "overlapping patches": model.embedding.stride != model.embedding.patch_size,
    }
