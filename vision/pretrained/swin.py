"""Swin transformers, v1 and v2, by torchvision's names."""

from __future__ import annotations

import math
import re
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
}

# Stage i and what merges its tokens are features 2i + 1 and 2i + 2; feature 0 is the embedding.
TABLE = {
    "features.0.0": "embedding.project",
    "features.0.2": "embedding_norm",
    "norm": "norm",
    "head": names.CLASSIFIER,
    **{
        f"features.{2 * stage + 1}.#.{theirs}": f"stages.{stage}.{ours}"
        for stage in range(8)
        for theirs, ours in STAGE.items()
    },
    **{
        f"features.{2 * stage + 2}.{part}": f"stages.{stage}.merging.{part}"
        for stage in range(8)
        for part in ("norm", "reduction")
    },
}


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
        "window": checkpoint.options.get("window") or _window(checkpoint, of_heads[0]),
        "patch_size": (project.shape[2], project.shape[3]),
        "channels": project.shape[1],
        "num_classes": checkpoint.length("classifier.weight") or None,
        "version": 2 if second else 1,
    }


def _window(checkpoint: Checkpoint, first: Tensor) -> int | tuple[int, ...]:
    coordinates = [w for n, w in checkpoint.theirs.items() if n.endswith("relative_coords_table")]
    if coordinates:
        return tuple((n + 1) // 2 for n in coordinates[0].shape[1:3])
    side = math.isqrt(len(first))
    if first.ndim != 2 or side * side != len(first):
        raise UsageError("weights: their windows are not square; give window=(height, width).")
    return (side + 1) // 2


TORCHVISION_SWIN = Family(
    recognises=lambda w: "features.0.0.weight" in w,
    table=TABLE,
    settings=_settings,
    unused={r".*\.relative_(position_index|coords_table)": "the window gives it"},
    prepare=_prepare,
)
