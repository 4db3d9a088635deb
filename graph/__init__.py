"""Attention for graphs: a transformer whose tokens are nodes, built from `attention_core`.

    from graph import GraphTransformer

Data (`graph.data`) and training tasks (`graph.tasks`) are imported by name: they need Lightning,
which a model alone does not.
"""

from graph.embeddings import NodeEmbedding
from graph.models import GraphTransformer

__all__ = ["GraphTransformer", "NodeEmbedding"]
