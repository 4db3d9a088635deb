"""What all tasks on graphs share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attention_core.layers import RecordedAttention
from attention_core.training import ClassificationTask, DataModule, RegressionTask, Task, UsageError
from attention_core.training.console import tell
from attention_core.training.task import Row
from graph.data.graphs import cut, pack, unpack
from graph.data.module import GraphData
from graph.models import GraphTransformer, Level

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from graph.interpret import Shown

#: Attention of a batch with more nodes is not drawn: there may be as many weights as pairs.
MOST_NODES = 4096
#: Of a larger graph, so many nodes are enough to trace a program with and to compare it.
MOST_TRACED = 256


class GraphTask(Task):
    """A task whose batches are graphs: see `graph.data` and `graph.sampling.data`. A run ends with
    attention drawn on a batch of its test set, where the model has some.

    Raises:
        UsageError: before training and before a test, where the data has other types, features or
            targets than the model was made for: see `check_fits`.
    """

    #: What is told something of.
    level: Level = "graph"

    def on_fit_start(self) -> None:
        unused = check_fits(self, self.trainer.datamodule)  # type: ignore[attr-defined]
        if unused and self.trainer.is_global_zero:
            tell("model", unused)

    def on_test_start(self) -> None:
        check_fits(self, self.trainer.datamodule)  # type: ignore[attr-defined]

    def model_inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return what of a batch the model is given: nothing that it refuses, as a
        `GraphTransformer(edge_types=None)` does the types of edges that the data may have."""
        unread = getattr(self.model, "unread", ())
        return {n: x for n, x in super().model_inputs(batch).items() if n not in unread}

    def predict(self, batch: dict[str, Any], data: DataModule) -> Sequence[Row | list[Row]]:
        """Return a row for each graph; or for each of its nodes, named by `node`; or for each pair
        of nodes in question, by `source` and `target`."""
        batch = dict(batch)
        ids = batch.pop("node_ids", None)
        rows = self.predictions(self(**self.model_inputs(batch)))
        if self.level == "graph" or ids is None:
            return rows
        graph = batch["batch"].tolist()
        found: list[list[Row]] = [[] for _ in range(batch["num_graphs"])]
        if self.level == "node":
            for of, name, row in zip(graph, ids, rows, strict=True):
                found[of].append({"node": name, **row})
            return found
        pairs = batch.get("edge_label_index", batch["edge_index"])
        for (source, target), row in zip(pairs.T.tolist(), rows, strict=True):
            found[graph[source]].append({"source": ids[source], "target": ids[target], **row})
        return found

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
        drawn = attention_figures(self.model, self.model_inputs(batch), shown, names=names)
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
        inputs = {name: x for name, x in self.model_inputs(batch).items() if name != "node_mask"}
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


def check_fits(task: Task, data: object) -> str:
    """Refuse a model and a task that are made for other data, where these are known kinds.

    Returns: a sentence on the edges' types or features, where the model was made to do without;
    else "".

    Raises:
        UsageError: naming the key, what the data has, and what to write.
    """
    if not isinstance(data, GraphData) or not isinstance(task, GraphTask):
        return ""
    has, model, where = data.describe(), task.model, type(data).__name__
    if has["level"] not in (None, task.level):
        raise UsageError(
            f"task: {where} has something to tell of each {has['level']}, but "
            f"{type(task).__name__} tells it of each {task.level}: write task={has['level']}_"
            f"{'prediction' if has['level'] == 'link' else 'classification'} or another of "
            f"{has['level']}s, and model.level={has['level']}."
        )
    if isinstance(task, ClassificationTask) and has["numbers"] and not data.classes:
        numbers = f"write task={task.level}_regression, or " if task.level != "edge" else ""
        raise UsageError(
            f"task: the targets of {where} are numbers, but {type(task).__name__} tells classes: "
            f"{numbers}name the classes: data.classes=[...]."
        )
    if isinstance(task, RegressionTask) and has["classes"]:
        raise UsageError(
            f"task: the targets of {where} are classes ({', '.join(has['classes'])!s:.80}), but "
            f"{type(task).__name__} predicts numbers: write task={task.level}_classification, or "
            "data.classes=[] where they are numbers."
        )
    known = has["node_types"] is not None or has["node_features"] is not None
    if not isinstance(model, GraphTransformer) or not known:
        return ""
    if model.level != task.level:
        raise UsageError(
            f"model.level: {type(task).__name__} tells something of each {task.level}, but the "
            f"model has outputs for each {model.level}: write model.level={task.level}."
        )
    unused = ""
    for of, part in (("node", model.embedding), ("edge", model.edge_embedding)):
        types, features = (has[f"{of}_{what}"] for what in ("types", "features"))
        made = (part.types, part.features) if part is not None else (None, None)
        if types is not None:
            fits = made[0] is not None and made[0] >= types and made[1] is None
        else:
            fits = made == (None, features)
        if of == "edge" and made == (None, None):
            if not fits:
                unused = (
                    f"The edges of {where} have {_words(types, features)}, which this model was "
                    "made without: model.edge_types=null model.edge_features=null."
                )
            fits = True
        if not fits:
            raise UsageError(
                f"model.{of}_{'types' if features is None else 'features'}: the {of}s of {where} "
                f"have {_words(types, features)}, but the model was made for {_words(*made)}: "
                f"write model.{of}_types={_value(types)} model.{of}_features={_value(features)}."
            )
    return unused


def _words(types: int | None, features: int | None) -> str:
    if types is None and features is None:
        return "neither types nor features"
    number, what = (types, "type") if features is None else (features, "feature")
    return f"{number} {what}{'' if number == 1 else 's'}"


def _value(number: int | None) -> str:
    return "null" if number is None else str(number)


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
