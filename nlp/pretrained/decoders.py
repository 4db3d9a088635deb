"""Decoders: GPT-2 (Radford et al., 2019) and Llama (Touvron et al., 2023) with those like it."""

from __future__ import annotations

import re
from typing import Any

from attention_core.training.weights import Weights, inside
from nlp.pretrained import family
from nlp.pretrained.family import Config, Family, activation, block, depth, number_of_heads, tensor
from nlp.pretrained.rope import rotary


def _from_gpt2(weights: Weights) -> tuple[Weights, dict[str, str]]:
    """Its linear layers keep (in, out)."""
    turned = re.compile(r"h\.\d+\.(attn|mlp)\.c_(attn|proj|fc)\.weight")
    return {n: w.mT if turned.fullmatch(n) else w for n, w in weights.items()}, {}


def _gpt2(weights: Weights, config: Config, heads: int | None) -> dict[str, Any]:
    words = tensor(weights, "wte.weight")
    return {
        "vocab_size": len(words),
        "dim": words.shape[1],
        "depth": depth(weights, "h."),
        "heads": number_of_heads(words.shape[1], heads, config, "n_head", 64),
        "positions": "learned",
        "max_length": len(tensor(weights, "wpe.weight")),
        "hidden": len(tensor(weights, "h.0.mlp.c_fc.weight")),
        "activation": activation(config, "activation_function", "gelu_new"),
        "eps": config.get("layer_norm_epsilon") or 1e-5,
    }


GPT2 = Family(
    recognises=lambda w: "wte.weight" in w and "h.0.attn.c_attn.weight" in w,
    prefixes=("transformer.",),
    table={
        "wte": "embedding.table",
        "wpe.weight": "embedding.positions.table",
        **inside(
            "h.#.",
            block(
                "decoder",
                {
                    "ln_1": family.ATTENTION_NORM,
                    "attn.c_attn": family.QKV,
                    "attn.c_proj": family.OUT,
                    "ln_2": family.MLP_NORM,
                    "mlp.c_fc": family.UP,
                    "mlp.c_proj": family.DOWN,
                },
            ),
        ),
        "ln_f": "decoder.norm",
        "lm_head": "head",
    },
    settings=_gpt2,
    parts={"scores": r"lm_head\..*"},
    copies={"lm_head.weight": "wte.weight"},
    unused={r"h\.\d+\.attn\.(masked_)?bias": "the mask is causal anyway"},
    prepare=_from_gpt2,
)


def _llama(weights: Weights, config: Config, heads: int | None) -> dict[str, Any]:
    if heads is None:
        family.needed(config, "num_attention_heads")
    words = tensor(weights, "embed_tokens.weight")
    count = heads or config["num_attention_heads"]
    head_dim = len(tensor(weights, "layers.0.self_attn.q_proj.weight")) // count
    window = config.get("sliding_window")
    return {
        "vocab_size": len(words),
        "dim": words.shape[1],
        "depth": depth(weights, "layers."),
        "heads": count,
        "kv_heads": len(tensor(weights, "layers.0.self_attn.k_proj.weight")) // head_dim,
        "head_dim": head_dim,
        # Theirs counts the token itself
        "window": None if window is None else window - 1,
        "positions": None,
        "rotary": rotary(config, head_dim),
        "hidden": len(tensor(weights, "layers.0.mlp.gate_proj.weight")),
        "activation": activation(config, "hidden_act", "silu", family.GATED),
        "norm": "rms",
        "eps": config.get("rms_norm_eps") or 1e-6,
        "projection_bias": "layers.0.self_attn.o_proj.bias" in weights,
    }


LLAMA = Family(
    recognises=lambda w: (
        "embed_tokens.weight" in w and "layers.0.post_attention_layernorm.weight" in w
    ),
    prefixes=("model.",),
    table={
        "embed_tokens": "embedding.table",
        **inside(
            "layers.#.",
            block(
                "decoder",
                {
                    "input_layernorm": family.ATTENTION_NORM,
                    "self_attn.q_proj": family.QUERY,
                    "self_attn.k_proj": family.KEY,
                    "self_attn.v_proj": family.VALUE,
                    "self_attn.o_proj": family.OUT,
                    "post_attention_layernorm": family.MLP_NORM,
                    "mlp.gate_proj": family.GATE,
                    "mlp.up_proj": family.LINEAR,
                    "mlp.down_proj": family.DOWN,
                },
            ),
        ),
        "norm": "decoder.norm",
        "lm_head": "head",
    },
    settings=_llama,
    parts={"scores": r"lm_head\..*"},
    copies={"lm_head.weight": "embed_tokens.weight"},
    unused={r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq": "the base gives it"},
)
