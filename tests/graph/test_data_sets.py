"""The data sets that come inside packages, and molecules from a table."""

import csv
from pathlib import Path

import networkx
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors
from torch_geometric.transforms import Compose
from torch_geometric.utils import from_smiles, is_undirected, to_networkx

from attention_core.training import UsageError
from graph.data import (
    UMLS,
    Atlas,
    Cuneiform,
    DigitsKNN,
    GraphData,
    Karate,
    Molecules,
    pack,
    unpack,
)
from graph.encodings.transforms import AddHops, AddLaplacian, AddRelativeWalks, RandomSigns
from tests.graph.graphs import as_pyg


def parts(data: GraphData) -> list[list[dict[str, torch.Tensor]]]:
    data.setup()
    return [list(part) for part in (data.train_set, data.val_set, data.test_set)]  # type: ignore[arg-type]


def test_the_atlas_has_the_properties_that_networkx_computes() -> None:
    train, val, test = parts(Atlas(property="planarity", batch_size=8))
    assert len(train) + len(val) + len(test) == 1252
    numbers = parts(Atlas(property="algebraic_connectivity", batch_size=8))
    for planarity, connectivity in zip(test[::5], numbers[2][::5], strict=True):
        assert torch.equal(planarity["edge_index"], connectivity["edge_index"])
        graph = to_networkx(as_pyg(planarity), to_undirected=True)
        assert bool(planarity["target"]) is networkx.check_planarity(graph)[0]
        expected = 0.0
        if len(graph) > 1:
            # 0 to within rounding where a graph is not connected
            expected = max(0.0, sorted(networkx.laplacian_spectrum(graph))[1])
        assert float(connectivity["target"]) == pytest.approx(expected, abs=1e-6)
    # Read & Wilson's count of connected planar graphs of 1 to 7 nodes, and of all graphs
    planar = [s for s in train + val + test if int(s["target"])]
    whole = [networkx.is_connected(to_networkx(as_pyg(s), to_undirected=True)) for s in planar]
    assert sum(whole) == 1 + 1 + 2 + 6 + 20 + 99 + 646


def test_no_graph_of_the_atlas_is_in_two_parts() -> None:
    train, _, test = parts(Atlas(property="planarity", batch_size=8))
    hashes = [
        {
            networkx.weisfeiler_lehman_graph_hash(to_networkx(as_pyg(s), to_undirected=True)): s
            for s in part
        }
        for part in (train, test)
    ]
    for key in hashes[0].keys() & hashes[1].keys():  # alike for the hash, and yet another graph
        one, other = (to_networkx(as_pyg(part[key]), to_undirected=True) for part in hashes)
        assert not networkx.is_isomorphic(one, other)


def test_what_is_no_property_of_the_atlas() -> None:
    with pytest.raises(UsageError, match="data.property must be one of planarity, algebraic_conn"):
        Atlas(property="colour", batch_size=8)


def test_cuneiform_signs_are_centred_and_jittered_in_training_only() -> None:
    data = Cuneiform(batch_size=8, classes=[str(k) for k in range(30)])
    train, val, test = parts(data)
    assert len(train) + len(val) + len(test) == 267
    assert {int(s["target"]) for s in train} == set(range(30))
    for sample in test:
        place = sample["x"][:, :3]
        torch.testing.assert_close(place.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(place[:, :2].norm(dim=1).mean(), torch.tensor(1.0))
        assert bool((sample["x"][:, 3:7].sum(1) == 1).all())
        assert len(sample["x"]) % 4 == 0
    again = data.test_set[3]["x"], data.train_set[3]["x"]  # type: ignore[index]
    assert torch.equal(again[0], test[3]["x"]) and not torch.equal(again[1], train[3]["x"])
    assert torch.equal(again[1][:, 3:], train[3]["x"][:, 3:])
    still = Cuneiform(batch_size=8, rotation=0.0, scale=0.0, noise=0.0)
    kept = data.train_set.samples[3]  # type: ignore[union-attr]
    torch.testing.assert_close(still.jitter(kept)["x"], kept["x"])


def test_jitter_turns_and_scales_in_the_plane() -> None:
    data = Cuneiform(batch_size=8, rotation=30.0, scale=0.0, noise=0.0)
    sample = {"x": torch.randn(8, 10)}
    turned = data.jitter(sample)["x"]
    torch.testing.assert_close(turned[:, :2].norm(dim=1), sample["x"][:, :2].norm(dim=1))
    assert torch.equal(turned[:, 2:], sample["x"][:, 2:])
    cosine = torch.cosine_similarity(turned[:, :2], sample["x"][:, :2])
    assert cosine.min() >= 3**0.5 / 2 - 1e-6 and cosine.max() - cosine.min() < 1e-5


def test_each_digit_is_joined_to_its_nearest() -> None:
    (train,), (val,), (test,) = parts(DigitsKNN(batch_size=1, neighbors=5, seed=3))
    pixels, labels = load_digits(return_X_y=True)
    _, near = NearestNeighbors(n_neighbors=6).fit(pixels).kneighbors(pixels)
    edges = {(a, b) for a, row in enumerate(near) for b in row if a != b}
    both = edges | {(b, a) for a, b in edges}
    # Ties among the nearest can be broken either way
    assert len(both ^ set(map(tuple, train["edge_index"].T.tolist()))) < 10
    assert is_undirected(train["edge_index"]) and train["target"].tolist() == labels.tolist()
    masks = torch.stack([train["node_mask"], val["node_mask"], test["node_mask"]])
    assert bool((masks.sum(0) == 1).all())
    for mask in masks[:2]:
        assert train["target"][mask].bincount().tolist() == [10] * 10


def test_the_labels_of_digits_follow_the_seed() -> None:
    (first,), *_ = parts(DigitsKNN(batch_size=1, labels_per_class=3, seed=1))
    (same,), *_ = parts(DigitsKNN(batch_size=1, labels_per_class=3, seed=1))
    (other,), *_ = parts(DigitsKNN(batch_size=1, labels_per_class=3, seed=2))
    assert (
        torch.equal(first["node_mask"], same["node_mask"]) and int(first["node_mask"].sum()) == 30
    )
    assert not torch.equal(first["node_mask"], other["node_mask"])
    for wrong in ({"neighbors": 0}, {"labels_per_class": 81}, {"fold": 0}):
        with pytest.raises(UsageError, match=f"data.{next(iter(wrong))}"):
            DigitsKNN(batch_size=1, **wrong)  # type: ignore[arg-type]


def test_the_karate_club() -> None:
    (train,), (val,), (test,) = parts(Karate(batch_size=1, classes=["a", "b", "c", "d"]))
    graph = to_networkx(as_pyg(train), to_undirected=True)
    assert networkx.utils.graphs_equal(
        networkx.Graph(graph.edges), networkx.Graph(networkx.karate_club_graph().edges)
    )
    masks = torch.stack([train["node_mask"], val["node_mask"], test["node_mask"]])
    assert bool((masks.sum(0) == 1).all())
    assert train["target"][train["node_mask"]].sort().values.tolist() == [0, 1, 2, 3]


def test_encodings_are_computed_once_and_signs_drawn_anew() -> None:
    data = Atlas(
        property="planarity",
        batch_size=8,
        pre_transform={"hops": AddHops(), "laplacian": AddLaplacian(2)},
        transform={"signs": RandomSigns()},
    )
    data.setup()
    torch.manual_seed(0)
    drawn = [data.train_set[100] for _ in range(8)]  # type: ignore[index]
    assert len({sample["laplacian"][0, 0].item() for sample in drawn}) == 2
    still = [data.test_set[100]["laplacian"] for _ in range(8)]  # type: ignore[index]
    assert all(torch.equal(still[0], one) for one in still)
    nodes = len(drawn[0]["x"])
    assert drawn[0]["hops"].shape == (nodes**2,) and drawn[0]["laplacian"].shape == (nodes, 2)


def test_unpack_gives_encodings_of_nodes_edges_and_pairs_back() -> None:
    transform = Compose(
        [AddHops(), AddLaplacian(2), AddRelativeWalks(3), AddRelativeWalks(3, of="edges")]
    )
    data = Atlas(property="planarity", batch_size=8, pre_transform={"all": transform})
    data.setup()
    samples = [data.test_set[index] for index in (0, 1, 40, 100, 200)]  # type: ignore[index]
    assert {"hops", "laplacian", "rrwp", "edge_rrwp"} <= samples[0].keys()
    for one, other in zip(samples, unpack(pack(samples)), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


SMILES = ["C[C@H](N)C(=O)O", "c1ccccc1", "[Na+].[Cl-]", "O", "F/C=C/F", "CC#N", "C1CC1", "[2H]O"]


def table(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_molecules_have_the_features_of_pyg(tmp_path: Path) -> None:
    from torch_geometric.utils.smiles import e_map, x_map

    rows = [
        {"smiles": smiles, "target": index / 2, "split": ("train", "val", "test")[index % 3]}
        for index, smiles in enumerate(SMILES)
    ]
    path = table(tmp_path / "few.csv", rows)
    train, val, test = parts(Molecules(root=str(path), split="split", batch_size=2))
    found = {float(s["target"]): s for s in train + val + test}
    assert len(train) == 3 and sorted(found) == [index / 2 for index in range(len(SMILES))]
    for index, smiles in enumerate(SMILES):
        theirs, ours = from_smiles(smiles), found[index / 2]
        assert torch.equal(ours["edge_index"], theirs.edge_index)
        for name, known in (("x", x_map), ("edge_attr", e_map)):
            blocks = ours[name].split([len(values) for values in known.values()], dim=1)
            assert all(bool((block.sum(1) == 1).all()) for block in blocks)
            categories = [block.argmax(1) for block in blocks]
            assert torch.equal(torch.stack(categories, dim=1), theirs[name])


def test_molecules_of_classes(tmp_path: Path) -> None:
    rows = [{"s": "C" * n, "kind": "odd" if n % 2 else "even"} for n in range(1, 41)]
    path = table(tmp_path / "chains.csv", rows)
    options = {"root": str(path), "smiles": "s", "target": "kind", "batch_size": 4}
    data = Molecules(classes=["even", "odd"], **options)  # type: ignore[arg-type]
    split = parts(data)
    assert [len(part) for part in split] == [32, 4, 4]
    assert all(int(s["target"]) == len(s["x"]) % 2 for part in split for s in part)
    with pytest.raises(UsageError, match="chains.csv:2: kind is 'odd'; data.classes names even, b"):
        Molecules(classes=["even", "b"], **options).setup()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"smiles": "C1CC"}, "bad.csv:3: 'C1CC' is no molecule in SMILES"),
        ({"smiles": ""}, "bad.csv:3: '' is no molecule in SMILES"),
        ({"target": "nan"}, "bad.csv:3: target is nan; a finite number is needed"),
        ({"target": "many"}, "bad.csv:3: could not convert"),
        ({"split": "rest"}, "bad.csv:3: the split is 'rest'; train, val or test is needed"),
    ],
)
def test_rows_that_are_no_molecule(row: dict[str, str], message: str, tmp_path: Path) -> None:
    good = {"smiles": "C", "target": "1", "split": "train"}
    path = table(tmp_path / "bad.csv", [good, {**good, **row}])
    with pytest.raises(UsageError, match=message):
        Molecules(root=str(path), split="split", batch_size=2).setup()


def test_files_without_molecules(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="data.root: there is no file"):
        Molecules(root=str(tmp_path / "none.csv"), batch_size=2).setup()
    path = table(tmp_path / "some.csv", [{"smiles": "C", "value": 1}])
    with pytest.raises(UsageError, match="'target'"):
        Molecules(root=str(path), batch_size=2).setup()
    path.write_text("smiles,target\n")
    with pytest.raises(UsageError, match="some.csv' has no rows"):
        Molecules(root=str(path), batch_size=2).setup()


def test_molecules_to_predict(tmp_path: Path) -> None:
    path = table(tmp_path / "new.csv", [{"name": "a", "smiles": s} for s in ("CCO", "C1CC")])
    data = Molecules(root="not.csv", batch_size=2)
    (first, raw), (second, broken) = data.inputs(path)
    assert (first, second) == ("new.csv:2", "new.csv:3")
    assert torch.equal(data.read(raw)["edge_index"], from_smiles("CCO").edge_index)
    with pytest.raises(ValueError, match="'C1CC' is no molecule in SMILES"):
        data.read(broken)


def test_umls_has_the_links_that_pykeen_counts() -> None:
    data = UMLS(batch_size=7)
    train, val, test = parts(data)
    # The numbers that pykeen's own description of the data set states
    assert [len(part) for part in (train, val, test)] == [5216, 652, 661]
    source, target, relation = data.known_links
    assert len(data.known_links.T.unique(dim=0)) == 6529
    assert torch.cat([source, target]).unique().tolist() == list(range(135))
    assert relation.unique().tolist() == list(range(46))
    batch = data.collate(test[:7])
    forth, back = batch["edge_index"].split(5216, dim=1)
    assert torch.equal(forth, back.flip(0)) and torch.equal(forth, data.known_links[:2, :5216])
    assert torch.equal(batch["edge_attr"], torch.cat([relation[:5216], relation[:5216] + 46]))
    asked = torch.cat([batch["edge_label_index"], batch["edge_label_type"][None]])
    assert torch.equal(asked, torch.stack([sample["link"] for sample in test[:7]], dim=1))
    # No link that is asked for in validation or in the test is among the edges
    edges = set(map(tuple, data.known_links[:, :5216].T.tolist()))
    assert not edges & {tuple(sample["link"].tolist()) for sample in val + test}
    names = data.node_names
    assert (names[source[0]], data.edge_names[relation[0]], names[target[0]]) == (
        "acquired_abnormality",
        "location_of",
        "experimental_model_of_disease",
    )
    with pytest.raises(UsageError, match="data.fold"):
        UMLS(batch_size=1, fold=0)
