"""Telling something of each graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attention_core.escape import on_one_line
from attention_core.training import ClassificationTask, RegressionTask
from graph.tasks.base import GraphTask, choose

if TYPE_CHECKING:
    from graph.interpret import Shown


class GraphRegression(GraphTask, RegressionTask):
    """Predicting numbers for graphs.

    Arguments are those of `RegressionTask`. The model is a `GraphTransformer` with as many
    `classes` as a graph has targets. The data module is a `GraphData`.
    """

    def shown(self, batch: dict[str, Any]) -> list[Shown]:
        """Choose four graphs of typical size, with the first of their targets."""
        from graph.interpret import Shown

        with torch.no_grad():
            output = self(**self.model_inputs(batch))
        sizes = _sizes(batch)
        says, target = (values.reshape(len(sizes), -1) for values in (output, batch["target"]))
        chosen = choose(sizes, torch.zeros_like(sizes))
        return [
            Shown(
                (batch["batch"] == number).nonzero().squeeze(-1),
                f"{float(says[number, 0]):.3g}, is {float(target[number, 0]):.3g}",
            )
            for number in chosen
        ]


class GraphClassification(GraphTask, ClassificationTask):
    """Classification of packed graphs.

    Arguments are those of `ClassificationTask`. The data module is a `GraphData`.
    """

    def shown(self, batch: dict[str, Any]) -> list[Shown]:
        """Choose up to four graphs, the classes in turn, those of typical size first."""
        from graph.interpret import Shown

        share, says = self.probabilities(batch).max(-1)
        target = batch["target"]
        return [
            Shown(
                (batch["batch"] == number).nonzero().squeeze(-1),
                verdict(self.classes, int(says[number]), int(target[number]), float(share[number])),
                bool(says[number] == target[number]),
            )
            for number in choose(_sizes(batch), target)
        ]


def verdict(classes: list[str], says: int, label: int, share: float) -> str:
    """Return a verdict such as "a (70%), is b"."""
    said, true = on_one_line(classes[says]), on_one_line(classes[label])
    return f"{said} ({share:.0%})" + ("" if says == label else f", is {true}")


def _sizes(batch: dict[str, Any]) -> Tensor:
    return torch.bincount(batch["batch"], minlength=batch["num_graphs"])
