"""EVA-02 by timm's names, which its DINOv3 shares."""

from __future__ import annotations

from attention_core.training.weights import Weights, inside, rename
from vision.pretrained import names
from vision.pretrained.timm import TIMM

EVA = {
    **{theirs: ours for theirs, ours in TIMM.items() if ours not in (names.QKV, names.REGISTERS)},
    **inside(
        "blocks.#.",
        {
            "attn.qkv.weight": names.QKV + ".weight",
            "attn.q_bias": names.QUERY + ".bias",
            "attn.v_bias": names.VALUE + ".bias",
            "attn.q_proj": names.QUERY,
            "attn.k_proj": names.KEY,
            "attn.v_proj": names.VALUE,
            "gamma_1": names.ATTENTION_SCALE,
            "gamma_2": names.MLP_SCALE,
            "mlp.fc1_g": names.GATE,
            "mlp.fc1_x": names.LINEAR,
            "mlp.norm": names.MLP_INNER_NORM,
        },
    ),
}


def is_eva02(weights: Weights) -> bool:
    """By biases of queries and values alone, and a gated feed-forward network."""
    mlp, attention = "blocks.0.mlp.", "blocks.0.attn."
    separate = {f"{attention}q_proj.weight", f"{mlp}fc1_g.weight", "pos_embed"}
    if separate <= weights.keys():
        return True
    fused = {f"{attention}q_bias", f"{mlp}fc1.weight", f"{mlp}fc2.weight", "pos_embed"}
    if not fused <= weights.keys():
        return False
    return len(weights[f"{mlp}fc1.weight"]) == 2 * weights[f"{mlp}fc2.weight"].shape[1]


def from_eva02(weights: Weights) -> tuple[Weights, dict[str, str]]:
    """Ours, and what was dropped."""
    return rename(weights, EVA), {}
