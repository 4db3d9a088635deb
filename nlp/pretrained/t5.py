"""T5 (Raffel et al., 2020), its first version and 1.1."""

from __future__ import annotations

from typing import Any

from attention_core.errors import UsageError
from attention_core.training.weights import Weights, inside
from nlp.pretrained import family
from nlp.pretrained.family import Config, Family, activation, block, depth, tensor

_TABLE = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def _attention(theirs: str, ours: str) -> dict[str, str]:
    names = {"q": "query", "k": "key", "v": "value", "o": "out"}
    return {f"{theirs}.{short}": f"{ours}.{name}" for short, name in names.items()}


def _network(layer: str) -> dict[str, str]:
    return {
        f"{layer}.layer_norm": family.MLP_NORM,
        f"{layer}.DenseReluDense.wi": family.UP,
        f"{layer}.DenseReluDense.wi_0": family.GATE,
        f"{layer}.DenseReluDense.wi_1": family.LINEAR,
        f"{layer}.DenseReluDense.wo": family.DOWN,
    }


def _side(name: str, layers: dict[str, str]) -> dict[str, str]:
    own = {
        **_attention("layer.0.SelfAttention", "attention"),
        "layer.0.layer_norm": family.ATTENTION_NORM,
        **layers,
    }
    return {
        **inside(f"{name}.block.#.", block(name, own)),
        f"{name}.block.#.layer.0.SelfAttention.relative_attention_bias.weight": (
            f"{name}.biases.#.table"
        ),
        f"{name}.final_layer_norm": f"{name}.norm",
    }


def _settings(weights: Weights, config: Config, heads: int | None) -> dict[str, Any]:
    words, table = tensor(weights, "shared.weight"), tensor(weights, _TABLE)
    if heads not in (None, table.shape[1]):
        raise UsageError(f"heads must be {table.shape[1]}, as the weights have; got {heads}.")
    if (distance := config.get("relative_attention_max_distance", 128)) != 128:
        raise UsageError(f"config: relative_attention_max_distance must be 128, got {distance}.")
    name = "encoder.block.0.layer.1.DenseReluDense.wi"
    gated = f"{name}_0.weight" in weights
    kind = str(config.get("feed_forward_proj") or ("gated-gelu" if gated else "relu"))
    kind = {"gated-gelu": "gelu_new", "gated-silu": "silu"}.get(kind, kind)
    known = family.GATED if gated else family.PLAIN
    # A file leaves out the scores' table where it is the embedding's
    scores = weights.get("lm_head.weight")
    tied = scores is None or scores.equal(words)
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", tied))
    scaled = scaled and config.get("model_type") != "mt5"  # which scales nothing, tied or not
    return {
        "vocab_size": len(words),
        "dim": words.shape[1],
        "depth": depth(weights, "encoder.block."),
        "decoder_depth": depth(weights, "decoder.block."),
        "heads": table.shape[1],
        "head_dim": len(tensor(weights, _TABLE.rsplit(".", 2)[0] + ".q.weight")) // table.shape[1],
        "scale": 1.0,
        "positions": "t5",
        "hidden": len(tensor(weights, f"{name}_0.weight" if gated else f"{name}.weight")),
        "activation": activation({"feed_forward_proj": kind}, "feed_forward_proj", kind, known),
        "norm": "rms",
        "eps": config.get("layer_norm_epsilon") or 1e-6,
        "projection_bias": False,
        "scores_scale": words.shape[1] ** -0.5 if scaled else 1.0,
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
                "layer.1.layer_norm": family.CROSS_NORM,
                **_network("layer.2"),
            },
        ),
        "lm_head": "head",
    },
    settings=_settings,
    parts={"scores": r"lm_head\..*"},
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
