"""Attention for images: patches become tokens on a Grid; the rest is `attention_core`."""

from vision.embeddings import PatchEmbedding
from vision.models import VisionTransformer

__all__ = ["PatchEmbedding", "VisionTransformer"]
