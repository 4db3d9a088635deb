"""Decoders: GPT-2 (Radford et al., 2019) and Llama (Touvron et al., 2023) with those like it."""

from __future__ import annotations

import re
from typing import Any

from attention_core.pretrained import Checkpoint, Family, names
from attention_core.pretrained.family import GATED
from attention_core.pretrained.renaming import Weights
from nlp.pretrained.rope import rotary
from nlp.pretrained.text import POSITIONS, WORDS, part_settings


def _from_gpt2(weights: Weights) -> tuple[Weights, dict[str, str]]:
    """Its linear layers keep (in, out)."""
    turned = re.compile(r"h\.\d+\.(attn|mlp)\.c_(attn|proj|fc)\.weight")
    return {n: w.mT if turned.fullmatch(n) else w for n, w in weights.items()}, {}


def _gpt2(checkpoint: Checkpoint) -> dict[str, Any]:
    sizes = checkpoint.sizes("decoder")
    return {
        **sizes,
        "vocab_size": len(checkpoint.tensor(WORDS)),
        "heads": checkpoint.number_of_heads(sizes["dim"], "n_head", 64),
        "positions": "learned",
        "max_length": len(checkpoint.tensor(POSITIONS)),
        "activation": checkpoint.activation("activation_function", "gelu_new"),
        "eps": checkpoint.config.get("layer_norm_epsilon") or 1e-5,
        **part_settings(checkpoint),
    }


GPT2 = Family(
    recognises=lambda w: "wte.weight" in w and "h.0.attn.c_attn.weight" in w,
    prefixes=("transformer.",),
    model_types=("gpt2",),
    table={
        "wte": "embedding.table",
        "wpe.weight": POSITIONS,
        **names.layers(
            "h.#.",
            "decoder",
            {
                "ln_1": names.ATTENTION_NORM,
                "attn.c_attn": names.QKV,
                "attn.c_proj": names.OUT,
                "ln_2": names.MLP_NORM,
                "mlp.c_fc": names.UP,
                "mlp.c_proj": names.DOWN,
            },
        ),
        "ln_f": "decoder.norm",
        "lm_head": "scores",
    },
    settings=_gpt2,
    copies={"lm_head.weight": "wte.weight"},
    unused={r"h\.\d+\.attn\.(masked_)?bias": "the mask is causal anyway"},
    prepare=_from_gpt2,
)


def _llama(checkpoint: Checkpoint) -> dict[str, Any]:
    if checkpoint.heads is None:
        checkpoint.need("num_attention_heads")
    config, heads = checkpoint.config, checkpoint.number_of_heads(1, "num_attention_heads", 1)
    attention = "decoder.blocks.0.attention."
    head_dim = len(checkpoint.tensor(f"{attention}query.weight")) // heads
    window = config.get("sliding_window")
    return {
        **checkpoint.sizes("decoder"),
        "vocab_size": len(checkpoint.tensor(WORDS)),
        "heads": heads,
        "kv_heads": len(checkpoint.tensor(f"{attention}key_value.weight")) // (2 * head_dim),
        "head_dim": head_dim,
        # Theirs counts the token itself
        "window": None if window is None else window - 1,
        "positions": None,
        "rotary": rotary(config, head_dim),
        "activation": checkpoint.activation("hidden_act", "silu", GATED),
        "norm": "rms",
        "eps": config.get("rms_norm_eps") or 1e-6,
        **part_settings(checkpoint),
    }


LLAMA = Family(
    recognises=lambda w: (
        "embed_tokens.weight" in w and "layers.0.post_attention_layernorm.weight" in w
    ),
    prefixes=("model.",),
    model_types=("llama", "mistral"),
    table={
        "embed_tokens": "embedding.table",
        **names.layers(
            "layers.#.",
            "decoder",
            {
                "input_layernorm": names.ATTENTION_NORM,
                "self_attn.q_proj": names.QUERY,
                "self_attn.k_proj": names.KEY,
                "self_attn.v_proj": names.VALUE,
                "self_attn.o_proj": names.OUT,
                "post_attention_layernorm": names.MLP_NORM,
                "mlp.gate_proj": names.GATE,
                "mlp.up_proj": names.UP,
                "mlp.down_proj": names.DOWN,
            },
        ),
        "norm": "decoder.norm",
        "lm_head": "scores",
    },
    settings=_llama,
    copies={"lm_head.weight": "embed_tokens.weight"},
    unused={r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq": "the base gives it"},
)
