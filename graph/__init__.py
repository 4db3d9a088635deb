"""Attention for graphs, whose tokens are nodes, built from `attention_core`.

    from graph import GraphTransformer

`GraphTransformer` is a whole model; `GATConv` and the other layers are called as PyG's are. Data
(`graph.data`) and training tasks (`graph.tasks`) are imported by name: they need Lightning, which a
model alone does not. Layers are loaded on first use: they are PyG's `MessagePassing`, whose import
takes longer than torch's.
"""

from typing import TYPE_CHECKING, Any

from graph.embeddings import NodeEmbedding
from graph.models import GraphTransformer

if TYPE_CHECKING:
    from graph.layers import (
        GATConv,
        GATv2Conv,
        GraphAttention,
        HeteroGraphAttention,
        TransformerConv,
    )

__all__ = [
    "GATConv",
    "GATv2Conv",
    "GraphAttention",
    "GraphTransformer",
    "HeteroGraphAttention",
    "NodeEmbedding",
    "TransformerConv",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from graph import layers

    globals()[name] = value = getattr(layers, name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
