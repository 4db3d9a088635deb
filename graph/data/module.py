"""Data modules of graphs in memory: how they are split, transformed and packed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Unpack

from torch import Tensor

from attention_core.training import DataModule, DataModuleOptions, UsageError
from attention_core.training.splits import stratified_folds, stratified_split
from graph.data.graphs import Graphs, Sample, check_graph, pack

Transform = Callable[[Any], Any]  # of PyG's Data


class GraphDataOptions(DataModuleOptions, total=False):
    """Options of every `GraphData`, which subclasses pass on."""

    fold: int | None
    folds: int
    pre_transform: dict[str, Transform] | None
    transform: dict[str, Transform] | None


class GraphData(DataModule):
    """Graphs, of which a batch holds several as one row of nodes: see `pack`.

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

    #: Names of the types of nodes and edges, for figures; others have their number.
    node_names: Sequence[str] = ()
    edge_names: Sequence[str] = ()

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
            [known[kind] if kind < len(known) else str(kind) for kind in graph[name].tolist()]
            if name in graph and graph[name].ndim == 1 and not graph[name].is_floating_point()
            else []
            for name, known in (("x", self.node_names), ("edge_attr", self.edge_names))
        )
        return nodes or [""] * len(graph["x"]), edges

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
