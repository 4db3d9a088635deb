"""Attention for graphs, whose tokens are nodes, built from `attention_core`.

    from graph import GraphTransformer

`GraphTransformer` is a whole model; `GATConv` and the other layers are called as PyG's are. Data
(`graph.data`) and training tasks (`graph.tasks`) are imported by name: they need Lightning, which a
model alone does not.
"""

from graph.embeddings import NodeEmbedding
from graph.layers import (
    GATConv,
    GATv2Conv,
    GraphAttention,
    HeteroGraphAttention,
    TransformerConv,
)
from graph.models import GraphTransformer

__all__ = [
    "GATConv",
    "GATv2Conv",
    "GraphAttention",
    "GraphTransformer",
    "HeteroGraphAttention",
    "NodeEmbedding",
    "TransformerConv",
]
