"""Files of weights: what is read, what is refused, and that a model gets all of them or none."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from attention_core.errors import UsageError
from attention_core.pretrained import (
    Family,
    LoadReport,
    Pretrained,
    load_pretrained,
    load_strictly,
    names,
    read_weights,
)
from attention_core.pretrained.renaming import rename, split_off, without_prefix


class Evil:
    """What reading would run, were it not refused."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.randn(3, 2), "a.bias": torch.randn(3).half()}


def assert_equal(read: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert read.keys() == wanted.keys()
    for name, value in wanted.items():
        assert read[name].dtype == value.dtype and torch.equal(read[name], value)


# ----------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"model": w, "epoch": 3, "optimizer": {}}])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_hold_a_state_dict_or_one_inside(
    tmp_path: Path, weights: dict[str, torch.Tensor], wrap: Any, zipped: bool
) -> None:
    path = tmp_path / "model.pth"
    torch.save(wrap(weights), path, _use_new_zipfile_serialization=zipped)
    assert_equal(read_weights(path), weights)
    assert_equal(read_weights(str(path)), weights)
    assert_equal(read_weights(wrap(weights)), weights)


def test_safetensors(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file(weights, tmp_path / "model.safetensors")
    assert_equal(read_weights(tmp_path / "model.safetensors"), weights)


@pytest.mark.parametrize("cut", [0, 5, 40, 150])
def test_damaged_safetensors(tmp_path: Path, weights: dict[str, torch.Tensor], cut: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file(weights, path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UsageError, match=r"model\.safetensors' is damaged"):
        read_weights(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95])
def test_torn_torch_files(
    tmp_path: Path, weights: dict[str, torch.Tensor], share: float, zipped: bool
) -> None:
    path = tmp_path / "model.pth"
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UsageError, match=r"model\.pth' is damaged"):
        read_weights(path)


@pytest.mark.parametrize("content", [b"<html>404</html>", b"\x80\x02junk", b"PK\x03\x04junk"])
def test_what_is_no_file_of_weights(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"model\.bin' is damaged"):
        read_weights(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    torch.save(
        {"a": torch.ones(2), "b": Evil(tmp_path / "ran")},
        tmp_path / "model.pth",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(UsageError, match=r"refused: .* could run code \(\w+\.mkdir\)"):
        read_weights(tmp_path / "model.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Evil(tmp_path / "ran"), protocol=2))
    with pytest.raises(UsageError, match="refused|damaged"):
        read_weights(tmp_path / "plain.pkl")
    assert not (tmp_path / "ran").exists()
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(UsageError, match=r"refused: .*torch\.nn\.modules\.linear\.Linear"):
        read_weights(tmp_path / "module.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(2), "is no state dict, a dict of tensors by name, but a Tensor"),
        ([1, 2], "but a list"),
        ({"epoch": 3, "args": "x"}, "it holds 'epoch', 'args'"),
        ({}, "it holds nothing"),
        ({1: torch.ones(1)}, "it holds 1"),
        (
            {"model": {"a": torch.ones(1)}, "ema": {"a": torch.ones(1)}},
            "several state dicts, 'model', 'ema'",
        ),
    ],
)
def test_what_is_no_state_dict(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(UsageError, match=message):
        read_weights(tmp_path / "model.pth")


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "model.pth"):
        with pytest.raises(UsageError, match="is no file"):
            read_weights(path)


# ------------------------------------------------------------------------------------------- names


def test_names_follow_a_table() -> None:
    x = torch.ones(1)
    table = {
        "stem": "embed",
        "layers.#.fc": "blocks.#.up",
        "layers.#.scale": "blocks.#.scale",
        "tok": "token",
    }
    theirs = ["stem.weight", "layers.10.fc.weight", "layers.10.fc.bias", "layers.2.scale", "tok"]
    assert list(rename(dict.fromkeys(theirs, x), table)) == [
        "embed.weight",
        "blocks.10.up.weight",
        "blocks.10.up.bias",
        "blocks.2.scale",
        "token",
    ]
    with pytest.raises(UsageError, match=r"2 of 3 have no place here: stem\.gain \(1,\), stems"):
        rename({"stem.gain": x, "stems.weight": x, "tok": x}, table)
    with pytest.raises(UsageError, match=r"two of them are token; the second is other"):
        rename({"tok": x, "other": x}, {"tok": "token", "other": "token"})


def test_a_name_may_have_several_numbers_and_one_that_is_no_layer_s() -> None:
    x = torch.ones(1)
    table = {"stages.#.blocks.#.fc": "parts.#.layers.#.up", "features.3.#.mlp.0": "parts.1.#.up"}
    theirs = ["stages.1.blocks.20.fc.weight", "features.3.4.mlp.0.bias"]
    renamed = rename(dict.fromkeys(theirs, x), table)
    assert list(renamed) == ["parts.1.layers.20.up.weight", "parts.1.4.up.bias"]


def test_what_is_dropped_is_named() -> None:
    x = torch.ones(1)
    rest, dropped = split_off({"a.mask": x, "b.masks": x}, {r".*\.mask": "not needed"})
    assert list(rest) == ["b.masks"] and dropped == {"a.mask": "not needed"}
    assert list(without_prefix({"m.a": x, "n.m.b": x, "c": x}, "m.", "n.")) == ["a", "m.b", "c"]
    report = LoadReport("timm", {f"a{i}": "not needed" for i in range(7)}, ["head.weight"])
    assert str(report).splitlines() == [
        "weights: from timm",
        "  dropped, not needed: a0, a1, a2, a3, a4 and 2 more",
        "  kept as they were: head.weight",
    ]


# ---------------------------------------------------------------------------- a family of one's own


class Small(Pretrained):
    """Reads a classifier, where it has one, and no scores."""

    families = {
        "theirs": Family(
            recognises=lambda w: "stem.weight" in w,
            prefixes=("net.",),
            model_types=("stemmed",),
            table={"stem": "embed", "copy": "embed", "fc": names.CLASSIFIER, "out": names.SCORES},
            settings=lambda c: {"width": len(c.tensor("embed.weight")), "out": c.config["out"]},
            copies={"copy.weight": "stem.weight"},
            unused={"steps": "it counts"},
        )
    }
    parts = {names.CLASSIFIER: "head"}

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.embed = nn.Linear(2, width)
        self.head = nn.Linear(width, out)


class Other(Pretrained):
    families = {"others": Family(lambda w: "trunk.weight" in w, {"trunk": "a"}, lambda c: {})}


def stemmed() -> dict[str, torch.Tensor]:
    stem, fc = nn.Linear(2, 3), nn.Linear(3, 4)
    of_stem = {f"net.stem.{name}": value for name, value in stem.state_dict().items()}
    of_fc = {f"net.fc.{name}": value for name, value in fc.state_dict().items()}
    more = {"net.out.weight": torch.ones(1), "net.steps": torch.ones(())}
    return {**of_stem, **of_fc, "net.copy.weight": stem.weight.detach().clone(), **more}


def test_a_family_of_ones_own() -> None:
    theirs = stemmed()
    model = Small.from_pretrained(theirs, config={"model_type": "stemmed", "out": 4})
    assert torch.equal(model.embed.weight, theirs["net.stem.weight"])
    assert torch.equal(model.head.bias, theirs["net.fc.bias"])
    report = load_pretrained(model, theirs)
    assert report.source == "theirs" and report.kept == []
    assert report.dropped == {
        "steps": "it counts",
        "copy.weight": "the same as stem.weight",
        "out.weight": "a model of this type has no scores",
    }
    before = model.head.weight.clone()
    theirs["net.fc.weight"] = torch.zeros(9, 3)
    with pytest.raises(UsageError, match=r"head.weight is \(9, 3\), the model's \(4, 3\)"):
        load_pretrained(model, theirs)
    report = load_pretrained(model, theirs, head=False)
    assert report.kept == ["head.weight", "head.bias"] and torch.equal(model.head.weight, before)
    assert report.dropped["fc.weight"] == "the model keeps its own head"
    theirs["net.copy.weight"] = torch.zeros(3, 2)
    with pytest.raises(UsageError, match="copy.weight is to be the same as stem.weight"):
        load_pretrained(model, theirs)


def test_weights_of_another_model_name_it() -> None:
    for given in ({"source": "others"}, {}):
        with pytest.raises(UsageError, match=r"for Other, not for Small: .*Other\.from_pr"):
            Small.from_pretrained({"trunk.weight": torch.ones(1)}, **given)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"of 'theirs', for Small, not for Other"):
        Other.from_pretrained(stemmed(), config={"model_type": "stemmed"})
    with pytest.raises(UsageError, match="must be one of others, got 'other'. Did you mean"):
        Other.from_pretrained(stemmed(), source="other")


# ------------------------------------------------------------------------------------------ strict


def test_a_model_gets_all_or_none() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    good = {name: torch.full_like(value, 2) for name, value in before.items()}
    wrong = {**good, "0.weight": torch.ones(3, 5), "extra": torch.ones(1)}
    del wrong["1.running_mean"]
    with pytest.raises(UsageError) as error:
        load_strictly(model, wrong)
    assert str(error.value) == (
        "weights: they do not fit this Sequential; 1 missing: 1.running_mean (3,); "
        "1 surplus: extra (1,); 1 of another shape: 0.weight is (3, 5), the model's (3, 2)."
    )
    assert_equal(model.state_dict(), before)
    del good["0.bias"]
    load_strictly(model, good, keep=["0.bias"])
    assert_equal(model.state_dict(), {**good, "0.bias": before["0.bias"]})


def test_no_framework_is_loaded() -> None:
    code = (
        "import sys, attention_core.pretrained, vision.pretrained;"
        "print(*sys.modules.keys() & {'lightning', 'hydra', 'torchvision', 'timm', 'matplotlib'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.strip()
