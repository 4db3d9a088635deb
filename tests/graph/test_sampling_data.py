"""Data modules of sampled batches: what a batch holds, exact resume, two processes."""

import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from attention_core.training import UsageError
from attention_core.training.folder import RunFolder
from graph.sampling.data import Clusters, SampledNodes
from tests.command_line import attn
from tests.graph.test_sampling_types import shop
from tests.training.conftest import assert_same_run, same

CONF = Path(__file__).parent / "conf"
SETTINGS: dict[str, dict[str, Any]] = {
    "Nodes": {"num_neighbors": [4, 3], "eval_neighbors": [-1, -1], "batch_size": 16},
    "Links": {"num_neighbors": [4, 3], "negatives": 2, "batch_size": 64},
    "Parts": {"parts": 12, "batch_size": 4},
}


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(CONF))
    import communities

    yield communities
    del sys.modules["communities"]


def module(domain: Any, name: str, **more: Any) -> Any:
    made = getattr(domain, name)(seed=3, **SETTINGS[name], **more)
    made.setup()
    return made


def epoch(loader: Any, number: int) -> list[Any]:
    loader.set_epoch(number)
    torch.manual_seed(random.randrange(1000))  # whatever was drawn before makes no difference
    batches = list(loader)
    loader.close()
    return batches


def test_a_batch_of_nodes(domain: Any) -> None:
    data, made = domain.communities(), module(domain, "Nodes")
    seen = []
    for batch in epoch(made.train_dataloader(), 0):
        assert set(batch) == {"x", "edge_index", "node_mask", "target"}
        seen += batch["x"][batch["node_mask"]].tolist()
        assert len(batch["x"]) == len(batch["node_mask"]) == len(batch["target"])
        first = int(batch["node_mask"].sum())
        assert bool(batch["node_mask"][:first].all())
        assert int(torch.bincount(batch["edge_index"][1]).max()) <= 4
    assert sorted(seen) == sorted(data.x[data.train_mask].tolist())
    batches = epoch(made.val_dataloader(), 0)
    target = torch.cat([b["target"][b["node_mask"]] for b in batches])
    assert torch.equal(target, data.y[data.val_mask])
    # With all neighbors the model computes for a seed what it does in the whole graph
    model = domain.SAGE(3)
    whole = model(data.x, data.edge_index, data.val_mask)
    sampled = torch.cat([model(b["x"], b["edge_index"], b["node_mask"]) for b in batches])
    torch.testing.assert_close(sampled, whole, atol=1e-5, rtol=1e-5)


def test_a_batch_of_links(domain: Any) -> None:
    made = module(domain, "Links")
    graph = made.graphs()[0]
    known = set(
        map(tuple, graph.x[graph.edge_index].flatten(2).permute(1, 0, 2).flatten(1).tolist())
    )
    for batch in epoch(made.train_dataloader(), 0):
        count = len(batch["target"]) // 3
        assert batch["target"].tolist() == [1] * count + [0] * 2 * count
        pairs = batch["x"][batch["edge_label_index"][:, :count]].permute(1, 0, 2).flatten(1)
        assert set(map(tuple, pairs.tolist())) <= known
    evaluated = torch.cat([batch["target"] for batch in epoch(made.test_dataloader(), 0)])
    assert torch.equal(evaluated, made.graphs()[2].edge_label.long())


def test_a_batch_of_clusters(domain: Any) -> None:
    data, made = domain.communities(), module(domain, "Parts")
    batches = epoch(made.train_dataloader(), 0)
    assert len(batches) == 3
    seeds = torch.cat([batch["x"][batch["node_mask"]] for batch in batches])
    assert sorted(seeds.tolist()) == sorted(data.x[data.train_mask].tolist())
    tested = sum(int(batch["node_mask"].sum()) for batch in epoch(made.test_dataloader(), 0))
    assert tested == int(data.test_mask.sum())


@pytest.mark.parametrize("name", SETTINGS)
def test_draws_depend_on_epoch_and_batch_alone(name: str, domain: Any) -> None:
    loader = module(domain, name).train_dataloader()
    first, second = epoch(loader, 0), epoch(loader, 1)
    assert same(epoch(loader, 0), first)
    assert not same(first[0], second[0])
    for batch in (iterator := iter(loader)):
        del batch
        break
    state = loader.state_dict()
    iterator.close()
    continued = module(domain, name).train_dataloader()
    continued.load_state_dict(state)
    assert same(list(continued), first[1:])


@pytest.mark.parametrize("name", SETTINGS)
def test_evaluation_draws_the_same_in_every_epoch(name: str, domain: Any) -> None:
    if name == "Nodes":
        made = module(domain, name)
        made.eval_neighbors = [2, 2]
        made.load()
    else:
        made = module(domain, name)
    loader = made.val_dataloader()
    assert same(epoch(loader, 0), epoch(loader, 5))


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_workers_change_nothing(name: str, domain: Any) -> None:
    alone = epoch(module(domain, name).train_dataloader(), 1)
    assert same(epoch(module(domain, name, workers=2).train_dataloader(), 1), alone)


def test_typed_nodes() -> None:
    class Shop(SampledNodes):
        def graph(self) -> Any:
            data = shop()
            role = torch.arange(30) % 3
            data["item"].y = torch.arange(30)
            for number, stage in enumerate(("train", "val", "test")):
                data["item"][f"{stage}_mask"] = role == number
            return data

    made = Shop(num_neighbors=[2], node_type="item", batch_size=4, sampling={"replace": True})
    made.setup()
    batch = next(iter(made.val_dataloader()))
    assert batch["target"][batch["node_mask"]].tolist() == [1, 4, 7, 10]
    assert len(batch["node_mask"]) == len(batch["x_dict"]["item"])
    assert set(batch) == {"x_dict", "edge_index_dict", "edge_attr_dict", "node_mask", "target"}
    assert len(batch["edge_index_dict"]) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train_mask": None}, "train_mask must be a mask of its 300 nodes, got None"),
        ({"val_mask": torch.zeros(300, dtype=torch.bool)}, "val_mask names none of its 300 nodes"),
        ({"y": torch.zeros(299)}, "y must hold the label of each of its 300 nodes"),
        ({"x": torch.full((300, 2), torch.nan)}, "data: x has a feature that is not finite"),
        ({"edge_attr": torch.zeros(7, 2)}, "data: edge_attr must hold a row per edge"),
        ({"edge_index": torch.tensor([[0], [300]])}, "data: edge_index names target node 300"),
    ],
)
@pytest.mark.parametrize("name", ["Nodes", "Parts"])
def test_a_bad_graph_is_named(name: str, change: dict[str, Any], said: str, domain: Any) -> None:
    data = domain.communities()
    for key, value in change.items():
        setattr(data, key, value)
    made = getattr(domain, name)(**SETTINGS[name])
    made.graph = lambda: data
    with pytest.raises(UsageError, match=said):
        made.setup()


def test_bad_settings_are_named(domain: Any) -> None:
    with pytest.raises(UsageError, match="data: num_neighbors must list a number per hop, got 5"):
        domain.Nodes(num_neighbors=5, batch_size=1).setup()
    with pytest.raises(UsageError, match="data: num_parts must be 1 to num_nodes=300, got 301"):
        domain.Parts(parts=301, batch_size=1).setup()
    with pytest.raises(UsageError, match="data: .*'disjointed'"):
        domain.Links(num_neighbors=[1], batch_size=1, sampling={"disjointed": True}).setup()
    with pytest.raises(NotImplementedError, match="Clusters.graph must return the graph"):
        Clusters(parts=2, batch_size=1).setup()


@pytest.mark.slow
def test_two_killed_processes_resume_exactly(tmp_path: Path) -> None:
    setting = [
        *["experiment=communities", "data._target_=communities.Links", "+data.negatives=1"],
        *["data.classes=[no,yes]", "data.batch_size=256", "data.workers=1"],
        "task._target_=attention_core.training.ClassificationTask",
        *["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"],
    ]
    where = ("--config-dir", str(CONF))
    whole = attn(
        "train", *setting, *where, f"hydra.run.dir={tmp_path}/whole", cwd=tmp_path, renders=False
    )
    assert whole.returncode == 0, whole.stderr
    cut = tmp_path / "cut"
    step = random.randrange(1, 9)
    killed = attn(
        *["train", *setting, *where, f"hydra.run.dir={cut}"],
        cwd=tmp_path,
        renders=False,
        KILL_AT=str(step),
    )
    assert killed.returncode in (-signal.SIGKILL, 1), killed.stderr  # or ended by its observer
    assert not RunFolder(cut).results.exists()
    continued = attn("train", f"run={cut}", *where, cwd=tmp_path, renders=False)
    assert continued.returncode == 0, f"killed at step {step}: {continued.stderr}"
    assert_same_run(tmp_path / "whole", cut)


@pytest.mark.slow
def test_evaluation_repeats_its_draws(tmp_path: Path) -> None:
    where = ("--config-dir", str(CONF))
    run = f"{tmp_path}/run"
    short = ("trainer.max_epochs=1", f"hydra.run.dir={run}")
    ran = attn("train", "experiment=communities", *short, *where, cwd=tmp_path, renders=False)
    assert ran.returncode == 0, ran.stderr
    again = attn("evaluate", f"run={run}", *where, cwd=tmp_path, renders=False)
    assert "the same as results.json" in again.stdout, again.stdout + again.stderr
