"""What graph models are trained for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from attention_core import record_attention
from attention_core.training import ClassificationTask, UsageError
from attention_core.training.data import model_inputs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class GraphClassification(ClassificationTask):
    """Classification of packed graphs; a run ends with attention drawn on graphs of its test set.

    Arguments are those of `ClassificationTask`. The data module has `node_names` and `edge_names`.
    """

    def export_inputs(self, batch: dict[str, Any]) -> NoReturn:
        """Refuses: no fixed program computes a graph transformer."""
        raise UsageError(
            "export: a graph model has no form as a program: the distances between nodes and the "
            "pairs that attend are searched in each graph, with as many steps and results as that "
            "graph needs. Its weights can be written, by format=safetensors."
        )

    def attention_figure(self, batch: dict[str, Any]) -> Figure | None:
        """The attention of the last layer on up to four test graphs, the classes in turn."""
        from graph.data import pack, unpack
        from graph.figures import ReadGraph, attention_over_graphs

        data = self.trainer.datamodule  # type: ignore[attr-defined]
        samples = unpack(batch)
        shares = self.probabilities(batch)
        drawn = []
        for index in choose(torch.bincount(batch["batch"]), batch["target"], shares):
            sample = samples[index]
            with record_attention(self.model, layers=[self._last_layer()]) as maps:
                self.model(**model_inputs(pack([sample])))
            nodes = len(sample["x"])
            kinds = sample["edge_attr"].tolist() if "edge_attr" in sample else []
            predicted = int(shares[index].argmax())
            drawn.append(
                ReadGraph(
                    sample["edge_index"],
                    [data.node_names[kind] for kind in sample["x"].tolist()],
                    [data.edge_names[kind] for kind in kinds],
                    maps[0][0][:, -nodes:, -nodes:],  # virtual nodes stand in front
                    self.classes[predicted],
                    self.classes[int(sample["target"])],
                    float(shares[index, predicted]),
                )
            )
        return attention_over_graphs(drawn, title="Attention of the last layer, mean of its heads")

    def _last_layer(self) -> int:
        # A pooling layer attends, too, and comes after the encoder
        return len(self.model.encoder.blocks) - 1  # type: ignore[union-attr, arg-type]


def choose(sizes: Tensor, target: Tensor, shares: Tensor, most: int = 4) -> list[int]:
    """Graphs to draw, the classes in turn: those of most typical size first.

    Args:
        sizes: (G,) nodes.
        target: (G,) classes.
        shares: (G, C) probabilities.
        most: how many.
    """
    middle = sizes.float().median()
    by_class = []
    for label in target.unique().tolist():
        members = (target == label).nonzero().squeeze(-1)
        by_class.append(members[(sizes[members] - middle).abs().argsort(stable=True)].tolist())
    turns = [members[k] for k in range(most) for members in by_class if k < len(members)]
    return sorted(turns[:most], key=lambda index: int(target[index]))
