"""Graphs of one's own, from files to a program: in three formats and at every level, and what is
said where data, model and task contradict each other."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx
import numpy
import pytest
import torch
import yaml
from torch_geometric.data import Data

from attention_core.training import UsageError, load_model
from attention_core.training.checkpoint import PlainCheckpointIO
from attention_core.training.folder import RunFolder, write_config
from attention_core.training.parts import Parts
from attention_core.training.predict import predict
from attention_core.training.run import assemble, evaluate
from graph.data import GraphFolder, Molecules, pack
from graph.data.tensor_files import read_tensors
from graph.data.tu import TUFolder
from graph.tasks.base import check_fits
from tests.command_line import attn
from tests.graph.own import write_caves, write_graphml, write_smiles, write_tu
from tests.training.conftest import Compose, compose, one_thread  # noqa: F401

SMALL = ["model.dim=8", "model.depth=1", "model.heads=2", "data.batch_size=8"]
FOLDER, MOLECULES = "experiment=graph/graph_folder", "experiment=graph/molecules"
LINKS = "experiment=graph/graph_links"

Make = Callable[..., Path]


@pytest.fixture
def untrained(compose: Compose, tmp_path: Path) -> Make:  # noqa: F811
    """A run folder whose best weights no training has seen."""

    def make(*overrides: str) -> Path:
        config = compose(*overrides, *SMALL, config_dir=None)
        folder = RunFolder(tmp_path / "run")
        parts = assemble(config, folder, log=False)
        write_config(config, folder)
        state = {"state_dict": parts.task.state_dict(), "epoch": 0}
        PlainCheckpointIO().save_checkpoint(state, folder.best)
        return folder.path

    return make


def rows_of(run: Path, source: Path, failed: int = 0) -> list[dict[str, Any]]:
    output = run.parent / "rows.jsonl"
    output.unlink(missing_ok=True)
    assert predict(run, source, output) == failed
    return [json.loads(line) for line in output.open()]


# -- three formats, from the shell --------------------------------------------------------------

FORMATS: dict[str, tuple[Callable[[Path], Path], list[str], dict[str, Any]]] = {
    "OWN": (
        write_tu,
        [FOLDER, "model.max_hops=null"],
        {"classes": ["5", "9"], "node_names": ["6", "7", "8"]},
    ),
    "graphml": (
        write_graphml,
        [FOLDER, "data.node_type=element", "data.edge_type=kind", "model.max_hops=null"],
        {
            "classes": ["path", "ring"],
            "node_names": ["C", "N", "O"],
            "edge_names": ["double", "single"],
        },
    ),
    "molecules.csv": (write_smiles, [MOLECULES], {"classes": ["alcohol", "alkane"]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_own_graphs_are_learnt_tested_predicted_and_exported(name: str, tmp_path: Path) -> None:
    write, overrides, stated = FORMATS[name]
    root = write(tmp_path / name)
    run = tmp_path / "run"

    def shell(*arguments: str) -> str:
        done = attn(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = [f"data.root={root}", f"hydra.run.dir={run}", "trainer.max_epochs=1"]
    shell("train", *overrides, *where, *SMALL)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert stated.items() <= config["data"].items()
    model = config["model"]
    kinds = [model[f"{of}_{what}"] for of in ("node", "edge") for what in ("types", "features")]
    assert kinds == ([None, 177, None, 30] if name == "molecules.csv" else [3, None, 2, None])
    assert "the same as results.json" in shell("evaluate", f"run={run}")
    shell("predict", f"run={run}", f"input={root}", "output=rows.csv")
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == (30 if name == "molecules.csv" else 24)
    assert {row["prediction"] for row in rows} <= set(stated["classes"])
    said = shell("export", f"run={run}", "format=torch_export")
    assert "edge_index (2, edges), edge_attr (edges" in said and "sizes (graphs)" in said
    program = torch.export.load(run / "export" / "model.pt2").module()
    data = (Molecules if name == "molecules.csv" else GraphFolder)(
        **{key: value for key, value in config["data"].items() if key != "_target_"}
    )
    graphs = data.graphs()
    for some in (graphs[:1], graphs[3:9]):  # other numbers of nodes, edges and graphs
        batch = pack([{k: v for k, v in graph.items() if k != "target"} for graph in some])
        with torch.no_grad():
            expected = load_model(run)(**batch).softmax(-1)
        sizes = torch.bincount(batch.pop("batch"), minlength=batch.pop("num_graphs"))
        got = program(**batch, sizes=sizes).softmax(-1)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


# -- what is told of nodes, edges and links ------------------------------------------------------


def test_nodes_of_a_graph_are_predicted_by_name(untrained: Make, tmp_path: Path) -> None:
    root = write_caves(tmp_path / "caves.graphml")
    run = untrained(
        *[FOLDER, f"data.root={root}", "data.node_type=element", "data.level=node"],
        *["data.target=cave", "task=node_classification"],
    )
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["level"] == "node" and config["model"]["num_classes"] == 5
    data = GraphFolder(str(root), level="node", target="cave", batch_size=1)
    asked = [graph["node_mask"] for graph in data.graphs()]
    assert sum(int(mask.sum()) for mask in asked) == 35  # those whose cave is known
    rows = rows_of(run, root)
    assert [row["node"] for row in rows] == [f"n{node}" for node in range(40)]
    assert {row["prediction"] for row in rows} <= {f"cave {number}" for number in range(5)}
    # As a file of tensors, whose nodes have numbers; a graph of another kind beside it
    graph = networkx.read_graphml(root)
    x = torch.tensor(["CNO".index(kind) for _, kind in graph.nodes(data="element")])
    number = {node: index for index, node in enumerate(graph)}
    ends = torch.tensor([(number[a], number[b]) for a, b in graph.edges]).T
    folder = tmp_path / "tensors"
    folder.mkdir()
    torch.save(Data(x=x, edge_index=torch.cat([ends, ends.flip(0)], 1)), folder / "a.pt")
    numpy.savez(folder / "b.npz", x=numpy.array([0, 7]), edge_index=numpy.array([[0], [1]]))
    again = rows_of(run, folder, failed=1)
    assert [row["node"] for row in again[:40]] == [str(node) for node in range(40)]
    for one, other in zip(rows, again, strict=False):
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)
    assert again[40]["input"] == "b.npz" and "x names node types 0 to 7" in again[40]["error"]


def test_edges_are_predicted_once_and_by_name(untrained: Make, tmp_path: Path) -> None:
    root = write_caves(tmp_path / "caves.graphml")
    run = untrained(
        *[FOLDER, f"data.root={root}", "data.level=edge", "data.target=side"],
        "task=edge_classification",
    )
    rows = rows_of(run, root)
    edges = [tuple(edge) for edge in networkx.read_graphml(root).edges]
    assert [(row["source"], row["target"]) for row in rows] == edges
    assert {row["prediction"] for row in rows} <= {"in", "out"}
    lonely = tmp_path / "lonely.jsonl"
    lonely.write_text('{"x": [0, 0], "edge_index": [[], []]}')
    (row,) = rows_of(run, lonely, failed=1)
    assert row["error"] == "there is nothing in it to predict"


def test_links_of_a_graph_are_ranked(untrained: Make, tmp_path: Path) -> None:
    root = write_caves(tmp_path / "caves.graphml")
    run = untrained(LINKS, f"data.root={root}", "data.relation=side")
    config = yaml.safe_load((run / "config.yaml").read_text())["model"]
    assert [config[key] for key in ("node_types", "edge_types", "relations")] == [40, 4, 2]
    asked = tmp_path / "asked.csv"
    asked.write_text("source,target,relation\nn1,n2,in\nn1,n3,in\nn1,cave,in\nn1,n2,up\n")
    first, second, third, fourth = rows_of(run, asked, failed=2)
    assert 1 <= first["rank"] <= 40 and (first["score"] > second["score"]) == (
        first["rank"] < second["rank"]
    )
    assert third["error"] == "'cave' is no node of the graph that was trained with"
    assert fourth["error"] == "'up' is no relation; there are in, out"


# -- contradictions ----------------------------------------------------------------------------


def fitted(config: dict[str, Any], folder: Path) -> Parts:
    """What a training begins with."""
    parts = assemble(config, RunFolder(folder), log=False)
    check_fits(parts.task, parts.data)
    return parts


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.edge_types=3"], "model.edge_types: the edges of GraphFolder have neither types"),
        (
            ["data.node_features=[charge]", "model.node_types=4", "model.node_features=null"],
            "have 1 feature, .* 4 types: write model.node_types=null model.node_features=1",
        ),
        (["data.node_type=element", "model.node_types=2"], "have 3 types, .* model.node_types=3"),
        (["task=graph_regression"], "task: the targets of GraphFolder are classes .path, ring"),
        (["task=node_classification"], "task: GraphFolder has something to tell of each graph, bu"),
        (["task=link_prediction"], "write task=graph_classification or another of graphs"),
        (["model.level=node"], "the model has outputs for each node: write model.level=graph"),
        (["model=graph/gps"], "edge_dim=16 needs edge_types or edge_features; where edges have n"),
        (["data.target=half"], "task.classes must name at least two .* take a task of regression"),
        (
            ["data.target=half", "data.classes=[1,2]"],
            "'half' of a graph is '1.5', which data.class",
        ),
        (["data.classes=[path,circle]"], "there is no folder 'circle' in .*; there are path, ring"),
        (["data.node_names=[C]", "data.node_type=element"], "is 'N', which data.node_names does n"),
        (["data.level=link"], "data.level must be graph, node or edge, .* data=graph/graph_links"),
        (["data.level=node"], "data.target: the attribute of each node that is to be told is nee"),
        (["data.property=x"], "data.property: not a key"),
    ],
)
def test_what_contradicts_is_one_sentence(
    overrides: list[str],
    message: str,
    compose: Compose,  # noqa: F811
    tmp_path: Path,
) -> None:
    root = write_graphml(tmp_path / "graphs")
    with pytest.raises(UsageError, match=message):
        fitted(compose(FOLDER, f"data.root={root}", *overrides, config_dir=None), tmp_path / "run")


def test_other_data_brings_its_own_types(compose: Compose, tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("grakel")
    root = write_tu(tmp_path / "OWN")
    mixed = ["experiment=graph/mutag", "data=graph/graph_folder", f"data.root={root}"]
    config = compose(*mixed, config_dir=None)
    fitted(config, tmp_path / "run")
    assert (config["model"]["node_types"], config["model"]["edge_types"]) == (3, 2)
    config = compose("experiment=graph/mutag", config_dir=None)
    assert (config["model"]["node_types"], config["model"]["edge_types"]) == (7, 4)
    config = compose("experiment=graph/mutag", "data=graph/karate", config_dir=None)
    with pytest.raises(UsageError, match="write task=node_classification or another of nodes"):
        fitted(config, tmp_path / "run")


def test_kinds_that_came_later_are_named(untrained: Make, tmp_path: Path) -> None:
    root = write_graphml(tmp_path / "graphs")
    run = untrained(FOLDER, f"data.root={root}", "data.node_type=element")
    graph = networkx.path_graph(3)
    networkx.set_node_attributes(graph, "Xe", "element")
    new = root / "path" / "00.graphml"
    networkx.write_graphml(graph, new)
    (row,) = rows_of(run, new, failed=1)
    message = "00.graphml: the 'element' of a node is 'Xe', which data.node_names does not list; it"
    assert row["error"].startswith(message)
    with pytest.raises(UsageError, match=message):
        evaluate(run)


# -- files --------------------------------------------------------------------------------------


class Code:
    def __reduce__(self) -> Any:
        return print, ("it ran",)


def test_files_of_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    x, edges = torch.randn(3, 2), torch.tensor([[0, 1], [1, 2]])
    safe = torch.serialization.get_safe_globals()
    torch.save([{"x": x, "edge_index": edges}, {"edge_index": edges}], tmp_path / "two.pt")
    save_file({"x": x, "edge_index": edges}, tmp_path / "one.safetensors")
    first, second = read_tensors(tmp_path / "two.pt")
    (third,) = read_tensors(tmp_path / "one.safetensors")
    assert torch.equal(first["x"], x) and torch.equal(third["x"], x)
    assert second["x"].tolist() == [0, 0, 0]
    torch.save({"x": Code(), "edge_index": edges}, tmp_path / "code.pt")
    (tmp_path / "no.npz").write_bytes(b"no archive")
    numpy.savez(tmp_path / "code.npz", edge_index=numpy.array([print], dtype=object))
    torch.save({"x": x}, tmp_path / "nodes.pt")
    for name, message in (
        ("code.pt", "is refused: it holds more than plain data"),
        ("no.npz", "no.npz' cannot be read"),
        ("code.npz", "code.npz' cannot be read: Object arrays"),
        (
            "nodes.pt",
            "nodes.pt: a graph has tensors by PyG's names, edge_index among them",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            read_tensors(tmp_path / name)
    assert "it ran" not in capsys.readouterr().out
    assert set(torch.serialization.get_safe_globals()) == set(safe)  # nothing of PyG's own is lost


def test_tensors_are_trained_with(tmp_path: Path) -> None:
    graphs = [
        Data(x=torch.randn(n, 2), edge_index=torch.zeros(2, 0).long(), y=torch.tensor([n % 2]))
        for n in range(3, 33)
    ]
    torch.save(graphs, tmp_path / "all.pt")
    data = GraphFolder(str(tmp_path / "all.pt"), batch_size=4)
    found = data.describe()
    assert (found["node_features"], found["classes"], found["edge_types"]) == (2, ["0", "1"], None)
    assert data.collate(data.train_set.samples[:3])["target"].shape == (3,)  # type: ignore[union-attr]


def test_labels_of_tu_files_keep_their_places(tmp_path: Path) -> None:
    """Beside attributes they are one-hot: of other files, in the columns that training had."""
    folder = write_tu(tmp_path / "OWN")
    nodes = len((folder / "OWN_node_labels.txt").read_text().splitlines())
    (folder / "OWN_node_attributes.txt").write_text("0.5\n" * nodes)
    trained = TUFolder(folder)
    names = trained.names("node")
    assert names == [["6", "7", "8"]]
    (folder / "OWN_node_labels.txt").write_text("8\n" * nodes)
    other = TUFolder(folder)
    assert other.samples()[0]["x"][0].tolist() == [0.5, 1]
    assert other.samples(names)[0]["x"][0].tolist() == [0.5, 0, 0, 1]
    (folder / "OWN_node_labels.txt").write_text("9\n" * nodes)
    with pytest.raises(UsageError, match="has the label 9, which data.node_names does not"):
        TUFolder(folder).samples(names)


def test_rows_that_are_no_molecules_are_left_out_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rdkit")
    path = write_smiles(tmp_path / "some.csv")
    bad = ["C1CC,alkane,0", "[Fe+7],alkane,0", "CC,ether,0"]
    path.write_text(path.read_text() + "\n".join(bad) + "\n")
    classes = ["alcohol", "alkane"]
    with pytest.raises(UsageError, match=r"some.csv:32: 'C1CC' is no .*corrupted=skip leaves such"):
        Molecules(str(path), classes=classes, batch_size=2).setup()
    data = Molecules(str(path), classes=classes, corrupted="skip", batch_size=2)
    assert len(data.graphs()) == 30
    said = capsys.readouterr().err
    assert "some.csv:32: 'C1CC' is no molecule in SMILES" in said
    assert "some.csv:33: '[Fe+7]' has the atom Fe with formal_charge 7, which PyG's tables" in said
    assert "some.csv:34: target is 'ether'; data.classes names alcohol, alkane" in said
    with pytest.raises(UsageError, match="data.corrupted must be 'raise' or 'skip', got 'drop'"):
        Molecules(str(path), corrupted="drop", batch_size=2)  # type: ignore[arg-type]
    (tmp_path / "more.smi").write_text("CCO ethanol\n\n[Fe+7]\n")
    good, bad_one = dict(data.inputs(tmp_path / "more.smi")).items()
    assert good == ("more.smi:1", "CCO") and bad_one == ("more.smi:3", "[Fe+7]")
    assert dict(data.inputs(Path("C/C=C/C"))) == {"C/C=C/C": "C/C=C/C"}
