"""BERT and its kin: MiniLM (Wang et al., 2020), RoBERTa, DistilBERT and ALBERT.

All normalise after each sublayer and add learned positions to words.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from attention_core.errors import UsageError
from attention_core.pretrained import Checkpoint, Family, names
from attention_core.pretrained.renaming import Weights
from nlp.pretrained.text import POSITIONS, WORDS, part_settings

_WORDS = "embeddings.word_embeddings.weight"
_POSITIONS = "embeddings.position_embeddings.weight"
_TYPES = "embeddings.token_type_embeddings.weight"
BUFFER = {r"embeddings\.(position|token_type)_ids": "positions follow from places"}
PRETRAINING = "only pretraining on pairs of texts uses it"

EMBEDDINGS = {
    "embeddings.word_embeddings": "embedding.table",
    "embeddings.position_embeddings.weight": POSITIONS,
    "embeddings.token_type_embeddings": "embedding.types",
    "embeddings.LayerNorm": "embedding.norm",
}
LAYERS = names.layers(
    "encoder.layer.#.",
    "encoder",
    {
        "attention.self.query": names.QUERY,
        "attention.self.key": names.KEY,
        "attention.self.value": names.VALUE,
        "attention.output.dense": names.OUT,
        "attention.output.LayerNorm": names.ATTENTION_NORM,
        "intermediate.dense": names.UP,
        "output.dense": names.DOWN,
        "output.LayerNorm": names.MLP_NORM,
    },
)


def _modern(weights: Weights) -> tuple[Weights, dict[str, str]]:
    """Files of the first years call the weight of a normalisation gamma and its bias beta."""
    old = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    renamed = {}
    for name, value in weights.items():
        for before, after in old.items():
            name = name.replace(before, after)
        renamed[name] = value
    return renamed, {}


def _settings(
    checkpoint: Checkpoint,
    *,
    eps: float = 1e-12,
    heads_key: str = "num_attention_heads",
    activation_key: str = "hidden_act",
    activation: str = "gelu",
    pooler: str = "tanh",
    transform: str | None = None,
) -> dict[str, Any]:
    kind = checkpoint.config.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise UsageError(f"config: position_embedding_type must be 'absolute', got {kind!r}.")
    sizes = checkpoint.sizes("encoder")
    # MiniLM's heads are smaller
    head_dim = 32 if sizes["dim"] == 384 and heads_key == "num_attention_heads" else 64
    activation = checkpoint.activation(activation_key, activation)
    return {
        **sizes,
        "vocab_size": len(checkpoint.tensor(WORDS)),
        "heads": checkpoint.number_of_heads(sizes["dim"], heads_key, head_dim),
        "positions": "learned",
        "max_length": len(checkpoint.tensor(POSITIONS)),
        "num_token_types": checkpoint.length("embedding.types.weight"),
        "embedding_norm": True,
        "norm_order": "post",
        "activation": activation,
        "eps": checkpoint.config.get("layer_norm_eps") or eps,
        **part_settings(checkpoint, pooler=pooler, transform=transform or activation),
    }


BERT = Family(
    recognises=lambda w: _WORDS in w and "encoder.layer.0.attention.self.query.weight" in w,
    prefixes=("bert.",),
    model_types=("bert",),
    table={
        **EMBEDDINGS,
        **LAYERS,
        "pooler.dense": "pooler.linear",
        "classifier": "classifier",
        "cls.predictions.transform.dense": "transform.linear",
        "cls.predictions.transform.LayerNorm": "transform.norm",
        "cls.predictions.bias": "scores.bias",
        "cls.predictions.decoder": "scores",
    },
    settings=_settings,
    copies={
        "cls.predictions.decoder.weight": _WORDS,
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    unused={**BUFFER, r"cls\.seq_relationship\..*": PRETRAINING},
    prepare=_modern,
)


def _is_roberta(weights: Weights) -> bool:
    types = weights.get(_TYPES)
    return BERT.recognises(weights) and types is not None and len(types) == 1


def _from_roberta(weights: Weights) -> tuple[Weights, dict[str, str]]:
    """Its positions begin at 2, behind that of padding, the token 1."""
    weights, _ = _modern(weights)
    if _POSITIONS not in weights:
        raise UsageError(f"weights: {_POSITIONS} is missing.")
    rest = {**weights, _POSITIONS: weights[_POSITIONS][2:]}
    return rest, {f"{_POSITIONS}[:2]": "no token sits there"}


def _roberta(checkpoint: Checkpoint) -> dict[str, Any]:
    if (padding := checkpoint.config.get("pad_token_id", 1)) != 1:
        raise UsageError(f"config: pad_token_id must be 1, got {padding}.")
    return _settings(checkpoint, eps=1e-5, transform="gelu")


ROBERTA = Family(
    recognises=_is_roberta,
    prefixes=("roberta.",),
    model_types=("roberta", "xlm-roberta", "camembert"),
    table={
        **EMBEDDINGS,
        **LAYERS,
        "pooler.dense": "pooler.linear",
        "classifier.dense": "pooler.linear",
        "classifier.out_proj": "classifier",
        "lm_head.dense": "transform.linear",
        "lm_head.layer_norm": "transform.norm",
        "lm_head.bias": "scores.bias",
        "lm_head.decoder": "scores",
    },
    settings=_roberta,
    copies={"lm_head.decoder.weight": _WORDS, "lm_head.decoder.bias": "lm_head.bias"},
    unused=BUFFER,
    prepare=_from_roberta,
)


DISTILBERT = Family(
    recognises=lambda w: "transformer.layer.0.attention.q_lin.weight" in w,
    prefixes=("distilbert.",),
    model_types=("distilbert",),
    table={
        **EMBEDDINGS,
        **names.layers(
            "transformer.layer.#.",
            "encoder",
            {
                "attention.q_lin": names.QUERY,
                "attention.k_lin": names.KEY,
                "attention.v_lin": names.VALUE,
                "attention.out_lin": names.OUT,
                "sa_layer_norm": names.ATTENTION_NORM,
                "ffn.lin1": names.UP,
                "ffn.lin2": names.DOWN,
                "output_layer_norm": names.MLP_NORM,
            },
        ),
        "pre_classifier": "pooler.linear",
        "classifier": "classifier",
        "vocab_transform": "transform.linear",
        "vocab_layer_norm": "transform.norm",
        "vocab_projector": "scores",
    },
    settings=partial(_settings, heads_key="n_heads", activation_key="activation", pooler="relu"),
    copies={"vocab_projector.weight": _WORDS},
    unused=BUFFER,
)


def _albert(checkpoint: Checkpoint) -> dict[str, Any]:
    checkpoint.need("num_hidden_layers")
    if (inner := checkpoint.config.get("inner_group_num", 1)) != 1:
        raise UsageError(f"config: inner_group_num must be 1, got {inner}.")
    return {
        **_settings(checkpoint, activation="gelu_new"),
        "embedding_dim": checkpoint.tensor(WORDS).shape[1],
        "depth": checkpoint.config["num_hidden_layers"],
        "num_groups": checkpoint.depth("encoder"),
    }


ALBERT = Family(
    recognises=lambda w: "encoder.embedding_hidden_mapping_in.weight" in w,
    prefixes=("albert.",),
    model_types=("albert",),
    table={
        **EMBEDDINGS,
        "encoder.embedding_hidden_mapping_in": "embedding.project",
        **names.layers(
            "encoder.albert_layer_groups.#.albert_layers.0.",
            "encoder",
            {
                "attention.query": names.QUERY,
                "attention.key": names.KEY,
                "attention.value": names.VALUE,
                "attention.dense": names.OUT,
                "attention.LayerNorm": names.ATTENTION_NORM,
                "ffn": names.UP,
                "ffn_output": names.DOWN,
                "full_layer_layer_norm": names.MLP_NORM,
            },
        ),
        "pooler": "pooler.linear",
        "classifier": "classifier",
        "predictions.dense": "transform.linear",
        "predictions.LayerNorm": "transform.norm",
        "predictions.bias": "scores.bias",
        "predictions.decoder": "scores",
    },
    settings=_albert,
    copies={"predictions.decoder.weight": _WORDS, "predictions.decoder.bias": "predictions.bias"},
    unused={**BUFFER, r"sop_classifier\..*": PRETRAINING},
)
