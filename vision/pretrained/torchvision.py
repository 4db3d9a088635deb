"""torchvision's ViT."""

from __future__ import annotations

from attention_core.pretrained import names
from vision.pretrained import vit
from vision.pretrained.positions import CLASS, POSITIONS

TORCHVISION = vit.vit_family(
    recognises=lambda w: "conv_proj.weight" in w,
    table={
        "class_token": CLASS,
        "conv_proj": vit.PATCHES,
        "encoder.pos_embedding": POSITIONS,
        "encoder.ln": vit.NORM,
        "heads.head": names.CLASSIFIER,
        **names.layers(
            "encoder.layers.encoder_layer_#.",
            "encoder",
            {
                "ln_1": names.ATTENTION_NORM,
                "self_attention.in_proj_weight": f"{names.QKV}.weight",
                "self_attention.in_proj_bias": f"{names.QKV}.bias",
                "self_attention.out_proj": names.OUT,
                "ln_2": names.MLP_NORM,
                "mlp.0": names.UP,
                "mlp.3": names.DOWN,
                # Of files written before torchvision 0.14
                "mlp.linear_1": names.UP,
                "mlp.linear_2": names.DOWN,
            },
        ),
    },
    settings=vit.vit_settings,
)
