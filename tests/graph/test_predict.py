"""`attn predict` of molecules: what is read and refused, and a run of `graph/mutag` end to end."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from attention_core.training import UsageError, train
from attention_core.training.predict import load_trained, predict
from graph.data import Mutag, pack, read_tu
from tests.training.conftest import Compose, compose, figures_as_files, one_thread  # noqa: F401

MOLECULE = {"x": [0, 0, 2], "edge_index": [[0, 1, 1, 2], [1, 0, 2, 1]], "edge_attr": [0, 0, 2, 2]}


def line(**changes: Any) -> bytes:
    return json.dumps({**MOLECULE, **changes}).encode()


def test_a_molecule_is_read() -> None:
    data = Mutag(batch_size=2)
    sample = data.read(line())
    assert {name: value.tolist() for name, value in sample.items()} == MOLECULE
    alone = data.read(line(x=[3], edge_index=[[], []], edge_attr=[]))
    assert alone["edge_index"].shape == (2, 0) and alone["edge_index"].dtype == torch.int64
    batch = data.collate([sample, alone])
    assert batch["num_graphs"] == 2 and "target" not in batch


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"C1=CC=CC=C1", "it is no JSON"),
        (b'{"x": [0]}', "it has no key 'edge_index'"),
        (line(x=[]), "x is empty"),
        (line(x=[0, 0, 7]), "x must hold integers from 0 to 6, got 7"),
        (line(x=[0, 0, 1.0]), "x must hold integers from 0 to 6, got 1.0"),
        (line(x=[0, 0, True]), "x must hold integers from 0 to 6, got True"),
        (line(x="CCO"), "x must be a list of integers, got 'CCO'"),
        (line(edge_index=[[0, 1], [1, 0], [1, 2]]), "edge_index must be two lists"),
        (
            line(edge_index=[[0, 1, 1, 3], [1, 0, 3, 1]]),
            "edge_index must hold integers from 0 to 2",
        ),
        (line(edge_index=[[0, 1, 1, -1], [1, 0, -1, 1]]), "from 0 to 2, got -1"),
        (line(edge_index=[[0, 1], [1, 0]]), "equally long, got 2, 2 and 4"),
        (line(edge_attr=[0, 0, 2, 4]), "edge_attr must hold integers from 0 to 3, got 4"),
        (line(edge_attr=[0, 0, 2, 1]), "1 → 2 is of type 2, 2 → 1 is of type 1"),
        (line(edge_index=[[0, 1, 1, 0], [1, 0, 2, 2]]), "1 → 2 is of type 2, 2 → 1 is missing"),
        (line(edge_index=[[0, 1, 0, 1], [1, 0, 1, 0]]), "lists a bond twice"),
        (line(edge_index=[[10**30, 1, 1, 2], [1, 0, 2, 1]]), "from 0 to 2, got 1000"),
    ],
)
def test_what_is_no_molecule(raw: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mutag(batch_size=1).read(raw)


def test_tu_files_that_are_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "TINY"
    folder.mkdir()
    good = {"graph_indicator": "1\n1\n2", "A": "1, 2\n2, 1\n", "node_labels": "0\n1\n0\n"}
    for file, text, message in (
        ("A", "1, 2\n2; 1\n", "TINY_A.txt: line 2 must be 2 integers, got '2; 1'"),
        ("A", "1, 2\n2, 4\n", "TINY_A.txt names nodes beyond 1 to 3"),
        ("A", "0, 1\n1, 0\n", "TINY_A.txt names nodes beyond 1 to 3"),
        ("A", "1, 3\n3, 1\n", "TINY_A.txt has an edge between two graphs"),
        ("graph_indicator", "1\n2\n1\n", "TINY_graph_indicator.txt must name graphs from 1 on"),
        ("graph_indicator", "0\n0\n1\n", "TINY_graph_indicator.txt must name graphs from 1 on"),
        ("node_labels", "0\nC\n0\n", "TINY_node_labels.txt: line 2 must be an integer, got 'C'"),
    ):
        for name, content in {**good, file: text}.items():
            (folder / f"TINY_{name}.txt").write_text(content)
        with pytest.raises(UsageError, match=message):
            read_tu(folder)
    for name, content in good.items():
        (folder / f"TINY_{name}.txt").write_text(content)
    first, second = read_tu(folder)
    assert first["edge_index"].tolist() == [[0, 1], [1, 0]] and "target" not in first
    assert second["x"].tolist() == [0] and second["edge_index"].shape == (2, 0)


def test_edges_in_any_order_stay_with_their_graph(tmp_path: Path) -> None:
    folder = tmp_path / "TINY"
    folder.mkdir()
    files = {
        "graph_indicator": "1\n1\n3\n3\n",  # the second graph has no nodes
        "A": "4, 3\n1, 2\n3, 4\n2, 1\n",
        "node_labels": "5\n6\n7\n8\n",
        "edge_labels": "43\n12\n34\n21\n",
    }
    for name, content in files.items():
        (folder / f"TINY_{name}.txt").write_text(content)
    graphs = [{name: value.tolist() for name, value in graph.items()} for graph in read_tu(folder)]
    assert graphs == [
        {"x": [5, 6], "edge_index": [[0, 1], [1, 0]], "edge_attr": [12, 21]},
        {"x": [], "edge_index": [[], []], "edge_attr": []},
        {"x": [7, 8], "edge_index": [[1, 0], [0, 1]], "edge_attr": [43, 34]},
    ]


@pytest.mark.slow
def test_a_run_predicts_files_as_it_does_its_data_set(
    compose: Compose,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("grakel")
    limits = ["trainer.max_epochs=1", "trainer.limit_train_batches=2"]
    train(compose("experiment=graph/mutag", *limits, config_dir=None), tmp_path / "run")
    monkeypatch.setattr(Mutag, "load", lambda self: pytest.fail("the data set was loaded"))
    _, task = load_trained(tmp_path / "run")
    spec = importlib.util.find_spec("grakel")
    assert spec is not None and spec.origin is not None
    shipped = Path(spec.origin).parent / "tests" / "data" / "MUTAG"
    folder = tmp_path / "in" / "MUTAG"
    shutil.copytree(shipped, folder)
    (folder / "MUTAG_graph_labels.txt").unlink()
    graphs = read_tu(shipped)
    batch = pack(graphs)
    batch.pop("target")
    with torch.no_grad():
        expected = task.model(**batch).softmax(-1)[:, 1]
    assert predict(tmp_path / "run", folder, tmp_path / "tu.jsonl") == 0
    lines = [json.dumps({k: v.tolist() for k, v in g.items() if k != "target"}) for g in graphs]
    lines[20:20] = ['{"x": [9], "edge_index": [[], []], "edge_attr": []}']
    (tmp_path / "graphs.jsonl").write_text("\n".join(lines))
    assert predict(tmp_path / "run", tmp_path / "graphs.jsonl", tmp_path / "json.jsonl") == 1
    for name, bad, first in (("tu", None, "MUTAG:1"), ("json", 20, "graphs.jsonl:1")):
        rows = [json.loads(row) for row in (tmp_path / f"{name}.jsonl").open()]
        assert rows[0]["input"] == first
        if bad is not None:
            assert rows.pop(bad)["error"] == "x must hold integers from 0 to 6, got 9"
        written = torch.tensor([row["probability_mutagenic"] for row in rows])
        torch.testing.assert_close(written, expected, atol=1e-5, rtol=0)
