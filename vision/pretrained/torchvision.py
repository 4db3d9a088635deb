"""torchvision's ViT and Swin transformers, v1 and v2."""

from __future__ import annotations

from attention_core.training.weights import Weights, inside, rename
from vision.pretrained import names
from vision.pretrained.swin import DROPPED, swin_from_torchvision

TABLE = {
    "class_token": names.CLASS,
    "conv_proj": names.PATCHES,
    "encoder.pos_embedding": names.POSITIONS,
    "encoder.ln": names.NORM,
    "heads.head": names.HEAD,
    **inside(
        "encoder.layers.encoder_layer_#.",
        {
            "ln_1": names.ATTENTION_NORM,
            "self_attention.in_proj_weight": names.QKV + ".weight",
            "self_attention.in_proj_bias": names.QKV + ".bias",
            "self_attention.out_proj": names.OUT,
            "ln_2": names.MLP_NORM,
            "mlp.0": names.UP,
            "mlp.3": names.DOWN,
            # Of files written before torchvision 0.14
            "mlp.linear_1": names.UP,
            "mlp.linear_2": names.DOWN,
        },
    ),
}


def is_torchvision(weights: Weights) -> bool:
    """By the name of the patches."""
    return "conv_proj.weight" in weights or is_swin(weights)


def from_torchvision(weights: Weights) -> tuple[Weights, dict[str, str]]:
    """Ours, and what was dropped."""
    if not is_swin(weights):
        return rename(weights, TABLE), {}
    dropped = {name: "the window gives it" for name in weights if name.endswith(DROPPED)}
    if any(name.endswith("attn.logit_scale") for name in weights):
        for name in weights:
            if name.endswith("attn.qkv.bias"):
                dropped[f"{name} (of keys)"] = "the forward pass makes it zero"
    return swin_from_torchvision(weights), dropped


def is_swin(weights: Weights) -> bool:
    """Whether they are a Swin transformer's."""
    return "features.0.0.weight" in weights
