"""transformers' ViT, by the names of its files and of its version 5."""

from __future__ import annotations

from attention_core.training.weights import Weights, inside, rename, split_off, without_prefix
from vision.pretrained import names

LAYER = {
    "layernorm_before": names.ATTENTION_NORM,
    "layernorm_after": names.MLP_NORM,
    "attention.q_proj": names.QUERY,
    "attention.k_proj": names.KEY,
    "attention.v_proj": names.VALUE,
    "attention.o_proj": names.OUT,
    "mlp.fc1": names.UP,
    "mlp.fc2": names.DOWN,
    # Of files written before version 5
    "attention.attention.query": names.QUERY,
    "attention.attention.key": names.KEY,
    "attention.attention.value": names.VALUE,
    "attention.output.dense": names.OUT,
    "intermediate.dense": names.UP,
    "output.dense": names.DOWN,
}

TABLE = {
    "embeddings.cls_token": names.CLASS,
    "embeddings.position_embeddings": names.POSITIONS,
    "embeddings.patch_embeddings.projection": names.PATCHES,
    "layernorm": names.NORM,
    "classifier": names.HEAD,
    **inside("layers.#.", LAYER),
    **inside("encoder.layer.#.", LAYER),
}


def is_huggingface(weights: Weights) -> bool:
    """By the name of the patches."""
    name = "embeddings.patch_embeddings.projection.weight"
    return name in weights or f"vit.{name}" in weights


def from_huggingface(weights: Weights) -> tuple[Weights, dict[str, str]]:
    """Ours, and what was dropped."""
    weights, dropped = split_off(
        weights,
        {
            r"(vit\.)?pooler\..*": "the classifier reads the class token itself",
            r"(vit\.)?embeddings\.mask_token": "only pretraining uses it",
        },
    )
    return rename(without_prefix(weights, "vit."), TABLE), dropped
