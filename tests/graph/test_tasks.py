"""What graph models are trained for, from batch to metrics."""

from functools import partial
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR

from attention_core import Edges
from attention_core.training import DataModule, Task, UsageError
from graph import GraphTransformer
from graph.data import GraphData, Karate, Sample
from graph.sampling.data import SampledLinks
from graph.tasks import (
    EdgeClassification,
    GraphRegression,
    LinkPrediction,
    NodeClassification,
    NodeRegression,
)
from graph.tasks.links import both_ends, ranks, without_links
from tests.graph.conf.communities import Links, Nodes, Parts, communities
from tests.graph.test_graph_transformer import molecule
from tests.training.conftest import one_thread  # noqa: F401

ADAM = partial(torch.optim.AdamW, lr=1e-2)


def trained(task: Task, data: DataModule, epochs: int) -> dict[str, float]:
    torch.manual_seed(0)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(task, data)
    (results,) = trainer.test(task, data, verbose=False)
    return dict(results)


def transformer(level: Any, num_classes: int | None = 3, **options: Any) -> GraphTransformer:
    torch.manual_seed(0)
    given: dict[str, Any] = {"mask": Edges(), "level": level, "num_classes": num_classes, **options}
    return GraphTransformer(16, 1, 2, **given)


# -- nodes -------------------------------------------------------------------------------------


def test_only_the_nodes_in_question_count() -> None:
    model = transformer("node", node_features=4)
    task = NodeClassification(model, classes=["a", "b", "c"], optimizer=ADAM)
    edge_index = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
    mask = torch.tensor([True, False, True, False, False])
    batch = {"x": torch.randn(5, 4), "edge_index": edge_index, "node_mask": mask}
    batch["target"] = torch.tensor([0, 1, 2, 0, 1])
    output = task(**{name: value for name, value in batch.items() if name != "target"})
    assert output.shape == (2, 3) and task.samples(batch) == 2
    other = {**batch, "target": torch.tensor([0, 2, 2, 1, 0])}
    assert torch.equal(task.loss(output, batch), task.loss(output, other))
    all_nodes = model(batch["x"], edge_index)
    torch.testing.assert_close(output, all_nodes[mask])
    expected = torch.nn.functional.cross_entropy(all_nodes[mask], batch["target"][mask])
    torch.testing.assert_close(task.loss(output, batch), expected)
    nobody = {**batch, "node_mask": torch.zeros(5, dtype=torch.bool)}
    assert task.loss(output[:0], nobody) == 0


class Whole(GraphData):
    """The graph of communities as one sample."""

    def load(self) -> None:
        data = communities()
        graph = {"x": data.x, "edge_index": data.edge_index, "target": data.y}
        self.fill_nodes(graph, data.train_mask, data.val_mask, data.test_mask)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Nodes, {"batch_size": 32, "num_neighbors": [8]}),
        (Parts, {"batch_size": 2, "parts": 6}),
        (Whole, {"batch_size": 1}),
    ],
)
def test_nodes_in_sampled_batches_clusters_and_one_graph(
    kind: Any, settings: dict[str, Any]
) -> None:
    data = kind(classes=["a", "b", "c"], **settings)
    model = transformer("node", node_features=4)
    task = NodeClassification(model, classes=data.classes, optimizer=ADAM)
    epochs = 60 if kind is Whole else 15
    assert trained(task, data, epochs)["test/accuracy"] > 0.5  # by chance 0.33
    figures = task.eval().figures(next(iter(data.test_dataloader())))
    assert set(figures) == {"confusion", "attention", "attention_layers", "attention_hops"}


def test_numbers_of_nodes() -> None:
    task = NodeRegression(transformer("node", num_classes=1, node_features=4), optimizer=ADAM)
    mask = torch.tensor([True, False, True])
    batch: dict[str, Any] = {"node_mask": mask, "target": torch.tensor([1.0, 2, 3])}
    loss = task.loss(torch.tensor([[0.0], [1]]), batch)
    assert loss == (1 + 4) / 2


# -- edges -------------------------------------------------------------------------------------


class FloatLinks(Links):
    """Labels as samplers give them."""

    arguments = SampledLinks.arguments


@pytest.mark.parametrize("kind", [Links, FloatLinks])
def test_pairs_that_are_links_or_not(kind: Any) -> None:
    data = kind(num_neighbors=[8], batch_size=64, negatives=1.0, classes=["no link", "link"])
    model = transformer("edge", num_classes=2, node_features=4)
    task = EdgeClassification(model, classes=data.classes, optimizer=ADAM)
    results = trained(task, data, epochs=1)
    assert 0 < results["test/accuracy"] <= 1 and torch.isfinite(torch.tensor(results["test/loss"]))


class Signs(GraphData):
    """Graphs whose edges are to be told: whether the source has a larger number than the target."""

    def load(self) -> None:
        def sample(seed: int) -> Sample:
            made = molecule(8, seed)
            source, target = made["edge_index"]
            made["x"] = torch.arange(8)[torch.randperm(8)]
            return {
                "x": made["x"],
                "edge_index": made["edge_index"],
                "target": (made["x"][source] > made["x"][target]).long(),
            }

        torch.manual_seed(0)
        self.fill(*([sample(n) for n in range(count)] for count in (32, 4, 8)))

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        from graph.data import pack

        batch = pack([{k: v for k, v in s.items() if k != "target"} for s in samples])
        return {**batch, "target": torch.cat([s["target"] for s in samples])}


def test_edges_have_a_direction() -> None:
    data = Signs(batch_size=8, classes=["up", "down"])
    model = transformer("edge", num_classes=2, node_types=8)
    task = EdgeClassification(model, classes=data.classes, optimizer=ADAM)
    assert trained(task, data, epochs=15)["test/accuracy"] > 0.95


# -- graphs ------------------------------------------------------------------------------------


class Sizes(GraphData):
    """Graphs whose share of nodes of type 0, and number of nodes by 10, are to be told."""

    def load(self) -> None:
        def sample(seed: int) -> Sample:
            made = molecule(4 + seed % 11, seed)
            made.pop("edge_attr")
            share = (made["x"] == 0).float().mean()
            return {**made, "target": torch.stack([share, torch.tensor(len(made["x"]) / 10)])}

        self.fill(*([sample(n) for n in part] for part in map(range, (0, 64, 80), (64, 80, 99))))


def test_numbers_of_graphs() -> None:
    model = transformer("graph", num_classes=2, node_types=7, pooling="sum")
    task = GraphRegression(model, optimizer=ADAM)
    data = Sizes(batch_size=16)
    assert trained(task, data, epochs=40)["test/r2"] > 0.5
    figures = task.eval().figures(next(iter(data.test_dataloader())))
    assert set(figures) == {"attention", "attention_layers", "attention_hops"}
    captions = [axis.get_title("left") for axis in figures["attention"].axes]
    assert sum(", is 0" in caption for caption in captions) == 4
    with pytest.raises(UsageError, match="no form as a program"):
        task.export_inputs({})


# -- links -------------------------------------------------------------------------------------


class Circle(GraphData):
    """20 nodes of 5 kinds in a circle: each is linked to the nodes of the next kind by relation 0,
    and to those of the one after that by relation 1. Some links are to be found again."""

    def load(self) -> None:
        source, target = torch.cartesian_prod(torch.arange(20), torch.arange(20)).T
        step = (target - source) % 5
        self.known_links = torch.stack([source, target, step - 1])[:, (step == 1) | (step == 2)]
        order = torch.randperm(160, generator=torch.Generator().manual_seed(0))
        train, val, test = (self.known_links[:, part] for part in order.split([128, 16, 16]))
        source, target, relation = train
        self.whole = {
            "x": torch.arange(20),
            "edge_index": torch.stack([torch.cat([source, target]), torch.cat([target, source])]),
            "edge_attr": torch.cat([relation, relation + 2]),
        }
        self.fill(*([{"link": link} for link in part.T] for part in (train, val, test)))

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        links = torch.stack([sample["link"] for sample in samples], dim=1)
        return {**self.whole, "edge_label_index": links[:2], "edge_label_type": links[2]}


@pytest.mark.parametrize("negatives", [None, 8])
def test_links_are_found_again(negatives: int | None) -> None:
    model = transformer(
        "link", None, relations=2, node_types=20, edge_types=4, edge_dim=8, mask=Edges()
    )
    task = LinkPrediction(model, optimizer=ADAM, negatives=negatives)
    results = trained(task, Circle(batch_size=16), epochs=20)
    assert {"test/mrr", "test/hits_at_1", "test/hits_at_3", "test/hits_at_10"} <= set(results)
    assert results["test/mrr"] > 0.8  # by chance 0.2


def test_ranks_are_filtered_and_counted_as_torchmetrics_does(monkeypatch: Any) -> None:
    data = Circle(batch_size=4)
    data.load()
    batch = both_ends(next(iter(data.test_dataloader())))
    model = transformer("link", None, relations=2, node_types=20, edge_types=4, edge_dim=8)
    task = LinkPrediction(model, optimizer=ADAM)
    task.trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    task.trainer.datamodule = data  # type: ignore[attr-defined]
    with torch.no_grad():
        scores = task(**{name: value for name, value in batch.items() if name != "target"})
    metrics = task.measures["test_metrics"]
    task.update_metrics(metrics, scores, batch)  # type: ignore[arg-type]
    found = metrics.compute()  # type: ignore[operator]
    known = {tuple(link) for link in data.known_links.T.tolist()}
    expected = {"mrr": RetrievalMRR()}
    expected |= {f"hits_at_{k}": RetrievalHitRate(top_k=k) for k in (1, 3, 10)}
    for row in range(8):
        right = int(batch["target"][row])
        kind = int(batch["edge_label_type"][row])
        pairs = batch["edge_label_index"][:, row].T.tolist()
        kept = [n for n, p in enumerate(pairs) if n == right or (*p, kind) not in known]
        assert len(kept) < 20 or len(pairs) == len(kept) == 20
        for metric in expected.values():
            metric.update(
                scores[row, kept].sigmoid(),  # it takes negative scores for not retrieved
                torch.tensor(kept) == right,
                indexes=torch.full((len(kept),), row),
            )
    for name, metric in expected.items():
        assert found[name] == pytest.approx(float(metric.compute()), rel=1e-5), name


def test_of_equal_scores_the_middle_rank() -> None:
    scores = torch.tensor([[1.0, 1, 1], [3, 2, 1], [0, 5, 5]])
    assert ranks(scores, torch.tensor([0, 1, 0])).tolist() == [2, 2, 3]
    assert ranks(scores, torch.tensor([2, 2, 2])).tolist() == [2, 3, 1.5]


def test_both_ends_are_asked_for() -> None:
    links = torch.tensor([[0, 1], [2, 3]])
    batch = {"x": torch.arange(4), "edge_label_index": links, "edge_label_type": links[0]}
    every = both_ends(batch)
    right = every["edge_label_index"].gather(2, every["target"][None, :, None].expand(2, -1, 1))
    assert right.squeeze(2).tolist() == [[0, 1, 0, 1], [2, 3, 2, 3]]
    assert every["edge_label_index"][:, 0].tolist() == [[0] * 4, [0, 1, 2, 3]]
    assert every["edge_label_index"][:, 3].tolist() == [[0, 1, 2, 3], [3] * 4]
    assert every["edge_label_type"].tolist() == [[0], [1], [0], [1]]
    drawn = both_ends(batch, negatives=5)
    assert drawn["edge_label_index"].shape == (2, 4, 6) and not drawn["target"].any()
    assert drawn["edge_label_index"][..., 0].tolist() == [[0, 1, 0, 1], [2, 3, 2, 3]]


def test_links_in_question_are_no_edges() -> None:
    batch = {
        "x": torch.arange(4),
        "edge_index": torch.tensor([[0, 2, 0, 1, 3], [2, 0, 2, 3, 1]]),
        "edge_attr": torch.tensor([0, 2, 1, 0, 2]),
        "edge_rrwp": torch.arange(5.0),
        "edge_label_index": torch.tensor([[0], [2]]),
        "edge_label_type": torch.tensor([0]),
    }
    left = without_links(batch, relations=2)
    assert left["edge_rrwp"].tolist() == [2, 3, 4]  # of 0 → 2, relation 0 and its inverse are gone
    assert left["edge_index"].tolist() == [[0, 1, 3], [2, 3, 1]]
    assert left["edge_attr"].tolist() == [1, 0, 2]
    assert left["edge_label_index"] is batch["edge_label_index"]
    alike = {k: v for k, v in batch.items() if k != "edge_label_type"}
    assert without_links(alike, relations=1)["edge_rrwp"].tolist() == [3, 4]


def test_what_does_not_fit_is_named() -> None:
    model = transformer("link", None, node_types=4)
    with pytest.raises(UsageError, match="task.negatives must be at least 1"):
        LinkPrediction(model, optimizer=ADAM, negatives=0)
    task = LinkPrediction(model, optimizer=ADAM)
    with pytest.raises(UsageError, match="data: to rank links, all known ones"):
        trained(task, Karate(batch_size=1), epochs=1)
    with pytest.raises(UsageError, match="one graph, got 2"):
        both_ends({"x": torch.arange(4), "edge_label_index": torch.zeros(2, 1), "num_graphs": 2})
    batch: dict[str, Tensor] = {"edge_label_index": torch.zeros(2, 3, 4), "target": torch.zeros(3)}
    with pytest.raises(UsageError, match=r"scores of shape \(3, 4\) expected"):
        task.loss(torch.zeros(3), batch)
