"""Configurations of installed packages are found, and broken ones stop nobody."""

import shutil
from pathlib import Path

import pytest

from tests.command_line import attn
from tests.training.conftest import CONF


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with an installed package `ringworld`, whose configurations are the toy domain's."""
    site = tmp_path / "site packages"  # a space, as in some users' paths
    package = site / "ringworld"
    shutil.copytree(CONF, package / "conf", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for folder in (package, package / "conf"):
        (folder / "__init__.py").touch()
    shutil.copy(CONF / "toy_domain.py", site)
    experiment = package / "conf" / "experiment"
    (experiment / "toy.yaml").rename(experiment / "ringworld.yaml")
    info = site / "ringworld-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ringworld\nVersion: 1.0\n")
    declare(site, 'rings = "ringworld.conf"')
    return site


def declare(site: Path, *lines: str) -> None:
    text = "\n".join(["[attention_core.conf]", *lines]).replace('"', "")
    (site / "ringworld-1.0.dist-info" / "entry_points.txt").write_text(text + "\n")


@pytest.mark.slow
def test_an_installed_domain_is_listed_and_trained(site: Path, tmp_path: Path) -> None:
    listed = attn("list", cwd=tmp_path, PYTHONPATH=str(site), COLUMNS="200")
    assert "ringworld" in listed.stdout
    assert "Tells the points of two rings apart" in listed.stdout
    assert not listed.stderr
    ran = attn(
        *["train", "experiment=ringworld", "trainer.max_epochs=1", "hydra.run.dir=run"],
        cwd=tmp_path,
        PYTHONPATH=str(site),
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "run" / "results.json").exists()


def test_it_goes_together_with_a_folder_of_ones_own(site: Path, tmp_path: Path) -> None:
    shutil.copytree(CONF, tmp_path / "own" / "conf")
    own = ["--config-dir", str(tmp_path / "own" / "conf")]
    for experiment in ("ringworld", "toy", "vision/digits"):
        arguments = ["train", f"experiment={experiment}", "--cfg", "job", *own]
        shown = attn(*arguments, cwd=tmp_path, PYTHONPATH=str(site))
        assert shown.returncode == 0, shown.stderr
        assert "_target_" in shown.stdout


def test_a_broken_entry_point_is_named_and_left_out(site: Path, tmp_path: Path) -> None:
    declare(site, 'gone = "nowhere.conf"', 'module = "toy_domain"', 'rings = "ringworld.conf"')
    listed = attn("list", cwd=tmp_path, PYTHONPATH=str(site), COLUMNS="200")
    assert listed.returncode == 0, listed.stderr
    assert "'nowhere.conf' of ringworld are left out" in listed.stderr
    assert "'toy_domain' of ringworld are left out" in listed.stderr
    assert "Traceback" not in listed.stderr
    assert "ringworld" in listed.stdout
    assert "vision/digits" in listed.stdout
