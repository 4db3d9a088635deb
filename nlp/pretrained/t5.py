"""T5 (Raffel et al., 2020), its first version and 1.1."""

from __future__ import annotations

from typing import Any

from attention_core.errors import UsageError
from attention_core.pretrained import Checkpoint, Family, names
from attention_core.pretrained.family import GATED, PLAIN
from nlp.pretrained.text import WORDS, part_settings

_TABLE = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def _attention(theirs: str, ours: str) -> dict[str, str]:
    own = {"q": "query", "k": "key", "v": "value", "o": "out"}
    return {f"{theirs}.{short}": f"{ours}.{name}" for short, name in own.items()}


def _network(layer: str) -> dict[str, str]:
    return {
        f"{layer}.layer_norm": names.MLP_NORM,
        f"{layer}.DenseReluDense.wi": names.UP,
        f"{layer}.DenseReluDense.wi_0": names.GATE,
        f"{layer}.DenseReluDense.wi_1": names.UP,
        f"{layer}.DenseReluDense.wo": names.DOWN,
    }


def _side(name: str, layers: dict[str, str]) -> dict[str, str]:
    own = {
        **_attention("layer.0.SelfAttention", "attention"),
        "layer.0.layer_norm": names.ATTENTION_NORM,
        **layers,
    }
    return {
        **names.layers(f"{name}.block.#.", name, own),
        f"{name}.block.#.layer.0.SelfAttention.relative_attention_bias.weight": (
            f"{name}.biases.#.table"
        ),
        f"{name}.final_layer_norm": f"{name}.norm",
    }


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    config, table = checkpoint.config, checkpoint.tensor("encoder.biases.0.table")
    heads = table.shape[1]
    if checkpoint.heads not in (None, heads):
        raise UsageError(f"heads must be {heads}, as the weights have; got {checkpoint.heads}.")
    if (distance := config.get("relative_attention_max_distance", 128)) != 128:
        raise UsageError(f"config: relative_attention_max_distance must be 128, got {distance}.")
    sizes, parts = checkpoint.sizes("encoder"), part_settings(checkpoint)
    first = "encoder.blocks.0."
    gated = len(checkpoint.tensor(f"{first}feed_forward.up.weight")) == 2 * sizes["hidden"]
    known = {**GATED, "gated-gelu": "geglu-tanh", "gated-silu": "swiglu"} if gated else PLAIN
    default = "gated-gelu" if gated else "relu"
    # A file leaves out the scores' table where it is the embedding's
    tied = parts["tied"] or "scores.weight" not in checkpoint.ours
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", tied))
    scaled = scaled and config.get("model_type") != "mt5"  # which scales nothing, tied or not
    return {
        **sizes,
        "vocab_size": len(checkpoint.tensor(WORDS)),
        "decoder_depth": checkpoint.depth("decoder"),
        "heads": heads,
        "head_dim": len(checkpoint.tensor(f"{first}attention.query.weight")) // heads,
        "scale": 1.0,
        "positions": "t5",
        "activation": checkpoint.activation("feed_forward_proj", default, known),
        "norm": "rms",
        "eps": config.get("layer_norm_epsilon") or 1e-6,
        "scores_scale": sizes["dim"] ** -0.5 if scaled else 1.0,
        **parts,
    }


T5 = Family(
    recognises=lambda w: "shared.weight" in w and _TABLE in w,
    table={
        "shared": "embedding.table",
        **_side("encoder", _network("layer.1")),
        **_side(
            "decoder",
            {
                **_attention("layer.1.EncDecAttention", "cross_attention"),
                "layer.1.layer_norm": names.CROSS_NORM,
                **_network("layer.2"),
            },
        ),
        "lm_head": "scores",
    },
    model_types=("t5", "mt5"),
    settings=_settings,
    copies={
        "lm_head.weight": "shared.weight",
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    },
    unused={
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight": (
            "no position is relative to another text's"
        )
    },
)
