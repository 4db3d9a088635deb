"""The toy domain, composed through the same path as the command line takes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from attention_core.training import run, train
from attention_core.training.checkpoint import load_checkpoint
from attention_core.training.compose import about, config_roots
from attention_core.training.folder import RunFolder
from tests.command_line import figure_as_file
from tests.graph.own import OWN

CONF = Path(__file__).parent / "conf"

Compose = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def figures_as_files() -> Iterator[None]:
    """A run draws its figures and writes their files, but renders none: that takes two thirds of a
    small one. `test_conf` renders those of every experiment; a module that looks at what is
    rendered has an empty fixture of this name."""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "save_figure", figure_as_file)
        yield


@pytest.fixture
def compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compose:
    """Composes a resolved configuration from overrides; nothing is trained."""
    from hydra._internal.hydra import Hydra

    from attention_core.training.compose import run_hydra

    monkeypatch.syspath_prepend(str(CONF))

    def composed(*overrides: str, config_dir: Path | None = CONF) -> dict[str, Any]:
        found: list[dict[str, Any]] = []
        with monkeypatch.context() as patch:
            # It composes, a third of the work here, to see whether this is a sweep: it is none
            patch.setattr(Hydra, "get_mode", lambda *_, **__: None)
            run_hydra(
                lambda config, folder: found.append(config),
                [f"hydra.run.dir={tmp_path}/composed", *overrides],
                flags=[],
                config_dir=config_dir,
            )
        return found[0]

    return composed


def data_root(experiment: str, folder: Path) -> list[str]:
    """The override that gives an experiment a folder of two classes, or what else it reads, where
    data is the user's."""
    if about(config_roots(None))[experiment].get("packaged", True):
        return []
    if experiment in OWN:
        return [f"data.root={OWN[experiment](folder)}"]
    for name in ("one", "other"):
        (folder / name).mkdir(parents=True)
    return [f"data.root={folder}"]


class Killed(Exception):
    pass


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(*pair) for pair in zip(a, b, strict=True))
    return bool(a == b)


def assert_same_run(one: Path, other: Path) -> None:
    first, second = RunFolder(one), RunFolder(other)
    # Every step's loss and rate, every epoch's values and the test: the text of the whole file.
    assert first.metrics.read_text() == second.metrics.read_text()
    assert first.results.read_text() == second.results.read_text()
    for name in ("last", "best"):
        weights = [load_checkpoint(getattr(folder, name)) for folder in (first, second)]
        assert same(weights[0]["state_dict"], weights[1]["state_dict"]), name
        assert same(weights[0].get("optimizer_states"), weights[1].get("optimizer_states")), name


def interrupt(config: dict[str, Any], path: Path, step: int, monkeypatch: Any) -> None:
    """Trains until after optimizer step `step`, then stops with nothing cleaned up."""
    import toy_domain

    def stop(self: Any, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(toy_domain.KillAt, "on_train_batch_end", stop)
        with pytest.raises(Killed):
            train(config, path)
