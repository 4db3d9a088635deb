"""MUTAG as it ships, its split, and packing."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from attention_core.training import UsageError
from graph.data import Mutag, pack, read_tu, unpack


@pytest.fixture(scope="module")
def mutag() -> Mutag:
    pytest.importorskip("grakel")
    data = Mutag(batch_size=16, classes=["not mutagenic", "mutagenic"])
    data.setup()
    return data


def test_mutag_is_whole(mutag: Mutag) -> None:
    samples = [*mutag.train_set, *mutag.val_set, *mutag.test_set]
    assert len(samples) == 188
    assert sum(len(s["x"]) for s in samples) == 3371
    assert sum(s["edge_index"].shape[1] for s in samples) == 7442
    assert sum(int(s["target"]) for s in samples) == 125  # the mutagenic ones
    for sample in samples:
        assert sample["x"].max() < len(mutag.node_names)
        assert sample["edge_attr"].max() < len(mutag.edge_names)
        assert sample["edge_index"].min() >= 0 and sample["edge_index"].max() < len(sample["x"])
        forth = {tuple(edge) for edge in sample["edge_index"].T.tolist()}
        assert forth == {(b, a) for a, b in forth}


def test_the_split_is_fixed_stratified_and_disjoint(mutag: Mutag) -> None:
    sizes = [len(part) for part in (mutag.train_set, mutag.val_set, mutag.test_set)]
    assert sizes == [113, 37, 38]
    shares = [
        sum(int(s["target"]) for s in part) / len(part)
        for part in (mutag.train_set, mutag.val_set, mutag.test_set)
    ]
    assert all(abs(share - 125 / 188) < 0.02 for share in shares)
    other = Mutag(batch_size=4, seed=2, classes=mutag.classes)
    other.setup()
    for part in ("train_set", "val_set", "test_set"):
        pairs = zip(getattr(mutag, part), getattr(other, part), strict=True)
        assert all(torch.equal(a["edge_index"], b["edge_index"]) for a, b in pairs)


def test_unpack_is_the_inverse_of_pack(mutag: Mutag) -> None:
    samples = [mutag.test_set[index] for index in range(5)]
    for one, other in zip(samples, unpack(pack(samples)), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "version_info", (3, 12))
    with pytest.raises(UsageError, match=r"'grakel'.*attention-core\[graph\]"):
        Mutag(batch_size=1).load()
    monkeypatch.setattr(sys, "version_info", (3, 13))
    with pytest.raises(UsageError, match=r"'grakel'.*no wheel.*--python-version 3.12 --target .*"):
        Mutag(batch_size=1).load()


def test_a_folder_that_is_not_tu(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no .*_graph_indicator.txt"):
        read_tu(tmp_path)


def test_tu_files_that_disagree(tmp_path: Path) -> None:
    folder = tmp_path / "TINY"
    folder.mkdir()
    files = {"graph_indicator": "1\n1\n2\n", "A": "1, 2\n2, 1\n", "graph_labels": "-1\n1\n"}
    for name, text in files.items():
        (folder / f"TINY_{name}.txt").write_text(text)
    (folder / "TINY_node_labels.txt").write_text("0\n1\n")
    with pytest.raises(UsageError, match="TINY_node_labels.txt has 2 lines, 3 were expected"):
        read_tu(folder)
    (folder / "TINY_node_labels.txt").write_text("0\n1\n2\n")
    first, second = read_tu(folder)
    assert first["edge_index"].tolist() == [[0, 1], [1, 0]] and "edge_attr" not in first
    assert second["x"].tolist() == [2] and second["edge_index"].shape == (2, 0)
    assert [int(first["target"]), int(second["target"])] == [0, 1]
