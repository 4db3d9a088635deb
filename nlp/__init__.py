"""Attention for text: transformers whose tokens are pieces of words, built from `attention_core`.

    from nlp import TextEncoder, Tokenizer

Data (`nlp.data`) and training tasks (`nlp.tasks`) are imported by name: they need Lightning, which
a model alone does not.
"""

from nlp.embeddings import TokenEmbedding
from nlp.models import TextEncoder
from nlp.tokenizer import Tokenizer

__all__ = ["TextEncoder", "TokenEmbedding", "Tokenizer"]
