"""What a text model attends to: maps as arrays, plots with the words themselves, and a page."""

from nlp.interpret.html import attention_page
from nlp.interpret.maps import (
    alignment,
    attention_maps,
    attention_rollout,
    mean_attention_distance,
    occlusion,
    pooling_attention,
)
from nlp.interpret.plots import ReadText, attention_figures, read_text, text_figures

__all__ = [
    "ReadText",
    "alignment",
    "attention_figures",
    "attention_maps",
    "attention_page",
    "attention_rollout",
    "mean_attention_distance",
    "occlusion",
    "pooling_attention",
    "read_text",
    "text_figures",
]
