"""State dicts of PyG in a `GraphTransformer`: what maps is the same, what does not says why."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GAT as GATModel, GCN, GINEConv, GPSConv, global_mean_pool

from attention_core.errors import UsageError
from graph import GraphTransformer
from graph.data.graphs import pack
from tests.graph.test_graph_transformer import molecule

LAYER_NORM: dict[str, Any] = {"norm": "layer_norm", "norm_kwargs": {"mode": "node"}}


class GPS(nn.Module):
    def __init__(self, conv: Any = None, **options: Any) -> None:
        super().__init__()
        self.node_emb = nn.Embedding(7, 16)
        self.convs = nn.ModuleList(
            GPSConv(16, conv and conv(), heads=4, **options) for _ in range(3)
        )
        self.lin = nn.Linear(16, 5)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        x = self.node_emb(x)
        for conv in self.convs:
            x = conv(x, edge_index, batch)
        output: Tensor = self.lin(global_mean_pool(x, batch))
        return output


def gine() -> GINEConv:
    return GINEConv(nn.Sequential(nn.Linear(16, 16)))


def test_a_stack_of_gps_without_messages_is_a_graph_transformer() -> None:
    torch.manual_seed(0)
    theirs = GPS(**LAYER_NORM).eval()
    ours = GraphTransformer.from_pretrained(theirs.state_dict(), heads=4).eval()
    batch = pack([molecule(n, seed=n) for n in (3, 9, 2, 6)])
    x = batch["x"] % 7
    wanted = theirs(x, batch["edge_index"], batch["batch"])
    got = ours(x, batch["edge_index"], batch=batch["batch"])
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    fewer = GraphTransformer.from_pretrained(theirs.state_dict(), heads=4, num_classes=2)
    assert fewer.head.out_features == 2


@pytest.mark.parametrize(
    ("theirs", "why"),
    [
        (GPS(gine, **LAYER_NORM), r"messages \(conv\) have no place: .*local=Edges\(\)"),
        (GPS(), r"BatchNorm has no place, but norm='layer_norm'"),
        (GATModel(7, 16, 2, 5), r"convolutions alone are no transformer.*GATConv"),
        (GCN(7, 16, 2, 5), r"convolutions alone are no transformer"),
    ],
    ids=["messages", "batch norm", "gat", "gcn"],
)
def test_what_does_not_map_says_why(theirs: nn.Module, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        GraphTransformer.from_pretrained(theirs.state_dict(), heads=4)
