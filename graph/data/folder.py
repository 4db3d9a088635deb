"""Graphs of one's own, in files: in TU format, as GraphML, or as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from attention_core.training import UsageError
from attention_core.training.console import tell
from attention_core.training.inputs import class_folders
from attention_core.training.splits import stratified_split
from graph.data.graphml_columns import Columns, GraphML, as_targets, kinds_of
from graph.data.graphs import Sample
from graph.data.module import GraphData, GraphDataOptions
from graph.data.tensor_files import TENSORS, read_tensors
from graph.data.tu import Names, TUFolder, is_tu
from graph.models import Level

_SUFFIXES = (".graphml", *TENSORS)
_MASKS = ("train_mask", "val_mask", "test_mask")


class GraphFolder(GraphData):
    """Graphs of one's own: a folder in TU format, named as its files are; GraphML files (.graphml);
    or files of tensors (.pt, .npz, .safetensors; see `read_tensors`), with a graph or several each.

    What is told is something of each graph, node or edge, as `level` says.

    - Of graphs: files lie in a folder for each class, or in one, where `target` or, of tensors, `y`
      says what is to be told; of TU files their graph labels or attributes do.
    - Of nodes and edges: `target` names their attribute, of tensors it is `y`; of TU files it is
      their labels. Nodes and edges without that attribute are not asked for.

    Of undirected graphs each edge counts in both directions, and is asked for once. The split is
    fixed, 80% training, 10% validation, 10% test, stratified by class; or by `fold`. Of one graph
    its nodes or edges are split, 60%, 20%, 20%: or by `train_mask`, `val_mask` and `test_mask`,
    where tensors have them.

    A batch holds one row of nodes: `x` (N,) types or (N, F) features, all of type 0 where neither
    is asked for; `edge_index` (2, E); `edge_attr` likewise where it is asked for; `batch` (N,),
    `num_graphs` and `target`: (G,), or (N,) beside `node_mask`, or (B,) of the edges in
    `edge_label_index`. What TU files give, `read_tu` says.

    `attn predict` reads the same files. Types, features and classes are what they were in training:
    another kind of node is an error that names it.

    Args:
        root: the folder, or one file.
        level: what is told something of, "graph", "node" or "edge". Of links, see `GraphLinks`.
        node_type, edge_type: of GraphML, the attribute that tells the kind of a node or edge.
        node_features, edge_features: or the attributes that are its features, numbers all.
        target: the attribute that is to be told. Where it is a number it is one to predict, unless
            `classes` names it.
        node_names, edge_names: the kinds of nodes and edges, whose types are indices into these;
            of TU files labels, a list for each column where there are several or attributes beside.
            By default all that there are, in the order of their names.
        settings: those of `GraphData`. `classes` are by default the folders, or what the target is
            in words; [] demands numbers.

    Raises:
        UsageError: types and features are asked for; or when it loads: there are no graphs; or a
            file, which is named, cannot be read, lacks an attribute, or has a kind or a class that
            is not listed.
    """

    level: Level

    def __init__(
        self,
        root: str,
        *,
        level: Level = "graph",
        node_type: str | None = None,
        node_features: Sequence[str] = (),
        edge_type: str | None = None,
        edge_features: Sequence[str] = (),
        target: str | None = None,
        node_names: Names = (),
        edge_names: Names = (),
        **settings: Unpack[GraphDataOptions],
    ) -> None:
        self._numbers = "classes" in settings and not settings["classes"]
        super().__init__(**settings)
        if level not in ("graph", "node", "edge"):
            more = " Links are in data=graph/graph_links." if level == "link" else ""
            raise UsageError(f"data.level must be graph, node or edge, got {level!r}.{more}")
        self.columns = Columns(node_type, node_features, edge_type, edge_features).checked()
        self.root = Path(root).expanduser()
        self.level, self.target = level, target
        self.node_names, self.edge_names = list(node_names), list(edge_names)

    def load(self) -> None:
        if not self.root.exists():
            raise UsageError(f"data.root: there is no folder {str(self.root)!r}.")
        name = self.root.resolve().name
        others = sorted(self.root.glob("*_A.txt")) if self.root.is_dir() else []
        if others and not is_tu(self.root):
            raise UsageError(
                f"data.root: {str(self.root)!r} holds {others[0].name}; a folder in TU format is "
                f"named as its files are, {others[0].name.removesuffix('_A.txt')!r}."
            )
        samples = self._read_tu() if is_tu(self.root) else self._read_files()
        if self.level == "graph":
            strata = [0 if s["target"].is_floating_point() else int(s["target"]) for s in samples]
            self.split(samples, name, strata=strata, shares=(0.8, 0.1, 0.1))
        elif len(samples) > 1:
            self.split(samples, name, strata=[0] * len(samples), shares=(0.8, 0.1, 0.1))
        else:
            self._split_one(samples[0], name)

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        asked = self.columns.node_type and not self.node_names
        if stage == "predict" and (asked or (self.columns.edge_type and not self.edge_names)):
            self.load()  # of a run whose configuration does not name the kinds

    # -- reading ------------------------------------------------------------------------------

    def _read_tu(self) -> list[Sample]:
        files = TUFolder(self.root, self.level)
        self.node_names = self.node_names or list(files.names("node"))
        self.edge_names = self.edge_names or list(files.names("edge"))
        if not self._numbers:
            self.classes = self.classes or files.classes
        samples = files.samples(self.node_names, self.edge_names, self.classes)
        what = f"{files.name}_{self.level}_labels.txt"
        if "target" not in samples[0]:
            raise UsageError(f"data.root: {str(self.root)!r} has no {what}.")
        if self.classes and samples[0]["target"].is_floating_point():
            raise UsageError(
                f"data.classes names {', '.join(self.classes)}, but {files.name} has numbers to "
                "predict: write data.classes=[]."
            )
        if self._numbers:
            for sample in samples:
                sample["target"] = sample["target"].float()
        return [self._asked(sample, sample["edge_index"]) for sample in samples]

    def _read_files(self) -> list[Sample]:
        paths, labels = self._paths()
        if paths[0].suffix.lower() == ".graphml":
            graphs = [GraphML(path) for path in paths]
            return self._settle(graphs, labels)
        samples, of_file = [], []
        for path, label in zip(paths, labels, strict=True):
            found = read_tensors(path)
            samples += found
            of_file += [(path.name, label)] * len(found)
        return self._targets_of_tensors(samples, of_file)

    def _paths(self) -> tuple[list[Path], list[int | None]]:
        """The files and the class of each, where it is that of its folder; all of one format."""
        if self.root.is_file():
            found: list[tuple[Path, int | None]] = [(self.root, None)]
        else:
            flat = sorted(path for path in self.root.iterdir() if _is_graph(path))
            found = [(path, None) for path in flat]
            tensors = bool(flat) and flat[0].suffix.lower() in TENSORS
            if self.level != "graph" or self.target is not None:
                below = flat or sorted(path for path in self.root.rglob("*") if _is_graph(path))
                found = [(path, None) for path in below]
            elif not tensors:
                found = self._in_class_folders()
        paths = [path for path, _ in found]
        if not paths or paths[0].suffix.lower() not in _SUFFIXES:
            raise UsageError(
                f"data.root: {str(self.root)!r} holds neither {self.root.resolve().name}_A.txt, of "
                f"the TU format, nor files that end in {', '.join(_SUFFIXES)}."
            )
        kinds = {path.suffix.lower() == ".graphml" for path in paths}
        if len(kinds) > 1:
            raise UsageError(
                f"data.root: {str(self.root)!r} holds GraphML and files of tensors; one of them."
            )
        return paths, [label for _, label in found]

    def _in_class_folders(self) -> list[tuple[Path, int | None]]:
        have = class_folders(self.root)
        if self._numbers:
            raise UsageError(
                "data.target: where data.classes is [], the attribute of each graph that is a "
                "number to predict is needed."
            )
        self.classes = self.classes or have
        missing = [name for name in self.classes if name not in have]
        if missing:
            raise UsageError(
                f"data.classes: there is no folder {missing[0]!r} in {str(self.root)!r}; there are "
                f"{', '.join(have)}."
            )
        return [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in sorted((self.root / name).iterdir())
            if _is_graph(path)
        ]

    def _settle(self, graphs: list[GraphML], labels: list[int | None]) -> list[Sample]:
        """Number kinds and classes, and make the samples."""
        columns = self.columns
        for of, kind in (("node", columns.node_type), ("edge", columns.edge_type)):
            if kind is not None and not getattr(self, f"{of}_names"):
                setattr(self, f"{of}_names", kinds_of(graphs, of, kind))
        samples = [graph.sample(columns, self.node_names, self.edge_names) for graph in graphs]
        self._tell_unread(graphs)
        if labels[0] is not None:
            for sample, label in zip(samples, labels, strict=True):
                sample["target"] = torch.tensor(label)
            return samples
        if self.target is None:
            raise UsageError(
                f"data.target: the attribute of each {self.level} that is to be told is needed."
            )
        found, classes = as_targets(
            graphs, self.level, self.target, None if self._numbers else self.classes
        )
        self.classes = classes
        for index, (values, known) in enumerate(found):
            sample = samples[index]
            if self.level == "graph":
                sample["target"] = values[0]
                continue
            sample["target"] = values
            sample = samples[index] = self._asked(sample, graphs[index].edge_index)
            if self.level == "node":
                sample["node_mask"] = known
            else:
                sample["edge_label_index"] = sample["edge_label_index"][:, known]
                sample["target"] = values[known]
        return samples

    def _tell_unread(self, graphs: list[GraphML]) -> None:
        """Say what nodes and edges have where nothing of it is asked for."""
        for of in ("node", "edge"):
            asked = getattr(self.columns, f"{of}_type"), *getattr(self.columns, f"{of}_features")
            have = {name for graph in graphs for row in graph.attributes[of] for name in row}
            have -= {self.target} if self.level == of else set()
            if have and not any(asked):
                said = f"{of}s have {', '.join(sorted(have))}, of which nothing is read: give "
                said += f"data.{of}_type=NAME, or data.{of}_features=[NAME, ...]"
                tell("data", said)

    def _targets_of_tensors(
        self, samples: list[Sample], of_file: list[tuple[str, int | None]]
    ) -> list[Sample]:
        done = []
        for sample, (place, label) in zip(samples, of_file, strict=True):
            if label is not None:
                sample["target"] = torch.tensor(label)
            key = self.target or "target"
            if key not in sample:
                raise UsageError(
                    f"{place}: a graph has no {self.target or 'y'}, what is to be told."
                )
            target = sample.pop(key)
            if self.level == "graph":
                target = target.squeeze() if target.numel() == 1 else target.squeeze(0)
            else:
                count = len(sample["x"]) if self.level == "node" else sample["edge_index"].shape[1]
                if target.shape[:1] != (count,):
                    raise UsageError(
                        f"{place}: y must have a row for each of {count} {self.level}s, got "
                        f"{tuple(target.shape)}."
                    )
            sample["target"] = target.float() if self._numbers else target
            done.append(self._asked(sample, sample["edge_index"]))
        if not done[0]["target"].is_floating_point():
            most = max(int(s["target"].max()) for s in done if s["target"].numel())
            least = min(int(s["target"].min()) for s in done if s["target"].numel())
            self.classes = self.classes or [str(label) for label in range(most + 1)]
            if least < 0 or most >= len(self.classes):
                raise UsageError(
                    f"data.classes names {len(self.classes)} classes; targets are {least} to "
                    f"{most}, counted from 0."
                )
        return done

    def _asked(self, sample: Sample, edges: Tensor) -> Sample:
        """The sample with what is asked for: all of its nodes, or of `edges`."""
        if self.level == "node":
            known = torch.ones(len(sample["x"]), dtype=torch.bool)
            return {**sample, "node_mask": known}
        return sample if self.level == "graph" else {**sample, "edge_label_index": edges}

    def read_tu(self, folder: Path) -> list[Sample]:
        return TUFolder(folder, self.level).samples(self.node_names, self.edge_names)

    # -- one graph ----------------------------------------------------------------------------

    def _split_one(self, sample: Sample, name: str) -> None:
        if self.fold is not None:
            raise UsageError(
                f"data.fold: the {self.level}s of one graph are split in one way only."
            )
        target = sample["target"]
        if self.level == "node" and all(mask in sample for mask in _MASKS):
            given = [sample.pop(mask).bool() for mask in _MASKS]
            sample.pop("node_mask")
            self.fill_nodes(sample, *given)
            return
        asked = sample.pop("node_mask").nonzero().squeeze(1) if self.level == "node" else None
        count = len(target) if asked is None else len(asked)
        rows = torch.arange(count) if asked is None else asked
        if not count:
            raise UsageError(f"data.target: no {self.level} of {name} has one.")
        strata = [0] * count if target.is_floating_point() else target[rows].tolist()
        parts = stratified_split(strata, (0.6, 0.2, 0.2), name)
        if not all(parts):
            raise UsageError(
                f"data: {name} has {count} {self.level}s with a target, too few for three parts."
            )
        if asked is not None:
            masks = []
            for part in parts:
                mask = torch.zeros(len(target), dtype=torch.bool)
                mask[rows[part]] = True
                masks.append(mask)
            self.fill_nodes(sample, *masks)
            return
        (graph,) = self.prepare_all([sample], name)
        pairs = graph["edge_label_index"]
        self.fill(
            *(
                [{**graph, "edge_label_index": pairs[:, part], "target": target[part]}]
                for part in parts
            )
        )


def _is_graph(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
