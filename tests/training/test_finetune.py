"""Starting from weights, frozen parts and layer-wise rates: what a run is told is what it does."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from attention_core.training import UsageError, evaluate, resume, train
from attention_core.training.checkpoint import load_checkpoint
from attention_core.training.finetune import freeze, start_from
from attention_core.training.folder import RunFolder, read_config
from attention_core.training.metrics import read_metrics
from tests.command_line import attn
from tests.training.conftest import Compose, assert_same_run, interrupt

SHORT = ("experiment=toy", "trainer.max_epochs=1")
STILL = ("optimizer.lr=0", "trainer.max_epochs=1")  # what a run ends with is what it began with

DIGITS = (
    *["experiment=vision/digits", "trainer.max_epochs=2", "trainer.limit_train_batches=4"],
    *["trainer.log_every_n_steps=1", "checkpoint.every_steps=3", "allow=[toy_domain]"],
    "+callbacks.kill._target_=toy_domain.KillAt",
)


def weights(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = load_checkpoint(RunFolder(path).best)["state_dict"]
    return {name.removeprefix("model."): value for name, value in state.items()}


@pytest.fixture
def source(compose: Compose, tmp_path: Path) -> Path:
    train(compose(*SHORT, "seed=7"), tmp_path / "source")
    return tmp_path / "source"


@pytest.mark.slow
def test_a_run_starts_with_the_best_weights_of_another_but_for_what_is_new(
    source: Path, compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(compose("experiment=toy", *STILL), tmp_path / "random")
    capsys.readouterr()
    new = ["init.new=[layers.3]", f"init.run={source}"]
    train(compose("experiment=toy", *STILL, *new), tmp_path / "tuned")
    assert "Starting with 2 of 4 tensors from" in (said := capsys.readouterr().out)
    assert "new: layers.3; not taken: layers" in said
    tuned, taken, random = (
        weights(path) for path in (tmp_path / "tuned", source, tmp_path / "random")
    )
    for name, value in tuned.items():
        expected = random if name.startswith("layers.3") else taken
        assert torch.equal(value, expected[name])
        assert not torch.equal(taken[name], random[name])
    card = (tmp_path / "tuned" / "README.md").read_text()
    assert f"| starts from | `run={source}, new=['layers.3']` |" in card


@pytest.mark.slow
def test_what_a_run_has_loaded_is_not_loaded_again(
    source: Path, compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose(
        *["experiment=toy", "trainer.max_epochs=3", "checkpoint.every_steps=3"],
        *["init.run=source", "freeze=[layers.0]"],
    )
    train(config, tmp_path / "whole")
    interrupt(config, tmp_path / "cut", 5, monkeypatch)
    assert read_config(RunFolder(tmp_path / "cut"))["init"]["run"] == str(source)
    shutil.rmtree(source)
    resume(tmp_path / "cut", ["toy_domain"])
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    evaluate(tmp_path / "cut", ["toy_domain"])


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_first_checkpoint_loads_again(
    source: Path, compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(
        *["experiment=toy", "trainer.max_epochs=1", "checkpoint.every_steps=6"],
        f"init.run={source}",
    )
    train(config, tmp_path / "whole")
    interrupt(config, tmp_path / "cut", 5, monkeypatch)
    assert not RunFolder(tmp_path / "cut").resumable
    resume(tmp_path / "cut", ["toy_domain"])
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def model() -> nn.Module:
    return nn.ModuleDict({"body": nn.Linear(3, 4), "head": nn.Linear(4, 2)})


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_starts_the_part_of_it_that_the_prefix_names(suffix: str, tmp_path: Path) -> None:
    theirs = nn.ModuleDict({"tower": model(), "decoder": nn.Linear(4, 3)})
    file = tmp_path / f"weights{suffix}"
    state = theirs.state_dict()
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    ours = model()
    head = ours["head"].weight.clone()  # type: ignore[index]
    said = start_from(ours, weights=str(file), prefix="tower", new=["head"])
    assert said == f"2 of 4 tensors from {file}; new: head; not taken: head"
    assert torch.equal(ours["body"].weight, theirs["tower"]["body"].weight)  # type: ignore[index]
    assert torch.equal(ours["head"].weight, head)  # type: ignore[index]
    assert start_from(ours, prefix="tower", new=["head"]) == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"4 missing: body.weight \(4, 3\).* which has: decoder, tower. init.prefix"),
        ({"prefix": "towr"}, "which has under 'towr': nothing"),
        ({"prefix": "decoder", "new": ["head"]}, "2 missing: body.weight"),
        ({"prefix": "tower"}, r"head.weight is \(5, 4\), the model's \(2, 4\)"),
        ({"prefix": "tower", "new": ["haed"]}, "init.new: .* no part 'haed'. Did you mean head?"),
        ({"prefix": "tower", "new": ["body", "head"]}, "init.new: body, head is all of the model"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tower = nn.ModuleDict({"body": nn.Linear(3, 4), "head": nn.Linear(4, 5)})
    theirs = nn.ModuleDict({"tower": tower, "decoder": nn.Linear(4, 3)})
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    ours = model()
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    with pytest.raises(UsageError, match=message):
        start_from(ours, weights=str(tmp_path / "weights.safetensors"), **options)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("init.run=nowhere", "the folder 'nowhere' does not exist"),
        ("init.weights=nowhere.safetensors", "no file 'nowhere.safetensors'"),
        ("init={run: a, weights: b}", "either run=a or weights=b"),
        ("+init.runn=a", "init.runn: .* no argument 'runn'. Did you mean run?"),
        ("init.run=3", "init.run: .* expects str"),
        ("freeze=layers", "freeze: a list of parts of the model is needed"),
    ],
)
def test_a_mistake_leaves_no_run_behind(
    override: str, message: str, compose: Compose, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        train(compose(*SHORT, override), tmp_path / "run")
    assert not RunFolder(tmp_path / "run").config.exists()


def test_frozen_parts_stay_and_the_others_train(compose: Compose, tmp_path: Path) -> None:
    train(compose("experiment=toy", *STILL), tmp_path / "before")
    train(compose(*SHORT, "freeze=[layers.0]"), tmp_path / "after")
    before, after = weights(tmp_path / "before"), weights(tmp_path / "after")
    for name, value in after.items():
        assert torch.equal(value, before[name]) == name.startswith("layers.0")
    with pytest.raises(UsageError, match="freeze: the model has no part 'layer'. Did you mean"):
        freeze(model=nn.ModuleDict({"layers": nn.Linear(2, 2)}), parts=["layer"])


@pytest.mark.slow
def test_layers_learn_at_their_rates_and_resume_exactly(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(*DIGITS, "task.layer_decay=0.5")
    train(config, tmp_path / "whole")
    interrupt(config, tmp_path / "cut", 5, monkeypatch)
    (state,) = load_checkpoint(RunFolder(tmp_path / "cut").last)["optimizer_states"]
    peak = config["optimizer"]["lr"]
    # Norm and head, four blocks, embedding with class token: with and without weight decay
    scales = [0.5**below for below in range(6) for _ in range(2)]
    assert [group["initial_lr"] / peak for group in state["param_groups"]] == scales
    resume(tmp_path / "cut", ["toy_domain"])
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    rates = [
        r["step/lr"] for r in read_metrics(RunFolder(tmp_path / "whole").metrics) if "step/lr" in r
    ]
    assert max(rates) == pytest.approx(peak)  # what is logged is the configured rate


TWO = ["compile=false", "trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=32"]


@pytest.fixture(scope="module")
def tuned_by_one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with the run `source`, sharded over two processes, and `one`, which tunes it in one
    process; and what `one` was asked for."""
    folder = tmp_path_factory.mktemp("tuned")
    still = [*["data.rotation=0", "data.scale=0", "data.shift=0"], "model.drop_path=0"]
    # No second moments: Adam would turn a rounding error of a tiny gradient into a whole step
    plain = ["optimizer._target_=torch.optim.SGD", "~optimizer.betas", "optimizer.lr=0.1"]
    same = [*DIGITS[:-2], *still, *plain, "trainer.precision=32-true"]
    source = [*same, "trainer=fsdp2", *TWO, "seed=5", "hydra.run.dir=source"]
    ran = attn("train", *source, cwd=folder, renders=False)
    assert ran.returncode == 0, ran.stderr
    tune = [f"init.run={folder}/source", "init.new=[head]", "freeze=[embedding]"]
    tune = [*same, *tune, "task.layer_decay=0.5"]
    ran = attn("train", *tune, "hydra.run.dir=one", cwd=folder, renders=False)
    assert ran.returncode == 0, ran.stderr
    return folder, tune


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ddp", "fsdp2"])
def test_two_processes_tune_as_one_does(
    trainer: str, tuned_by_one: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, tune = tuned_by_one
    ran = attn(
        "train", *tune, f"trainer={trainer}", *TWO, "hydra.run.dir=two", cwd=tmp_path, renders=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("Starting with") == 1
    one, other = weights(folder / "one"), weights(tmp_path / "two")
    for name, value in weights(folder / "source").items():
        torch.testing.assert_close(other[name], one[name], atol=1e-4, rtol=1e-3)
        frozen = name.startswith("embedding") or not value.numel()
        assert torch.equal(one[name], value) == frozen, name
