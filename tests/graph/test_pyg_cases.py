"""What PyG's own tests ask of `GATConv`, `GATv2Conv` and `TransformerConv`, asked of ours: the same
calls, and what PyG's layers give to them with the same weights.

Left out are what is private, the text of `repr`, and TorchScript, which our layers do not claim;
where PyG asks for torch-sparse's `SparseTensor`, these ask for torch's own sparse tensors.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric.utils import to_torch_coo_tensor, to_torch_csc_tensor, to_torch_csr_tensor

import graph

EDGES = torch.tensor([[0, 1, 2, 3], [0, 0, 1, 1]])
OUT, HEADS = 32, 2


def pair(name: str, channels: Any, **options: Any) -> tuple[nn.Module, nn.Module]:
    """Ours with the weights of PyG's."""
    torch.manual_seed(0)
    mine, theirs = (
        getattr(where, name)(channels, OUT, heads=HEADS, **options) for where in (graph, pyg)
    )
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    mine.load_state_dict(theirs.state_dict())
    return mine, theirs


def adjacencies(edge_index: Tensor, sources: int, targets: int) -> list[Tensor]:
    """`adj_t` in every layout that PyG's tests and transforms give it."""
    size = targets, sources
    transposed = edge_index.flip(0)
    return [
        to_torch_csc_tensor(edge_index, size=(sources, targets)).t(),  # is of CSR
        to_torch_csr_tensor(transposed, size=size),
        to_torch_coo_tensor(transposed, size=size),
        to_torch_csc_tensor(transposed, size=size),
    ]


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def assert_weights(
    mine: nn.Module, x: Any, out: Tensor, shape: tuple[int, int], count: int
) -> None:
    """`return_attention_weights` by edge, and as an `adj_t` of the layout given."""
    got, (edge_index, weights) = mine(x, EDGES, return_attention_weights=True)
    close(got, out)
    assert edge_index.shape == (2, count) and weights.shape == (count, HEADS)
    assert weights.min() >= 0 and weights.max() <= 1
    dense = torch.zeros(shape[1], shape[0], HEADS).index_put(
        (edge_index[1], edge_index[0]), weights
    )
    for adj in adjacencies(EDGES, *shape):
        got, (matrix, values) = mine(x, adj, return_attention_weights=True)
        close(got, out)
        assert matrix.shape == (shape[1], shape[0], HEADS) and matrix.layout == adj.layout
        assert matrix._nnz() == count and values.shape == (count, HEADS)
        close(matrix.to_dense() if matrix.layout == torch.sparse_coo else _dense(matrix), dense)


def _dense(matrix: Tensor) -> Tensor:
    """torch makes no dense tensor of a compressed one whose values are rows."""
    heads = [
        (torch.sparse_csr_tensor if matrix.layout == torch.sparse_csr else torch.sparse_csc_tensor)(
            *(
                (matrix.crow_indices(), matrix.col_indices())
                if matrix.layout == torch.sparse_csr
                else (matrix.ccol_indices(), matrix.row_indices())
            ),
            of_head,
            size=matrix.shape[:2],
        ).to_dense()
        for of_head in matrix.values().T
    ]
    return torch.stack(heads, -1)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv"])
def test_gat_of_one_set_of_nodes(name: str, residual: bool) -> None:
    mine, theirs = pair(name, 8, residual=residual)
    x = torch.randn(4, 8)
    out = mine(x, EDGES)
    close(out, theirs(x, EDGES))
    assert out.shape == (4, OUT * HEADS)
    close(mine(x, EDGES, size=(4, 4)), out)
    if name == "GATConv":  # of which `size` is the fourth argument, as the weights are of GATv2's
        close(mine(x, EDGES, None, (4, 4)), out)
    else:
        close(mine(x, EDGES, None, True)[0], out)
    for adj in adjacencies(EDGES, 4, 4):
        close(mine(x, adj), out)
    assert_weights(mine, x, out, (4, 4), 7)


@pytest.mark.parametrize("residual", [False, True])
def test_gat_of_two_sets_of_nodes(residual: bool) -> None:
    mine, theirs = pair("GATConv", (8, 16), residual=residual)
    x1, x2 = torch.randn(4, 8), torch.randn(2, 16)
    out = mine((x1, x2), EDGES)
    close(out, theirs((x1, x2), EDGES))
    assert out.shape == (2, OUT * HEADS)
    close(mine((x1, x2), EDGES, size=(4, 2)), out)
    without = mine((x1, None), EDGES, size=(4, 2))
    close(without, theirs((x1, None), EDGES, size=(4, 2)))
    assert without.shape == (2, OUT * HEADS)
    for adj in adjacencies(EDGES, 4, 2):
        close(mine((x1, x2), adj), out)
        close(mine((x1, None), adj), without)
    close(mine((x1, None), EDGES), theirs((x1, None), EDGES))  # then as many targets as sources


@pytest.mark.parametrize("residual", [False, True])
def test_gatv2_of_two_sets_of_nodes(residual: bool) -> None:
    mine, theirs = pair("GATv2Conv", 8, residual=residual)
    x1, x2 = torch.randn(4, 8), torch.randn(2, 8)
    out = mine((x1, x2), EDGES)
    close(out, theirs((x1, x2), EDGES))
    assert out.shape == (2, OUT * HEADS)
    for adj in adjacencies(EDGES, 4, 2):
        close(mine((x1, x2), adj), out)


@pytest.mark.parametrize("edge_dim", [1, 4])
@pytest.mark.parametrize("fill_value", [0.5, "mean"])
@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv"])
def test_gat_with_features_of_edges(name: str, fill_value: Any, edge_dim: int) -> None:
    mine, theirs = pair(name, 8, edge_dim=edge_dim, fill_value=fill_value)
    x, edge_index = torch.randn(4, 8), torch.tensor([[0, 1, 2, 3], [1, 0, 1, 1]])
    attr = torch.randn(4) if edge_dim == 1 else torch.randn(4, edge_dim)
    out = mine(x, edge_index, attr)
    close(out, theirs(x, edge_index, attr))
    assert out.shape == (4, OUT * HEADS)


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv", "TransformerConv"])
def test_without_nodes(name: str) -> None:
    mine, _ = pair(name, 8)
    assert mine(torch.randn(0, 8), torch.empty(2, 0, dtype=torch.long)).shape == (0, OUT * HEADS)


@pytest.mark.parametrize("edge_dim", [None, 8])
@pytest.mark.parametrize("concat", [True, False])
def test_transformer(concat: bool, edge_dim: int | None) -> None:
    options = {"beta": True, "concat": concat, "edge_dim": edge_dim}
    mine, theirs = pair("TransformerConv", 8, **options)
    x1, x2 = torch.randn(4, 8), torch.randn(2, 16)
    attr = None if edge_dim is None else torch.randn(4, edge_dim)
    width = OUT * HEADS if concat else OUT
    out = mine(x1, EDGES, attr)
    close(out, theirs(x1, EDGES, attr))
    assert out.shape == (4, width)
    for adj in adjacencies(EDGES, 4, 4):
        close(mine(x1, adj, attr), out)
    got, (edge_index, weights) = mine(x1, EDGES, attr, return_attention_weights=True)
    close(got, out)
    assert edge_index.shape == (2, 4) and weights.shape == (4, HEADS)
    assert weights.min() >= 0 and weights.max() <= 1
    if attr is None:
        assert_weights(mine, x1, out, (4, 4), 4)
    mine, theirs = pair("TransformerConv", (8, 16), **options)
    out = mine((x1, x2), EDGES, attr)
    close(out, theirs((x1, x2), EDGES, attr))
    assert out.shape == (2, width)
    for adj in adjacencies(EDGES, 4, 2):
        close(mine((x1, x2), adj, attr), out)
