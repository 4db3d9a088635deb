"""Graphs in files: TU format with attributes, GraphML, and what is wrong with a file."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import networkx
import pytest
import torch
from torch_geometric.io import read_tu_data

from attention_core.training import UsageError
from graph.data import GraphFolder, read_tu
from graph.data.graphml import read_graphml
from graph.data.mutag import grakel_folder

TU = {
    "A": "1, 2\n2, 1\n3, 4\n4, 3\n4, 5\n5, 4\n",
    "graph_indicator": "1\n1\n2\n2\n2\n",
    "graph_labels": "7\n-1\n",
    "node_labels": "1, 4\n2, 4\n1, 5\n1, 6\n3, 4\n",
    "node_attributes": "0.5, 1\n1.5, -2\n2.5, 3e-1\n3.5, 4\n4.5, 5\n",
    "edge_labels": "1\n1\n2\n2\n1\n1\n",
    "edge_attributes": "0.1\n0.2\n0.3\n0.4\n0.5\n0.6\n",
}


def write_tu(folder: Path, **changes: str | None) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in (TU | changes).items():
        path = folder / f"{folder.name}_{name}.txt"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
    return folder


@pytest.mark.parametrize(
    "without",
    [
        [],
        ["node_labels"],
        ["node_attributes", "edge_attributes"],
        ["edge_labels"],
        ["edge_labels", "edge_attributes"],
    ],
)
def test_features_are_those_of_pyg(without: Sequence[str], tmp_path: Path) -> None:
    folder = write_tu(tmp_path / "TINY", **dict.fromkeys(without))
    theirs, slices, _ = read_tu_data(str(folder), "TINY")
    ours = read_tu(folder)
    assert len(ours) == len(slices["y"]) - 1 == 2
    torch.testing.assert_close(torch.cat([g["x"] for g in ours]), theirs.x)
    assert torch.equal(torch.cat([g["edge_index"] for g in ours], 1), theirs.edge_index)
    assert [int(g["target"]) for g in ours] == theirs.y.tolist() == [1, 0]
    if theirs.edge_attr is None:
        assert "edge_attr" not in ours[0]
    else:
        attr = torch.cat([g["edge_attr"] for g in ours])
        if not attr.is_floating_point():  # types, which PyG has one-hot
            attr = torch.nn.functional.one_hot(attr - attr.min()).float()
        torch.testing.assert_close(attr, theirs.edge_attr)


@pytest.mark.parametrize("name", ["MUTAG", "Cuneiform"])
def test_packaged_files_are_read_as_by_pyg(name: str) -> None:
    pytest.importorskip("grakel")
    folder = grakel_folder(name)
    theirs, slices, _ = read_tu_data(str(folder), name)
    ours = read_tu(folder)
    x = torch.cat([g["x"] for g in ours])
    if not x.is_floating_point():
        x = torch.nn.functional.one_hot(x).float()
    torch.testing.assert_close(x, theirs.x)
    assert torch.equal(torch.stack([g["target"] for g in ours]), theirs.y)
    for index in (0, len(ours) - 1):
        start, end = slices["edge_index"][index : index + 2].tolist()
        edges = ours[index]["edge_index"]
        order = (edges[0] * 1000 + edges[1]).argsort()  # PyG sorts them
        assert torch.equal(edges[:, order], theirs.edge_index[:, start:end])
        attr = ours[index]["edge_attr"][order]
        if not attr.is_floating_point():
            attr = torch.nn.functional.one_hot(attr, theirs.edge_attr.shape[1]).float()
        torch.testing.assert_close(attr, theirs.edge_attr[start:end])


def test_graphs_with_numbers_to_predict(tmp_path: Path) -> None:
    folder = write_tu(tmp_path / "TINY", graph_attributes="0.5\n-1.5\n")
    targets = [graph["target"] for graph in read_tu(folder)]
    assert [float(target) for target in targets] == [0.5, -1.5] and targets[0].shape == ()
    folder = write_tu(tmp_path / "TINY", graph_attributes="0.5, 1\n-1.5, 2\n")
    assert [graph["target"].tolist() for graph in read_tu(folder)] == [[0.5, 1], [-1.5, 2]]


def test_nodes_without_labels_are_of_one_type(tmp_path: Path) -> None:
    folder = write_tu(tmp_path / "TINY", node_labels=None, node_attributes=None)
    assert [graph["x"].tolist() for graph in read_tu(folder)] == [[0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("node_attributes", "0, 1\n1, nan\n2, 3\n3, 4\n4, 5\n", "line 2 must be 2 numbers"),
        ("node_attributes", "0, 1\n1, 1\n2\n3, 4\n4, 5\n", "line 3 must be 2 numbers, got"),
        ("node_attributes", "0, 1\n1, 1\n", "node_attributes.txt has 2 lines, 5 were expected"),
        ("edge_attributes", "1\n2\n3\n4\n5\ninf\n", "line 6 must be a number, got 'inf'"),
        ("edge_labels", "1\n1\n", "TINY_edge_labels.txt has 2 lines, 6 were expected"),
        (
            "node_labels",
            "1, 4\n2, 4\nC, 5\n1, 6\n3, 4\n",
            "node_labels.txt: line 3 must be 2 integ",
        ),
        ("graph_indicator", "", "TINY_graph_indicator.txt is empty: there is no graph"),
        ("graph_labels", "1\n", "TINY_graph_labels.txt has 1 lines, 2 were expected"),
    ],
)
def test_damaged_files_are_named(file: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read_tu(write_tu(tmp_path / "TINY", **{file: text}))


def graphml(folder: Path, sizes: Sequence[int], *, directed: bool = False) -> None:
    """Rings of so many nodes, as networkx writes them."""
    folder.mkdir(parents=True)
    for size in sizes:
        kind = networkx.DiGraph if directed else networkx.Graph
        graph = networkx.cycle_graph(size, create_using=kind)
        graph.graph["energy"] = size / 2
        for node in graph:
            graph.nodes[node].update(
                element="C" if node else "N", charge=node / 4, rank=node, note="x"
            )
        for number, (a, b) in enumerate(graph.edges):
            graph.edges[a, b].update(kind="double" if a else "single", length=number + 0.5)
        networkx.write_graphml(graph, folder / f"ring{size:02}.graphml")


def test_graphml_in_a_folder_for_each_class(tmp_path: Path) -> None:
    graphml(tmp_path / "odd", range(3, 43, 2))
    graphml(tmp_path / "even", range(4, 44, 2))
    data = GraphFolder(
        root=str(tmp_path),
        node_type="element",
        edge_type="kind",
        batch_size=4,
        classes=["even", "odd"],
    )
    data.setup()
    parts = (data.train_set, data.val_set, data.test_set)
    assert [len(part) for part in parts] == [32, 4, 4]  # type: ignore[arg-type]
    for part in parts:
        for sample in part:  # type: ignore[union-attr]
            size = len(sample["x"])
            assert int(sample["target"]) == size % 2
            assert sample["x"].tolist() == [1] + [0] * (size - 1)  # C, N by name
            ring = {(a, b) for a in range(size) for b in ((a + 1) % size, (a - 1) % size)}
            assert set(map(tuple, sample["edge_index"].T.tolist())) == ring
            kinds = dict(
                zip(map(tuple, sample["edge_index"].T.tolist()), sample["edge_attr"], strict=True)
            )
            assert all(kinds[a, b] == kinds[b, a] for a, b in ring)
            assert kinds[0, 1] == 1 and kinds[1, 2] == 0  # double, single by name


def test_attributes_of_graphml_that_nothing_reads_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graphml(tmp_path / "odd", range(3, 23, 2))
    graphml(tmp_path / "even", range(4, 24, 2))
    GraphFolder(root=str(tmp_path), batch_size=4).setup()
    said = " ".join(capsys.readouterr().err.split())
    assert "nodes have charge, element, note, rank, of which nothing is read: give" in said
    assert "edges have kind, length, of which nothing is read: give data.edge_type=NAME" in said
    GraphFolder(root=str(tmp_path), node_type="element", edge_type="kind", batch_size=4).setup()
    assert "nothing is read" not in capsys.readouterr().err


def test_a_tu_folder_of_another_name_than_its_files(tmp_path: Path) -> None:
    folder = write_tu(tmp_path / "TINY")
    folder.rename(tmp_path / "mine")
    with pytest.raises(UsageError, match=r"'.*mine' holds TINY_A.txt; .* as its files are, 'TINY'"):
        GraphFolder(root=str(tmp_path / "mine"), batch_size=4).setup()


def test_graphml_with_features_and_a_number_to_predict(tmp_path: Path) -> None:
    folder = tmp_path / "rings"
    graphml(folder, range(3, 23), directed=True)
    data = GraphFolder(
        root=str(folder),
        node_features=["charge", "rank"],
        edge_features=["length"],
        target="energy",
        batch_size=4,
    )
    data.setup()
    sample = data.test_set[0]  # type: ignore[index]
    size = len(sample["x"])
    assert sample["x"].tolist() == [[node / 4, node] for node in range(size)]
    assert sample["edge_index"].T.tolist() == [[a, (a + 1) % size] for a in range(size)]
    assert sample["edge_attr"].tolist() == [[number + 0.5] for number in range(size)]
    assert sample["target"].dtype == torch.float32 and float(sample["target"]) == size / 2


def test_a_tu_folder_is_found_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "MANY"
    count = 20
    nodes = "".join(f"{graph}\n" * 2 for graph in range(1, count + 1))
    edges = "".join(f"{2 * g + 1}, {2 * g + 2}\n{2 * g + 2}, {2 * g + 1}\n" for g in range(count))
    rest = dict.fromkeys(["edge_labels", "edge_attributes", "node_attributes"])
    labels, kinds = "1\n2\n" * (count // 2), "0\n1\n" * count
    write_tu(folder, A=edges, graph_indicator=nodes, graph_labels=labels, node_labels=kinds, **rest)
    data = GraphFolder(root=str(folder), batch_size=4, fold=0, folds=5, classes=["a", "b"])
    data.setup()
    assert [len(s) for s in (data.train_set, data.val_set, data.test_set)] == [12, 4, 4]  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="data.classes names 1 classes; the graphs of MANY have 2"):
        GraphFolder(root=str(folder), batch_size=4, classes=["a"]).setup()


def test_folders_that_hold_no_graphs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        GraphFolder(root=str(tmp_path / "none"), batch_size=1).setup()
    with pytest.raises(UsageError, match="has no folders; one for each class"):
        GraphFolder(root=str(tmp_path), batch_size=1).setup()
    (tmp_path / "class").mkdir()
    with pytest.raises(
        UsageError, match=r"holds neither .*_A.txt.* nor files that end in .graphml"
    ):
        GraphFolder(root=str(tmp_path), batch_size=1).setup()


def test_graphml_that_is_damaged(tmp_path: Path) -> None:
    graphml(tmp_path / "a", [3, 4])

    def load(**options: object) -> None:
        GraphFolder(root=str(tmp_path), batch_size=1, classes=["a"], **options).setup()  # type: ignore[arg-type]

    with pytest.raises(UsageError, match=r"ring03.graphml: a node has no attribute 'mass'; it has"):
        load(node_type="mass")
    with pytest.raises(UsageError, match="'note' of each node must be a finite number, got 'x'"):
        load(node_features=["note"])
    with pytest.raises(UsageError, match=r"node_features must be a list .* such as \[note\]"):
        load(node_features="note")
    with pytest.raises(UsageError, match="data.node_type and data.node_features: one of them"):
        load(node_type="element", node_features=["charge"])
    (tmp_path / "a" / "ring03.graphml").write_text("<graphml><no")
    with pytest.raises(UsageError, match="ring03.graphml is no GraphML that can be read"):
        load()
    graph = networkx.path_graph(3)
    networkx.set_node_attributes(graph, math.nan, "charge")
    networkx.write_graphml(graph, tmp_path / "a" / "ring03.graphml")
    with pytest.raises(UsageError, match="ring03.graphml: the attribute 'charge' of each node"):
        load(node_features=["charge"])


#: A GraphML file: attributes, what the graph holds, and what follows it.
GRAPHML = """<?xml version="1.0"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns">{keys}
<graph id="G" edgedefault="undirected">{inside}</graph>{after}</graphml>"""
KEYS = """<key id="f" for="node" attr.name="f" attr.type="double"><default>7</default></key>
<key id="a" for="all" attr.name="a" attr.type="long"><default>3</default></key>
<key id="s" for="edge" attr.name="s" attr.type="string"><default>single</default></key>"""
INSIDE = """<node id="x"/><node id="y"><data key="f">1.5</data><data key="a">4</data></node>
<node id="z"/><edge source="x" target="y"/><edge source="y" target="z"><data key="s">double</data>
</edge>"""


def samples_of(folder: Path, *, keys: str = KEYS, after: str = "", **options: Any) -> list[Any]:
    inside = options.pop("inside", INSIDE)
    for name in "ab":
        (folder / name).mkdir(parents=True, exist_ok=True)
        text = GRAPHML.format(keys=keys, inside=inside, after=after)
        (folder / name / "0.graphml").write_text(text)
    return GraphFolder(str(folder), classes=["a", "b"], batch_size=2, **options)._read_files()


def test_defaults_of_graphml_are_values(tmp_path: Path) -> None:
    sample = samples_of(tmp_path, node_features=["f", "a"], edge_type="s")[0]
    assert sample["x"].tolist() == [[7, 3], [1.5, 4], [7, 3]]
    assert sample["edge_index"].tolist() == [[0, 1, 1, 2], [1, 2, 0, 1]]
    assert sample["edge_attr"].tolist() == [1, 0, 1, 0]  # double, single
    sample = samples_of(tmp_path, edge_features=["a"])[0]
    assert sample["edge_attr"].tolist() == [[3]] * 4
    (tmp_path / "0.graphml").write_text((tmp_path / "a" / "0.graphml").read_text())
    data = GraphFolder(str(tmp_path), target="a", batch_size=2)
    assert [float(sample["target"]) for sample in data._read_files()] == [3]
    # A file without a default, and one whose elements have no namespace, are read as by networkx
    plain = GRAPHML.format(keys="", inside=INSIDE, after="").split("?>")[1]
    plain = re.sub(r' xmlns="[^"]*"|<data.*?</data>', "", plain)
    (tmp_path / "0.graphml").write_text(plain)
    theirs, ours = (read(tmp_path / "0.graphml") for read in (networkx.read_graphml, read_graphml))
    assert ours.nodes == theirs.nodes == {"x": {}, "y": {}, "z": {}} and ours.edges == theirs.edges


SECOND = '<graph edgedefault="undirected"><node id="q"/></graph>'


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"after": SECOND}, "it holds 2 graphs; one was expected"),
        ({"inside": f'<node id="x">{SECOND}</node>'}, "it holds 2 graphs; one was expected"),
        ({"inside": '<node id="x"/><edge source="x" target="q"/>'}, "the target 'q', which is no"),
        ({"inside": '<node id="x"/><edge target="x"/>'}, "the source None, which is no node"),
        ({"inside": '<node id="x"/><node id="x"/>'}, "it declares the node 'x' 2 times"),
        (
            {"inside": INSIDE + '<edge id="1" source="x" target="z"/>' * 2},
            "it declares the edge '1' 2 times",
        ),
        (
            {"keys": KEYS + '<key id="g" for="node" attr.name="f" attr.type="double"/>'},
            "it declares the attribute 'f' 2 times",
        ),
        (
            {"inside": '<node id="x"><data key="f">1</data><data key="f">2</data></node>'},
            "the node 'x' has two values of one attribute",
        ),
        (
            {
                "inside": INSIDE + '<edge source="x" target="z"><data key="k">1</data></edge>' * 2,
                "keys": KEYS + '<key id="k" for="edge" attr.name="key" attr.type="string"/>',
            },
            "3 of its 4 edges can be told apart",
        ),
        ({"inside": INSIDE + "<hyperedge/>"}, "doesn't support hyperedges"),
        ({"keys": KEYS.replace(">7<", "><")}, "0.graphml is no GraphML that can be read: "),
    ],
)
def test_graphml_that_networkx_would_read_in_part(
    changes: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        samples_of(tmp_path, **changes)
