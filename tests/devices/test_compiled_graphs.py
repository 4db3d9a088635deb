"""Layers over graphs are compiled as one program each, without a break, and compute the same."""

import pytest
import torch
from torch import nn

from attention_core import EdgeBias, Edges, Encoder, Graph
from graph.layers import GATConv, GATv2Conv, TransformerConv

pytestmark = pytest.mark.slow  # each is traced for some seconds

NODES, EDGES = 12, 60


def graph(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Nodes, edges with self-loops among them and repeated ones, and features of edges."""
    torch.manual_seed(seed)
    edge_index = torch.randint(0, NODES, (2, EDGES))
    edge_index[:, :3], edge_index[:, 3] = torch.tensor([[2], [2]]), edge_index[:, 4]
    return torch.randn(NODES, 8), edge_index, torch.randn(EDGES, 3)


def agree(model: nn.Module, calls: list[tuple]) -> None:
    """Compare values and gradients of the compiled model, which is traced for the first call."""
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for args in calls:
        found = []
        for run in (model, compiled):
            given = [x.clone().requires_grad_() if x is args[0] else x for x in args]
            out = run(*given)
            out.square().sum().backward()
            found.append([out.detach(), given[0].grad, *(p.grad for p in model.parameters())])
            model.zero_grad(set_to_none=True)
        for wanted, got in zip(*found, strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: GATConv(8, 4, heads=2, edge_dim=3, residual=True),
        lambda: GATv2Conv(8, 4, heads=2),
        lambda: TransformerConv(8, 4, heads=2, edge_dim=3, beta=True),
    ],
)
def test_layers(layer):
    layer = layer()
    calls = []
    for seed in range(2):
        x, edge_index, attr = graph(seed)
        calls.append((x, edge_index) if layer.edge is None else (x, edge_index, attr))
    agree(layer, calls)


def test_an_encoder_along_edges():
    bias = EdgeBias(2, features=3)
    model = Encoder(8, depth=2, heads=2, mask=Edges(), edge_dim=3, bias=bias)
    calls, half = [], NODES // 2
    for seed in range(2):
        x, edge_index, attr = graph(seed)
        edge_index[1] = edge_index[0] // half * half + edge_index[1] % half
        segments = torch.arange(NODES) // half
        space = Graph(edge_index, NODES, edge_attr=attr, segments=segments, num_graphs=2)
        calls.append((x, space))
    agree(model, calls)
