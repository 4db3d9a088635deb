"""What a vision model attends to: maps as arrays, and plots over the images."""

from vision.interpret.maps import (
    attention_maps,
    attention_rollout,
    mean_attention_distance,
    patch_distances,
    pooling_attention,
)
from vision.interpret.plots import attention_figures

__all__ = [
    "attention_figures",
    "attention_maps",
    "attention_rollout",
    "mean_attention_distance",
    "patch_distances",
    "pooling_attention",
]
