"""What a graph model attends to: maps as numbers, plots on the graphs, and what a prediction rests
on."""

from graph.interpret.explainer import EdgeAttribution, explain_prediction
from graph.interpret.maps import (
    HopProfile,
    NodeAttention,
    attention_by_hops,
    attention_maps,
    attention_rollout,
    mean_attention_distance,
    pooling_attention,
)
from graph.interpret.plots import Shown, attention_figures

__all__ = [
    "EdgeAttribution",
    "HopProfile",
    "NodeAttention",
    "Shown",
    "attention_by_hops",
    "attention_figures",
    "attention_maps",
    "attention_rollout",
    "explain_prediction",
    "mean_attention_distance",
    "pooling_attention",
]
