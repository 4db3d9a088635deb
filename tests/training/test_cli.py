"""The command line as a user meets it: every mistake answered in a sentence."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from attention_core.training.cli import main
from attention_core.training.compose import about, config_roots
from tests.training.conftest import CONF

Attn = Any


@pytest.fixture
def attn_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Attn:
    """Runs a command in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = 0
        try:
            main(list(arguments))
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


TOY = ("experiment=toy", "--config-dir", str(CONF))


def test_help_names_every_command(attn_here: Attn) -> None:
    for arguments in ((), ("--help",), ("-h",)):
        code, out, _ = attn_here(*arguments)
        assert code == 0
        assert all(name in out for name in ("attn train", "attn evaluate", "attn list"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("trian",), "'trian' is not a command. Did you mean train?"),
        (("train", "experiment=toi", *TOY[1:]), "experiment: there is no 'toi'. Did you mean toy?"),
        (("train", "experiment=tides"), "One of your own is found with --config-dir FOLDER."),
        (("train", *TOY, "optimizer=adam"), "there is no 'adam'. Did you mean adamw?"),
        (
            ("train", *TOY, "model.dimm=3"),
            "model.dimm: not a key of this configuration. Did you mean model.dim? A key",
        ),
        (
            ("train", "mask=neighborhood"),
            "figures; inside one of these, with a plus: +model.mask=...",
        ),
        (("train", *TOY, "sede=3"), "sede: not a key of this configuration. Did you mean seed"),
        (
            ("train", *TOY, "lr=3"),
            "lr: not a key of this configuration. Did you mean optimizer.lr?",
        ),
        (("train", *TOY, "logger=[wandb,tensorbord]"), "Did you mean tensorboard?"),
        (("train", *TOY, "seed"), "'seed': an override is written key=value"),
        (
            ("train", *TOY, "about.title=[1,2"),
            "'[1,2' cannot be read as a list. To give it as a text: 'about.title=\"[1,2\"'",
        ),
        (("train", *TOY, "größe=3"), "'größe=3': 'größe' is no key"),
        (("prepare", *TOY, "about.title=a,b"), "a text with a comma 'about.title=\"a,b\"'"),
        (
            ("train", *TOY, "+optimiser.lr=3"),
            "optimiser: not a key of a configuration. Did you mean optimizer",
        ),
        (
            ("train", *TOY, "+model.dimension=3"),
            "model.dimension: toy_domain.MLP takes no argument 'dimension'",
        ),
        (
            ("train", *TOY, "+trainer.max_epoch=3"),
            "takes no argument 'max_epoch'. Did you mean max_epochs",
        ),
        (
            ("train", *TOY, "compile=maybe"),
            "compile: true or false is needed, got 'maybe'",
        ),
        (("train", *TOY, "+callbacks.x=3"), "callbacks.x: a mapping with a _target_ is needed"),
        (("train", *TOY, "checkpoint.every_steps=soon"), "every_steps: checkpoint expects int"),
        (("train", *TOY, "+checkpoint.every_step=3"), "'every_step'. Did you mean every_steps?"),
        (("train", *TOY, "+data.bach_size=3"), "'bach_size'. Did you mean batch_size"),
        (("train", "+model.hiden=3"), "'hiden'. Did you mean hidden"),
        (
            ("train", *TOY, "+hydra.callbacks.x._target_=toy_domain.KillAt"),
            "hydra.callbacks.x._target_: 'toy_domain.KillAt' is refused",
        ),
        (
            ("train", *TOY, "hydra.launcher._target_=toy_domain.KillAt"),
            "hydra.launcher._target_: 'toy_domain.KillAt' is refused",
        ),
        (
            ("train", *TOY, "data.batch_size=0"),
            "data.batch_size must be an integer of at least 1, got 0",
        ),
        (("train", *TOY, "schedule.warmup=3"), "schedule.warmup is a share between 0 and 1, got 3"),
        (("train", *TOY, "data.classes=[one]"), "task.classes must name at least two classes"),
        (("train", *TOY, "seed=${sead}"), "sead"),
        (("train", *TOY, "seed=abc"), "seed: an integer is needed, got 'abc'"),
        (("train", *TOY, "model.dim=3.5"), "model.dim: toy_domain.MLP expects int, got 3.5"),
        (
            ("train", *TOY, "trainer.max_epochs=few"),
            "trainer.max_epochs: lightning.pytorch.Trainer",
        ),
        (("train", *TOY, "trainer.precision=banana"), "trainer.precision: "),
        (("train", *TOY, "trainer.accelerator=abacus"), "invalid accelerator name"),
        (("train", *TOY, "optimizer.lr=-1"), "optimizer: Invalid learning rate: -1"),
        (("train", *TOY, "optimizer.lr=abc"), "optimizer.lr: torch.optim.AdamW expects float"),
        (("train", *TOY, "trainer.max_epochs=0"), "a run needs something to train for"),
        (
            ("train", *TOY, "allow=[]"),
            "'toy_domain.Rings' is not allowed. To trust a package of your own with running",
        ),
        (
            ("train", "experiment=toy", "--config-dir", "nowhere"),
            "--config-dir: 'nowhere' is not a folder",
        ),
        (("train", "run=nowhere"), "run: the folder 'nowhere' does not exist"),
        (("train", "run=."), "run: '.' is not a run folder: it has no config.yaml"),
        (("train", "run=.", "seed=2"), "continues a run exactly as it was configured"),
        (("evaluate",), "evaluate needs run=...: attn evaluate run=FOLDER"),
        (("evaluate", "run=."), "run: '.' is not a run folder"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(
    arguments: tuple[str, ...], expected: str, attn_here: Attn
) -> None:
    code, _, err = attn_here(*arguments)
    assert code == 2
    assert expected in err
    assert "Traceback" not in err
    assert "Error executing job" not in err


@pytest.fixture
def with_missing(tmp_path: Path) -> Path:
    """The toy's configurations, and an experiment whose package nobody has."""
    shutil.copytree(CONF, tmp_path / "conf")
    experiment = tmp_path / "conf" / "experiment" / "toy.yaml"
    missing = yaml.safe_load(experiment.read_text())
    missing["about"] |= {"needs": ["yaml", "a_package_nobody_has"], "extra": "rings"}
    missing["about"]["title"] = (
        "Tells the points of two rings apart with more words than 80 columns"
    )
    (experiment.parent / "missing.yaml").write_text(yaml.safe_dump(missing))
    return tmp_path / "conf"


def test_list_has_a_line_of_80_columns_for_each_experiment(
    attn_here: Attn, with_missing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = attn_here("list", "--config-dir", "conf")
    assert code == 0
    assert all(len(line) <= 80 for line in out.splitlines())
    *blocks, end = out.strip().split("\n\n")
    lines = {line.split()[0].rstrip("*"): line for block in blocks for line in block.splitlines()}
    assert list(lines) == list(about(config_roots(with_missing)))
    first = [block.split()[0].rpartition("/")[0] for block in blocks]
    assert sorted(first) == ["", "graph", "nlp", "vision"]
    assert [name for name, line in lines.items() if line.endswith("…")] == ["missing"]
    assert lines["missing"].split()[:2] == ["missing*", "Tells"]
    assert lines["toy"].split(maxsplit=1)[1] == (
        "Tells the points of two rings apart with a small MLP"
    )
    assert end.startswith("* needs a package") and "attn list NAME" in end


def test_list_name_tells_all_of_an_experiment(attn_here: Attn, with_missing: Path) -> None:
    code, out, _ = attn_here("list", "missing", "--config-dir", "conf")
    assert code == 0
    for shown in (
        "more words than 80 columns",
        "240 points made on the spot",
        "98% test accuracy",
        "yaml, a_package_nobody_has",
        "not installed: a_package_nobody_has",
        "pip install 'attention-core[rings]'",
        "attn train experiment=missing --config-dir conf",
    ):
        assert shown in " ".join(out.split()), shown
    _, out, _ = attn_here("list", "toy", "--config-dir", "conf")
    assert "not installed" not in out and "pip" not in out
    code, out, err = attn_here("list", "vision/digit")
    assert (code, out) == (2, "")
    assert "there is no experiment 'vision/digit'. Did you mean vision/digits" in err


def test_show_the_configuration(attn_here: Attn, tmp_path: Path) -> None:
    code, out, _ = attn_here("train", *TOY, "seed=7", "--cfg", "job")
    assert code == 0
    assert yaml.safe_load(out)["data"]["seed"] == 7
    assert not (tmp_path / "outputs").exists()
