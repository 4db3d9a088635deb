"""transformers' ViT, by the names of its files and of its version 5."""

from __future__ import annotations

from functools import partial

from attention_core.pretrained import names
from vision.pretrained import vit
from vision.pretrained.positions import CLASS, POSITIONS

#: Of files written before version 5.
OLD_ATTENTION = {
    "attention.attention.query": names.QUERY,
    "attention.attention.key": names.KEY,
    "attention.attention.value": names.VALUE,
    "attention.output.dense": names.OUT,
}
ATTENTION = {
    "attention.q_proj": names.QUERY,
    "attention.k_proj": names.KEY,
    "attention.v_proj": names.VALUE,
    "attention.o_proj": names.OUT,
}
LAYER = {
    "layernorm_before": names.ATTENTION_NORM,
    "layernorm_after": names.MLP_NORM,
    **ATTENTION,
    "mlp.fc1": names.UP,
    "mlp.fc2": names.DOWN,
    **OLD_ATTENTION,
    "intermediate.dense": names.UP,
    "output.dense": names.DOWN,
}

TABLE = {
    "embeddings.cls_token": CLASS,
    "embeddings.position_embeddings": POSITIONS,
    "embeddings.patch_embeddings.projection": vit.PATCHES,
    "layernorm": vit.NORM,
    "classifier": names.CLASSIFIER,
    **names.layers("layers.#.", "encoder", LAYER),
    **names.layers("encoder.layer.#.", "encoder", LAYER),
}

HUGGINGFACE = vit.vit_family(
    recognises=lambda w: "embeddings.patch_embeddings.projection.weight" in w,
    prefixes=("vit.",),
    model_types=("vit",),
    table=TABLE,
    settings=partial(vit.vit_settings, eps=1e-12),
    unused={r"pooler\..*": "the classifier reads the class token itself", **vit.MASK_TOKEN},
)
