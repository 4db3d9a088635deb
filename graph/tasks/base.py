"""What all tasks on graphs share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attention_core.layers import RecordedAttention
from attention_core.training import Task, UsageError
from attention_core.training.data import model_inputs
from graph.data.graphs import cut, pack, unpack

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from graph.interpret import Shown

#: Attention of a batch with more nodes is not drawn: there may be as many weights as pairs.
MOST_NODES = 4096
#: Of a larger graph, so many nodes are enough to trace a program with and to compare it.
MOST_TRACED = 256


class GraphTask(Task):
    """A task whose batches are graphs: see `graph.data` and `graph.sampling.data`. A run ends with
    attention drawn on a batch of its test set, where the model has some."""

    def shown(self, batch: dict[str, Any]) -> list[Shown]:
        """Choose what of a batch attention is drawn on, by default nothing."""
        return []

    def figures(self, batch: dict[str, Any]) -> dict[str, Figure]:
        """Draw those of the task, and `attention_figures` of what `shown` chooses."""
        from graph.interpret import attention_figures

        figures = super().figures(batch)
        attends = any(isinstance(part, RecordedAttention) for part in self.model.modules())
        if not attends or len(batch.get("x", ())) > MOST_NODES:
            return figures
        shown = self.shown(batch)
        if not shown:
            return figures
        name = getattr(self.trainer.datamodule, "names", None)  # type: ignore[attr-defined]
        names = ((), ()) if name is None else name(batch)
        drawn = attention_figures(self.model, model_inputs(batch), shown, names=names)
        return {**figures, **drawn}

    def export_inputs(
        self, batch: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
        """Return the graphs as the program takes them: `sizes` (graphs,), the number of nodes of
        each, in place of `batch` and `num_graphs`, and of labelled nodes all.

        The examples are cut to `MOST_TRACED` nodes a graph: a program computes all pairs.
        """
        if not isinstance(batch.get("x"), Tensor):
            raise UsageError(
                "export: graphs of several types of nodes have no form as a program; their "
                "weights can be written, by format=safetensors."
            )
        inputs = {name: x for name, x in model_inputs(batch).items() if name != "node_mask"}
        if "batch" in inputs:
            small = [cut(graph, MOST_TRACED) for graph in unpack(inputs)]
            inputs = pack(small)
            inputs["sizes"] = torch.tensor([len(graph["x"]) for graph in small])
            del inputs["batch"], inputs["num_graphs"]
        shapes = {}
        for name, value in inputs.items():
            if not isinstance(value, Tensor):
                raise UsageError(f"export: {name!r} is no tensor, got {value!r:.80}.")
            what = "pairs" if name.startswith("edge_label") else "edges"
            of_nodes = len(value) == len(inputs["x"])
            shapes[name] = (
                {value.ndim - 1: what}
                if name.endswith("_index")
                else {0: what}
                if name.startswith("edge_")
                else {0: "graphs"}
                if name == "sizes"
                else {0: "nodes" if of_nodes else "node_pairs"}
            )
        return inputs, shapes


def choose(sizes: Tensor, target: Tensor, most: int = 4) -> list[int]:
    """Choose what to draw, of each class in turn those of most typical size, in the classes' order.

    Args:
        sizes: (G,) such as numbers of nodes.
        target: (G,) classes.
        most: how many.
    """
    middle = sizes.float().median()
    by_class = []
    for label in target.unique().tolist():
        members = (target == label).nonzero().squeeze(-1)
        by_class.append(members[(sizes[members] - middle).abs().argsort(stable=True)].tolist())
    turns = [members[k] for k in range(most) for members in by_class if k < len(members)]
    return sorted(turns[:most], key=lambda index: int(target[index]))
