"""Telling something of each node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from attention_core.training import ClassificationTask, RegressionTask
from graph.tasks.base import GraphTask, choose
from graph.tasks.graphs import verdict

if TYPE_CHECKING:
    from graph.interpret import Shown


class NodeTask(GraphTask):
    """A task whose batches have a `target` (N, ...) of all nodes and, where not all of them are in
    question, a `node_mask` (N,) of those that are: the nodes of one part of a graph with known
    labels, or the seeds of a sampled batch.

    The model gives as many outputs as there are nodes in question.
    """

    level = "node"

    def samples(self, batch: dict[str, Any]) -> int:
        return int(batch["node_mask"].sum()) if "node_mask" in batch else len(batch["target"])

    def loss(self, output: Tensor, batch: dict[str, Any]) -> Tensor:
        # The mean over no node would be NaN, and remain so once weighed by 0
        return super().loss(output, _asked(batch)) if len(output) else output.sum()

    def update_metrics(
        self, metrics: MetricCollection, output: Tensor, batch: dict[str, Any]
    ) -> None:
        super().update_metrics(metrics, output, _asked(batch))


class NodeClassification(NodeTask, ClassificationTask):
    """Classification of nodes, of one graph with known labels or in sampled batches.

    Arguments are those of `ClassificationTask`. The model is a `GraphTransformer(level="node")`, or
    another that takes what is in a batch and returns logits of the nodes in `node_mask`. The data
    is a `GraphData` whose targets are of nodes, a `SampledNodes` or `Clusters`.
    """

    def shown(self, batch: dict[str, Any]) -> list[Shown]:
        """Choose up to four of the nodes in question with those near them, the classes in turn,
        nodes with a typical number of edges first."""
        from graph.interpret.plots import Shown, around

        share, says = self.probabilities(batch).max(-1)
        edge_index, target = batch["edge_index"], _asked(batch)["target"]
        degree = torch.bincount(edge_index[1], minlength=len(batch["x"]))
        nodes = torch.arange(len(degree), device=degree.device)
        nodes = nodes[batch["node_mask"]] if "node_mask" in batch else nodes
        return [
            Shown(
                around(edge_index, nodes[row]),
                verdict(self.classes, int(says[row]), int(target[row]), float(share[row])),
                bool(says[row] == target[row]),
                nodes[row : row + 1],
            )
            for row in choose(degree[nodes], target)
        ]


class NodeRegression(NodeTask, RegressionTask):
    """Predicting numbers for nodes; as `NodeClassification`, with the arguments of
    `RegressionTask`."""


def _asked(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with the targets of the nodes in question alone."""
    if "node_mask" not in batch:
        return batch
    return {**batch, "target": batch["target"][batch["node_mask"]]}
