"""Data modules of graphs in memory: how they are split, transformed and packed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor

from attention_core.training import DataModule, DataModuleOptions, UsageError
from attention_core.training.inputs import files, json_lines
from attention_core.training.splits import stratified_folds, stratified_split
from graph.data.graphml_columns import Columns, GraphML
from graph.data.graphs import Graphs, Sample, check_graph, pack
from graph.data.tensor_files import TENSORS, graphs_in, read_line
from graph.data.tu import Names, TUFolder, is_tu
from graph.models import Level

Transform = Callable[[Any], Any]  # of PyG's Data


class GraphDataOptions(DataModuleOptions, total=False):
    """Options of every `GraphData`, which subclasses pass on."""

    fold: int | None
    folds: int
    pre_transform: dict[str, Transform] | None
    transform: dict[str, Transform] | None


class GraphData(DataModule):
    """Graphs, of which a batch holds several as one row of nodes: see `pack`.

    `attn predict` reads a folder in TU format; and .graphml, .pt, .npz, .safetensors and .jsonl
    files, one or those below a folder, see `read_tensors` and `read_line`. Nodes and edges have the
    types or the features that the model was trained with. `largest_input` counts the bytes of a
    line, and by default is 5 million.

    Args:
        fold: test with this fold of a cross-validation, 0 to `folds` - 1, validate with the next
            one and train with all others; folds are stratified and fixed. None for the one split
            of the data set.
        folds: how many folds there are.
        pre_transform: transforms of PyG for each graph, once, such as the encodings of
            `graph.encodings.transforms`; as a mapping, by names that do not matter.
        transform: others for the graphs to train with, anew whenever one is drawn.
        settings: those of `DataModule`.

    Raises:
        UsageError: there is no such fold.
    """

    largest_input = 5_000_000
    #: What is told something of.
    level: Level | None = None
    #: Names of the types of nodes and edges; others have their number.
    node_names: Names = ()
    edge_names: Names = ()
    #: Of GraphML.
    columns = Columns()

    def __init__(
        self,
        *,
        fold: int | None = None,
        folds: int = 10,
        pre_transform: dict[str, Transform] | None = None,
        transform: dict[str, Transform] | None = None,
        **settings: Unpack[DataModuleOptions],
    ) -> None:
        super().__init__(**settings)
        if folds < 3:
            raise UsageError(
                f"data.folds must be at least 3, to train, to validate and to test, got {folds}."
            )
        if fold is not None and not 0 <= fold < folds:
            raise UsageError(f"data.fold must be 0 to {folds - 1}, or null, got {fold}.")
        self.fold, self.folds = fold, folds
        self.pre_transform = list((pre_transform or {}).values())
        self.transform = list((transform or {}).values())

    def names(self, graph: Sample) -> tuple[list[str], list[str]]:
        """Return the labels of nodes and edges in a figure: names of their types; empty ones for
        nodes that have features, none for edges that do."""
        nodes, edges = (
            [str(known[kind]) if kind < len(known) else str(kind) for kind in graph[name].tolist()]
            if name in graph and graph[name].ndim == 1 and not graph[name].is_floating_point()
            else []
            for name, known in (("x", self.node_names), ("edge_attr", self.edge_names))
        )
        return nodes or [""] * len(graph["x"]), edges

    def graphs(self) -> list[Sample]:
        """Return every graph that there is to train, to validate and to test with."""
        self.setup()
        return [
            sample
            for part in (self.train_set, self.val_set, self.test_set)
            if isinstance(part, Graphs)
            for sample in part.samples
        ]

    def describe(self) -> dict[str, Any]:
        """Return what the graphs say of themselves, by the names of a configuration.

        Returns: `classes` and `num_classes`, of classes or of numbers to predict; `numbers`,
        whether targets are these, None where there are none; `level`; `node_types` or
        `node_features` and `edge_types` or `edge_features`, None where there are none; and
        `node_names` and `edge_names`, the kinds that the types count.

        Raises:
            UsageError: as `load`; or graphs differ in what they have.
        """
        graphs = self.graphs()
        found: dict[str, Any] = {"level": self.level or _level(graphs)}
        for of, name, names in (
            ("node", "x", self.node_names),
            ("edge", "edge_attr", self.edge_names),
        ):
            found |= _kinds(graphs, of, name, names)
            found[f"{of}_names"] = list(names)
        found |= super().describe()
        target = next((graph["target"] for graph in graphs if "target" in graph), None)
        found["numbers"] = None if target is None else target.is_floating_point()
        if target is not None and target.is_floating_point():
            several = target.ndim > (0 if found["level"] == "graph" else 1)
            found["classes"], found["num_classes"] = [], target.shape[-1] if several else 1
        return found

    def inputs(self, path: Path) -> Iterator[tuple[str, Any]]:
        if is_tu(path):
            name = path.resolve().name
            for number, sample in enumerate(self.read_tu(path), start=1):
                yield f"{name}:{number}", sample
            return
        for name, file in files(path, (".graphml", ".jsonl", *TENSORS)):
            kind = file.suffix.lower()
            if kind == ".graphml":
                yield name, file
            elif kind == ".jsonl":
                yield from json_lines(name, file, largest=self.largest_input)
            else:
                yield from graphs_in(name, file)

    def read_tu(self, folder: Path) -> list[Sample]:
        """Return the graphs to predict of a folder in TU format, with its own numbers of types."""
        return TUFolder(folder, self.level or "graph").samples()

    def read(self, raw: Any) -> Sample:
        ids: list[str] | None = None
        asked: Tensor | None = None
        if isinstance(raw, Path):
            graph = GraphML(raw)
            sample, ids = graph.sample(self.columns, self.node_names, self.edge_names), graph.ids
            asked = graph.edge_index
        else:
            sample = dict(raw) if not isinstance(raw, bytes) else read_line(raw)
        for name in [n for n in sample if n == "target" or n.endswith("_mask")]:
            del sample[name]
        if not len(sample["x"]):
            raise ValueError("the graph has no nodes")
        if self.level == "edge" and "edge_label_index" not in sample:
            sample["edge_label_index"] = sample["edge_index"] if asked is None else asked
        prepared: dict[str, Any] = self.prepare(sample)
        prepared["node_ids"] = ids or list(map(str, range(len(sample["x"]))))
        return prepared

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        return pack(samples)

    def prepare(self, sample: Sample) -> Sample:
        """Make a graph what models get: checked, and after `pre_transform`.

        Raises:
            ValueError: it is no graph that a model can take, or a transform refuses it.
        """
        check_graph(sample)
        return transformed(sample, self.pre_transform)

    def prepare_all(self, samples: Sequence[Sample], name: str) -> list[Sample]:
        """Apply `prepare` to all graphs of the data set `name`.

        Raises:
            UsageError: of a graph that cannot be taken, with its number.
        """
        prepared = []
        for number, sample in enumerate(samples):
            try:
                prepared.append(self.prepare(sample))
            except ValueError as error:
                raise UsageError(f"data: graph {number} of {name}: {error}.") from error
        return prepared

    def split(
        self,
        samples: Sequence[Sample],
        name: str,
        *,
        strata: Sequence[int] | None = None,
        shares: Sequence[float] = (0.6, 0.2, 0.2),
        augment: Callable[[Sample], Sample] | None = None,
    ) -> None:
        """Fill the three data sets: by `fold`, or by `shares` to train, validate and test with.

        Args:
            samples: all graphs.
            name: of the data set, which keys the split.
            strata: what each part gets its share of; by default the classes in `target`.
            augment: for the graphs to train with, whenever one is drawn; before `transform`.
        """
        prepared = self.prepare_all(samples, name)
        if strata is None:
            strata = [int(sample["target"]) for sample in samples]
        if self.fold is None:
            train, val, test = stratified_split(strata, shares, name)
        else:
            folds = stratified_folds(strata, self.folds, name)
            after = (self.fold + 1) % self.folds
            val, test = folds[after], folds[self.fold]
            others = [folds[k] for k in range(self.folds) if k not in (self.fold, after)]
            train = sorted(index for part in others for index in part)
        for part, indices in (("training", train), ("validation", val), ("test", test)):
            if not indices:
                raise UsageError(
                    f"data: {name} has {len(samples)} graphs, too few for a {part} part."
                )
        self.fill(
            *([prepared[index] for index in part] for part in (train, val, test)), augment=augment
        )

    def fill(
        self,
        train: Sequence[Sample],
        val: Sequence[Sample],
        test: Sequence[Sample],
        *,
        augment: Callable[[Sample], Sample] | None = None,
    ) -> None:
        """Fill the three data sets with graphs that `prepare` has been applied to; those to train
        with are drawn through `augment` and then `transform`."""
        draw = augment
        if self.transform:

            def draw(sample: Sample) -> Sample:
                first = sample if augment is None else augment(sample)
                return transformed(first, self.transform)

        self.train_set = Graphs(train, draw)
        self.val_set, self.test_set = Graphs(val), Graphs(test)

    def fill_nodes(self, graph: Sample, train: Tensor, val: Tensor, test: Tensor) -> None:
        """Fill the three data sets with one and the same graph, whose `target` (n,) counts at the
        nodes of a mask: each (n,) bool."""
        (graph,) = self.prepare_all([graph], type(self).__name__)
        self.fill(*([{**graph, "node_mask": mask}] for mask in (train, val, test)))


def transformed(sample: Sample, transforms: Sequence[Transform]) -> Sample:
    """Apply PyG's transforms to a graph; names that PyG does not know are kept."""
    if not transforms:
        return sample
    from torch_geometric.data import Data

    data = Data.from_dict(dict(sample))
    for transform in transforms:
        data = transform(data)
    changed: Sample = data.to_dict()
    return changed


def _level(graphs: Sequence[Sample]) -> Level | None:
    """What targets are of, as far as a graph shows."""
    first = graphs[0] if graphs else {}
    if "node_mask" in first:
        return "node"
    if "edge_label_index" in first:
        return "edge"
    return "graph" if "target" in first and first["target"].ndim == 0 else None


def _kinds(graphs: Sequence[Sample], of: str, name: str, names: Names) -> dict[str, int | None]:
    """How many types or features nodes or edges have, as `{of}_types` and `{of}_features`."""
    types, features = f"{of}_types", f"{of}_features"
    found: dict[str, int | None] = {types: None, features: None}
    values = [graph[name] for graph in graphs if name in graph]
    if not values:
        return found
    shapes = {value.shape[1:] if value.is_floating_point() else None for value in values}
    if len(shapes) > 1 or len(values) < len(graphs):
        raise UsageError(
            f"data: {name} must be alike in all graphs; it has "
            f"{' and '.join(sorted(_words(shape) for shape in shapes))}"
            f"{' and is missing in some' if len(values) < len(graphs) else ''}."
        )
    (shape,) = shapes
    if shape is None:
        most = max((int(value.max()) for value in values if value.numel()), default=0)
        found[types] = max(len(names), most + 1)
    else:
        found[features] = shape[0] if len(shape) else 1
    return found


def _words(shape: Any) -> str:
    return "types" if shape is None else f"{shape[0] if len(shape) else 1} features"
