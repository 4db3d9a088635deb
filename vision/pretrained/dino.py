"""DINOv2 and DINOv3 by their authors' names and transformers', and DINOv3 by timm's."""

from __future__ import annotations

import re
from typing import Any

from attention_core.pretrained import Checkpoint, names
from attention_core.pretrained.renaming import Weights, without_key_bias
from vision.positions import CenteredRotary
from vision.pretrained import eva, timm, vit
from vision.pretrained.huggingface import ATTENTION, OLD_ATTENTION
from vision.pretrained.positions import CLASS, POSITIONS, REGISTERS

LAYER = {
    "norm1": names.ATTENTION_NORM,
    **ATTENTION,
    **OLD_ATTENTION,
    "layer_scale1.lambda1": names.ATTENTION_SCALE,
    "norm2": names.MLP_NORM,
    "mlp.fc1": names.UP,
    "mlp.fc2": names.DOWN,
    "mlp.weights_in": names.UP,
    "mlp.weights_out": names.DOWN,
    "mlp.gate_proj": names.GATE,
    "mlp.up_proj": names.UP,
    "mlp.down_proj": names.DOWN,
    "layer_scale2.lambda1": names.MLP_SCALE,
}

TRANSFORMERS = {
    "embeddings.cls_token": CLASS,
    "embeddings.register_tokens": REGISTERS,
    "embeddings.patch_embeddings.projection": vit.PATCHES,
    "embeddings.patch_embeddings": vit.PATCHES,
    "layernorm": vit.NORM,
    "norm": vit.NORM,
    **names.layers("encoder.layer.#.", "encoder", LAYER),
    **names.layers("layer.#.", "encoder", LAYER),
}


def _is_dinov2(weights: Weights) -> bool:
    """By what its authors or transformers name; by timm's names it is one of its `vit_*`."""
    tower = re.compile(r"mask_token|register_tokens|encoder\.layer\.0\.layer_scale1\..*")
    return any(tower.fullmatch(name) for name in weights)


DINOV2 = vit.vit_family(
    recognises=_is_dinov2,
    prefixes=("dinov2.", "dinov2_with_registers."),
    model_types=("dinov2", "dinov2_with_registers"),
    table={
        **timm.TABLE,
        "register_tokens": REGISTERS,
        **names.layers("blocks.#.", "encoder", {"mlp.w12": names.UP, "mlp.w3": names.DOWN}),
        **TRANSFORMERS,
        "embeddings.position_embeddings": POSITIONS,
    },
    settings=vit.vit_settings,
    unused=vit.MASK_TOKEN,
)


def _is_dinov3(weights: Weights) -> bool:
    """By registers and no learned positions."""
    by_timm = {"cls_token", "reg_token", "blocks.0.gamma_2", "blocks.0.attn.qkv.weight"}
    return (
        "storage_tokens" in weights
        or "embeddings.patch_embeddings.weight" in weights
        or (by_timm <= weights.keys() and "pos_embed" not in weights)
    )


def _from_dinov3(weights: Weights) -> tuple[Weights, dict[str, str]]:
    """The authors keep a bias of keys, and a mask that makes it zero."""
    if "storage_tokens" not in weights:
        return weights, {}
    return without_key_bias(weights, "the mask of the bias makes it zero")


def _dinov3(checkpoint: Checkpoint) -> dict[str, Any]:
    periods = checkpoint.theirs.get("rope_embed.periods")
    if periods is None:
        rotary = CenteredRotary(base=checkpoint.config.get("rope_theta") or 100.0)
    else:
        rotary = CenteredRotary(frequencies=(1 / periods.double()).tolist())

    def head_dim(checkpoint: Checkpoint, dim: int, depth: int) -> int:
        return 4 * len(periods) if periods is not None else 128 if dim == 4096 else 64

    found = vit.vit_settings(checkpoint, eps=1e-5, gated={"gelu": "geglu"}, head_dim=head_dim)
    return {**found, "rotary": rotary}


DINOV3 = vit.vit_family(
    recognises=_is_dinov3,
    prefixes=("model.",),
    model_types=("dinov3_vit",),
    table={
        # No positions: other models of timm's by these names have some, and another rotary form
        **{theirs: ours for theirs, ours in eva.TABLE.items() if ours != POSITIONS},
        "reg_token": REGISTERS,
        "storage_tokens": REGISTERS,
        **names.layers(
            "blocks.#.",
            "encoder",
            {
                "ls1.gamma": names.ATTENTION_SCALE,
                "ls2.gamma": names.MLP_SCALE,
                "mlp.w1": names.GATE,
                "mlp.w2": names.UP,
                "mlp.w3": names.DOWN,
            },
        ),
        **TRANSFORMERS,
    },
    settings=_dinov3,
    unused={
        **vit.MASK_TOKEN,
        r"rope_embed\.periods": "rotary positions take them as an argument",
        r".*\.bias_mask": "it says that keys have no bias, as here",
        r"local_cls_norm\..*": "only pretraining uses it",
    },
    prepare=_from_dinov3,
)
