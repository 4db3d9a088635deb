"""Attention layers that are called as PyG's are: nodes, edges and features of edges.

from graph import GATv2Conv, GraphAttention, HeteroGraphAttention
"""

from graph.layers.attention import GraphAttention
from graph.layers.conv import GATConv, GATv2Conv, TransformerConv
from graph.layers.hetero import HeteroGraphAttention

__all__ = ["GATConv", "GATv2Conv", "GraphAttention", "HeteroGraphAttention", "TransformerConv"]
