"""What models attend to, as maps and as plots: what is the same for images, texts and graphs.

`vision.interpret`, `nlp.interpret` and `graph.interpret` build on it, with the same names:
`attention_maps`, `pooling_attention`, `attention_rollout`, `mean_attention_distance` and
`attention_figures`, each called as ``function(model, inputs, ...)``. `maps` needs torch alone,
`plots` Matplotlib.
"""
