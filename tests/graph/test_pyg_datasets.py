"""Data sets of PyG by name, read from raw files as they are downloaded, made here in small."""

import pickle
from pathlib import Path

import numpy
import pytest
import torch
from scipy.sparse import csr_matrix
from torch_geometric.datasets import ZINC, Planetoid, TUDataset, WebKB

from attention_core.training import UsageError
from attention_core.training.instantiate import build
from graph.data import GraphData, PyGDataset
from tests.graph.test_data_files import write_tu
from tests.training.conftest import Compose, compose  # noqa: F401


def parts(data: GraphData) -> list[list[dict[str, torch.Tensor]]]:
    data.setup()
    return [list(part) for part in (data.train_set, data.val_set, data.test_set)]  # type: ignore[arg-type]


def test_tu_graphs_are_split_by_class_or_fold(tmp_path: Path) -> None:
    raw = tmp_path / "TINY" / "raw"
    raw.mkdir(parents=True)
    count = 40
    edges = "".join(f"{2 * g + 1}, {2 * g + 2}\n{2 * g + 2}, {2 * g + 1}\n" for g in range(count))
    folder = write_tu(
        tmp_path / "TINY_",
        A=edges,
        graph_indicator="".join(f"{g}\n" * 2 for g in range(1, count + 1)),
        graph_labels="1\n2\n" * (count // 2),
        node_labels="0\n1\n" * count,
        node_attributes="".join(f"{k / 2}\n" for k in range(2 * count)),
        edge_labels=None,
        edge_attributes=None,
    )
    for path in folder.iterdir():
        path.rename(raw / path.name.replace("TINY__", "TINY_"))
    options = {"name": "TINY", "use_node_attr": True}
    data = PyGDataset("TUDataset", str(tmp_path), options=options, batch_size=4)
    split = parts(data)
    assert [len(part) for part in split] == [32, 4, 4]
    theirs = {float(g.x[0, 0]): g for g in TUDataset(str(tmp_path), **options)}  # type: ignore[arg-type]
    for sample in split[0]:
        graph = theirs.pop(float(sample["x"][0, 0]))
        assert torch.equal(sample["x"], graph.x) and sample["target"].ndim == 0
        assert torch.equal(sample["edge_index"], graph.edge_index)
        assert int(sample["target"]) == int(graph.y)
    folds = PyGDataset("TUDataset", str(tmp_path), options=options, batch_size=4, fold=2, folds=5)
    assert [len(part) for part in parts(folds)] == [24, 8, 8]


def test_planetoid_keeps_its_nodes_to_train_with(tmp_path: Path) -> None:
    raw = tmp_path / "Cora" / "raw"
    raw.mkdir(parents=True)
    nodes, train, test, classes = 560, 20, 30, 3
    generator = numpy.random.default_rng(0)
    x = generator.integers(0, 2, (nodes, 5)).astype(float)
    y = numpy.eye(classes)[generator.integers(0, classes, nodes)]
    known = nodes - test
    files = {
        "x": csr_matrix(x[:train]),
        "y": y[:train],
        "allx": csr_matrix(x[:known]),
        "ally": y[:known],
        "tx": csr_matrix(x[known:]),
        "ty": y[known:],
        "graph": {node: [(node + 1) % nodes, (node - 1) % nodes] for node in range(nodes)},
    }
    for name, content in files.items():
        (raw / f"ind.cora.{name}").write_bytes(pickle.dumps(content))
    (raw / "ind.cora.test.index").write_text("".join(f"{k}\n" for k in range(known, nodes)))
    options = {"name": "Cora"}
    (first,), (second,), (third,) = parts(
        PyGDataset("Planetoid", str(tmp_path), options=options, batch_size=1)
    )
    graph = Planetoid(str(tmp_path), "Cora")[0]
    for sample, mask in ((first, graph.train_mask), (second, graph.val_mask)):
        assert torch.equal(sample["node_mask"], mask)
    assert (
        torch.equal(third["node_mask"], graph.test_mask)
        and int(third["node_mask"].sum()) == 1000 - 970
    )
    assert torch.equal(first["target"], graph.y) and torch.equal(first["x"], graph.x)


def test_a_fold_chooses_one_of_several_masks(tmp_path: Path) -> None:
    raw = tmp_path / "cornell" / "raw"
    raw.mkdir(parents=True)
    lines = "".join(f"{k}\t{k % 2},1\t{k % 3}\n" for k in range(12))
    (raw / "out1_node_feature_label.txt").write_text("id\tfeature\tlabel\n" + lines)
    edges = "".join(f"{k}\t{(k + 1) % 12}\n" for k in range(12))
    (raw / "out1_graph_edges.txt").write_text("a\tb\n" + edges)
    for split in range(10):
        role = numpy.roll(numpy.arange(12) % 4, split)
        masks = {"train_mask": role > 1, "val_mask": role == 1, "test_mask": role == 0}
        numpy.savez(raw / f"cornell_split_0.6_0.2_{split}.npz", **masks)  # type: ignore[arg-type]
    options = {"name": "Cornell"}
    theirs = WebKB(str(tmp_path), "Cornell")[0]
    for fold in (None, 3):
        data = PyGDataset("WebKB", str(tmp_path), options=options, batch_size=1, fold=fold)
        (train,), _, (test,) = parts(data)
        assert torch.equal(train["node_mask"], theirs.train_mask[:, fold or 0])
        assert torch.equal(test["node_mask"], theirs.test_mask[:, fold or 0])
    with pytest.raises(UsageError, match="data.fold: WebKB has 10 splits, got 10"):
        PyGDataset("WebKB", str(tmp_path), options=options, batch_size=1, fold=10, folds=12).setup()


def test_zinc_comes_in_three_parts(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for part, count in (("train", 5), ("val", 3), ("test", 4)):
        molecules = []
        for number in range(count):
            bonds = torch.zeros(number + 2, number + 2, dtype=torch.int64)
            bonds[0, 1] = bonds[1, 0] = 2
            atoms = torch.arange(number + 2)
            score = torch.tensor(number / 4)
            molecules.append(
                {"atom_type": atoms, "bond_type": bonds, "logP_SA_cycle_normalized": score}
            )
        (raw / f"{part}.pickle").write_bytes(pickle.dumps(molecules))
        (raw / f"{part}.index").write_text("0,2\n")
    split = parts(PyGDataset("ZINC", str(tmp_path), batch_size=2))
    assert [len(part) for part in split] == [5, 3, 4]
    sample, graph = split[2][3], ZINC(str(tmp_path), split="test")[3]
    assert torch.equal(sample["x"], graph.x[:, 0]) and sample["x"].dtype == torch.int64
    assert torch.equal(sample["edge_attr"], graph.edge_attr)
    assert sample["target"].shape == () and float(sample["target"]) == 0.75
    few = parts(PyGDataset("ZINC", str(tmp_path), options={"subset": True}, batch_size=2))
    assert [len(part) for part in few] == [2, 2, 2]


def test_what_is_asked_for_wrongly(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"PyG has no data set 'Planetiod'.*Planetoid"):
        PyGDataset("Planetiod", str(tmp_path), batch_size=1)
    with pytest.raises(UsageError, match="data.options: Planetoid"):
        PyGDataset("Planetoid", str(tmp_path), options={"nam": "Cora"}, batch_size=1).setup()


def test_files_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(TUDataset, "download", refuse)
    with pytest.raises(UsageError, match="TUDataset is not in .* could not be downloaded: no rou"):
        PyGDataset("TUDataset", str(tmp_path), options={"name": "NONE"}, batch_size=1).setup()


def test_a_graph_without_parts_of_its_nodes(tmp_path: Path) -> None:
    data = PyGDataset("KarateClub", str(tmp_path), batch_size=1)
    with pytest.raises(UsageError, match="KarateClub has no val_mask.*RandomNodeSplit"):
        data.setup()


def test_ogb_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"'ogb'.*attention-core\[ogb\]"):
        PyGDataset("ogbg-molhiv", str(tmp_path), batch_size=1)


NO_NAMES = ["data.node_names=[]", "data.edge_names=[]"]
#: What would be taken from the data, which is not there.
STATED = [f"model.{key}=1" for key in ("num_classes", "node_types", "edge_types")] + [
    f"model.{key}=null" for key in ("node_features", "edge_features")
]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("atlas", []),
        ("cuneiform", []),
        ("digits_knn", []),
        ("graph_folder", ["data.root=.", "data.classes=[a,b]", *NO_NAMES]),
        ("graph_links", ["data.root=some.csv"]),
        ("karate", []),
        ("molecules", ["data.root=some.csv", "data.classes=[a,b]"]),
        ("mutag", []),
        ("planetoid", []),
        ("tu", []),
        ("umls", []),
        ("zinc", []),
    ],
)
def test_every_configuration_of_graph_data_builds(
    name: str,
    more: list[str],
    compose: Compose,  # noqa: F811
) -> None:
    overrides = ["experiment=graph/mutag", f"data=graph/{name}", *more, *STATED]
    config = compose(*overrides, config_dir=None)
    data = build(config["data"], allow=[])
    assert isinstance(data, GraphData) and data.seed == config["seed"]
