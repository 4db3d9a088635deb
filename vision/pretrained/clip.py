"""The image towers of CLIP, by transformers' and OpenAI's (open_clip's) names, and of SigLIP."""

from __future__ import annotations

import re

from attention_core.training.weights import Weights, inside, rename, split_off, without_prefix
from vision.pretrained import names
from vision.pretrained.timm import from_timm

TEXT = "it is of the text tower, or compares it with images"

TRANSFORMERS = {
    "embeddings.class_embedding": names.CLASS,
    "embeddings.patch_embedding": names.PATCHES,
    "embeddings.position_embedding.weight": names.POSITIONS,
    "pre_layrnorm": names.EMBEDDING_NORM,
    "post_layernorm": names.NORM,
    "visual_projection": names.HEAD,
    "classifier": names.HEAD,
    **inside(
        "encoder.layers.#.",
        {
            "layer_norm1": names.ATTENTION_NORM,
            "self_attn.q_proj": names.QUERY,
            "self_attn.k_proj": names.KEY,
            "self_attn.v_proj": names.VALUE,
            "self_attn.out_proj": names.OUT,
            "layer_norm2": names.MLP_NORM,
            "mlp.fc1": names.UP,
            "mlp.fc2": names.DOWN,
        },
    ),
    # SigLIP's pooling
    "head.probe": names.POOL_QUERIES,
    "head.attention.in_proj_weight": names.POOL_QKV + ".weight",
    "head.attention.in_proj_bias": names.POOL_QKV + ".bias",
    "head.attention.out_proj": names.POOL_OUT,
    "head.layernorm": names.POOL_MLP_NORM,
    "head.mlp.fc1": names.POOL_UP,
    "head.mlp.fc2": names.POOL_DOWN,
}

OPENAI = {
    "class_embedding": names.CLASS,
    "positional_embedding": names.POSITIONS,
    "conv1": names.PATCHES,
    "ln_pre": names.EMBEDDING_NORM,
    "ln_post": names.NORM,
    "proj": names.HEAD + ".weight",
    **inside(
        "transformer.resblocks.#.",
        {
            "ln_1": names.ATTENTION_NORM,
            "attn.in_proj_weight": names.QKV + ".weight",
            "attn.in_proj_bias": names.QKV + ".bias",
            "attn.out_proj": names.OUT,
            "ls_1.gamma": names.ATTENTION_SCALE,
            "ln_2": names.MLP_NORM,
            "mlp.c_fc": names.UP,
            "mlp.c_proj": names.DOWN,
            "ls_2.gamma": names.MLP_SCALE,
        },
    ),
}


def is_clip(weights: Weights) -> bool:
    """By a class token and a norm before the first block; timm's other such models differ."""
    timm = {"norm_pre.weight", "norm.weight", "cls_token"} <= weights.keys()
    if timm and "attn_pool.latent" not in weights:
        return True
    tower = re.compile(r"(visual\.|(vision_model\.)?embeddings\.)class_embedding")
    return any(tower.fullmatch(name) for name in weights)


def from_clip(weights: Weights) -> tuple[Weights, dict[str, str]]:
    """Ours, and what was dropped."""
    if "patch_embed.proj.weight" in weights:
        return from_timm(weights)
    if any(name.startswith("visual.") for name in weights):
        weights, dropped = split_off(weights, {r"(?!visual\.).*": TEXT})
        ours = rename(without_prefix(weights, "visual."), OPENAI)
        if "head.weight" in ours:
            ours["head.weight"] = ours["head.weight"].T
        return ours, dropped
    weights, dropped = split_off(
        weights,
        {
            r"text_.*|logit_(scale|bias)": TEXT,
            r".*position_ids": "it counts positions",
        },
    )
    return rename(without_prefix(weights, "vision_model."), TRANSFORMERS), dropped


def is_siglip(weights: Weights) -> bool:
    """By its pooling, or by patches with a bias in place of CLIP's class token."""
    if "attn_pool.latent" in weights:
        return "norm_pre.weight" not in weights
    tower = re.compile(r"(vision_model\.)?embeddings\.patch_embedding\.bias")
    return any(tower.fullmatch(name) for name in weights)


def from_siglip(weights: Weights) -> tuple[Weights, dict[str, str]]:
    """Ours, and what was dropped."""
    unread = {}
    if "classifier.weight" in weights:
        unread = {r"(vision_model\.)?head\..*": "the classifier reads the mean over the patches"}
    weights, dropped = split_off(weights, unread)
    ours, text = from_clip(weights)
    return ours, {**dropped, **text}
