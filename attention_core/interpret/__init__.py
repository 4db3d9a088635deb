"""What models attend to, as maps and as plots: what is the same for images, texts and graphs.

`vision.interpret`, `nlp.interpret` and `graph.interpret` build on it, with the same names:
`attention_maps`, `pooling_attention`, `attention_rollout`, `mean_attention_distance` and
`attention_figures`, each called as ``function(model, inputs, ...)``. `maps` needs torch alone,
`plots` Matplotlib.
"""

from attention_core.interpret.maps import (
    LayerAttention,
    RolloutOptions,
    all_layers,
    attention_layers,
    mean_distance,
    occlusion,
    pooled_shares,
    reaching,
    received,
    record,
    record_to_pool,
    rollout,
)

__all__ = [
    "LayerAttention",
    "RolloutOptions",
    "all_layers",
    "attention_layers",
    "mean_distance",
    "occlusion",
    "pooled_shares",
    "reaching",
    "received",
    "record",
    "record_to_pool",
    "rollout",
]
