"""ModernBERT (Warner et al., 2024): rotary positions, gated networks, full and local layers."""

from __future__ import annotations

from typing import Any

from attention_core import Neighborhood
from attention_core.training.weights import Weights, inside
from nlp.pretrained import family
from nlp.pretrained.family import Config, Family, activation, block, depth, number_of_heads, tensor
from nlp.pretrained.rope import rotary

WORDS = "embeddings.tok_embeddings.weight"


def _settings(weights: Weights, config: Config, heads: int | None) -> dict[str, Any]:
    words = tensor(weights, WORDS)
    layers = depth(weights, "layers.")
    count = number_of_heads(words.shape[1], heads, config, "num_attention_heads", 64)
    every = config.get("global_attn_every_n_layers") or 3
    kinds = config.get("layer_types") or [
        "sliding_attention" if layer % every else "full_attention" for layer in range(layers)
    ]
    bases = {"full_attention": ("global_rope_theta", 160_000.0)}
    bases["sliding_attention"] = ("local_rope_theta", 10_000.0)
    rotaries = {
        kind: rotary(
            {"rope_theta": config.get(key) or base, **_of(config, kind)}, words.shape[1] // count
        )
        for kind, (key, base) in bases.items()
    }
    local = Neighborhood((config.get("local_attention") or 128) // 2)
    return {
        "vocab_size": len(words),
        "dim": words.shape[1],
        "depth": layers,
        "heads": count,
        "positions": None,
        "mask": [local if kind == "sliding_attention" else None for kind in kinds],
        "rotary": [rotaries[kind] for kind in kinds],
        "hidden": tensor(weights, "layers.0.mlp.Wi.weight").shape[0] // 2,
        "activation": activation(config, "hidden_activation", "gelu", family.GATED),
        "norm": "layer" if "final_norm.bias" in weights else "layer-no-bias",
        "projection_bias": "layers.0.attn.Wo.bias" in weights,
        "eps": config.get("norm_eps") or 1e-5,
        "embedding_norm": True,
        "first_norm": False,
        "transform": activation(config, "classifier_activation", "gelu"),
        "transform_bias": "head.dense.bias" in weights,
    }


def _of(config: Config, kind: str) -> dict[str, Any]:
    """What the configuration says of the rotary positions of layers of this kind."""
    return dict((config.get("rope_parameters") or {}).get(kind) or {})


MODERNBERT = Family(
    recognises=lambda w: WORDS in w and "layers.0.attn.Wqkv.weight" in w,
    prefixes=("model.",),
    table={
        "embeddings.tok_embeddings": "embedding.table",
        "embeddings.norm": "embedding.norm",
        **inside(
            "layers.#.",
            block(
                "encoder",
                {
                    "attn_norm": family.ATTENTION_NORM,
                    "attn.Wqkv": family.QKV,
                    "attn.Wo": family.OUT,
                    "mlp_norm": family.MLP_NORM,
                    "mlp.Wi": family.UP,
                    "mlp.Wo": family.DOWN,
                },
            ),
        ),
        "final_norm": "encoder.norm",
        "head.dense": "transform.linear",
        "head.norm": "transform.norm",
        "decoder.bias": "head.bias",
        "classifier": "head",
    },
    settings=_settings,
    parts={
        "classifier": r"classifier\..*",
        "transform": r"head\..*",
        "scores": r"decoder\..*",
    },
    copies={"decoder.weight": WORDS},
)
