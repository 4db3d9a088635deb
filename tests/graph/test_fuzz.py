"""Odd arguments of public callables of `graph`: see `tests.fuzz`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data

import graph
import graph.encodings
import graph.sampling
from attention_core import Block, Encoder, MultiheadAttention
from attention_core.spaces.edge_list import EdgeList
from graph import GraphTransformer, NodeEmbedding
from graph.embeddings import EdgeEmbedding
from graph.encoder import SelfAttention
from graph.encodings import (
    CentralityEmbedding,
    PairBias,
    PathBias,
    RandomWalkBias,
    SignInvariant,
    SpectralBias,
    degrees,
    expander_edges,
    flip_signs,
    laplacian_eigenvectors,
    path_features,
    relative_walks,
    return_probabilities,
    spectral_coordinates,
    walk_table,
)  # fmt: skip
from graph.encodings.transforms import (
    AddExpander,
    AddLaplacian,
    AddPaths,
    AddRandomWalks,
    AddRelativeWalks,
    AddSpectralCoordinates,
)  # fmt: skip
from graph.heads import EdgeHead, LinkHead
from graph.interpret.explainer import EdgeAttribution, explain_prediction, log_odds
from graph.layers import (
    GATConv,
    GATv2Conv,
    GraphAttention,
    HeteroGraphAttention,
    TransformerConv,
)  # fmt: skip
from graph.sampling import (
    ClusterData,
    ClusterLoader,
    LinkNeighborLoader,
    NeighborLoader,
    NeighborSampler,
    layerwise,
    partition,
    trim_to_seeds,
)  # fmt: skip
from tests.fuzz import PLAIN, Call, call, cases, faults, left_out

EDGE = torch.tensor([[0, 1, 2, 2], [1, 2, 0, 1]])
X = torch.rand(3, 4)
TYPES = torch.tensor([0, 1, 1])
ATTR = torch.rand(4, 2)
EDGES = EdgeList(EDGE, 3, ATTR)
DATA = Data(x=X, edge_index=EDGE, edge_attr=ATTR, num_nodes=3)
ODD = [
    *[*PLAIN, EDGE, EDGE.int(), EDGE.float(), EDGE.bool(), EDGE - 5, EDGE + 9, EDGE[:, :0]],
    *[EDGE[0], EDGE[None], EDGE.T, EDGE.to("meta"), EDGE.to_sparse(), EDGE.numpy(), EDGE.tolist()],
    *[X, X.double(), X.half(), X.long(), X / 0, X[:0], X[:, :2], X[:2], X.to("meta")],
    *[X.to_sparse(), TYPES, TYPES - 1, TYPES + 9, TYPES.bool(), TYPES.float(), ATTR, ATTR[:2]],
    *[torch.tensor(1), torch.tensor(1.0), (X, X), (X, None), EDGES, DATA],
]
SIZES = {"dim": 4, "depth": 1, "heads": 2}
CONV = {"in_channels": 4, "out_channels": 2, "heads": 2, "concat": True, "dropout": 0.0}
FILL = {"negative_slope": 0.2, "add_self_loops": True, "edge_dim": None, "fill_value": "mean"}
PASS = {"x": X, "edge_index": EDGE, "edge_attr": ATTR, "return_attention_weights": None}
MODEL = GraphTransformer(
    **SIZES, num_classes=3, node_features=4, edge_features=2, max_degree=2, walk_steps=2
).eval()
NODES = GraphTransformer(**SIZES, num_classes=3, level="node", node_types=3, eigenvectors=2).eval()
LINKS = GraphTransformer(
    **SIZES, num_classes=None, level="link", relations=2, node_features=4
).eval()
METADATA = ["node"], [("node", "to", "node")]
HETERO = HeteroGraphAttention(4, 4, 2, METADATA).eval()
VECTORS, VALUES = laplacian_eigenvectors(EDGES, 2)
LOADED = {"data": DATA, "num_neighbors": [2]}


def _hetero(x_dict: Tensor, edge_index_dict: Tensor) -> Tensor:
    output: Tensor = HETERO({"node": x_dict}, {METADATA[1][0]: edge_index_dict})["node"]
    return output


CALLS: dict[str, Call] = {
    "GraphTransformer": call(
        GraphTransformer, MultiheadAttention, Block, Encoder, SelfAttention, **SIZES,
        num_classes=3, level="graph", relations=1, node_types=3, max_degree=None, walk_steps=None,
        eigenvectors=None, edge_types=2, edge_features=None, edge_dim=None, max_hops=None,
        biases=(), bias=None, mask=None, local=None, score="dot", degree_scaler=False,
        expander_degree=None, virtual_nodes=0, pooling="mean", hidden=None,
    ),
    "GraphTransformer()": call(
        MODEL, x=X, edge_index=EDGE, edge_attr=ATTR, batch=None, num_graphs=None,
    ),
    "GraphTransformer() of nodes": call(
        NODES, GraphTransformer.embed, x=TYPES, edge_index=EDGE, node_mask=None, laplacian=VECTORS,
        laplacian_values=VALUES,
    ),
    "GraphTransformer() of links": call(
        LINKS, x=X, edge_index=EDGE, edge_label_index=EDGE, edge_label_type=torch.zeros(4).long(),
    ),
    "GraphTransformer.encode": call(
        MODEL.encode, MODEL.embed, x=X, edge_index=EDGE, edge_attr=ATTR, degree=degrees(EDGES),
        rwse=return_probabilities(EDGES, 2), backend=None,
    ),
    "GraphTransformer.features": call(
        MODEL.features, MODEL.embed, x=X, edge_index=EDGE, edge_attr=ATTR, layers=(-1,), norm=True,
    ),
    "GraphTransformer.preset": call(
        GraphTransformer.preset, GraphTransformer, name="gps", depth=1, num_classes=3, node_types=3,
    ),
    "NodeEmbedding": call(
        NodeEmbedding, dim=4, types=None, features=4, max_degree=None, walk_steps=None,
        eigenvectors=None,
    ),
    "NodeEmbedding()": call(NodeEmbedding(4, features=4), x=X, edges=EDGES),
    "EdgeEmbedding": call(EdgeEmbedding, types=None, features=2, dim=None, added=False),
    "EdgeEmbedding()": call(
        EdgeEmbedding(features=2, dim=4), edge_attr=ATTR, edge_index=EDGE, added=0
    ),
    "EdgeHead": call(EdgeHead, dim=4, outputs=2, edge_dim=None),
    "LinkHead": call(LinkHead, dim=4, relations=1),
    "GraphAttention": call(
        GraphAttention, dim=4, heads=2, head_dim=None, score="dot", kv_heads=None, concat=True,
        share_weights=None, edge_dim=None, edge_values=None, bias=None, self_loops=False,
        fill_value="mean", residual=False, attention_dropout=0.0, negative_slope=0.2,
        projection_bias=True, output_bias=True,
    ),
    "GraphAttention()": call(GraphAttention(4, 2, edge_dim=2).eval(), **PASS, size=None),
    "GATConv": call(GATConv, **CONV, **FILL, bias=True, residual=False),
    "GATConv()": call(GATConv(4, 2, 2, edge_dim=2).eval(), **PASS, size=None, backend=None),
    "GATv2Conv": call(GATv2Conv, **CONV, **FILL, bias=True, share_weights=False, residual=False),
    "TransformerConv": call(
        TransformerConv, **CONV, beta=False, edge_dim=None, bias=True, root_weight=True
    ),
    "HeteroGraphAttention": call(
        HeteroGraphAttention, dim=4, out_dim=4, heads=2, metadata=METADATA, edge_dim=None,
        attention_dropout=0.0,
    ),
    "HeteroGraphAttention()": call(
        HETERO, x_dict={"node": X}, edge_index_dict={METADATA[1][0]: EDGE}, edge_attr_dict=None,
    ),
    "HeteroGraphAttention(), of one type": call(_hetero, x_dict=X, edge_index_dict=EDGE),
    "CentralityEmbedding": call(CentralityEmbedding, dim=4, max_degree=2),
    "CentralityEmbedding()": call(CentralityEmbedding(4, 2), degree=degrees(EDGES)),
    "SignInvariant": call(SignInvariant, k=2, dim=4, hidden=4, depth=1),
    "SignInvariant()": call(SignInvariant(2, 4), vectors=VECTORS, values=VALUES, edge_index=EDGE),
    "PairBias": call(PairBias, heads=2, name="walks", features=3, hidden=None),
    "RandomWalkBias": call(RandomWalkBias, heads=2, steps=3, hidden=None),
    "PathBias": call(PathBias, heads=2, max_hops=2, types=3, features=None),
    "SpectralBias": call(SpectralBias, heads=2, axes=2),
    "AddLaplacian": call(AddLaplacian, k=2, normalization="sym"),
    "AddSpectralCoordinates": call(AddSpectralCoordinates, k=2, normalization="sym"),
    "AddRandomWalks": call(AddRandomWalks, steps=2),
    "AddRelativeWalks": call(AddRelativeWalks, steps=2, of="pairs"),
    "AddPaths": call(AddPaths, max_hops=2, types=None),
    "AddExpander": call(AddExpander, degree=2, types=None, seed=0),
    "degrees": call(degrees, edges=EDGES),
    "expander_edges": call(expander_edges, edges=EDGES, degree=2, seed=0),
    "flip_signs": call(flip_signs, vectors=VECTORS, component=TYPES, generator=None),
    "laplacian_eigenvectors": call(
        laplacian_eigenvectors, edges=EDGES, k=2, normalization="sym"
    ),
    "spectral_coordinates": call(spectral_coordinates, edges=EDGES, k=2, normalization="sym"),
    "path_features": call(path_features, edges=EDGES, features=ATTR, max_hops=2),
    "relative_walks": call(relative_walks, edges=EDGES, steps=2, target=TYPES, source=TYPES),
    "return_probabilities": call(return_probabilities, edges=EDGES, steps=2),
    "walk_table": call(walk_table, edges=EDGES, steps=2),
    "layerwise": call(
        layerwise, layers=[lambda x, edge_index: x], x=X, edge_index=EDGE, batch_size=2,
        max_edges=None,
    ),
    "trim_to_seeds": call(
        trim_to_seeds, edge_index=EDGE, num_nodes=3, seeds=1, num_layers=2
    ),
    "partition": call(
        partition, edge_index=EDGE, num_nodes=3, num_parts=2, imbalance=0.05, seed=0
    ),
    "ClusterData": call(ClusterData, data=DATA, num_parts=2),
    "ClusterLoader": call(ClusterLoader, cluster_data=ClusterData(DATA, 2)),
    "NeighborSampler": call(
        NeighborSampler, **LOADED, subgraph_type="directional", replace=False, disjoint=False,
        temporal_strategy="uniform", time_attr=None, weight_attr=None,
    ),
    "NeighborLoader": call(
        NeighborLoader, **LOADED, input_nodes=None, replace=False, disjoint=False,
        subgraph_type="directional", temporal_strategy="uniform", time_attr=None,
        weight_attr=None, input_time=None, transform=None, is_sorted=False,
    ),
    "LinkNeighborLoader": call(
        LinkNeighborLoader, **LOADED, edge_label_index=EDGE, edge_label=None, replace=False,
        disjoint=False, subgraph_type="directional", temporal_strategy="uniform", time_attr=None,
        weight_attr=None, edge_label_time=None, transform=None, is_sorted=False,
        neg_sampling=None, neg_sampling_ratio=None,
    ),
    "explain_prediction": call(
        explain_prediction, model=NODES, x=TYPES, edge_index=EDGE, target=None, index=None,
        mode="classification", steps=2,
    ),
    "EdgeAttribution": call(EdgeAttribution, steps=2),
    "log_odds": call(log_odds, output=X, target=1),
}  # fmt: skip


#: What `trim_to_seeds` gives.
EXEMPT = dict.fromkeys(["Trimmed", "TrimmedLayer"])


def test_no_public_callable_is_left_out() -> None:
    for module in (graph, graph.encodings, graph.sampling):
        assert left_out(module, CALLS, EXEMPT) == []


@pytest.mark.parametrize(
    "name",
    cases(
        CALLS,
        "explain_prediction",
        "GraphTransformer",
        "GraphAttention",
        "GraphAttention()",
        "GATConv",
        "GATConv()",
        "GATv2Conv",
        "NeighborLoader",
        "LinkNeighborLoader",
        "NeighborSampler",
        "trim_to_seeds",
    ),
)
def test_an_odd_argument_is_taken_or_named(name: str) -> None:
    found = faults(CALLS[name], ODD)
    assert not found, "\n".join(found)
