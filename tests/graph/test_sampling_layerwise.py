"""Inference node by node, against one pass over the whole graph."""

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GATv2Conv, GINConv, SAGEConv, TransformerConv
from torch_geometric.utils import barabasi_albert_graph

from graph.sampling import layerwise
from tests.allocated import Allocated
from tests.graph.graphs import random_graph

STACKS = {
    "GAT": lambda d: GATConv(d, 4, heads=2),
    "GATv2": lambda d: GATv2Conv(d, 4, heads=2),
    "transformer": lambda d: TransformerConv(d, 4, heads=2),
    "SAGE": lambda d: SAGEConv(d, 8),
    "GIN": lambda d: GINConv(nn.Linear(d, 8)),
}


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize(("batch_size", "max_edges"), [(7, None), (1000, None), (1, None), (9, 20)])
def test_layer_by_layer_equals_one_pass(name: str, batch_size: int, max_edges: int | None) -> None:
    torch.manual_seed(0)
    data = random_graph()
    convs = [STACKS[name](4).eval(), STACKS[name](8).eval()]
    layers = [lambda x, e: convs[0](x, e).relu(), convs[1]]
    with torch.no_grad():
        whole = convs[1](convs[0](data.x, data.edge_index).relu(), data.edge_index)
    found = layerwise(layers, data.x, data.edge_index, batch_size=batch_size, max_edges=max_edges)
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)
    assert not found.requires_grad


def test_edges_keep_their_features() -> None:
    torch.manual_seed(0)
    data = random_graph()
    layer = GATv2Conv(4, 3, edge_dim=2, add_self_loops=False).eval()
    with torch.no_grad():
        whole = layer(data.x, data.edge_index, data.edge_attr)
    found = layerwise([layer], data.x, data.edge_index, data.edge_attr, batch_size=8)
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)


def test_memory_is_bounded_by_the_chunk() -> None:
    torch.manual_seed(0)
    edge_index = barabasi_albert_graph(3000, 8)
    x = torch.randn(3000, 2)
    edges: list[int] = []

    def layer(x: Tensor, edge_index: Tensor) -> Tensor:
        edges.append(edge_index.shape[1])
        messages = x[edge_index[0]].repeat(1, 200)  # as attention over many heads
        return x + 0 * x.new_zeros(len(x), 400).index_add_(0, edge_index[1], messages)[:, :2]

    hub = int(torch.bincount(edge_index[1]).max())
    with Allocated(x, edge_index) as allocated:
        layerwise([layer], x, edge_index, batch_size=3000, max_edges=2000)
    assert sum(edges) == edge_index.shape[1]
    assert max(edges) <= max(2000, hub)
    assert allocated.largest <= max(2000, hub) * 400 * 4 + 3000 * 4 * 400
    with Allocated(x, edge_index) as whole:
        layer(x, edge_index)
    assert whole.largest >= 10 * max(2000, hub) * 400 * 4


def test_nothing_to_infer() -> None:
    none = torch.empty(2, 0, dtype=torch.int64)
    conv = SAGEConv(4, 3).eval()
    assert layerwise([conv], torch.empty(0, 4), none).shape == (0, 3)
    x = torch.randn(5, 4)
    with torch.no_grad():
        torch.testing.assert_close(layerwise([conv], x, none, batch_size=2), conv(x, none))


def test_bad_input_is_named() -> None:
    data = random_graph()
    with pytest.raises(ValueError, match="edge_index names"):
        layerwise([], data.x[:10], data.edge_index)
    with pytest.raises(ValueError, match="edge_attr must hold a row per edge, 240"):
        layerwise([], data.x, data.edge_index, data.edge_attr[:3])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        layerwise([], data.x, data.edge_index, batch_size=0)
    with pytest.raises(ValueError, match="x has a feature that is not finite, first in row 2"):
        layerwise([], data.x.index_fill(0, torch.tensor(2), torch.nan), data.edge_index)
    with pytest.raises(TypeError, match="x must be a tensor"):
        layerwise([], torch.tensor(1.0), data.edge_index)
