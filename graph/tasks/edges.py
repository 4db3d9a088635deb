"""Telling something of each edge."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics import MetricCollection

from attention_core.training import ClassificationTask
from graph.tasks.base import GraphTask


class EdgeClassification(GraphTask, ClassificationTask):
    """Classification of pairs of nodes: edges of the graph, or pairs in `edge_label_index` that may
    be none; with the classes "no link" and "link", of whether they are. Links to train with that
    are also edges of the graph give themselves away: leave them out of `edge_index`.

    Arguments are those of `ClassificationTask`. The model is a `GraphTransformer(level="edge")`, or
    another that takes what is in a batch and returns logits (B, C). A batch has a `target` (B,),
    classes of the pairs of `edge_label_index` (2, B), or without that of the edges; the data is a
    `GraphData` or a `SampledLinks`.
    """

    level = "edge"

    def loss(self, output: Tensor, batch: dict[str, Any]) -> Tensor:
        return super().loss(output, _classes(batch))

    def update_metrics(
        self, metrics: MetricCollection, output: Tensor, batch: dict[str, Any]
    ) -> None:
        super().update_metrics(metrics, output, _classes(batch))


def _classes(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with classes as integers; samplers give floats, as PyG's do."""
    return {**batch, "target": batch["target"].long()}
