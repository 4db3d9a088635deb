"""timm's `vit_*`: ViT, DeiT, DINOv2, CLIP and SigLIP by its names; and back to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_core.errors import UsageError
from attention_core.training.weights import Weights, inside, rename, some
from vision.positions import ResampledPosition
from vision.pretrained import names
from vision.pretrained.names import disassemble

if TYPE_CHECKING:
    from vision.models import VisionTransformer

BLOCK = inside(
    "blocks.#.",
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
)

OUTSIDE = {
    "cls_token": names.CLASS,
    "reg_token": names.REGISTERS,
    "pos_embed": names.POSITIONS,
    "patch_embed.proj": names.PATCHES,
    "norm_pre": names.EMBEDDING_NORM,
    "norm": names.NORM,
    "fc_norm": names.POOL_NORM,
    "attn_pool.latent": names.POOL_QUERIES,
    "attn_pool.q": names.POOL_QUERY,
    "attn_pool.kv": names.POOL_KEY_VALUE,
    "attn_pool.proj": names.POOL_OUT,
    "attn_pool.norm": names.POOL_MLP_NORM,
    "attn_pool.mlp.fc1": names.POOL_UP,
    "attn_pool.mlp.fc2": names.POOL_DOWN,
    "head": names.HEAD,
}

TIMM = {**OUTSIDE, **BLOCK}


def is_timm(weights: Weights) -> bool:
    """By the name of the patches, but for models with rotary positions, which nothing names."""
    return "patch_embed.proj.weight" in weights and "norm_pre.weight" not in weights


def from_timm(weights: Weights) -> tuple[Weights, dict[str, str]]:
    """Ours, and what was dropped."""
    return rename(weights, TIMM), {}


def to_timm(model: VisionTransformer) -> Weights:
    """The weights of `model` by the names of timm's `VisionTransformer`, which loads them strictly.

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
    weights = disassemble({name: value.detach() for name, value in model.state_dict().items()})
    positions = model.positions
    if isinstance(positions, ResampledPosition) and positions.special and len(model.registers):
        weights[names.CLASS] = weights[names.CLASS] + weights[names.POSITIONS][:1]
        weights[names.POSITIONS] = weights[names.POSITIONS][1:]
    for name in names.TABLES:
        if name in weights:
            weights[name] = weights[name][None]
    back = {ours: theirs for theirs, ours in TIMM.items()}
    return {name: value.clone() for name, value in rename(weights, back).items()}


def _unknown_to_timm(model: VisionTransformer) -> dict[str, bool]:
    """What has no weights whose names would be refused, but is no part of timm's model."""
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
