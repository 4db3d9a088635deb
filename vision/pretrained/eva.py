"""EVA-02 by timm's names, which its DINOv3 shares."""

from __future__ import annotations

from typing import Any

from attention_core import Rotary
from attention_core.pretrained import Checkpoint, names
from attention_core.pretrained.renaming import Weights
from vision.pretrained import timm, vit
from vision.pretrained.positions import REGISTERS

TABLE = {
    **{
        theirs: ours
        for theirs, ours in timm.TABLE.items()
        if not ours.endswith(names.QKV) and ours != REGISTERS
    },
    **names.layers(
        "blocks.#.",
        "encoder",
        {
            "attn.qkv.weight": f"{names.QKV}.weight",
            "attn.q_bias": f"{names.QUERY}.bias",
            "attn.v_bias": f"{names.VALUE}.bias",
            "attn.q_proj": names.QUERY,
            "attn.k_proj": names.KEY,
            "attn.v_proj": names.VALUE,
            "gamma_1": names.ATTENTION_SCALE,
            "gamma_2": names.MLP_SCALE,
            "mlp.fc1_g": names.GATE,
            "mlp.fc1_x": names.UP,
            "mlp.norm": names.MLP_INNER_NORM,
        },
    ),
}


def _is_eva02(weights: Weights) -> bool:
    """By biases of queries and values alone, and a gated feed-forward network."""
    mlp, attention = "blocks.0.mlp.", "blocks.0.attn."
    separate = {f"{attention}q_proj.weight", f"{mlp}fc1_g.weight", "pos_embed"}
    if separate <= weights.keys():
        return True
    fused = {f"{attention}q_bias", f"{mlp}fc1.weight", f"{mlp}fc2.weight", "pos_embed"}
    if not fused <= weights.keys():
        return False
    return len(weights[f"{mlp}fc1.weight"]) == 2 * weights[f"{mlp}fc2.weight"].shape[1]


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    # All of them were trained on, or are scaled to, 16 × 16 patches
    rotary = Rotary(axes=2, layout="interleaved", extent=16.0)
    return {**vit.vit_settings(checkpoint), "rotary": rotary}


EVA02 = vit.vit_family(recognises=_is_eva02, table=TABLE, settings=_settings)
