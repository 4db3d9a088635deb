"""What all families of vision transformers share: our names, and settings told from shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from attention_core.errors import UsageError
from attention_core.pretrained import Checkpoint, Family
from vision.presets import PRESETS
from vision.pretrained.positions import (
    CLASS,
    POSITIONS,
    REGISTERS,
    finish,
    fit,
    grid,
    table_size,
)

# Our names outside the blocks
PATCHES = "embedding.project"
EMBEDDING_NORM = "embedding_norm"
NORM = "encoder.norm"
POOL_NORM = "pool_norm"
POOL_QUERIES = "pool.queries"

#: A family of vision transformers; its arguments are those of `Family`.
vit_family = partial(Family, finish=finish, fit=fit)

MASK_TOKEN = {r"(embeddings\.)?mask_token": "only pretraining uses it"}


def published_head(checkpoint: Checkpoint, dim: int, depth: int) -> int:
    """Return the size of a head of the published model of this size, and else 64."""
    known = [one for one in PRESETS.values() if (one["dim"], one["depth"]) == (dim, depth)]
    return dim // known[0]["heads"] if known else 64


def vit_settings(
    checkpoint: Checkpoint,
    *,
    eps: float = 1e-6,
    activation: str | Callable[[Checkpoint], str] = "gelu",
    gated: Mapping[str, str] | None = None,
    head_dim: Callable[[Checkpoint, int, int], int] = published_head,
) -> dict[str, Any]:
    """Return the arguments of `VisionTransformer` for a checkpoint.

    Args:
        eps: of normalisations, where no configuration says it.
        activation: where no configuration says it, transformers' name or a function that gives it.
        gated: `hidden_act` of a network with a gate, to ours; any other is "swiglu".
        head_dim: from dim and depth, the size of a head, where nothing says how many there are.

    Raises:
        UsageError: they are of no vision transformer, or something cannot be told.
    """
    ours, options, first = checkpoint.ours, checkpoint.options, "encoder.blocks.0."
    checkpoint = replace(checkpoint, config=vision_config(checkpoint))
    config = checkpoint.config
    needed = (PATCHES, f"{first}feed_forward.down", f"{first}feed_forward.up")
    for module in needed:
        if f"{module}.weight" not in ours:
            raise UsageError(
                f"weights: they are of no vision transformer: {module}.weight is missing."
            )
    project, _, up = (ours[f"{module}.weight"] for module in needed)
    sizes, patch = checkpoint.sizes("encoder"), (project.shape[2], project.shape[3])
    features = head_dim(checkpoint, sizes["dim"], sizes["depth"])
    has_class = checkpoint.length(CLASS) > 0
    pool_norm, pool = f"{POOL_NORM}.weight" in ours, POOL_QUERIES in ours
    found: dict[str, Any] = {
        **sizes,
        "heads": checkpoint.number_of_heads(sizes["dim"], "num_attention_heads", features),
        "patch_size": patch,
        "channels": project.shape[1],
        "num_classes": checkpoint.length("classifier.weight") or None,
        "class_token": has_class,
        "registers": checkpoint.length(REGISTERS),
        "pooling": "map" if pool else "class" if has_class and not pool_norm else "mean",
        "positions": None,
        "embedding": {"projection_bias": f"{PATCHES}.bias" in ours},
        "embedding_norm": f"{EMBEDDING_NORM}.weight" in ours,
        "final_norm": f"{NORM}.weight" in ours,
        "pool_norm": pool_norm,
        "eps": config.get("layer_norm_eps") or eps,
        "key_bias": f"{first}attention.value_bias" not in ours,
        "qk_norm": "layer" if f"{first}attention.query_norm.weight" in ours else False,
        "layer_scale": 1.0 if f"{first}attention_residual.scale" in ours else None,
        "feed_forward_norm": f"{first}feed_forward.norm.weight" in ours,
    }
    if len(up) == 2 * sizes["hidden"]:  # SwiGLU in DINOv2, whatever its configuration says
        found["activation"] = (gated or {}).get(str(config.get("hidden_act")), "swiglu")
    elif "activation" not in options:
        if not isinstance(activation, str):
            activation = config.get("hidden_act") or activation(checkpoint)
        found["activation"] = checkpoint.activation("hidden_act", activation)
    if POSITIONS in ours:
        size, special = table_size(checkpoint, grid(options.get("image_size"), patch))
        found |= {
            "positions": "learned",
            "image_size": (size[0] * patch[0], size[1] * patch[1]),
            "class_position": 0 < special == checkpoint.length(CLASS),
        }
    return found


def vision_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Return the configuration, or what that of a model of images and texts says of its images."""
    config: Mapping[str, Any] = checkpoint.config.get("vision_config") or checkpoint.config
    return config
