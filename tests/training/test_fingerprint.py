"""A run does not go on with other data or settings than it began with."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from attention_core.training import UsageError, resume
from attention_core.training.fingerprint import fingerprint
from attention_core.training.folder import RunFolder, read_config, write_config
from tests.training.conftest import Compose, interrupt


@pytest.fixture
def cut(compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    config = compose("experiment=toy", "trainer.max_epochs=1", "data.workers=0")
    interrupt(config, tmp_path / "cut", 5, monkeypatch)
    return RunFolder(tmp_path / "cut")


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("data", "batch_size", 4, "data.batch_size is 4, was 16"),
        ("data", "samples", 100, "data.samples is 100, was 120; there are 100 training samples"),
        ("task", "label_smoothing", 0.1, "task.label_smoothing is 0.1, was 0.0"),
        ("trainer", "accumulate_grad_batches", 2, "trainer.accumulate_grad_batches is 2, was 1"),
    ],
)
def test_a_setting_that_decides_may_not_change(
    section: str, key: str, value: Any, said: str, cut: RunFolder
) -> None:
    config = read_config(cut)
    config[section][key] = value
    write_config(config, cut)
    with pytest.raises(UsageError, match=said):
        resume(cut.path, ["toy_domain"])


def test_other_settings_may_change(cut: RunFolder) -> None:
    config = read_config(cut)
    config["data"]["workers"] = 1
    config["trainer"]["log_every_n_steps"] = 3
    write_config(config, cut)
    assert resume(cut.path, ["toy_domain"])["best_epoch"] == 0


@pytest.mark.slow
def test_a_data_file_may_move_but_not_change(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"word{number} {'good' if number % 2 else 'bad'} {number}" for number in range(60)]
    rows = [f"{text},{'pos' if number % 2 else 'neg'}" for number, text in enumerate(words)]
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *rows]))
    config = compose(
        *["~experiment", "data=nlp/labelled_file", f"data.root={tmp_path}/a.csv"],
        *["data.classes=[pos,neg]", "model=nlp/text_encoder", "task=text_classification"],
        *["model.dim=16", "model.depth=1", "model.heads=2", "data.vocab_size=300"],
        *["data.tokens=128", "trainer.max_epochs=1", "checkpoint.every_steps=1"],
        *["allow=[toy_domain]", "+callbacks.kill._target_=toy_domain.KillAt"],
    )
    interrupt(config, tmp_path / "cut", 2, monkeypatch)
    folder = RunFolder(tmp_path / "cut")
    for old, new in (
        ("word30 bad", "word30 sad"),
        ("bad 30,neg", "bad 30,pos"),
        ("\n", "\nm,pos\n"),
    ):
        changed = "\n".join(["text,label", *rows]).replace(old, new, 1)
        (tmp_path / "a.csv").write_text(changed)
        # The split is by the texts: another one may change how many there are of a part
        with pytest.raises(UsageError, match=r"there are \d+ \w+ samples, were|not what they were"):
            resume(folder.path, ["toy_domain"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.csv").write_text("\n".join(["text,label", *rows]))
    (tmp_path / "a.csv").unlink()
    config["data"]["root"] = str(tmp_path / "other" / "b.csv")
    write_config(config, folder)
    assert "test/loss" in resume(folder.path, ["toy_domain"])


class Held:
    """A data set that holds `part`."""

    def __init__(self, part: Any) -> None:
        self.part, self.myself = part, self

    def __len__(self) -> int:
        return 1


def _digest(part: Any) -> Any:
    return fingerprint(SimpleNamespace(train_set=Held(part), val_set=None, test_set=None))


def test_a_digest_is_of_all_that_a_data_set_holds(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"\x00\x01")
    here, there = tmp_path / "one" / "a.png", tmp_path / "other" / "a.png"
    parts: list[Any] = [
        *([1, 2, 3], [1, 3, 2], [[1], 2, 3], (1, 2, 3), ["1", "2", "3"], {"a": 1}, {"a": 2}),
        *(torch.ones(2), torch.ones(2, dtype=torch.bfloat16), torch.ones(1, 2), torch.ones(0)),
        *(torch.eye(2).to_sparse(), numpy.ones(2), numpy.zeros(2), {1, 2}, "a", b"a", None, here),
    ]
    digests = [str(_digest(part)) for part in parts]
    assert len(set(digests)) == len(parts)
    assert digests == [str(_digest(part)) for part in parts]
    assert _digest(here) == _digest(there) == _digest(Path(shutil.copy(here, tmp_path)))
    there.write_bytes(b"\x00\x02")  # as large
    assert _digest(here) != _digest(there)
    assert _digest([str(here)]) != _digest([str(there)])
