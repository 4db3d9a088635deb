"""The image towers of CLIP, by transformers' and OpenAI's (open_clip's) names, and of SigLIP."""

from __future__ import annotations

from functools import partial

from attention_core.errors import UsageError
from attention_core.pretrained import Checkpoint, names
from attention_core.pretrained.renaming import Weights, split_off, without_prefix
from vision.pretrained import timm, vit
from vision.pretrained.positions import CLASS, POSITIONS

TEXT = "it is of the text tower, or compares it with images"

TRANSFORMERS = {
    "embeddings.class_embedding": CLASS,
    "embeddings.patch_embedding": vit.PATCHES,
    "embeddings.position_embedding.weight": POSITIONS,
    "pre_layrnorm": vit.EMBEDDING_NORM,
    "post_layernorm": vit.NORM,
    "visual_projection": names.CLASSIFIER,
    "classifier": names.CLASSIFIER,
    **names.layers(
        "encoder.layers.#.",
        "encoder",
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
    "head.probe": vit.POOL_QUERIES,
    "head.attention.in_proj_weight": "pool.attention.qkv.weight",
    "head.attention.in_proj_bias": "pool.attention.qkv.bias",
    "head.attention.out_proj": "pool.attention.out",
    "head.layernorm": "pool.feed_forward_residual.norm",
    "head.mlp.fc1": "pool.feed_forward.up",
    "head.mlp.fc2": "pool.feed_forward.down",
}

OPENAI = {
    "class_embedding": CLASS,
    "positional_embedding": POSITIONS,
    "conv1": vit.PATCHES,
    "ln_pre": vit.EMBEDDING_NORM,
    "ln_post": vit.NORM,
    "proj": f"{names.CLASSIFIER}.weight",
    **names.layers(
        "transformer.resblocks.#.",
        "encoder",
        {
            "ln_1": names.ATTENTION_NORM,
            "attn.in_proj_weight": f"{names.QKV}.weight",
            "attn.in_proj_bias": f"{names.QKV}.bias",
            "attn.out_proj": names.OUT,
            "ls_1.gamma": names.ATTENTION_SCALE,
            "ln_2": names.MLP_NORM,
            "mlp.c_fc": names.UP,
            "mlp.c_proj": names.DOWN,
            "ls_2.gamma": names.MLP_SCALE,
        },
    ),
}

TABLE = {**timm.TABLE, **TRANSFORMERS, **OPENAI}
UNUSED = {
    r"text_.*|logit_(scale|bias)": TEXT,
    r".*position_ids": "it counts positions",
}


def _is_clip(weights: Weights) -> bool:
    """By a class token and a norm before the first block; timm's other such models differ."""
    by_timm = {"norm_pre.weight", "norm.weight", "cls_token"} <= weights.keys()
    if by_timm and "attn_pool.latent" not in weights:
        return True
    return not {"visual.class_embedding", "embeddings.class_embedding"}.isdisjoint(weights)


def _from_clip(weights: Weights) -> tuple[Weights, dict[str, str]]:
    """OpenAI's text tower has the names of its image tower, which alone have a prefix."""
    if not any(name.startswith("visual.") for name in weights):
        return weights, {}
    rest, dropped = split_off(weights, {r"(?!visual\.).*": TEXT})
    rest = without_prefix(rest, "visual.")
    if "proj" in rest:
        rest["proj"] = rest["proj"].T
    return rest, dropped


def _activation(checkpoint: Checkpoint) -> str:
    if "input_resolution" in checkpoint.dropped:  # OpenAI's own files have it
        return "quick_gelu"
    raise UsageError(
        "weights: CLIP's do not say which activation they were trained with. Give activation="
        "'quick-gelu' (OpenAI's models) or 'gelu' (most of open_clip's), or config=."
    )


CLIP = vit.vit_family(
    recognises=_is_clip,
    prefixes=("vision_model.",),
    model_types=("clip", "clip_vision_model"),
    table=TABLE,
    settings=partial(vit.vit_settings, eps=1e-5, activation=_activation),
    unused=UNUSED,
    prepare=_from_clip,
)


def _is_siglip(weights: Weights) -> bool:
    """By its pooling, or by patches with a bias in place of CLIP's class token."""
    if "attn_pool.latent" in weights:
        return "norm_pre.weight" not in weights
    return "embeddings.patch_embedding.bias" in weights


def _from_siglip(weights: Weights) -> tuple[Weights, dict[str, str]]:
    if "classifier.weight" not in weights:
        return weights, {}
    return split_off(weights, {r"head\..*": "the classifier reads the mean over the patches"})


def _head_dim(checkpoint: Checkpoint, dim: int, depth: int) -> int:
    giant = (dim, depth) == (1536, 40)  # SigLIP 2's; not DINOv2's
    return 96 if giant else vit.published_head(checkpoint, dim, depth)


SIGLIP = vit.vit_family(
    recognises=_is_siglip,
    prefixes=("vision_model.",),
    model_types=("siglip", "siglip_vision_model"),
    table=TABLE,
    settings=partial(vit.vit_settings, activation="gelu_pytorch_tanh", head_dim=_head_dim),
    unused=UNUSED,
    prepare=_from_siglip,
)
