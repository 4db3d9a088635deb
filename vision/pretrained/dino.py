"""DINOv2 and DINOv3 by their authors' names and transformers', and DINOv3 by timm's."""

from __future__ import annotations

import re

from attention_core.training.weights import Weights, inside, rename, split_off, without_prefix
from vision.pretrained import names
from vision.pretrained.eva import EVA
from vision.pretrained.timm import TIMM

PRETRAINING = "only pretraining uses it"
MASK_TOKEN = {r"(embeddings\.)?mask_token": PRETRAINING}

DINOV2 = {
    **TIMM,
    "register_tokens": names.REGISTERS,
    "blocks.#.mlp.w12": names.UP,
    "blocks.#.mlp.w3": names.DOWN,
}

# No positions: other models of timm's by these names have some, and another rotary form
DINOV3 = {
    **{theirs: ours for theirs, ours in EVA.items() if ours != names.POSITIONS},
    "reg_token": names.REGISTERS,
    "storage_tokens": names.REGISTERS,
    "blocks.#.ls1.gamma": names.ATTENTION_SCALE,
    "blocks.#.ls2.gamma": names.MLP_SCALE,
    "blocks.#.mlp.w1": names.GATE,
    "blocks.#.mlp.w2": names.LINEAR,
    "blocks.#.mlp.w3": names.DOWN,
}

LAYER = {
    "norm1": names.ATTENTION_NORM,
    "attention.q_proj": names.QUERY,
    "attention.k_proj": names.KEY,
    "attention.v_proj": names.VALUE,
    "attention.o_proj": names.OUT,
    # Of files written before transformers 5
    "attention.attention.query": names.QUERY,
    "attention.attention.key": names.KEY,
    "attention.attention.value": names.VALUE,
    "attention.output.dense": names.OUT,
    "layer_scale1.lambda1": names.ATTENTION_SCALE,
    "norm2": names.MLP_NORM,
    "mlp.fc1": names.UP,
    "mlp.fc2": names.DOWN,
    "mlp.weights_in": names.UP,
    "mlp.weights_out": names.DOWN,
    "layer_scale2.lambda1": names.MLP_SCALE,
}
GATED = {"mlp.gate_proj": names.GATE, "mlp.up_proj": names.LINEAR, "mlp.down_proj": names.DOWN}
PLAIN = {"mlp.up_proj": names.UP, "mlp.down_proj": names.DOWN}

TRANSFORMERS = {
    "embeddings.cls_token": names.CLASS,
    "embeddings.register_tokens": names.REGISTERS,
    "embeddings.position_embeddings": names.POSITIONS,
    "embeddings.patch_embeddings.projection": names.PATCHES,
    "embeddings.patch_embeddings": names.PATCHES,
    "layernorm": names.NORM,
    "norm": names.NORM,
}


def is_dinov2(weights: Weights) -> bool:
    """By what its authors or transformers name; by timm's names it is one of its `vit_*`."""
    tower = re.compile(r"mask_token|register_tokens|(dinov2\.)?encoder\.layer\.0\.layer_scale1\..*")
    return any(tower.fullmatch(name) for name in weights)


def from_dinov2(weights: Weights) -> tuple[Weights, dict[str, str]]:
    """Ours, and what was dropped."""
    weights, dropped = split_off(weights, MASK_TOKEN)
    if "cls_token" in weights:
        return rename(weights, DINOV2), dropped
    return rename(without_prefix(weights, "dinov2."), _transformers(weights)), dropped


def is_dinov3(weights: Weights) -> bool:
    """By registers and no learned positions."""
    timm = {"cls_token", "reg_token", "blocks.0.gamma_2", "blocks.0.attn.qkv.weight"}
    return (
        "storage_tokens" in weights
        or "embeddings.patch_embeddings.weight" in weights
        or (timm <= weights.keys() and "pos_embed" not in weights)
    )


def from_dinov3(weights: Weights) -> tuple[Weights, dict[str, str]]:
    """Ours, and what was dropped."""
    weights, dropped = split_off(
        weights,
        {
            **MASK_TOKEN,
            r"rope_embed\.periods": "rotary positions take them as an argument",
            r".*\.bias_mask": "it says that keys have no bias, as here",
            r"local_cls_norm\..*": PRETRAINING,
        },
    )
    if "embeddings.cls_token" in weights:
        return rename(without_prefix(weights, "model."), _transformers(weights)), dropped
    masked = [name for name in weights if name.endswith(".qkv.bias")]
    for name in masked if "storage_tokens" in weights else []:
        query, _, value = weights.pop(name).chunk(3)
        module = name.removesuffix("qkv.bias")
        weights |= {f"{module}q_bias": query, f"{module}v_bias": value}
        dropped[f"{name} (of keys)"] = "the mask of the bias makes it zero"
    return rename(weights, DINOV3), dropped


def _transformers(weights: Weights) -> dict[str, str]:
    gated = any(".mlp.gate_proj." in name for name in weights)
    layer = {**LAYER, **(GATED if gated else PLAIN)}
    return {**TRANSFORMERS, **inside("encoder.layer.#.", layer), **inside("layer.#.", layer)}
