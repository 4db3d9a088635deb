"""Encodings as PyG transforms: what they store, and that batches join it."""

import networkx
import pytest
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.transforms import BaseTransform, Compose

from attention_core import EdgeBias, Edges, Graph, RelativeTable, attend
from attention_core.spaces.edge_list import EdgeList
from graph.encodings import (
    PathBias,
    RandomWalkBias,
    degrees,
    laplacian_eigenvectors,
    path_features,
    return_probabilities,
    walk_table,
)
from graph.encodings.transforms import (
    AddDegree,
    AddExpander,
    AddHops,
    AddLaplacian,
    AddPaths,
    AddRandomWalks,
    AddRelativeWalks,
    AddSpectralCoordinates,
    RandomSigns,
)

ALL = Compose(
    [
        AddHops(),
        AddDegree(),
        AddLaplacian(3),
        AddSpectralCoordinates(2),
        AddRandomWalks(5),
        AddRelativeWalks(4),
        AddRelativeWalks(4, of="edges"),
        AddPaths(3, types=4),
    ]
)


def graphs() -> list[Data]:
    """Rings with chords and typed edges; one node; two nodes without an edge."""
    data = []
    for n in (6, 1, 2, 9, 4):
        graph = networkx.circulant_graph(n, [1, 4]) if n > 2 else networkx.empty_graph(n)
        edge_index = torch.tensor(list(graph.to_directed().edges)).long().reshape(-1, 2).T
        data.append(
            Data(
                x=torch.zeros(n),
                edge_index=edge_index,
                edge_attr=torch.arange(len(edge_index.T)) % 4,
            )
        )
    return data


def test_a_batch_of_encoded_graphs_is_an_encoded_batch() -> None:
    data = graphs()
    before = [list(d.keys()) for d in data]
    batch = Batch.from_data_list([ALL(d) for d in data])
    assert [list(d.keys()) for d in data] == before, "transforms leave what they are given"
    edges = EdgeList(batch.edge_index, batch.num_nodes, batch.edge_attr, batch.batch)
    close = torch.testing.assert_close
    assert torch.equal(batch.hops, edges.hop_table)
    assert torch.equal(batch.degree, degrees(edges))
    close(batch.rwse, return_probabilities(edges, 5))
    close(batch.rrwp, walk_table(edges, 4))
    close(batch.edge_rrwp, batch.rrwp[edges.pair(edges.target, edges.source)])
    one_hot = torch.nn.functional.one_hot(batch.edge_attr, 4).float()
    close(batch.path, path_features(edges, one_hot, 3))
    vectors, values = laplacian_eigenvectors(edges, 3)
    close(batch.laplacian_values, values)
    close(batch.laplacian.abs(), vectors.abs(), atol=1e-4, rtol=1e-4)
    again = ALL(Batch.from_data_list(data))
    close(again.rrwp, batch.rrwp)
    close(again.path, batch.path)
    # and a batch gives its graphs back
    for own, encoded in zip(data, batch.to_data_list(), strict=True):
        alone = ALL(own)
        assert set(encoded.keys()) == set(alone.keys())
        assert torch.equal(encoded.rrwp, alone.rrwp)
        assert torch.equal(encoded.hops, alone.hops)


def test_a_space_takes_what_was_stored() -> None:
    batch = Batch.from_data_list([ALL(d) for d in graphs()])
    encoded = Graph.from_pyg(
        batch, special=1, pair_attr=["hops", "rrwp", "path"], coordinates="spectral"
    )
    plain = Graph.from_pyg(batch, special=1)
    assert encoded.coordinates is not None
    assert torch.equal(encoded.coordinates[encoded.nodes >= 0], batch.spectral)
    torch.manual_seed(0)
    bias = RelativeTable.hops(2, 2) + RandomWalkBias(2, 4) + PathBias(2, 3, types=4)
    q, k, v = torch.randn(3, 1, 2, len(plain), 4).unbind(0)
    for mask in (None, Edges()):
        found = attend(q, k, v, space=encoded, mask=mask, bias=bias)
        torch.testing.assert_close(found, attend(q, k, v, space=plain, mask=mask, bias=bias))


def test_signs_are_flipped_anew() -> None:
    data = Compose([AddLaplacian(3), AddSpectralCoordinates(2)])(graphs()[0])
    torch.manual_seed(0)
    seen = {tuple(RandomSigns()(data).laplacian[1].sign().tolist()) for _ in range(60)}
    assert len(seen) == 8
    flipped = RandomSigns()(data)
    assert torch.equal(flipped.laplacian.abs(), data.laplacian.abs())
    assert torch.equal(flipped.spectral.abs(), data.spectral.abs())


@pytest.mark.parametrize("types", [4, None])
def test_an_expander_adds_edges_of_a_type_of_their_own(types: int | None) -> None:
    data = graphs()[3]
    if types is None:
        data.edge_attr = None
    with_expander = AddExpander(4, types=types)(data)
    old = data.num_edges
    kinds = with_expander.edge_attr
    assert torch.equal(with_expander.edge_index[:, :old], data.edge_index)
    assert torch.equal(kinds[:old], torch.zeros(old).long() if types is None else data.edge_attr)
    assert (kinds[old:] == (types or 1)).all() and len(kinds) == with_expander.num_edges > old
    space = Graph.from_pyg(Batch.from_data_list([with_expander, with_expander]))
    q, k, v = torch.randn(3, 1, 2, len(space), 4).unbind(0)
    bias = EdgeBias(2, types=(types or 1) + 1)
    found = [
        attend(q, k, v, space=space, mask=Edges(), bias=bias, backend=backend)
        for backend in ("edges", "dense")
    ]
    torch.testing.assert_close(*found)


def test_an_expander_beside_features() -> None:
    data = graphs()[3]
    data.edge_attr = torch.randn(data.num_edges, 2)
    found = AddExpander(4)(data)
    assert torch.equal(found.edge_attr[: data.num_edges, :2], data.edge_attr)
    assert (found.edge_attr[: data.num_edges, 2] == 0).all()
    assert torch.equal(
        found.edge_attr[data.num_edges :].unique(dim=0), torch.tensor([[0.0, 0.0, 1.0]])
    )


@pytest.mark.parametrize(
    ("transform", "data", "error", "words"),
    [
        (AddHops(), Data(num_nodes=2), ValueError, "data has no edge_index"),
        (AddPaths(2, types=1), Data(), ValueError, "AddPaths needs data.edge_attr"),
        (AddExpander(2, types=3), Data(), ValueError, r"AddExpander\(types=3\) needs"),
        (
            AddExpander(2),
            Data(edge_attr=torch.tensor([0, 1])),
            TypeError,
            "edge_attr must hold float features",
        ),
        (
            AddExpander(2, types=1),
            Data(edge_attr=torch.tensor([0, 1])),
            ValueError,
            "edge_attr names types 0 to 1, but types=1",
        ),
        (RandomSigns(), Data(), ValueError, "apply AddLaplacian before"),
    ],
)
def test_what_data_lack_is_named(
    transform: BaseTransform, data: Data, error: type[Exception], words: str
) -> None:
    if not isinstance(transform, AddHops):
        data.edge_index, data.num_nodes = torch.tensor([[0, 1], [1, 0]]), 2
    with pytest.raises(error, match=words):
        transform(data)


def test_of_is_pairs_or_edges() -> None:
    with pytest.raises(ValueError, match="of must be 'pairs' or 'edges', got 'nodes'"):
        AddRelativeWalks(3, of="nodes")  # type: ignore[arg-type]
