"""What graph models are trained for."""

from graph.tasks.edges import EdgeClassification
from graph.tasks.graphs import GraphClassification, GraphRegression
from graph.tasks.links import LinkPrediction
from graph.tasks.nodes import NodeClassification, NodeRegression

__all__ = [
    "EdgeClassification",
    "GraphClassification",
    "GraphRegression",
    "LinkPrediction",
    "NodeClassification",
    "NodeRegression",
]
