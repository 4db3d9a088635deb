"""Encodings of nodes and pairs against networkx, scipy, PyG and powers of dense matrices."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import networkx
import pytest
import scipy.sparse.csgraph
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import AddLaplacianEigenvectorPE, AddRandomWalkPE

from attention_core.spaces.edge_list import EdgeList
from graph.encodings import (
    CentralityEmbedding,
    SignInvariant,
    degrees,
    expander_edges,
    flip_signs,
    laplacian_eigenvectors,
    path_features,
    relative_walks,
    return_probabilities,
    spectral_coordinates,
    walk_table,
)
from graph.encodings.laplacian import components

NONE = torch.empty(2, 0, dtype=torch.long)


def edges_of(graph: networkx.Graph) -> Tensor:
    """(2, E), both directions of an undirected edge."""
    directed = networkx.convert_node_labels_to_integers(graph).to_directed()
    return torch.tensor(list(directed.edges), dtype=torch.long).reshape(-1, 2).T


#: A hub, a tail, a self-loop, two components and an isolated node; and one with one-way edges.
ODD = torch.tensor(
    [[0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 5, 6, 6, 7, 9], [1, 2, 3, 4, 5, 0, 0, 0, 0, 0, 6, 5, 6, 9, 7]]
)
ONE_WAY = torch.tensor([[0, 1, 2, 0, 3, 3, 4, 4], [1, 2, 0, 3, 4, 4, 4, 0]])
GRAPHS = {
    "connected": (edges_of(networkx.connected_watts_strogatz_graph(17, 4, 0.5, seed=2)), 17),
    "tree": (edges_of(networkx.random_labeled_tree(12, seed=1)), 12),
    "odd": (ODD, 10),
    "one way": (ONE_WAY, 6),
    "no edges": (NONE, 3),
    "one node": (NONE, 1),
}


def batch() -> EdgeList:
    """All of these as one batch, with a graph without nodes in between."""
    edges, sizes = zip(*GRAPHS.values(), strict=True)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    numbers = [number + (number > 1) for number in range(len(sizes))]
    return EdgeList(
        torch.cat([e + s for e, s in zip(edges, starts, strict=True)], dim=1),
        sum(sizes),
        graph=torch.repeat_interleave(torch.tensor(numbers), torch.tensor(sizes)),
    )


def transition(edges: EdgeList) -> Tensor:
    """(N, N) from row to column, in double precision."""
    counts = torch.zeros(edges.num_nodes, edges.num_nodes, dtype=torch.double)
    counts.index_put_((edges.source, edges.target), torch.ones(()).double(), accumulate=True)
    return counts / counts.sum(1, keepdim=True).clamp(min=1)


# -- random walks --------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1 << 24, 100])
def test_walks_are_powers_of_the_transition_matrix(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graph.encodings.random_walks._CHUNK", chunk)
    edges = batch()
    step = transition(edges)
    powers = torch.stack([torch.linalg.matrix_power(step, k) for k in range(7)], dim=-1)
    target, source = edges.all_pairs()
    table = walk_table(edges, 7)
    assert table.shape == (sum(n * n for _, n in GRAPHS.values()), 7)
    torch.testing.assert_close(table.double(), powers[source, target], atol=1e-6, rtol=1e-5)
    assert torch.equal(edges.pair(target, source), torch.arange(len(table)))
    back = return_probabilities(edges, 6)
    torch.testing.assert_close(back.double(), powers.diagonal().T[:, 1:], atol=1e-6, rtol=1e-5)
    along = relative_walks(edges, 7, edges.target, edges.source)
    torch.testing.assert_close(along, table[edges.pair(edges.target, edges.source)])


@pytest.mark.parametrize("name", GRAPHS)
def test_return_probabilities_equal_pyg(name: str) -> None:
    edge_index, n = GRAPHS[name]
    edge_index = edge_index.unique(dim=1)  # PyG takes an edge listed twice for one, in small graphs
    expected = AddRandomWalkPE(9)(Data(edge_index=edge_index, num_nodes=n)).random_walk_pe
    torch.testing.assert_close(return_probabilities(EdgeList(edge_index, n), 9), expected)


def test_an_edge_listed_twice_is_taken_twice_as_often() -> None:
    edges = EdgeList(torch.tensor([[0, 0, 0], [1, 1, 2]]), 3)
    step = relative_walks(edges, 2, torch.tensor([1, 2]), torch.tensor([0, 0]))[:, 1]
    torch.testing.assert_close(step, torch.tensor([2 / 3, 1 / 3]))


def test_walks_on_a_large_graph_take_bounded_memory() -> None:
    edges = EdgeList(edges_of(networkx.random_regular_graph(4, 6000, seed=0)), 6000)
    back = return_probabilities(edges, 4)
    torch.testing.assert_close(back[:, :2], torch.tensor([0, 0.25]).expand(6000, 2))
    with pytest.raises(ValueError, match="random walks between all pairs .* would take 1,152,000,"):
        walk_table(edges, 32)


# -- eigenvectors --------------------------------------------------------------------------------


def dense_laplacian(edge_index: Tensor, n: int, normalization: str) -> Tensor:
    proper = edge_index[:, edge_index[0] != edge_index[1]]
    adjacency = torch.zeros(n, n, dtype=torch.double)
    adjacency.index_put_(tuple(proper), torch.ones(()).double(), accumulate=True)
    adjacency = torch.maximum(adjacency, adjacency.T).numpy()
    laplacian = torch.from_numpy(
        scipy.sparse.csgraph.laplacian(adjacency, normed=normalization == "sym")
    )
    if normalization == "rw":
        laplacian = laplacian / torch.from_numpy(adjacency.sum(1)).clamp(min=1)[:, None]
    return laplacian


@pytest.mark.parametrize("normalization", ["sym", "rw", "none"])
@pytest.mark.parametrize("name", GRAPHS)
def test_eigenvectors_are_those_of_the_laplacian(name: str, normalization: str) -> None:
    edge_index, n = GRAPHS[name]
    edges = EdgeList(edge_index, n)
    vectors, values = laplacian_eigenvectors(edges, 5, normalization=normalization)  # type: ignore[arg-type]
    laplacian = dense_laplacian(edge_index, n, normalization)
    torch.testing.assert_close(
        laplacian @ vectors.double(), (values * vectors).double(), atol=1e-5, rtol=1e-4
    )
    component = components(edges)
    count, expected = scipy.sparse.csgraph.connected_components(
        scipy.sparse.coo_array(([1] * edge_index.shape[1], tuple(edge_index.numpy())), (n, n)),
        directed=False,
    )
    assert component.tolist() == expected.tolist()
    for number in range(count):
        inside = component == number
        size = int(inside.sum())
        spectrum = torch.linalg.eigvals(laplacian[inside][:, inside]).real.sort()[0][1:6].float()
        have = min(5, size - 1)
        assert (values[inside] == values[inside][:1]).all()
        torch.testing.assert_close(values[inside][0, :have], spectrum, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(vectors[inside].norm(dim=0), (torch.arange(5) < have).float())
        assert (values[inside][:, have:] == 0).all()
        scaled = spectral_coordinates(edges, 5, normalization=normalization)[inside]  # type: ignore[arg-type]
        torch.testing.assert_close(scaled.square().mean(0), (torch.arange(5) < have).float())


def test_eigenvectors_equal_pyg_up_to_sign() -> None:
    edge_index, n = GRAPHS["connected"]
    data = Data(edge_index=edge_index, num_nodes=n)
    expected = AddLaplacianEigenvectorPE(6, is_undirected=True)(data).laplacian_eigenvector_pe
    vectors, _ = laplacian_eigenvectors(EdgeList(edge_index, n), 6)
    torch.testing.assert_close((vectors * expected).sum(0).abs(), torch.ones(6))


def test_a_batch_has_the_eigenvectors_of_its_graphs() -> None:
    vectors, values = laplacian_eigenvectors(batch(), 4)
    start = 0
    for edge_index, n in GRAPHS.values():
        alone, eigenvalues = laplacian_eigenvectors(EdgeList(edge_index, n), 4)
        torch.testing.assert_close(values[start : start + n], eigenvalues)
        torch.testing.assert_close(vectors[start : start + n].abs(), alone.abs())
        start += n


@pytest.mark.parametrize("normalization", ["sym", "rw", "none"])
@pytest.mark.parametrize("kind", ["expander", "path", "grid"])
def test_large_components_go_to_scipy(
    kind: str, normalization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path's eigenvalues lie too close for the first method; a square grid's come in pairs."""
    edge_index, n = {
        "expander": (edges_of(networkx.random_regular_graph(3, 240, seed=0)), 240),
        "path": (edges_of(networkx.path_graph(700)), 700),
        "grid": (edges_of(networkx.grid_2d_graph(18, 18)), 324),
    }[kind]
    edges = EdgeList(torch.cat([edge_index, edge_index[:, :5] * 0 + n], dim=1), n + 2)
    dense, expected = laplacian_eigenvectors(edges, 5, normalization=normalization)  # type: ignore[arg-type]
    monkeypatch.setattr("graph.encodings.laplacian._DENSE", 100)
    vectors, values = laplacian_eigenvectors(edges, 5, normalization=normalization)  # type: ignore[arg-type]
    torch.testing.assert_close(values, expected, atol=1e-6, rtol=1e-3)
    if kind != "grid":  # the vectors of a pair of eigenvalues turn freely
        torch.testing.assert_close((vectors * dense).sum(0).abs(), (dense**2).sum(0))


def test_signs_are_drawn_for_each_component_and_change_nothing_invariant() -> None:
    edges = batch()
    edge_index = torch.stack([edges.source, edges.target])
    vectors, values = laplacian_eigenvectors(edges, 4)
    component = components(edges)
    flipped = flip_signs(vectors, component, torch.Generator().manual_seed(1))
    ratio = torch.where(vectors.abs() > 1e-4, flipped / vectors, torch.nan)
    torch.testing.assert_close(flipped.abs(), vectors.abs())
    drawn = [ratio[component == c].nanmean(0) for c in range(int(component.max()) + 1)]
    signs = torch.stack(drawn)
    assert set(signs[signs.isfinite()].round(decimals=4).tolist()) == {-1.0, 1.0}
    torch.manual_seed(0)
    encode = SignInvariant(4, 8)
    encoded = encode(vectors, values, edge_index)
    assert encoded.shape == (edges.num_nodes, 8)
    torch.testing.assert_close(encode(flipped, values, edge_index), encoded, atol=1e-5, rtol=1e-5)
    # it sees more than absolute values: on which side of a wave neighbours are
    assert (encode(vectors.abs(), values, edge_index) - encoded).abs().max() > 1e-3
    # and learns
    encoded.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encode.parameters())


# -- hops, paths, degrees ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sparse", "path", "one way", "dense"])
def test_hops_of_large_graphs_equal_scipy(kind: str) -> None:
    """Graphs beyond the size up to which hops are found by matrix products, and a dense one."""
    n = 300
    draw = torch.Generator().manual_seed(0)
    edge_index = {
        "sparse": torch.randint(0, n, (2, 500), generator=draw),
        "path": edges_of(networkx.path_graph(n)),
        "one way": torch.stack([torch.arange(n), (torch.arange(n) + 1) % n]),
        "dense": torch.randint(0, n, (2, 9000), generator=draw),
    }[kind]
    small = torch.tensor([[0, 1], [1, 2]]) + n
    segments = torch.tensor([0] * n + [1] * 3)
    edges = EdgeList(torch.cat([edge_index, small], dim=1), n + 3, graph=segments)
    row, column = edge_index.numpy()
    matrix = scipy.sparse.csr_array(([1.0] * len(row), (column, row)), (n, n))
    expected = scipy.sparse.csgraph.shortest_path(matrix, unweighted=True)
    assert torch.equal(edges.hop_table[: n * n].view(n, n), torch.from_numpy(expected).float())
    inf = math.inf
    assert edges.hop_table[n * n :].tolist() == [0, inf, inf, 1, 0, inf, 2, 1, 0]


def test_a_cap_needs_no_table() -> None:
    n = 40_000
    edges = EdgeList(edges_of(networkx.cycle_graph(n)), n)
    target, source, hops = edges.within(3)
    assert len(target) == 7 * n
    around = (target - source).abs()
    assert torch.equal(torch.minimum(around, n - around).float(), hops)
    with pytest.raises(ValueError, match="hops between all pairs .* 1,600,000,000 entries"):
        edges.hops(target[:1], source[:1])


def shortest_paths_by_hand(edges: EdgeList, features: Tensor, max_hops: int) -> Tensor:
    """Mean over all shortest paths that networkx finds, and over the edges of each."""
    graph = networkx.MultiDiGraph()
    graph.add_nodes_from(range(edges.num_nodes))
    listed = zip(edges.source.tolist(), edges.target.tolist(), strict=True)
    graph.add_edges_from((a, b, {"row": row}) for row, (a, b) in enumerate(listed))
    rows = []
    for query, key in zip(*(ends.tolist() for ends in edges.all_pairs()), strict=True):
        total = torch.zeros(max_hops, features.shape[1])
        if query != key and networkx.has_path(graph, key, query):
            paths = list(networkx.all_shortest_paths(networkx.DiGraph(graph), key, query))
            for path in paths:
                steps = list(itertools.pairwise(path))[::-1][:max_hops]  # from the query
                for place, (a, b) in enumerate(steps):
                    (edge,) = graph[a][b].values()
                    total[place] += features[edge["row"]] / len(steps) / len(paths)
        rows.append(total.flatten())
    return torch.stack(rows)


@pytest.mark.parametrize("max_hops", [1, 2, 9])
@pytest.mark.parametrize("chunk", [1 << 24, 60])
def test_paths_equal_those_of_networkx(
    max_hops: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graph.encodings.shortest_paths._CHUNK", chunk)
    ladder, n = edges_of(networkx.grid_2d_graph(3, 4)), 12  # many shortest paths
    whole = batch()
    edge_index = torch.stack([whole.source, whole.target]).unique(dim=1)  # no edge twice
    edges = EdgeList(
        torch.cat([edge_index, ladder + whole.num_nodes], dim=1),
        whole.num_nodes + n,
        graph=torch.cat([whole.graph, whole.graph.new_full((n,), 9)]),
    )
    features = torch.randn(edges.num_edges, 3, generator=torch.Generator().manual_seed(0))
    found = path_features(edges, features, max_hops)
    expected = shortest_paths_by_hand(edges, features, max_hops)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_degrees_count_in_and_out() -> None:
    graph = networkx.MultiDiGraph()
    graph.add_nodes_from(range(6))
    graph.add_edges_from(ONE_WAY.T.tolist())
    found = degrees(EdgeList(ONE_WAY, 6))
    assert found[:, 0].tolist() == [d for _, d in graph.in_degree()]
    assert found[:, 1].tolist() == [d for _, d in graph.out_degree()]
    embed = CentralityEmbedding(4, max_degree=2)
    embedded = embed(found)
    assert torch.equal(embedded[5], embed.incoming.weight[0] + embed.outgoing.weight[0])
    assert torch.equal(embedded[4], embed.incoming.weight[2] + embed.outgoing.weight[2])
    assert torch.equal(embedded[2], embed.incoming.weight[1] + embed.outgoing.weight[1])
    hub = torch.stack([torch.arange(1, 9), torch.zeros(8, dtype=torch.long)])
    assert torch.equal(embed(degrees(EdgeList(hub, 9)))[0], embed(torch.tensor([[2, 0]]))[0])


# -- expanders -----------------------------------------------------------------------------------


def test_expanders_are_regular_connected_and_nearly_ramanujan() -> None:
    degree, n = 6, 400
    found = expander_edges(EdgeList(NONE, n), degree, seed=3)
    graph = networkx.Graph(found.T.tolist())
    assert networkx.is_connected(graph)
    assert found.shape[1] == 2 * graph.number_of_edges()
    missing = n * degree - found.shape[1]  # repeated edges: about degree² / 2 in all
    assert 0 <= missing <= degree**2
    eigenvalues = torch.linalg.eigvalsh(torch.from_numpy(networkx.to_numpy_array(graph)))
    assert eigenvalues[-2] <= 1.1 * 2 * math.sqrt(degree - 1)
    # a cycle, as the same number of edges might be laid, is far from it
    ring = networkx.circulant_graph(n, [1, 2, 3])
    ring_values = torch.linalg.eigvalsh(torch.from_numpy(networkx.to_numpy_array(ring)))
    assert ring_values[-2] > 1.3 * 2 * math.sqrt(degree - 1)


def test_expanders_are_seeded_apart_and_new() -> None:
    edges = batch()
    found = expander_edges(edges, 4)
    assert torch.equal(found, expander_edges(edges, 4))
    assert not torch.equal(found, expander_edges(edges, 4, seed=1))
    graph = edges.graph
    assert graph is not None
    assert torch.equal(graph[found[0]], graph[found[1]])
    assert (found[0] != found[1]).all()
    both = torch.cat([torch.stack([edges.source, edges.target]).unique(dim=1), found], dim=1)
    assert both.unique(dim=1).shape == both.shape
    start = 0
    for edge_index, n in GRAPHS.values():
        alone = expander_edges(EdgeList(edge_index, n), 4)
        inside = (found[0] >= start) & (found[0] < start + n)
        assert torch.equal(found[:, inside] - start, alone)
        start += n
    # three nodes without edges become a triangle, one node gets none
    assert expander_edges(EdgeList(NONE, 3), 4).shape == (2, 6)
    assert expander_edges(EdgeList(NONE, 1), 4).shape == (2, 0)


# -- what holds of all ---------------------------------------------------------------------------


def test_renumbering_nodes_permutes_every_encoding() -> None:
    edge_index, n = GRAPHS["connected"]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    rank = order.argsort()
    first, second = EdgeList(edge_index, n), EdgeList(rank[edge_index], n)
    features = torch.randn(edge_index.shape[1], 2)

    def of_pairs(table: Tensor) -> Tensor:
        return table.view(n, n, -1)[order][:, order].flatten(0, 1)

    close = torch.testing.assert_close
    close(second.hop_table, of_pairs(first.hop_table).squeeze(1))
    close(return_probabilities(second, 5), return_probabilities(first, 5)[order])
    close(walk_table(second, 5), of_pairs(walk_table(first, 5)))
    close(path_features(second, features, 3), of_pairs(path_features(first, features, 3)))
    close(degrees(second), degrees(first)[order])
    torch.manual_seed(0)
    encode = SignInvariant(4, 8)
    encoded = encode(*laplacian_eigenvectors(first, 4), edge_index)
    renumbered = encode(*laplacian_eigenvectors(second, 4), rank[edge_index])
    close(renumbered, encoded[order], atol=1e-4, rtol=1e-4)


def test_graphs_without_nodes() -> None:
    edges = EdgeList(NONE, 0)
    assert return_probabilities(edges, 3).shape == (0, 3)
    assert walk_table(edges, 3).shape == (0, 3)
    assert path_features(edges, torch.zeros(0, 2), 3).shape == (0, 6)
    assert edges.hop_table.shape == (0,)
    assert [x.shape for x in laplacian_eigenvectors(edges, 3)] == [(0, 3), (0, 3)]
    assert expander_edges(edges, 4).shape == (2, 0)
    assert degrees(edges).shape == (0, 2)
    assert SignInvariant(3, 4)(*laplacian_eigenvectors(edges, 3), NONE).shape == (0, 4)
    assert CentralityEmbedding(4, 2)(degrees(edges)).shape == (0, 4)


LINE = EdgeList(torch.tensor([[0, 1], [1, 0]]), 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: return_probabilities(LINE, 0), "steps must be at least 1, got 0"),
        (lambda: walk_table(LINE, 0), "steps must be at least 1, got 0"),
        (
            lambda: relative_walks(batch(), 2, torch.tensor([0]), torch.tensor([30])),
            "target and source must be of one graph",
        ),
        (lambda: laplacian_eigenvectors(LINE, 0), "k must be at least 1, got 0"),
        (
            lambda: laplacian_eigenvectors(LINE, 1, normalization="both"),  # type: ignore[arg-type]
            "normalization must be 'sym', 'rw' or 'none', got 'both'",
        ),
        (lambda: path_features(LINE, torch.zeros(3, 1), 2), r"E=2, got torch.float32 \(3, 1\)"),
        (lambda: path_features(LINE, torch.zeros(2, 1), 0), "max_hops must be at least 1, got 0"),
        (lambda: expander_edges(LINE, 3), "degree must be even and at least 2, got 3"),
        (lambda: CentralityEmbedding(4, 0), "max_degree must be at least 1, got 0"),
        (
            lambda: CentralityEmbedding(4, 2)(torch.zeros(3).long()),
            r"degree must hold integers \(N, 2\), got torch.int64 \(3,\)",
        ),
        (lambda: SignInvariant(0, 4), "k must be at least 1, got 0"),
        (
            lambda: SignInvariant(2, 4)(torch.zeros(3, 2), torch.zeros(3, 1), NONE),
            r"values must be \(N, 2\), got \(3, 1\)",
        ),
    ],
)
def test_bad_input_is_named(make, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=words):
        make()


def test_importing_encodings_is_light() -> None:
    code = (
        "import sys, graph.encodings;"
        "print([m for m in ('torch_geometric', 'scipy', 'lightning') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout.strip() == "[]"


def test_large_components_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graph.encodings.laplacian._DENSE", 5)
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(ImportError, match="17 nodes .* need scipy"):
        laplacian_eigenvectors(EdgeList(*GRAPHS["connected"]), 2)
