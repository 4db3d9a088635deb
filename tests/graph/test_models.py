"""The published graph transformers, as configurations of the one class."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_core import BackendError, EdgeBias, Edges, Graph, record_attention
from attention_core.training.instantiate import build
from graph import GraphTransformer
from graph.data import Sample, pack
from graph.encoder import GraphEncoder, SelfAttention
from graph.encodings import (
    PathBias,
    RandomWalkBias,
    SpectralBias,
    expander_edges,
    transforms as add,
)
from tests.graph.graphs import as_pyg
from tests.graph.test_graph_transformer import molecule
from tests.training.conftest import Compose, compose, one_thread  # noqa: F401

BLOCKS: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 4, "node_types": 7, "edge_types": 4}
PRESETS: dict[str, dict[str, Any]] = {
    "GAT": {"mask": Edges(), "score": "additive"},
    "GATv2": {"mask": Edges(), "score": "additive_v2", "edge_dim": 8},
    "Graphormer": {"max_degree": 4, "max_hops": 3, "virtual_nodes": 1, "pooling": "special"},
    "GPS": {"local": Edges(), "walk_steps": 4, "edge_dim": 8},
    "GPS, eigenvectors": {"local": Edges(), "eigenvectors": 3},
    "GRIT": {"walk_steps": 4, "degree_scaler": True},
    "Exphormer": {"mask": Edges(), "expander_degree": 4, "virtual_nodes": 1, "edge_dim": 8},
}


def model_of(name: str, **options: Any) -> GraphTransformer:
    torch.manual_seed(0)
    biases = {
        "Graphormer": [PathBias(4, 2, types=4)],
        "GRIT": [RandomWalkBias(4, 5, hidden=8)],
    }
    given = {**BLOCKS, **PRESETS[name], "biases": biases.get(name, []), "num_classes": 3, **options}
    model = GraphTransformer(**given).double().eval()
    for parameter in model.parameters():  # some are drawn small; here they shall matter
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5)
    return model


def known(nodes: int, seed: int, extra: int = 2) -> Sample:
    """A molecule with its eigenvectors: those of equal eigenvalues are no definite ones."""
    sample = molecule(nodes, seed, extra)
    data = add.AddLaplacian(3)(as_pyg(sample))
    return {**sample, "laplacian": data.laplacian, "laplacian_values": data.laplacian_values}


def run(model: GraphTransformer, *samples: Sample) -> Tensor:
    batch = pack(samples)
    batch.pop("target")
    output: Tensor = model(**read(model, batch))
    return output


def read(model: GraphTransformer, batch: dict[str, Any]) -> dict[str, Any]:
    """What of a batch this model reads: others have eigenvectors, which it refuses."""
    return {name: value for name, value in batch.items() if name not in model.unread}


@pytest.mark.parametrize("name", PRESETS)
def test_a_graph_gives_the_same_alone_and_in_any_company(name: str) -> None:
    model, one = model_of(name), known(9, 1)
    alone = run(model, one)[0]
    torch.testing.assert_close(run(model, known(5, 2), one, known(14, 3))[1], alone)
    torch.testing.assert_close(run(model, known(200, 4, extra=60), one)[1], alone)


def renumbered(sample: Sample, order: Tensor) -> Sample:
    changed = {name: sample[name][order] for name in ("x", "laplacian", "laplacian_values")}
    return {**sample, **changed, "edge_index": order.argsort()[sample["edge_index"]]}


@pytest.mark.parametrize("level", ["graph", "node", "edge", "link"])
@pytest.mark.parametrize("name", [name for name in PRESETS if name != "Exphormer"])
def test_renumbering_nodes_renumbers_outputs(name: str, level: str) -> None:
    """Not Exphormer's: its random edges go by number."""
    model = model_of(name, level=level, num_classes=None if level == "link" else 3)
    one = known(11, 5)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    other = renumbered(one, order)
    asked: list[dict[str, Tensor]] = [{}, {}]
    if level == "link":
        asked = [{"edge_label_index": s["edge_index"]} for s in (one, other)]
    first, second = (
        model(**{k: v for k, v in read(model, {**s, **a}).items() if k != "target"})
        for s, a in zip((one, other), asked, strict=True)
    )
    torch.testing.assert_close(second, first[order] if level == "node" else first)


@pytest.mark.parametrize("backend", ["dense", "edges", "blocks"])
@pytest.mark.parametrize("name", PRESETS)
def test_every_backend_gives_what_the_reference_gives(name: str, backend: str) -> None:
    # Only edges and the reference add features of edges to keys and values
    model = model_of(name) if backend == "edges" else model_of(name, edge_dim=None)
    batch = read(model, pack([known(9, 1), known(6, 2)]))
    batch.pop("target")

    def values(which: str) -> list[Tensor]:
        model.zero_grad()
        tokens, _ = model.encode(**batch, backend=which)
        weight = torch.linspace(-1, 1, tokens.numel(), dtype=tokens.dtype).view_as(tokens)
        (tokens * weight).sum().backward()
        return [tokens, *(p.grad for p in model.parameters() if p.grad is not None)]

    expected = values("reference")
    try:
        found = values(backend)
    except BackendError:
        assert "score" in PRESETS[name]
        return
    assert len(expected) == len(found) > 10
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one)


@pytest.mark.parametrize("name", PRESETS)
def test_hubs_isolated_nodes_and_graphs_without_edges_or_nodes(name: str) -> None:
    model = model_of(name)
    leaves = torch.arange(1, 61)
    spokes = torch.stack([leaves, torch.zeros_like(leaves)])
    hub = {
        "x": torch.arange(61) % 7,
        "edge_index": torch.cat([spokes, spokes.flip(0)], dim=1),
        "edge_attr": torch.arange(120) % 4,
    }
    lonely = {**molecule(6, 9), "x": torch.arange(7)}
    bare = {**hub, "edge_index": torch.empty(2, 0).long(), "edge_attr": torch.empty(0).long()}
    graphs = [{k: v for k, v in g.items() if k != "target"} for g in (hub, lonely, bare)]
    encoded = [add.AddLaplacian(3)(as_pyg(graph)) for graph in graphs]
    graphs = [
        {**graph, "laplacian": data.laplacian, "laplacian_values": data.laplacian_values}
        for graph, data in zip(graphs, encoded, strict=True)
    ]
    together = pack(graphs)
    output = model(**{**read(model, together), "num_graphs": 4})  # the last has no nodes
    assert output.shape == (4, 3) and output.isfinite().all()
    for index, graph in enumerate(graphs):
        torch.testing.assert_close(output[index : index + 1], model(**read(model, pack([graph]))))
    output.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_learns_through_every_parameter(name: str) -> None:
    model = model_of(name).train()
    run(model, known(7, 12), known(9, 13)).square().sum().backward()
    unused = {n for n, p in model.named_parameters() if p.numel() and p.grad is None}
    assert not unused


@pytest.mark.parametrize("name", PRESETS)
def test_encodings_may_be_stored_with_the_graph(name: str) -> None:
    """What the transforms of `graph.encodings` store is what is computed where they did not."""
    sample = molecule(8, 3)
    sample.pop("target")
    data = as_pyg(sample)
    data.edge_attr = sample["edge_attr"]
    stored: dict[str, Tensor] = {}
    for transform, names in (
        (add.AddDegree(), ["degree"]),
        (add.AddRandomWalks(4), ["rwse"]),
        (add.AddLaplacian(3), ["laplacian", "laplacian_values"]),
        (add.AddHops(), ["hops"]),
        (add.AddRelativeWalks(5), ["rrwp"]),
        (add.AddPaths(2, types=4), ["path"]),
    ):
        data = transform(data)
        stored |= {name: data[name] for name in names}
    model = model_of(name)
    for unread in model.unread:
        with pytest.raises(ValueError, match=f"{unread} is given to a model that makes nothing"):
            model(**sample, **{unread: stored[unread]})
    stored = read(model, stored)
    with torch.no_grad():
        torch.testing.assert_close(model(**sample, **stored), model(**sample))
        changed = {key: value * 0 + 1 for key, value in stored.items()}
        uses_none = name in ("GAT", "GATv2", "Exphormer")
        assert torch.equal(model(**sample, **changed), model(**sample)) == uses_none


def test_places_in_the_spectrum_are_coordinates() -> None:
    model = GraphTransformer(**BLOCKS, num_classes=3, biases=[SpectralBias(4, 2)])
    (spectral_bias,) = (part for part in model.modules() if isinstance(part, SpectralBias))
    nn.init.normal_(spectral_bias.weight)
    sample = molecule(8, 3)
    sample.pop("target")
    spectral = add.AddSpectralCoordinates(2)(as_pyg(sample)).spectral
    here = model(**sample, spectral=spectral)
    torch.testing.assert_close(model(**sample, spectral=-spectral), here)
    assert (model(**sample, spectral=2 * spectral) - here).abs().max() > 1e-4


def test_exphormer_is_one_softmax_over_edges_of_three_kinds() -> None:
    model, one = model_of("Exphormer"), molecule(12, 1)
    one.pop("target")
    with record_attention(model) as maps:
        model(**one)
    random = expander_edges(Graph(one["edge_index"], 12).edges, 4)
    assert random.shape[1] > 0
    union = torch.zeros(13, 13, dtype=torch.bool)
    union[0] = union[:, 0] = True  # the virtual node stands in front
    for edges in (one["edge_index"], random):
        union[edges[1] + 1, edges[0] + 1] = True
    for weights in maps:
        assert ((weights[0] > 0) == union).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(1, 4, 13).double())


def test_edges_that_are_added_can_be_told_from_those_given() -> None:
    edge_index = molecule(12, 1)["edge_index"]
    count = edge_index.shape[1]
    new = expander_edges(Graph(edge_index, 12).edges, 4).shape[1]
    options: dict[str, Any] = {"mask": Edges(), "expander_degree": 4, "node_types": 7}

    def attr(given: Tensor | None, **kinds: Any) -> Tensor:
        model = GraphTransformer(8, 1, 2, num_classes=2, **kinds, **options)
        found = model.space(edge_index, 12, given).edge_attr
        assert found is not None and len(found) == count + new
        (bias,) = (part for part in model.modules() if isinstance(part, EdgeBias))
        assert len(bias.table) == (int(found.max()) + 1 if found.ndim == 1 else found.shape[1])
        return found

    assert attr(None).tolist() == [0] * count + [1] * new
    kinds = torch.arange(count) % 3
    assert attr(kinds, edge_types=3).tolist() == [*kinds.tolist(), *[3] * new]
    features = torch.rand(count, 2)
    found = attr(features, edge_features=2)
    assert torch.equal(found[:count, :2], features) and (found[:count, 2] == 0).all()
    assert (found[count:] == torch.tensor([0.0, 0, 1])).all()


def test_local_and_global_attention_are_torchs_side_by_side() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(8, 2, local=Edges()).double()
    peers = [nn.MultiheadAttention(8, 2, batch_first=True).double() for _ in range(2)]
    assert attention.local is not None
    with torch.no_grad():
        for peer, ours in zip(peers, (attention, attention.local), strict=True):
            peer.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
            peer.out_proj.weight.copy_(ours.out.weight)
    edges = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 3]])
    x = torch.randn(1, 5, 8).double()
    forbidden = torch.ones(5, 5, dtype=torch.bool)
    forbidden[edges[1], edges[0]] = False
    expected = sum(
        peer(x, x, x, attn_mask=mask)[0]
        for peer, mask in zip(peers, (None, forbidden), strict=True)
    )
    torch.testing.assert_close(attention(x, space=Graph(edges, 5)), expected)


def test_the_degree_scaler_counts_edges_in() -> None:
    from torch_geometric.utils import degree

    torch.manual_seed(0)
    attention = SelfAttention(8, 2, degree_scaler=True)
    edges = torch.tensor([[1, 2, 3, 3], [0, 0, 0, 4]])
    x, space = torch.randn(1, 6, 8), Graph(edges, 5, special=1)
    plain = attention(x, space=space)  # starts as attention alone
    assert attention.degree_scale is not None
    with torch.no_grad():
        attention.degree_scale[1] = torch.randn(8)
        log = torch.cat([torch.zeros(1), degree(edges[1], 5).log1p()])  # the virtual node has none
        expected = plain * (1 + attention.degree_scale[1] * log[:, None])
        torch.testing.assert_close(attention(x, space=space), expected)


def test_what_node_attention_refuses() -> None:
    x, space = torch.randn(1, 3, 8), Graph(torch.tensor([[0], [1]]), 3)
    attention = SelfAttention(8, 2)
    with pytest.raises(ValueError, match="score must be .* got 'cosine'"):
        SelfAttention(8, 2, score="cosine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no context"):
        attention(x, x, space=space)
    with pytest.raises(ValueError, match="space=Graph"):
        attention(x)
    with pytest.raises(TypeError, match="degree_scaler needs edges"):
        GraphEncoder(8, 1, 2, degree_scaler=True)(x)


FILES = ["graph_transformer", "gat", "graphormer", "gps", "grit", "exphormer"]


@pytest.mark.parametrize("name", FILES)
def test_every_model_file_trains(name: str, compose: Compose) -> None:  # noqa: F811
    config = compose("experiment=graph/mutag", f"model=graph/{name}", "model.dropout=0")["model"]
    torch.manual_seed(0)
    model = build(config)
    batch = pack([molecule(n, seed=n) for n in range(4, 16)])
    target = batch.pop("target")
    batch["x"] = torch.where(batch["x"] < 3, batch["x"], target[batch["batch"]])  # tells it, partly
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(25):
        loss = nn.functional.cross_entropy(model(**read(model, batch)), target)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert min(losses[-3:]) < 0.5 * losses[0]
