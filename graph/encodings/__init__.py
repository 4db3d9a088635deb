"""Positions on graphs: what a node's place in its graph is, and what two nodes are to each other.

    from graph.encodings import RandomWalkBias, laplacian_eigenvectors

    space = Graph(edge_index, num_nodes)
    vectors, values = laplacian_eigenvectors(space.edges, k=8)

Encodings are computed once per graph by the PyG transforms of `graph.encodings.transforms`
(imported by name, as they need PyG), which store them in the data for batches to join, or on the
fly. Node encodings are added to tokens; biases score pairs, in every backend alike.
"""

from graph.encodings.biases import PairBias, PathBias, RandomWalkBias, SpectralBias
from graph.encodings.centrality import CentralityEmbedding, degrees
from graph.encodings.expander import expander_edges
from graph.encodings.laplacian import flip_signs, laplacian_eigenvectors, spectral_coordinates
from graph.encodings.random_walks import relative_walks, return_probabilities, walk_table
from graph.encodings.shortest_paths import path_features
from graph.encodings.sign_invariance import SignInvariant

__all__ = [
    "CentralityEmbedding",
    "PairBias",
    "PathBias",
    "RandomWalkBias",
    "SignInvariant",
    "SpectralBias",
    "degrees",
    "expander_edges",
    "flip_signs",
    "laplacian_eigenvectors",
    "path_features",
    "relative_walks",
    "return_probabilities",
    "spectral_coordinates",
    "walk_table",
]
