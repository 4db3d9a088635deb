"""A run's configuration names its files so that every current folder finds them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from attention_core.training import DataModule
from attention_core.training.run import prepare
from tests.training.conftest import Compose

TEXTS = {"_target_": "nlp.data.LabelledFile", "vocab_size": 300, "batch_size": 2}
HUB = {**TEXTS, "_target_": "nlp.data.HubTexts"}
IMAGES = {"_target_": "vision.data.ImageFolder", "size": 8, "batch_size": 2}
MODEL = {"_target_": "nlp.TextEncoder.from_pretrained", "num_classes": 2}

#: What is in the configuration, and what of it becomes a whole path, below the current folder.
CASES: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    ("data", {**TEXTS, "root": "data/rows.csv"}, {"root": "data/rows.csv"}),
    ("data", {**TEXTS, "root": "none/yet"}, {"root": "none/yet"}),
    ("data", {**TEXTS, "root": "/data", "tokenizer": "wordpiece"}, {}),
    ("data", {**TEXTS, "root": "/data", "tokenizer": "package:x/y.json"}, {}),
    ("data", {**TEXTS, "root": "/data", "tokenizer": "data/t.json"}, {"tokenizer": "data/t.json"}),
    ("data", {**IMAGES, "root": "~/pictures"}, {"root": "pictures"}),
    (
        "data",
        {**HUB, "name": "csv", "options": {"data_files": {"train": "data/a", "test": ["data/*"]}}},
        {"options.data_files.train": "data/a", "options.data_files.test.0": "data/*"},
    ),
    (
        "data",
        {**HUB, "name": "json", "options": {"data_dir": "data"}},
        {"options.data_dir": "data"},
    ),
    ("data", {**HUB, "name": "csv", "options": {"data_files": "https://host/a.csv"}}, {}),
    ("data", {**HUB, "name": "data"}, {"name": "data"}),
    ("data", {**HUB, "name": "a/b", "options": {"data_files": "data/rows.csv"}}, {}),
    ("model", {**MODEL, "weights": "data"}, {"weights": "data"}),
    ("model", {**MODEL, "weights": "package:x/y"}, {}),
]


def test_the_paths_of_a_run_mean_the_same_in_every_folder(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose("experiment=toy")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "stored").touch()
    (tmp_path / "data" / "rows.csv").symlink_to("stored")  # the name of which tells what it is
    for number, (section, given, paths) in enumerate(CASES):
        given = {"classes": ["a", "b"], **given} if section == "data" else given
        prepare({**config, section: given}, tmp_path / str(number))
        written = yaml.safe_load((tmp_path / str(number) / "config.yaml").read_text())[section]
        found = dict(_leaves(written))
        expected = {**dict(_leaves(given)), **{k: str(tmp_path / v) for k, v in paths.items()}}
        assert found == expected


def _leaves(config: Any, place: str = "") -> list[tuple[str, Any]]:
    if not isinstance(config, dict | list):
        return [(place.removeprefix("."), config)]
    pairs = config.items() if isinstance(config, dict) else enumerate(config)
    return [leaf for name, value in pairs for leaf in _leaves(value, f"{place}.{name}")]


def test_a_root_that_is_no_path_stays() -> None:
    for root in (3, "s3://bucket/a", "/data"):
        assert DataModule.located({"root": root, "classes": []}) == {"root": root, "classes": []}
