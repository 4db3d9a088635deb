"""Every experiment that we ship composes, and says what it is."""

import pytest

from attention_core.training.compose import about, config_roots, options
from attention_core.training.run import check_config
from tests.training.conftest import CONF, Compose

EXPERIMENTS = about(config_roots(None))


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_experiment_composes(name: str, compose: Compose) -> None:
    check_config(compose(f"experiment={name}", config_dir=None))
    section = EXPERIMENTS[name]
    for key in ("title", "data", "gives"):
        assert section.get(key), f"experiment/{name}.yaml: about.{key} is missing"


@pytest.mark.parametrize(
    "group", ["optimizer", "schedule", "trainer", "callbacks", "logger", "task"]
)
def test_every_choice_composes(group: str, compose: Compose) -> None:
    choices = options(group, config_roots(CONF))
    assert choices
    for choice in choices:
        check_config(compose("experiment=toy", f"{group}={choice}"))
