"""Biases over pairs of nodes: as written out, with the same gradients, in every backend."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attention_core import (
    Bias,
    EdgeBias,
    Edges,
    Encoder,
    Graph,
    Mask,
    Neighborhood,
    RelativeTable,
    Rotary,
    Sequence,
    attend,
)
from attention_core.positions import rotate
from attention_core.spaces.edge_list import EdgeList
from graph.encodings import (
    PairBias,
    PathBias,
    RandomWalkBias,
    SpectralBias,
    expander_edges,
    path_features,
    relative_walks,
    spectral_coordinates,
    walk_table,
)

BACKENDS = ["reference", "dense", "blocks", "edges"]
MASKS: dict[str, Mask | None] = {
    "all": None,
    "edges": Edges(),
    "two hops": Neighborhood(2),
    "edges or far": Edges() | ~Neighborhood(1),
}
HEADS, DIM = 2, 4

#: A hub and its leaves, a self-loop, one-way edges, an isolated node; a square; a node on its own.
EDGES = torch.tensor(
    [
        [0, 0, 0, 1, 2, 3, 4, 4, 6, 7, 8, 9, 7, 8, 9, 6],
        [1, 2, 3, 0, 0, 0, 4, 1, 7, 8, 9, 6, 6, 7, 8, 9],
    ]
)
SEGMENTS = torch.tensor([0] * 6 + [1] * 4 + [3])  # graph 2 has no nodes
TYPES = torch.arange(EDGES.shape[1]) % 3


def lists() -> EdgeList:
    return EdgeList(EDGES, len(SEGMENTS), TYPES, SEGMENTS)


def space(special: int = 0, pair_attr: dict[str, Tensor] | None = None) -> Graph:
    return Graph(
        EDGES,
        len(SEGMENTS),
        edge_attr=TYPES,
        segments=SEGMENTS,
        coordinates=spectral_coordinates(lists(), 3).double(),
        special=special,
        pair_attr=pair_attr,
    )


def weight_of(bias: PairBias) -> Tensor:
    assert isinstance(bias.net, torch.nn.Linear)
    return bias.net.weight


def by_hand(bias: Bias, at: Graph) -> Tensor:
    """(1, H, L, L): the scores written out, node by node."""
    edges = lists()
    rows = []
    for query in at.nodes.tolist():
        for key in at.nodes.tolist():
            if min(query, key) < 0 or SEGMENTS[query] != SEGMENTS[key]:
                rows.append(torch.zeros(HEADS).double())
                continue
            ends = torch.tensor([query]), torch.tensor([key])
            if isinstance(bias, SpectralBias):
                places = spectral_coordinates(edges, 3).double()
                rows.append((places[query] * places[key]) @ bias.weight)
                continue
            assert isinstance(bias, PairBias)
            if isinstance(bias, RandomWalkBias):
                features = relative_walks(edges, 4, *ends)[0]
            else:
                one_hot = torch.nn.functional.one_hot(TYPES, 3).float()
                features = path_features(edges, one_hot, 2)[edges.pair(*ends)[0]]
            rows.append(bias.net(features.double()))
    length = len(at)
    return torch.stack(rows).T.reshape(1, HEADS, length, length)


BIASES: dict[str, Callable[[], Bias]] = {
    "walks": lambda: RandomWalkBias(HEADS, 4),
    "walks, hidden": lambda: RandomWalkBias(HEADS, 4, hidden=5),
    "paths": lambda: PathBias(HEADS, 2, types=3),
    "spectral": lambda: SpectralBias(HEADS, 3),
}


def make(name: str) -> Bias:
    torch.manual_seed(0)
    bias = BIASES[name]().double()
    for parameter in bias.parameters():
        torch.nn.init.normal_(parameter)
    return bias


def run(backend: str, at: Graph, mask: Mask | None, bias: Bias | Tensor) -> list[Tensor]:
    """Output, weights, and the gradients of q, k, v."""
    draw = torch.Generator().manual_seed(1)
    q, k, v = (
        torch.randn(1, HEADS, len(at), DIM, generator=draw).double().requires_grad_()
        for _ in range(3)
    )
    out, weights = attend(
        q, k, v, space=at, mask=mask, bias=bias, backend=backend, return_weights=True
    )
    factor = torch.randn(out.shape, generator=draw).double()
    (out * factor).sum().backward()
    return [out.detach(), weights.detach(), *(x.grad for x in (q, k, v) if x.grad is not None)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("special", [0, 1])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", BIASES)
def test_backends_equal_the_scores_written_out(
    name: str, mask: str, special: int, backend: str
) -> None:
    at, bias, same = space(special), make(name), make(name)
    found = run(backend, at, MASKS[mask], bias)
    expected = run("reference", at, MASKS[mask], by_hand(same, at))
    gradients = [p.grad for p in bias.parameters()], [p.grad for p in same.parameters()]
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=1e-9)
    assert all(g is not None and g.abs().max() > 1e-3 for g in gradients[0])


def test_tables_that_are_given_replace_those_computed() -> None:
    edges = lists()
    one_hot = torch.nn.functional.one_hot(TYPES, 3).float()
    given = {
        "rrwp": walk_table(edges, 4),
        "path": path_features(edges, one_hot, 2),
        "hops": edges.hop_table,
        "mine": torch.randn(len(edges.hop_table)),
    }
    for name in ("walks", "paths"):
        bias = make(name)
        for backend in BACKENDS:
            computed = run(backend, space(), None, bias)
            torch.testing.assert_close(run(backend, space(pair_attr=given), None, bias), computed)
            other = {**given, "rrwp": given["rrwp"] + 1, "path": given["path"] + 1}
            changed = run(backend, space(pair_attr=other), Edges() | Neighborhood(1), bias)
            assert (changed[0] - run(backend, space(), Edges() | Neighborhood(1), bias)[0]).any()
    hops = RelativeTable.hops(HEADS, 2).double()
    far = {**given, "hops": given["hops"] + 1}
    computed = run("dense", space(), None, hops)
    torch.testing.assert_close(run("dense", space(pair_attr=given), None, hops), computed)
    assert (run("dense", space(pair_attr=far), None, hops)[0] - computed[0]).abs().max() > 1e-6
    mine = PairBias(HEADS, "mine", 1).double()
    scores = weight_of(mine).T * given["mine"].double()[:, None]
    row = edges.pair(torch.arange(11)[:, None], torch.arange(11))
    by_pair = torch.where(row[..., None] >= 0, scores[row], 0).permute(2, 0, 1)[None]
    torch.testing.assert_close(
        run("edges", space(pair_attr=given), None, mine),
        run("dense", space(), None, by_pair.detach()),
    )


def test_a_table_is_computed_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(edges: EdgeList, steps: int) -> Tensor:
        calls.append(steps)
        return walk_table(edges, steps)

    monkeypatch.setattr("graph.encodings.biases.walk_table", counted)
    bias = RandomWalkBias(HEADS, 4)
    encoder = Encoder(8, 3, HEADS, bias=bias + PathBias(HEADS, 2, types=3), mask=[None, Edges()])
    encoder(torch.randn(len(SEGMENTS), 8), space())
    assert calls == [4]


def test_biases_of_one_width_share_no_table() -> None:
    """Two positions of three types and three of two have six features each."""
    wide, long = PathBias(HEADS, 2, types=3).double(), PathBias(HEADS, 3, types=2).double()
    kinds = Graph(EDGES, len(SEGMENTS), edge_attr=TYPES.clamp(max=1), segments=SEGMENTS)
    alone = Graph(EDGES, len(SEGMENTS), edge_attr=TYPES.clamp(max=1), segments=SEGMENTS)
    run("dense", kinds, None, wide)
    torch.testing.assert_close(run("dense", kinds, None, long), run("dense", alone, None, long))


def test_walks_along_edges_as_edge_features_equal_the_table() -> None:
    """The form for graphs too large for all pairs."""
    edges = lists()
    along = relative_walks(edges, 4, edges.target, edges.source)
    table = make("walks")
    assert isinstance(table, PairBias)
    of_edges = EdgeBias(HEADS, features=4).double()
    of_edges.table.data = weight_of(table).detach().T.clone()
    featured = Graph(EDGES, len(SEGMENTS), edge_attr=along, segments=SEGMENTS)
    torch.testing.assert_close(
        run("edges", featured, Edges(), of_edges), run("dense", space(), Edges(), table)
    )


def test_tokens_may_be_dropped() -> None:
    at, bias = space(1), make("walks")
    kept = at.keep(torch.tensor([0, 2, 3, 5, 8, 9]))
    for backend in BACKENDS:
        found = run(backend, kept, None, bias)
        expected = run("reference", kept, None, by_hand(bias, kept).detach())
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_expander_joins_the_softmax(backend: str) -> None:
    """Attention along both kinds of edges is one softmax, with a bias for the kind."""
    edges = lists()
    new = expander_edges(edges, 4)
    both = torch.cat([EDGES, new], dim=1)
    kind = torch.cat([torch.zeros(EDGES.shape[1]), torch.ones(new.shape[1])]).long()
    at = Graph(both, len(SEGMENTS), edge_attr=kind, segments=SEGMENTS)
    bias = EdgeBias(HEADS, types=2).double()
    found = run(backend, at, Edges(), bias)
    scores = torch.full((HEADS, 11, 11), -torch.inf).double()
    scores[:, both[1], both[0]] = bias.table[kind].T.detach()
    listed = torch.zeros(11, 11, dtype=torch.bool)
    listed[both[1], both[0]] = True
    expected = run("reference", space(), listed, scores.nan_to_num(neginf=0)[None])  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected)


def test_signs_do_not_matter_to_the_spectral_bias() -> None:
    bias = make("spectral")
    at, other = space(), space()
    assert other.coordinates is not None
    other.coordinates = other.coordinates * torch.tensor([-1, 1, -1])
    torch.testing.assert_close(run("dense", other, None, bias), run("dense", at, None, bias))


def test_rotary_over_spectral_coordinates() -> None:
    """Renumbered nodes permute the output; flipped signs change it, but as one would if key and
    query changed places; shifted coordinates change nothing."""
    n = 9
    ring = torch.stack([torch.arange(n), (torch.arange(n) + 1) % n])
    chord = torch.tensor([[0, 4, 0, 2], [4, 0, 2, 0]])
    edge_index = torch.cat([ring, ring.flip(0), chord], dim=1)
    places = spectral_coordinates(EdgeList(edge_index, n), 2).double()
    rotary = Rotary(axes=2, frequencies=[1.0, 2.0])
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, n, 8, generator=draw).double() for _ in range(3))

    def out(places: Tensor, order: Tensor, q: Tensor = q, k: Tensor = k) -> Tensor:
        at = Graph(order.argsort()[edge_index], n, coordinates=places[order])
        angle = rotary.angles(at, 8)
        turned = (rotate(x[:, :, order], angle) for x in (q, k))
        result: Tensor = attend(*turned, v[:, :, order], space=at, mask=Edges(), backend="edges")
        return result

    same, other = torch.arange(n), torch.randperm(n, generator=draw)
    close = torch.testing.assert_close
    close(out(places, other), out(places, same)[:, :, other])
    # (up to their sign, the coordinates of the renumbered graph are the renumbered coordinates)
    again = spectral_coordinates(EdgeList(other.argsort()[edge_index], n), 2).double()
    close(again.abs(), places[other].abs(), atol=1e-4, rtol=1e-4)
    close(out(places + 3, same), out(places, same), atol=1e-5, rtol=1e-5)
    assert (out(places * torch.tensor([-1, 1]), same) - out(places, same)).abs().max() > 1e-2
    # mirrored coordinates: what a mirrored query and key see, whose pairs turn the other way
    mirror = torch.tensor([1.0] * 4 + [-1.0] * 4)
    close(out(-places, same), out(places, same, q * mirror, k * mirror), atol=1e-5, rtol=1e-5)


def test_graphs_without_nodes_or_pairs() -> None:
    none = Graph(torch.empty(2, 0).long(), 0, edge_attr=torch.empty(0).long())
    x = torch.zeros(1, HEADS, 0, DIM).double()
    for name in ("walks", "paths"):
        for backend in BACKENDS:
            assert attend(x, x, x, space=none, bias=make(name), backend=backend).shape == x.shape


LINE = torch.tensor([[0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("bias", "options", "error", "words"),
    [
        (PairBias(2, "mine", 3), {}, ValueError, "no table 'mine': give Graph"),
        (
            PairBias(2, "mine", 3),
            {"pair_attr": {"mine": torch.zeros(4, 2)}},
            ValueError,
            r"float pair_attr\['mine'\] of 3 features a pair, got torch.float32 \(4, 2\)",
        ),
        (
            PairBias(2, "mine", 3),
            {"pair_attr": {"mine": torch.zeros(2, 3)}},
            ValueError,
            r"pair_attr\['mine'\] has 2 rows, but there are 4 pairs",
        ),
        (
            RelativeTable.hops(2, 3),
            {"pair_attr": {"hops": torch.zeros(4).long()}},
            ValueError,
            r"pair_attr\['hops'\] must be float .* got torch.int64 \(4,\)",
        ),
        (PathBias(2, 3, types=2), {}, ValueError, "PathBias needs Graph.*edge_attr"),
        (
            PathBias(2, 3, types=2),
            {"edge_attr": torch.zeros(2)},
            TypeError,
            r"edge_attr must hold integer types \(E,\), got torch.float32 \(2,\)",
        ),
        (
            PathBias(2, 3, types=2),
            {"edge_attr": torch.tensor([0, 2])},
            ValueError,
            "edge_attr names types 0 to 2, but types=2",
        ),
        (
            PathBias(2, 3, features=2),
            {"edge_attr": torch.zeros(2, 3)},
            ValueError,
            r"built for features=2, edge_attr is \(2, 3\)",
        ),
        (SpectralBias(2, 3), {}, ValueError, "SpectralBias has 3 axes, .* has 0: give Graph"),
    ],
)
def test_what_the_space_lacks_is_named(
    bias: Bias, options: dict[str, Tensor], error: type[Exception], words: str
) -> None:
    x = torch.zeros(1, 2, 2, 4)
    with pytest.raises(error, match=words):
        attend(x, x, x, space=Graph(LINE, 2, **options), bias=bias)  # type: ignore[arg-type]


def test_only_graphs_have_pairs() -> None:
    x = torch.zeros(1, 2, 2, 4)
    with pytest.raises(TypeError, match="no tables of pairs: .* or a Graph"):
        attend(x, x, x, space=Sequence(2), bias=RandomWalkBias(2, 3))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: RandomWalkBias(2, 0), "steps must be at least 1, got 0"),
        (lambda: PathBias(2, 3), "one of types= and features=, of edges, got None, None"),
        (lambda: PathBias(2, 0, types=2), "max_hops must be at least 1, got 0"),
        (lambda: SpectralBias(2, 0), "axes must be at least 1, got 0"),
    ],
)
def test_arguments_that_make_no_sense(build: Callable[[], Bias], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()
