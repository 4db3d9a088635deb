"""Swin transformers, v1 and v2, by torchvision's names and timm's."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from attention_core.errors import UsageError
from attention_core.pretrained import Checkpoint, Family, names
from attention_core.pretrained.renaming import Weights, without_key_bias

#: Of a stage.
STAGE = {
    "norm1": f"blocks.#.{names.ATTENTION_NORM}",
    "attn.qkv": f"blocks.#.{names.QKV}",
    "attn.q_bias": f"blocks.#.{names.QUERY}.bias",
    "attn.v_bias": f"blocks.#.{names.VALUE}.bias",
    "attn.logit_scale": "blocks.#.attention.log_temperature",
    "attn.proj": f"blocks.#.{names.OUT}",
    "attn.relative_position_bias_table": "biases.#.table",
    "attn.cpb_mlp.0": "biases.#.mlp.0",
    "attn.cpb_mlp.2": "biases.#.mlp.2",
    "norm2": f"blocks.#.{names.MLP_NORM}",
    "mlp.0": f"blocks.#.{names.UP}",
    "mlp.3": f"blocks.#.{names.DOWN}",
    "mlp.fc1": f"blocks.#.{names.UP}",
    "mlp.fc2": f"blocks.#.{names.DOWN}",
}


def _table(
    embedding: tuple[str, str],
    head: str,
    stage: Callable[[int], str],
    merging: Callable[[int], str],
) -> dict[str, str]:
    """The names of a library, of up to eight stages, to ours.

    Args:
        embedding: theirs of the patches and of their norm.
        stage: their prefix of a block of stage i.
        merging: their prefix of what merges its tokens.
    """
    table = {
        embedding[0]: "embedding.project",
        embedding[1]: "embedding_norm",
        "norm": "norm",
        head: names.CLASSIFIER,
    }
    for i in range(8):
        table |= {f"{stage(i)}.#.{theirs}": f"stages.{i}.{ours}" for theirs, ours in STAGE.items()}
        for part in ("norm", "reduction"):
            table[f"{merging(i)}.{part}"] = f"stages.{i}.merging.{part}"
    return table


def _prepare(weights: Weights) -> tuple[Weights, dict[str, str]]:
    """In version 2 keys have no bias, and the network takes query minus key, ours the reverse."""
    if not any(name.endswith("attn.logit_scale") for name in weights):
        return weights, {}
    weights, dropped = without_key_bias(weights, "the forward pass makes it zero")
    turned = "attn.cpb_mlp.0.weight"
    return {n: -w if n.endswith(turned) else w for n, w in weights.items()}, dropped


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """The arguments of `SwinTransformer`.

    Raises:
        UsageError: windows are not square, and `window` does not say what they are.
    """
    if checkpoint.heads is not None or checkpoint.given_config is not None:
        raise UsageError(
            "heads, config: the weights of a Swin transformer say all that either could."
        )
    ours, project = checkpoint.ours, checkpoint.tensor("embedding.project.weight")
    depths: dict[int, int] = {}
    for name in ours:
        if match := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", name):
            stage, block = int(match[1]), int(match[2])
            depths[stage] = max(depths.get(stage, 0), block + 1)
    second = "stages.0.blocks.0.attention.log_temperature" in ours
    per_head = "blocks.0.attention.log_temperature" if second else "biases.0.table"
    of_heads = [checkpoint.tensor(f"stages.{stage}.{per_head}") for stage in sorted(depths)]
    return {
        "dim": len(project),
        "depths": [depths[stage] for stage in sorted(depths)],
        "heads": [len(one) if second else one.shape[1] for one in of_heads],
        "window": checkpoint.options.get("window") or _window(checkpoint, of_heads),
        "patch_size": (project.shape[2], project.shape[3]),
        "channels": project.shape[1],
        "num_classes": checkpoint.length("classifier.weight") or None,
        "version": 2 if second else 1,
    }


def _window(checkpoint: Checkpoint, tables: list[Tensor]) -> Any:
    """The window of all stages, or of each, from the offsets in one."""
    coordinates = [w for n, w in checkpoint.theirs.items() if n.endswith("relative_coords_table")]
    if coordinates:
        return tuple((n + 1) // 2 for n in coordinates[0].shape[1:3])
    if tables[0].ndim != 2:
        raise UsageError(
            "weights: they do not say how large their windows are. Give window=, one size, or a "
            "pair for each stage: timm's are no larger than the grid of a stage."
        )
    sides = [math.isqrt(len(table)) for table in tables]
    if any(side * side != len(table) for side, table in zip(sides, tables, strict=True)):
        raise UsageError("weights: their windows are not square; give window=(height, width).")
    sizes = [((side + 1) // 2,) * 2 for side in sides]
    return sizes[0] if len(set(sizes)) == 1 else sizes


_UNUSED = {r".*\.relative_(position_index|coords_table)": "the window gives it"}

TORCHVISION_SWIN = Family(
    recognises=lambda w: "features.0.0.weight" in w,
    # Feature 0 is the embedding
    table=_table(
        ("features.0.0", "features.0.2"),
        "head",
        stage=lambda i: f"features.{2 * i + 1}",
        merging=lambda i: f"features.{2 * i + 2}",
    ),
    settings=_settings,
    unused=_UNUSED,
    prepare=_prepare,
)

TIMM_SWIN = Family(
    recognises=lambda w: {"patch_embed.norm.weight", "layers.0.blocks.0.attn.qkv.weight"} <= set(w),
    # What merges the tokens of a stage is in front of the next
    table=_table(
        ("patch_embed.proj", "patch_embed.norm"),
        "head.fc",
        stage=lambda i: f"layers.{i}.blocks",
        merging=lambda i: f"layers.{i + 1}.downsample",
    ),
    settings=_settings,
    unused=_UNUSED,
    prepare=_prepare,
)
