"""Attention for images: patches become tokens on a Grid; the rest is `attention_core`."""

from vision.distilled import DistilledVisionTransformer
from vision.embeddings import PatchEmbedding, drop_patches
from vision.mae import MaskedAutoencoder
from vision.merging import TokenMerging
from vision.models import VisionTransformer
from vision.neighborhood import NeighborhoodTransformer
from vision.positions import CenteredRotary, ResampledPosition
from vision.presets import PRESETS
from vision.swin import SwinTransformer

__all__ = [
    "PRESETS",
    "CenteredRotary",
    "DistilledVisionTransformer",
    "MaskedAutoencoder",
    "NeighborhoodTransformer",
    "PatchEmbedding",
    "ResampledPosition",
    "SwinTransformer",
    "TokenMerging",
    "VisionTransformer",
    "drop_patches",
]
