"""A graph of communities, sampled in each of the three ways; the KillAt of the toy domain."""

import os
import signal
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import SAGEConv
from torch_geometric.utils import stochastic_blockmodel_graph

from graph.sampling.data import Clusters, SampledLinks, SampledNodes


def communities() -> Data:
    """300 nodes in 3 communities, which features tell with much noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        y = torch.arange(300) // 100
        edge_index = stochastic_blockmodel_graph([100] * 3, 0.1 * torch.eye(3) + 0.01)
        data = Data(x=torch.randn(300, 4), edge_index=edge_index, y=y)
        data.x[torch.arange(300), y] += 0.5
        role = torch.randint(3, (300,))
    data.train_mask, data.val_mask, data.test_mask = (role == number for number in range(3))
    return data


class Nodes(SampledNodes):
    def graph(self) -> Data:
        return communities()


class Parts(Clusters):
    def graph(self) -> Data:
        return communities()


class Links(SampledLinks):
    """Every tenth edge to validate with, and the next to test with, beside as many random pairs."""

    def graphs(self) -> tuple[Data, Data, Data]:
        data = communities()
        number = torch.arange(data.num_edges) % 10
        seen = data.edge_index[:, number > 1]
        graphs = [Data(x=data.x, edge_index=seen, edge_label_index=seen)]
        for fold in (0, 1):
            links = data.edge_index[:, number == fold]
            others = links.roll(1, dims=1)[[1, 0]].roll(7, dims=1)
            label = torch.arange(2).flip(0).repeat_interleave(links.shape[1]).float()
            pairs = torch.cat([links, torch.stack([links[0], others[0]])], dim=1)
            graphs.append(Data(x=data.x, edge_index=seen, edge_label_index=pairs, edge_label=label))
        return graphs[0], graphs[1], graphs[2]

    def arguments(self, sampled: Any) -> dict[str, Any]:
        given = super().arguments(sampled)
        return {**given, "target": given["target"].long()}


class SAGE(nn.Module):
    """Scores for the nodes of `node_mask`, or for pairs of nodes."""

    def __init__(self, num_classes: int, dim: int = 16) -> None:
        super().__init__()
        self.convs = nn.ModuleList([SAGEConv(4, dim), SAGEConv(dim, dim)])
        self.head = nn.Linear(dim, num_classes)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        node_mask: Tensor | None = None,
        edge_label_index: Tensor | None = None,
    ) -> Tensor:
        for conv in self.convs:
            x = conv(x, edge_index).relu()
        if edge_label_index is not None:
            return self.head(x[edge_label_index[0]] * x[edge_label_index[1]])
        return self.head(x[node_mask])


class KillAt(Callback):
    """Kills the process after the optimizer step that the environment names, like a power cut."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if os.environ.get("KILL_AT") == str(trainer.global_step):
            os.kill(os.getpid(), signal.SIGKILL)
