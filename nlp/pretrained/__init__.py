"""The families of published language models, by the models of ours that load them."""

from __future__ import annotations

from collections.abc import Mapping

from attention_core.pretrained import Family
from nlp.pretrained.bert import ALBERT, BERT, DISTILBERT, ROBERTA
from nlp.pretrained.decoders import GPT2, LLAMA
from nlp.pretrained.modernbert import MODERNBERT
from nlp.pretrained.t5 import T5

__all__ = ["DECODERS", "ENCODERS", "SEQ2SEQ"]

#: By name, what is more particular first.
ENCODERS: Mapping[str, Family] = {
    "modernbert": MODERNBERT,
    "albert": ALBERT,
    "distilbert": DISTILBERT,
    "roberta": ROBERTA,
    "bert": BERT,
}
DECODERS: Mapping[str, Family] = {"gpt2": GPT2, "llama": LLAMA}
SEQ2SEQ: Mapping[str, Family] = {"t5": T5}
