"""Attention for text: transformers whose tokens are pieces of words, built from `attention_core`.

    from nlp import TextEncoder, Tokenizer

Data (`nlp.data`) and training tasks (`nlp.tasks`) are imported by name: they need Lightning, which
a model alone does not.
"""

from nlp.batches import pad, unpad
from nlp.decoder import TextDecoder
from nlp.embeddings import TokenEmbedding
from nlp.encoder import MaskedLanguageModel, TextEncoder
from nlp.generation import generate
from nlp.seq2seq import Seq2SeqTransformer
from nlp.tokenizer import Tokenizer

__all__ = [
    "MaskedLanguageModel",
    "Seq2SeqTransformer",
    "TextDecoder",
    "TextEncoder",
    "TokenEmbedding",
    "Tokenizer",
    "generate",
    "pad",
    "unpad",
]
