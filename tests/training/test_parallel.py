"""Several processes, recomputed and compiled blocks: the numbers of one plain process."""

import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from attention_core import Edges
from attention_core.training import UsageError, resume, train
from attention_core.training.checkpoint import PlainCheckpointIO, load_checkpoint
from attention_core.training.folder import RunFolder
from attention_core.training.metrics import read_metrics
from attention_core.training.parallel import checkpoint_activations, compile_blocks
from graph import GraphTransformer
from nlp import Seq2SeqTransformer
from tests.command_line import attn
from tests.training.conftest import CONF, Compose, assert_same_run, interrupt
from vision import SwinTransformer, VisionTransformer

HERE = ("--config-dir", str(CONF))
TWO = ("trainer.accelerator=cpu", "trainer.devices=2")
SHORT = ("trainer.max_epochs=3", "checkpoint.every_steps=2", "data.batch_size=8")


def vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        dim=16,
        depth=2,
        heads=2,
        patch_size=2,
        channels=1,
        image_size=8,
        num_classes=10,
        dropout=0.2,
    )


def gradients(model: VisionTransformer) -> list[torch.Tensor]:
    torch.manual_seed(1)
    images = torch.rand(4, 1, 8, 8, dtype=next(model.parameters()).dtype)
    model(images).square().sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def learned_biases(name: str) -> tuple[nn.Module, Callable[[nn.Module], Any]]:
    """A model whose blocks share what they learn of positions, and how it is called."""
    torch.manual_seed(0)
    image, x, ids = torch.rand(1, 3, 16, 16), torch.randn(6, 3), torch.randint(20, (2, 7))
    edge_index, types = torch.tensor([[0, 1, 2, 3, 3], [1, 2, 0, 4, 5]]), torch.arange(5) % 2
    if name == "t5":
        return Seq2SeqTransformer(20, 8, 2, 2, positions="t5"), lambda m: m(ids, None, ids)
    if name.startswith("swin"):
        version = 2 if name == "swin2" else 1
        swin = SwinTransformer(
            8, (2, 2), (1, 2), window=2, patch_size=2, num_classes=3, version=version
        )
        return swin, lambda m: m(image)
    options = {"local": Edges()} if name == "gps" else {"max_hops": 3}
    graphs = GraphTransformer(8, 2, 2, num_classes=2, node_features=3, edge_types=2, **options)
    return graphs, lambda m: m(x, edge_index, types)


@pytest.mark.parametrize("name", ["swin", "swin2", "t5", "graphormer", "gps"])
def test_recomputed_blocks_share_what_they_learn(name: str) -> None:
    found = []
    for recomputes in (False, True):
        model, call = learned_biases(name)
        if recomputes:
            checkpoint_activations(model)
        torch.manual_seed(1)
        call(model).square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    for got, wanted in zip(*found, strict=True):
        assert (got is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(got, wanted)


def test_recomputed_blocks_have_the_same_gradients_and_names() -> None:
    plain, recomputed = vit(), vit()
    checkpoint_activations(recomputed)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        expected = gradients(plain)
        before, kept[:] = sum(kept), []
        found = gradients(recomputed)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))  # dropout, too
    assert list(recomputed.state_dict()) == list(plain.state_dict())
    assert sum(kept) != before


@pytest.mark.slow
def test_compiled_blocks_are_one_graph_with_the_same_numbers() -> None:
    # In double precision: compiled sums go in another order, which float32 shows now and then
    plain, compiled = vit().eval().double(), vit().eval().double()
    checkpoint_activations(compiled)
    compile_blocks(compiled)
    counters.clear()
    for a, b in zip(gradients(compiled), gradients(plain), strict=True):
        torch.testing.assert_close(a, b)
    assert counters["stats"]["unique_graphs"] >= 1
    assert not counters["graph_break"]
    assert list(compiled.state_dict()) == list(plain.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ddp", "fsdp2"])
def test_two_processes_take_the_steps_of_one_with_their_batches(
    trainer: str, compose: Compose, tmp_path: Path
) -> None:
    still = [*["data.rotation=0", "data.scale=0", "data.shift=0"], "model.drop_path=0"]
    # No second moments: Adam would turn a rounding error of a tiny gradient into a whole step
    plain = ["optimizer._target_=torch.optim.SGD", "~optimizer.betas", "optimizer.lr=0.1"]
    short = ["trainer.max_epochs=1", "trainer.limit_train_batches=6", "trainer.log_every_n_steps=1"]
    same = ["experiment=vision/digits", *still, *plain, *short]
    train(compose(*same, "trainer.precision=32-true", "data.batch_size=64"), tmp_path / "one")
    compiled = ["compile=false"] if trainer == "fsdp2" else []
    ran = attn(
        *["train", *same, "data.batch_size=32", f"trainer={trainer}", *TWO, *compiled],
        "trainer.precision=32-true",
        f"hydra.run.dir={tmp_path}/two",
        cwd=tmp_path,
        renders=False,
    )
    assert ran.returncode == 0, ran.stderr
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    for name in ("step/loss", "step/gradient_norm", "val/loss", "test/accuracy"):
        values = [[r[name] for r in read_metrics(f.metrics) if name in r] for f in (one, two)]
        assert len(values[0]) == (6 if name.startswith("step") else 1)
        assert values[1] == pytest.approx(values[0], rel=1e-4), name
    weights = [load_checkpoint(folder.last)["state_dict"] for folder in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-4, rtol=1e-3)
    sharded = trainer == "fsdp2"
    assert two.best.is_dir() == two.last.is_dir() == sharded
    # One process looks at what two have trained
    again = attn("evaluate", f"run={tmp_path}/two", cwd=tmp_path, renders=False)
    assert "the same as results.json" in again.stdout, again.stdout + again.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "more"),
    [
        ("ddp", ["data.workers=2", "trainer.accumulate_grad_batches=2"]),
        ("fsdp2", ["compile=false", "trainer.precision=32-true"]),
    ],
)
def test_two_killed_processes_resume_exactly(trainer: str, more: list[str], tmp_path: Path) -> None:
    setting = ["experiment=toy", *SHORT, f"trainer={trainer}", *TWO, *more, *HERE]
    steps = 12 if trainer == "ddp" else 24
    step = random.randrange(1, steps)
    whole = attn("train", *setting, f"hydra.run.dir={tmp_path}/whole", cwd=tmp_path, renders=False)
    assert whole.returncode == 0, whole.stderr
    cut = tmp_path / "cut"
    killed = attn(
        "train",
        *setting,
        f"hydra.run.dir={cut}",
        cwd=tmp_path,
        renders=False,
        TOY_KILL_AT=str(step),
    )
    assert killed.returncode in (-signal.SIGKILL, 1), killed.stderr  # or ended by its observer
    assert not RunFolder(cut).results.exists()
    continued = attn("train", f"run={cut}", *HERE, cwd=tmp_path, renders=False)
    assert continued.returncode == 0, f"killed at step {step}: {continued.stderr}"
    assert_same_run(tmp_path / "whole", cut)


@pytest.mark.slow
def test_a_failed_job_of_two_processes_stops_no_other(tmp_path: Path) -> None:
    ran = attn(
        *["train", "sweep=grid", "experiment=toy", "model.num_classes=5,2", "trainer=ddp"],
        *["trainer.max_epochs=1", *TWO, *HERE],
        cwd=tmp_path,
        renders=False,
    )
    assert ran.returncode == 1, ran.stderr
    assert "logits of shape (B, 2) expected" in ran.stderr
    (table,) = tmp_path.rglob("sweep.csv")
    assert len(table.read_text().splitlines()) == 3
    assert len(list(tmp_path.rglob("results.json"))) == 1


@pytest.mark.slow
def test_processes_with_unequal_shares_evaluate_together(tmp_path: Path) -> None:
    # 60 samples to validate with: 30 each; of 59 one has 30 and the other 29, and a batch less
    ran = attn(
        *["train", "experiment=toy", "data.samples=118", "data.batch_size=29", "trainer=fsdp2"],
        *["trainer.precision=32-true", "compile=false", "trainer.max_epochs=1", *TWO, *HERE],
        cwd=tmp_path,
        renders=False,
    )
    assert ran.returncode == 0, ran.stderr


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.mark.slow
def test_torchrun_starts_no_run_that_is_not_prepared(tmp_path: Path) -> None:
    """Whatever the trainer is: nothing has looked at the configuration yet."""
    setting = ["experiment=toy", *SHORT, "trainer=ddp", *TWO, *HERE]
    ran = attn("train", *setting, cwd=tmp_path, under=TORCHRUN)
    assert ran.returncode != 0
    assert "torchrun starts several processes" in ran.stderr
    assert "attn prepare" in ran.stderr
    assert not list(tmp_path.rglob("config.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ddp", "fsdp2"])
def test_a_prepared_run_is_started_by_torchrun(trainer: str, tmp_path: Path) -> None:
    plain = ["compile=false", "trainer.precision=32-true"]
    setting = ["experiment=toy", *SHORT, f"trainer={trainer}", *plain, *TWO, *HERE]
    prepared = attn("prepare", *setting, f"hydra.run.dir={tmp_path}/run", cwd=tmp_path)
    assert f"attn train run={tmp_path}/run --config-dir {CONF}" in prepared.stdout, prepared.stderr
    ran = attn("train", f"run={tmp_path}/run", *HERE, cwd=tmp_path, under=TORCHRUN)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("run folder") == 1
    assert (tmp_path / "run" / "README.md").exists()
    attn("train", *setting, f"hydra.run.dir={tmp_path}/ours", cwd=tmp_path)
    assert_same_run(tmp_path / "ours", tmp_path / "run")


def test_another_number_of_processes_cannot_continue(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose("experiment=toy", "trainer.max_epochs=2", "checkpoint.every_steps=3")
    interrupt(config, tmp_path, 5, monkeypatch)
    last = RunFolder(tmp_path).last
    content = load_checkpoint(last)
    content["train_metrics"] *= 2
    PlainCheckpointIO().save_checkpoint(content, last)
    with pytest.raises(UsageError, match="2 processes wrote its checkpoint, but 1 continue it"):
        resume(tmp_path, ["toy_domain"])
