"""BEiT (Bao et al., 2022), v1 and v2, by timm's names and transformers'."""

from __future__ import annotations

import math
from typing import Any

from attention_core import RelativeTable
from attention_core.errors import UsageError
from attention_core.pretrained import Checkpoint, names
from attention_core.pretrained.renaming import Weights
from vision.pretrained import eva, huggingface, vit
from vision.pretrained.positions import grid

_TABLE = "relative_position_bias_table"
_SPECIAL = "relative_position_bias_special"

#: In a block of timm's, and of transformers' by its names of today and before; then of all blocks.
_PLACES = {
    "blocks.#.attn": "encoder.biases.#",
    "layers.#.relative_position_bias": "encoder.biases.#",
    "encoder.layer.#.attention.attention.relative_position_bias": "encoder.biases.#",
    "rel_pos_bias": "encoder.biases.0",
    "shared_position_bias": "encoder.biases.0",
    "encoder.relative_position_bias": "encoder.biases.0",
}
_SCALES = {"lambda_1": names.ATTENTION_SCALE, "lambda_2": names.MLP_SCALE}


def _prepare(weights: Weights) -> tuple[Weights, dict[str, str]]:
    """The last three rows of a table are those of the class token: as query, as key, as both."""
    split = {}
    for name, value in weights.items():
        if name.endswith(_TABLE):
            split[name.removesuffix(_TABLE) + _SPECIAL], value = value[-3:], value[:-3]
        split[name] = value
    return split, {}


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    table = checkpoint.tensor("encoder.biases.0.table")
    found = vit.vit_settings(
        checkpoint,
        eps=1e-6 if "cls_token" in checkpoint.theirs else 1e-12,
        head_dim=lambda checkpoint, dim, depth: dim // table.shape[1],
    )
    image_size = checkpoint.options.get("image_size") or checkpoint.config.get("image_size")
    size, side = grid(image_size, found["patch_size"]), math.isqrt(len(table))
    if side * side == len(table):  # of a square image, as published models are
        size = ((side + 1) // 2,) * 2
    if size is None or (2 * size[0] - 1) * (2 * size[1] - 1) != len(table):
        raise UsageError(
            f"weights: {len(table)} relative positions are those of no square image. Give "
            "image_size=(height, width) of the image that they are for."
        )
    count = sum(name.endswith(".special_table") for name in checkpoint.ours)
    biases = [RelativeTable.swin(table.shape[1], size, special=True) for _ in range(count)]
    return {**found, "bias": biases}


BEIT = vit.vit_family(
    recognises=lambda w: (
        any(name.endswith(_TABLE) for name in w)
        and (not {"cls_token", "embeddings.cls_token"}.isdisjoint(w))
    ),
    prefixes=("beit.",),
    model_types=("beit",),
    table={
        **eva.TABLE,
        **huggingface.TABLE,
        "pooler.layernorm": vit.POOL_NORM,
        **names.layers("layers.#.", "encoder", _SCALES),
        **names.layers("encoder.layer.#.", "encoder", _SCALES),
        **{f"{theirs}.{_TABLE}": f"{ours}.table" for theirs, ours in _PLACES.items()},
        **{f"{theirs}.{_SPECIAL}": f"{ours}.special_table" for theirs, ours in _PLACES.items()},
    },
    settings=_settings,
    unused={r".*relative_position_index": "the grid gives it", **vit.MASK_TOKEN},
    prepare=_prepare,
)
