"""ModernBERT (Warner et al., 2024): rotary positions, gated networks, full and local layers."""

from __future__ import annotations

from typing import Any

from attention_core import Neighborhood
from attention_core.pretrained import Checkpoint, Family, names
from attention_core.pretrained.family import GATED, Config
from nlp.pretrained.rope import rotary
from nlp.pretrained.text import WORDS, part_settings

_WORDS = "embeddings.tok_embeddings.weight"


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    ours, config, sizes = checkpoint.ours, checkpoint.config, checkpoint.sizes("encoder")
    heads = checkpoint.number_of_heads(sizes["dim"], "num_attention_heads", 64)
    every = config.get("global_attn_every_n_layers") or 3
    kinds = config.get("layer_types") or [
        "sliding_attention" if layer % every else "full_attention"
        for layer in range(sizes["depth"])
    ]
    bases = {"full_attention": ("global_rope_theta", 160_000.0)}
    bases["sliding_attention"] = ("local_rope_theta", 10_000.0)
    rotaries = {
        kind: rotary(
            {"rope_theta": config.get(key) or base, **_of(config, kind)}, sizes["dim"] // heads
        )
        for kind, (key, base) in bases.items()
    }
    local = Neighborhood((config.get("local_attention") or 128) // 2)
    return {
        **sizes,
        "vocab_size": len(checkpoint.tensor(WORDS)),
        "heads": heads,
        "positions": None,
        "mask": [local if kind == "sliding_attention" else None for kind in kinds],
        "rotary": [rotaries[kind] for kind in kinds],
        "activation": checkpoint.activation("hidden_activation", "gelu", GATED),
        "norm": "layer" if "encoder.norm.bias" in ours else "layer-no-bias",
        "eps": config.get("norm_eps") or 1e-5,
        "embedding_norm": True,
        "first_norm": False,
        **part_settings(
            checkpoint,
            pooling="class" if config.get("classifier_pooling", "cls") == "cls" else "mean",
            transform=checkpoint.activation("classifier_activation", "gelu"),
            transform_bias="transform.linear.bias" in ours,
        ),
    }


def _of(config: Config, kind: str) -> dict[str, Any]:
    """Return what the configuration says of rotary positions in layers of this kind."""
    return dict((config.get("rope_parameters") or {}).get(kind) or {})


MODERNBERT = Family(
    recognises=lambda w: _WORDS in w and "layers.0.attn.Wqkv.weight" in w,
    prefixes=("model.",),
    model_types=("modernbert",),
    table={
        "embeddings.tok_embeddings": "embedding.table",
        "embeddings.norm": "embedding.norm",
        **names.layers(
            "layers.#.",
            "encoder",
            {
                "attn_norm": names.ATTENTION_NORM,
                "attn.Wqkv": names.QKV,
                "attn.Wo": names.OUT,
                "mlp_norm": names.MLP_NORM,
                "mlp.Wi": names.UP,
                "mlp.Wo": names.DOWN,
            },
        ),
        "final_norm": "encoder.norm",
        "head.dense": "transform.linear",
        "head.norm": "transform.norm",
        "decoder": "scores",
        "classifier": "classifier",
    },
    settings=_settings,
    copies={"decoder.weight": _WORDS},
    refused={
        "classifier": (
            "ModernBERT's classifier normalises what it reads, which TextEncoder does not. Give "
            "num_classes=, or head=False, for a head of your own."
        )
    },
)
