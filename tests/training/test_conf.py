"""Every experiment and every choice that we ship composes, and every experiment runs."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from attention_core.training import evaluate, train
from attention_core.training.compose import _compose, about, config_roots, options
from attention_core.training.run import check_config
from tests.training.conftest import CONF, Compose, data_root
from tools.claims import claims

EXPERIMENTS = about(config_roots(None))
ROOTS = config_roots(CONF)
PLUGINS = {"optuna": "hydra_optuna_sweeper", "submitit_local": "hydra_submitit_launcher"} | {
    name: f"hydra_{name}_launcher" for name in ("joblib", "submitit", "ray")
}
#: What may be said about an experiment: `attn list` shows the first, `make experiments` the last.
ABOUT = {"title", "data", "needs", "extra", "gives", "packaged", "states", "table"}
QUICK = {"vision/digits", "graph/mutag", "nlp/sentiment_tiny"}  # one of each domain
OF_A_RUN = [
    *["optimizer", "schedule", "trainer", "callbacks", "logger", "task", "profiler", "debug"],
]


@pytest.fixture(scope="module")
def figures_as_files() -> None:
    """Not here: figures are rendered."""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_experiment_composes(name: str, compose: Compose, tmp_path: Path) -> None:
    section = EXPERIMENTS[name]
    check_config(compose(f"experiment={name}", *data_root(name, tmp_path), config_dir=None))
    for key in ("title", "data", "gives"):
        assert section.get(key), f"experiment/{name}.yaml: about.{key} is missing"
    assert section.keys() <= ABOUT


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EXPERIMENTS],
)
def test_experiment_does_one_real_step(name: str, compose: Compose, tmp_path: Path) -> None:
    for package in EXPERIMENTS[name].get("needs", []):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    if not EXPERIMENTS[name].get("packaged", True):
        pytest.skip("its data comes in no package")
    config = compose(f"experiment={name}", "debug=fast_dev_run", config_dir=None)
    results = train(config, tmp_path / "run")
    assert results == json.loads((tmp_path / "run" / "results.json").read_text())
    assert any(key.startswith("test/") for key in results)
    stated = claims(name, EXPERIMENTS[name].get("states", []))
    assert {claim.metric for claim in stated} <= results.keys()
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    assert (tmp_path / "run" / "figures" / "learning_curves.png").exists()
    assert evaluate(tmp_path / "run") == results


@pytest.mark.slow
@pytest.mark.parametrize("group", OF_A_RUN)
def test_every_choice_composes(group: str, compose: Compose) -> None:
    choices = options(group, ROOTS)
    assert choices
    for choice in choices:
        config = compose("experiment=toy", f"{group}={choice}")
        if group == "task":  # the toy has one of its own
            (file,) = (path for root in ROOTS if (path := root / f"task/{choice}.yaml").exists())
            config["task"]["_target_"] = yaml.safe_load(file.read_text())["_target_"]
        check_config(config)


@pytest.mark.slow
@pytest.mark.parametrize("group", ["data", "model"])
def test_every_choice_of_a_domain_lies_where_its_group_does(group: str, compose: Compose) -> None:
    """Hydra would put what a nested file begins with into `model.graph`."""
    compose("experiment=toy")  # registers the resolvers
    choices = options(group, config_roots(None))
    assert {choice.partition("/")[0] for choice in choices} == {"vision", "graph", "nlp"}
    for choice in choices:
        part = _compose(["experiment=toy", f"{group}={choice}"], ROOTS)[group]
        assert isinstance(part["_target_"], str)
        assert not {"vision", "graph", "nlp"} & set(part), choice


def test_every_choice_of_a_sweep_composes(compose: Compose) -> None:
    compose("experiment=toy")  # registers the resolvers
    chosen = {}
    for group in ("sweep", "launcher"):
        for choice in options(group, config_roots(CONF)):
            plugin = PLUGINS.get(choice)
            if plugin and importlib.util.find_spec(f"hydra_plugins.{plugin}") is None:
                continue
            hydra = _compose(["experiment=toy", f"{group}={choice}"], config_roots(CONF)).hydra
            part = "sweeper" if group == "sweep" else "launcher"
            chosen[choice] = (hydra.runtime.choices[f"hydra/{part}"], hydra[part]._target_)
    assert chosen["grid"][0] == chosen["local"][0] == "basic"
    for choice, (name, target) in chosen.items():
        assert name == {"submitit": "submitit_slurm"}.get(choice, name)
        assert target.startswith("hydra")


def test_no_group_is_forgotten_here() -> None:
    groups = {path.name for root in config_roots(None) for path in root.iterdir() if path.is_dir()}
    groups -= {"__pycache__"}
    assert groups == {*OF_A_RUN, "sweep", "launcher", "experiment", "data", "model"}
