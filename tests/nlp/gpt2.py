"""A random GPT-2 of transformers, and ours with its weights."""

from functools import cache

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from nlp import TextDecoder

VOCABULARY, ENDS = 60, [39, 22]


@cache
def models() -> tuple[GPT2LMHeadModel, TextDecoder]:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=16,
        n_layer=2,
        n_head=4,
        bos_token_id=1,
        eos_token_id=ENDS,
        pad_token_id=0,
        initializer_range=0.7,  # large enough for scores that differ
        attn_implementation="eager",
    )
    theirs = GPT2LMHeadModel(config).eval()
    ours = TextDecoder(
        VOCABULARY, 16, 2, 4, positions="learned", max_length=64, activation="gelu-tanh", eps=1e-5
    )
    ours.load_state_dict(_renamed(theirs.state_dict()))
    return theirs, ours.eval()


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {
        "embedding.table.weight": state["transformer.wte.weight"],
        "embedding.positions.table": state["transformer.wpe.weight"],
    }
    for kind in ("weight", "bias"):
        names[f"decoder.norm.{kind}"] = state[f"transformer.ln_f.{kind}"]
        for layer in range(2):
            old, new = f"transformer.h.{layer}.", f"decoder.blocks.{layer}."
            names[f"{new}attention_residual.norm.{kind}"] = state[f"{old}ln_1.{kind}"]
            names[f"{new}feed_forward_residual.norm.{kind}"] = state[f"{old}ln_2.{kind}"]
            joint = state[f"{old}attn.c_attn.{kind}"].mT if kind == "weight" else None
            joint = state[f"{old}attn.c_attn.{kind}"] if joint is None else joint
            names[f"{new}attention.query.{kind}"] = joint[:16]
            names[f"{new}attention.key_value.{kind}"] = joint[16:]
            for theirs, ours in (
                ("attn.c_proj", "attention.out"),
                ("mlp.c_fc", "feed_forward.up"),
                ("mlp.c_proj", "feed_forward.down"),
            ):
                value = state[f"{old}{theirs}.{kind}"]
                names[f"{new}{ours}.{kind}"] = value.mT if kind == "weight" else value
    return names
