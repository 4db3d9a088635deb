"""The commands that are printed for a run with code of the user's own work where they are given."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from attention_core.training import UsageError, own
from attention_core.training.folder import RunFolder, write_config
from attention_core.training.instantiate import locate
from attention_core.training.trust import again, trusted_config, trusting
from tests.command_line import attn

EXPERIMENT = "# @package _global_\nallow: [tides_of_mine]\n"
SHORT = ["trainer.max_epochs=1", "data.samples=60", "model.dim=8", "model.depth=1"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, as that of a command without --config-dir."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own._finder, "places", [])
    own.serve([tmp_path])
    return tmp_path


def domain(folder: Path, name: str = "tides_of_mine") -> None:
    """As `attn new-domain` writes it."""
    (folder / "experiment").mkdir(parents=True)
    (folder / f"{name}.py").write_text("class Task: ...\n")
    (folder / "experiment" / "it.yaml").write_text(EXPERIMENT)


def test_a_module_of_the_current_folder_needs_no_more_than_to_be_allowed(here: Path) -> None:
    domain(here)
    assert trusting([]) == ""
    assert trusting(["tides_of_mine"]) == " 'allow=[tides_of_mine]'"
    assert again("train", Path("a run"), ["json"]) == "attn train run='a run' 'allow=[json]'"


def test_a_module_in_a_folder_of_its_name_needs_that_folder(here: Path) -> None:
    domain(here / "tides_of_mine")
    assert trusting(["tides_of_mine"]) == " --config-dir tides_of_mine"
    (here / "tides_of_mine" / "experiment" / "it.yaml").unlink()
    wanted = " 'allow=[tides_of_mine]' --config-dir tides_of_mine"
    assert trusting(["tides_of_mine"]) == wanted
    (here / "tides_of_mine" / "__init__.py").touch()  # a package, then
    assert trusting(["tides_of_mine"]) == " 'allow=[tides_of_mine]'"


def test_packages_without_init_are_packages(here: Path) -> None:
    (here / "tides_of_mine").mkdir()
    (here / "tides_of_mine" / "parts.py").touch()
    assert trusting(["tides_of_mine"]) == " 'allow=[tides_of_mine]'"


def test_what_is_nowhere_here_is_asked_for(here: Path) -> None:
    domain(here / "elsewhere")
    wanted = " 'allow=[tides_of_mine]' --config-dir FOLDER_WITH_ITS_CODE"
    assert trusting(["tides_of_mine"]) == wanted


def test_what_was_given_is_given_again(here: Path) -> None:
    folder = here / "my conf"
    domain(folder)
    own.serve([folder, here])
    assert trusting(["tides_of_mine", "more"]) == " 'allow=[more]' --config-dir 'my conf'"
    assert trusting([]) == ""


def test_a_run_folder_says_nothing_of_where_its_code_lies(here: Path) -> None:
    """It can come from anybody: a command from it alone must not find code in it."""
    run = here / "run"
    domain(run)
    write_config(
        {"allow": ["tides_of_mine"], "task": {"_target_": "tides_of_mine.Task"}}, RunFolder(run)
    )
    with pytest.raises(UsageError) as refusal:
        trusted_config(RunFolder(run), [], "evaluate")
    assert "'allow=[tides_of_mine]' --config-dir FOLDER_WITH_ITS_CODE" in str(refusal.value)


def test_a_folder_that_hides_the_module_in_it_is_named(here: Path) -> None:
    domain(here / "tides_of_mine")
    with pytest.raises(UsageError, match=r"no __init__.py. .* --config-dir tides_of_mine$"):
        locate("tides_of_mine.Task", "task", ["tides_of_mine"])
    sys.modules.pop("tides_of_mine")


def printed(text: str, command: str) -> list[str]:
    """The words of the `attn` command in what was printed."""
    found = re.search(rf"attn ({command} run=[^\n]*?)( \(in Python|\n|$)", text)
    assert found, text
    return shlex.split(found[1])


@pytest.mark.slow
def test_every_command_works_as_it_is_printed(tmp_path: Path) -> None:
    assert attn("new-domain", "tides", cwd=tmp_path).returncode == 0
    given = ["experiment=tides", "--config-dir", "tides"]
    prepared = attn("prepare", *given, *SHORT, "hydra.run.dir=don't (1)", cwd=tmp_path)
    assert prepared.returncode == 0, prepared.stderr
    ran = attn(*printed(prepared.stdout, "train"), cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    refused = attn("evaluate", "run=don't (1)", cwd=tmp_path)
    assert refused.returncode == 2
    card = (tmp_path / "don't (1)" / "README.md").read_text()
    for command, text in (("evaluate", refused.stderr), ("export", re.sub(" *#.*", "", card))):
        ran = attn(*printed(text, command), cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code and "sys.path.append('tides')" in code[1]
