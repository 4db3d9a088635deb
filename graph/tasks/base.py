"""What all tasks on graphs share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor

from attention_core.layers import RecordedAttention
from attention_core.training import Task, UsageError
from attention_core.training.data import model_inputs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from graph.interpret import Shown

#: Attention of a batch with more nodes is not drawn: there may be as many weights as pairs.
MOST_NODES = 4096


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

    def export_inputs(self, batch: dict[str, Any]) -> NoReturn:
        """Refuse: no fixed program computes a graph transformer."""
        raise UsageError(
            "export: a graph model has no form as a program: the distances between nodes and the "
            "pairs that attend are searched in each graph, with as many steps and results as that "
            "graph needs. Its weights can be written, by format=safetensors."
        )


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
