"""The configuration that weights are for, from their shapes and from where they come."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from attention_core import Rotary
from attention_core.errors import UsageError
from attention_core.training.weights import Weights
from vision.positions import CenteredRotary
from vision.presets import PRESETS
from vision.pretrained import names

EPS = {"dinov3": 1e-5, "clip": 1e-5, "huggingface": 1e-12}

#: transformers' `hidden_act` to ours.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
    "quick_gelu": "quick-gelu",
    "relu": "relu",
}


def settings(
    source: str,
    theirs: Mapping[str, Tensor],
    ours: Weights,
    *,
    heads: int | None,
    config: Mapping[str, Any] | None,
    image_size: int | tuple[int, int] | None,
    activation: str | None,
) -> dict[str, Any]:
    """The arguments of `VisionTransformer` for weights of ours, translated from theirs.

    Raises:
        UsageError: they are of no vision transformer, or something cannot be told.
    """
    config = dict(config or {})
    config = dict(config.get("vision_config") or config)
    project, first = _weight(ours, names.PATCHES), names.BLOCK.replace("#", "0")
    down, up = _weight(ours, f"{first}feed_forward.down"), _weight(ours, f"{first}feed_forward.up")
    dim, channels = project.shape[:2]
    patch = (project.shape[2], project.shape[3])
    numbers = [re.match(r"encoder\.blocks\.(\d+)\.", name) for name in ours]
    depth = 1 + max(int(match[1]) for match in numbers if match)
    gated = len(up) == 2 * down.shape[1]
    class_token = len(ours.get(names.CLASS, ()))
    found: dict[str, Any] = {
        "dim": dim,
        "depth": depth,
        "heads": heads
        or config.get("num_attention_heads")
        or _heads(source, theirs, ours, dim, depth),
        "patch_size": patch,
        "channels": channels,
        "num_classes": len(ours["head.weight"]) if "head.weight" in ours else None,
        "hidden": down.shape[1],
        "class_token": bool(class_token),
        "registers": len(ours.get(names.REGISTERS, ())),
        "pooling": "class" if class_token else "mean",
        "positions": None,
        "embedding": {"projection_bias": f"{names.PATCHES}.bias" in ours},
        "embedding_norm": f"{names.EMBEDDING_NORM}.weight" in ours,
        "final_norm": f"{names.NORM}.weight" in ours,
        "pool_norm": f"{names.POOL_NORM}.weight" in ours,
        "eps": config.get("layer_norm_eps") or EPS.get(source, 1e-6),
        "projection_bias": f"{first}attention.out.bias" in ours,
        "key_bias": f"{first}attention.value_bias" not in ours,
        "qk_norm": "layer" if f"{first}attention.query_norm.weight" in ours else False,
        "layer_scale": 1.0 if f"{first}attention_residual.scale" in ours else None,
        "feed_forward_norm": f"{first}feed_forward.norm.weight" in ours,
        "activation": activation or _activation(source, theirs, config, gated=gated),
    }
    if found["pool_norm"]:
        found["pooling"] = "mean"
    if names.POOL_QUERIES in ours:
        found["pooling"] = "map"
    if names.POSITIONS in ours:
        known, wanted = grid(config.get("image_size"), patch), grid(image_size, patch)
        size, special = table_size(theirs, ours, known=known, wanted=wanted)
        found |= {
            "positions": "learned",
            "image_size": (size[0] * patch[0], size[1] * patch[1]),
            "class_position": 0 < special == class_token,
        }
    if source == "eva02":
        # All of them were trained on, or are scaled to, 16 × 16 patches
        found["rotary"] = Rotary(axes=2, layout="interleaved", extent=16.0)
    elif source == "dinov3":
        found["rotary"] = _centered(theirs, config)
    return found


def table_size(
    theirs: Mapping[str, Tensor],
    ours: Weights,
    *,
    wanted: tuple[int, int] | None,
    known: tuple[int, int] | None = None,
) -> tuple[tuple[int, int], int]:
    """The grid that the table of positions is for, and how many rows before it are no patch's.

    Published models are square, so a number of places that is a square is taken for one.

    Args:
        wanted: the grid of the model, which the table may be for.
        known: the grid, where a configuration says it.

    Raises:
        UsageError: the table is neither of these grids nor of a square.
    """
    rows = len(ours[names.POSITIONS])
    class_token, registers = len(ours.get(names.CLASS, ())), len(ours.get(names.REGISTERS, ()))
    extras = [class_token]
    if "pos_embed" in theirs:  # timm's may have none for the class token, or one for each register
        extras = [0, class_token + registers] if "reg_token" in theirs else [class_token, 0]
    for extra in extras:
        side = math.isqrt(max(rows - extra, 0))
        square = (side, side) if 0 < side * side == rows - extra else None
        for size in (known, square, wanted):
            if size is not None and size[0] * size[1] == rows - extra:
                return size, extra
    raise UsageError(
        f"weights: {rows} positions are those of no square image. Give image_size=(height, width) "
        "of the image that they are for."
    )


def grid(image_size: Any, patch_size: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of patches in an image of (height, width), or of one number for both."""
    if image_size is None:
        return None
    both = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    return both[0] // patch_size[0], both[1] // patch_size[1]


def _weight(ours: Weights, module: str) -> Tensor:
    if f"{module}.weight" not in ours:
        raise UsageError(f"weights: they are of no vision transformer: {module}.weight is missing.")
    return ours[f"{module}.weight"]


def _heads(source: str, theirs: Mapping[str, Tensor], ours: Weights, dim: int, depth: int) -> int:
    if "rope_embed.periods" in theirs:
        return dim // (4 * len(theirs["rope_embed.periods"]))
    known = [one for one in PRESETS.values() if (one["dim"], one["depth"]) == (dim, depth)]
    if source == "dinov3":
        size = 128 if dim == 4096 else 64
    elif (dim, depth) == (1536, 40) and names.CLASS not in ours:  # SigLIP 2's giant; not DINOv2's
        size = 96
    elif known:
        size = dim // known[0]["heads"]
    else:
        size = 64
    if dim % size:
        raise UsageError(
            f"weights: of dim={dim}, the number of heads cannot be told from shapes; give heads=."
        )
    return dim // size


def _activation(
    source: str, theirs: Mapping[str, Tensor], config: Mapping[str, Any], *, gated: bool
) -> str:
    name = config.get("hidden_act")
    if gated:  # DINOv2's network is SwiGLU whatever its configuration says
        return "geglu" if (source, name) == ("dinov3", "gelu") else "swiglu"
    if name is not None:
        if name not in ACTIVATIONS:
            raise UsageError(
                f"config: hidden_act must be one of {', '.join(ACTIVATIONS)}, got {name!r}."
            )
        return ACTIVATIONS[name]
    if source == "clip" and "input_resolution" not in theirs:  # OpenAI's own files have it
        raise UsageError(
            "weights: CLIP's do not say which activation they were trained with. Give activation="
            "'quick-gelu' (OpenAI's models) or 'gelu' (most of open_clip's), or config=."
        )
    return {"clip": "quick-gelu", "siglip": "gelu-tanh"}.get(source, "gelu")


def _centered(theirs: Mapping[str, Tensor], config: Mapping[str, Any]) -> CenteredRotary:
    periods = theirs.get("rope_embed.periods")
    if periods is not None:
        return CenteredRotary(frequencies=(1 / periods.double()).tolist())
    return CenteredRotary(base=config.get("rope_theta") or 100.0)


def swin_settings(theirs: Mapping[str, Tensor], *, window: Any = None) -> dict[str, Any]:
    """The arguments of `SwinTransformer` for torchvision's weights.

    Raises:
        UsageError: windows are not square, and `window` does not say what they are.
    """
    project = theirs["features.0.0.weight"]
    blocks: dict[int, int] = {}
    for name in theirs:
        if match := re.fullmatch(r"features\.(\d*[13579])\.(\d+)\.norm1\.weight", name):
            stage, block = int(match[1]), int(match[2])
            blocks[stage] = max(blocks.get(stage, 0), block + 1)
    second = "features.1.0.attn.logit_scale" in theirs
    per_head = "logit_scale" if second else "relative_position_bias_table"
    of_heads = [theirs[f"features.{stage}.0.attn.{per_head}"] for stage in sorted(blocks)]
    if second:
        heads = [len(scale) for scale in of_heads]
        coordinates = theirs["features.1.0.attn.relative_coords_table"]
        window = window or tuple((n + 1) // 2 for n in coordinates.shape[1:3])
    else:
        heads, offsets = [table.shape[1] for table in of_heads], len(of_heads[0])
        side = math.isqrt(offsets)
        if window is None and side * side != offsets:
            raise UsageError("weights: their windows are not square; give window=(height, width).")
        window = window or (side + 1) // 2
    return {
        "dim": len(project),
        "depths": [blocks[stage] for stage in sorted(blocks)],
        "heads": heads,
        "window": window,
        "patch_size": (project.shape[2], project.shape[3]),
        "channels": project.shape[1],
        "num_classes": len(theirs["head.weight"]) if "head.weight" in theirs else None,
        "version": 2 if second else 1,
    }
