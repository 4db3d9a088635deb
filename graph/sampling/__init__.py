"""Graphs that are too large for one batch: neighbors drawn, clusters, and layers node by node.

    from graph.sampling import ClusterData, ClusterLoader, LinkNeighborLoader, NeighborLoader

The loaders stand in for PyG's of the same names, from PyPI alone. Data modules
(`graph.sampling.data`) are imported by name: they need Lightning.
"""

from graph.sampling.clusters import ClusterData, ClusterLoader, partition
from graph.sampling.layerwise import layerwise
from graph.sampling.loaders import LinkNeighborLoader, NeighborLoader
from graph.sampling.sampler import NeighborSampler
from graph.sampling.trimming import Trimmed, TrimmedLayer, trim_to_seeds

__all__ = [
    "ClusterData",
    "ClusterLoader",
    "LinkNeighborLoader",
    "NeighborLoader",
    "NeighborSampler",
    "Trimmed",
    "TrimmedLayer",
    "layerwise",
    "partition",
    "trim_to_seeds",
]
