"""BERT and its kin: MiniLM (Wang et al., 2020), RoBERTa, DistilBERT and ALBERT.

All normalise after each sublayer and add learned positions to words.
"""

from __future__ import annotations

from typing import Any

from attention_core.errors import UsageError
from attention_core.training.weights import Weights, inside
from nlp.pretrained import family
from nlp.pretrained.family import Config, Family, activation, block, depth, number_of_heads, tensor

WORDS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"
TYPES = "embeddings.token_type_embeddings.weight"
BUFFER = {r"embeddings\.(position|token_type)_ids": "positions follow from places"}
NOT_WORDS = {r"cls\.seq_relationship\..*": "only pretraining on pairs of texts uses it"}

EMBEDDINGS = {
    "embeddings.word_embeddings": "embedding.table",
    "embeddings.position_embeddings.weight": "embedding.positions.table",
    "embeddings.token_type_embeddings": "embedding.types",
    "embeddings.LayerNorm": "embedding.norm",
}
BLOCK = inside(
    "encoder.layer.#.",
    block(
        "encoder",
        {
            "attention.self.query": family.QUERY,
            "attention.self.key": family.KEY,
            "attention.self.value": family.VALUE,
            "attention.output.dense": family.OUT,
            "attention.output.LayerNorm": family.ATTENTION_NORM,
            "intermediate.dense": family.UP,
            "output.dense": family.DOWN,
            "output.LayerNorm": family.MLP_NORM,
        },
    ),
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
    weights: Weights, config: Config, *, eps: float, size: int, activation_key: str = "hidden_act"
) -> dict[str, Any]:
    found = {
        "vocab_size": len(tensor(weights, WORDS)),
        "positions": "learned",
        "max_length": len(tensor(weights, POSITIONS)),
        "num_token_types": len(weights[TYPES]) if TYPES in weights else 0,
        "embedding_norm": True,
        "norm_order": "post",
        "hidden": size,
        "activation": activation(config, activation_key, "gelu"),
        "eps": config.get("layer_norm_eps") or eps,
    }
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise UsageError(
            "config: position_embedding_type must be 'absolute', got "
            f"{config['position_embedding_type']!r}."
        )
    return found


def _bert(weights: Weights, config: Config, heads: int | None) -> dict[str, Any]:
    words = tensor(weights, WORDS)
    size = 32 if words.shape[1] == 384 else 64  # MiniLM's heads are smaller
    up = tensor(weights, "encoder.layer.0.intermediate.dense.weight")
    return {
        **_settings(weights, config, eps=1e-12, size=len(up)),
        "dim": words.shape[1],
        "depth": depth(weights, "encoder.layer."),
        "heads": number_of_heads(words.shape[1], heads, config, "num_attention_heads", size),
        "pooler": "tanh",
    }


BERT = Family(
    recognises=lambda w: WORDS in w and "encoder.layer.0.attention.self.query.weight" in w,
    prefixes=("bert.",),
    table={
        **EMBEDDINGS,
        **BLOCK,
        "pooler.dense": "pooler.linear",
        "classifier": "head",
        "cls.predictions.transform.dense": "transform.linear",
        "cls.predictions.transform.LayerNorm": "transform.norm",
        "cls.predictions.bias": "head.bias",
    },
    settings=_bert,
    parts={
        "pooler": r"pooler\..*",
        "classifier": r"classifier\..*",
        "transform": r"cls\.predictions\.transform\..*",
        "scores": r"cls\.predictions\.(bias|decoder\..*)",
    },
    copies={
        "cls.predictions.decoder.weight": WORDS,
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    unused={**BUFFER, **NOT_WORDS},
    prepare=_modern,
)


def _is_roberta(weights: Weights) -> bool:
    types = weights.get(TYPES)
    return BERT.recognises(weights) and types is not None and len(types) == 1


def _from_roberta(weights: Weights) -> tuple[Weights, dict[str, str]]:
    """Its positions begin at 2, behind that of padding, the token 1."""
    weights, _ = _modern(weights)
    table = tensor(weights, POSITIONS)
    return {**weights, POSITIONS: table[2:]}, {f"{POSITIONS}[:2]": "no token sits there"}


def _roberta(weights: Weights, config: Config, heads: int | None) -> dict[str, Any]:
    if config.get("pad_token_id", 1) != 1:
        raise UsageError(f"config: pad_token_id must be 1, got {config['pad_token_id']}.")
    eps = config.get("layer_norm_eps") or 1e-5
    return {**_bert(weights, config, heads), "eps": eps, "transform": "gelu"}


ROBERTA = Family(
    recognises=_is_roberta,
    prefixes=("roberta.",),
    table={
        **EMBEDDINGS,
        **BLOCK,
        "pooler.dense": "pooler.linear",
        "classifier.dense": "pooler.linear",
        "classifier.out_proj": "head",
        "lm_head.dense": "transform.linear",
        "lm_head.layer_norm": "transform.norm",
        "lm_head.bias": "head.bias",
    },
    settings=_roberta,
    parts={
        "pooler": r"(pooler|classifier\.dense)\..*",
        "classifier": r"classifier\.out_proj\..*",
        "transform": r"lm_head\.(dense|layer_norm)\..*",
        "scores": r"lm_head\.(bias|decoder\..*)",
    },
    copies={"lm_head.decoder.weight": WORDS, "lm_head.decoder.bias": "lm_head.bias"},
    unused=BUFFER,
    prepare=_from_roberta,
)


def _distilbert(weights: Weights, config: Config, heads: int | None) -> dict[str, Any]:
    words = tensor(weights, WORDS)
    up = tensor(weights, "transformer.layer.0.ffn.lin1.weight")
    return {
        **_settings(weights, config, eps=1e-12, size=len(up), activation_key="activation"),
        "dim": words.shape[1],
        "depth": depth(weights, "transformer.layer."),
        "heads": number_of_heads(words.shape[1], heads, config, "n_heads", 64),
        "pooler": "relu",
    }


DISTILBERT = Family(
    recognises=lambda w: "transformer.layer.0.attention.q_lin.weight" in w,
    prefixes=("distilbert.",),
    table={
        **EMBEDDINGS,
        **inside(
            "transformer.layer.#.",
            block(
                "encoder",
                {
                    "attention.q_lin": family.QUERY,
                    "attention.k_lin": family.KEY,
                    "attention.v_lin": family.VALUE,
                    "attention.out_lin": family.OUT,
                    "sa_layer_norm": family.ATTENTION_NORM,
                    "ffn.lin1": family.UP,
                    "ffn.lin2": family.DOWN,
                    "output_layer_norm": family.MLP_NORM,
                },
            ),
        ),
        "pre_classifier": "pooler.linear",
        "classifier": "head",
        "vocab_transform": "transform.linear",
        "vocab_layer_norm": "transform.norm",
        "vocab_projector.bias": "head.bias",
    },
    settings=_distilbert,
    parts={
        "pooler": r"pre_classifier\..*",
        "classifier": r"classifier\..*",
        "transform": r"vocab_(transform|layer_norm)\..*",
        "scores": r"vocab_projector\..*",
    },
    copies={"vocab_projector.weight": WORDS},
    unused=BUFFER,
)


_ALBERT_LAYER = "encoder.albert_layer_groups.#.albert_layers.0."


def _albert(weights: Weights, config: Config, heads: int | None) -> dict[str, Any]:
    family.needed(config, "num_hidden_layers")
    if config.get("inner_group_num", 1) != 1:
        raise UsageError(f"config: inner_group_num must be 1, got {config['inner_group_num']}.")
    first = _ALBERT_LAYER.replace("#", "0")
    up = tensor(weights, f"{first}ffn.weight")
    return {
        **_settings(weights, {"hidden_act": "gelu_new", **config}, eps=1e-12, size=len(up)),
        "dim": up.shape[1],
        "embedding_dim": tensor(weights, WORDS).shape[1],
        "depth": config["num_hidden_layers"],
        "num_groups": depth(weights, "encoder.albert_layer_groups."),
        "heads": number_of_heads(up.shape[1], heads, config, "num_attention_heads", 64),
        "pooler": "tanh",
        "transform": activation({"hidden_act": "gelu_new", **config}, "hidden_act", "gelu_new"),
    }


ALBERT = Family(
    recognises=lambda w: "encoder.embedding_hidden_mapping_in.weight" in w,
    prefixes=("albert.",),
    table={
        **EMBEDDINGS,
        "encoder.embedding_hidden_mapping_in": "embedding.project",
        **inside(
            _ALBERT_LAYER,
            block(
                "encoder",
                {
                    "attention.query": family.QUERY,
                    "attention.key": family.KEY,
                    "attention.value": family.VALUE,
                    "attention.dense": family.OUT,
                    "attention.LayerNorm": family.ATTENTION_NORM,
                    "ffn": family.UP,
                    "ffn_output": family.DOWN,
                    "full_layer_layer_norm": family.MLP_NORM,
                },
            ),
        ),
        "pooler": "pooler.linear",
        "classifier": "head",
        "predictions.dense": "transform.linear",
        "predictions.LayerNorm": "transform.norm",
        "predictions.bias": "head.bias",
    },
    settings=_albert,
    parts={
        "pooler": r"pooler\..*",
        "classifier": r"classifier\..*",
        "transform": r"predictions\.(dense|LayerNorm)\..*",
        "scores": r"predictions\.(bias|decoder\..*)",
    },
    copies={"predictions.decoder.weight": WORDS, "predictions.decoder.bias": "predictions.bias"},
    unused={
        **BUFFER,
        r"sop_classifier\..*": "only pretraining on pairs of texts uses it",
    },
)
