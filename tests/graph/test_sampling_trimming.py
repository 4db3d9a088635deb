"""Layers that compute what seeds need, against all nodes: outputs, gradients, and how much work."""

from typing import Any

import pytest
import torch
import torch_geometric.nn
from torch import Tensor, nn

from attention_core import Decoder, Edges, Encoder, Neighborhood, Points, record_attention
from graph import GATConv, GATv2Conv, GraphTransformer, HeteroGraphAttention, TransformerConv
from graph.encodings import RandomWalkBias
from graph.sampling import trim_to_seeds
from tests.graph.graphs import first, random_graph
from tests.graph.test_sampling_types import shop

CONVS: dict[str, Any] = {
    "GAT": lambda d: GATConv(d, 4, heads=2, edge_dim=2),
    "GAT without loops": lambda d: GATConv(d, 4, heads=2, edge_dim=2, add_self_loops=False),
    "GATv2": lambda d: GATv2Conv(d, 4, heads=2, edge_dim=2, residual=True),
    "transformer": lambda d: TransformerConv(d, 4, heads=2, edge_dim=2, beta=True),
    "PyG's": lambda d: torch_geometric.nn.GATv2Conv(d, 4, heads=2, edge_dim=2),
}
SEEDS = {"the first": 5, "a mask": torch.arange(60) % 9 == 2, "named": torch.tensor([40, 3, 59])}


def same(whole: Tensor, found: Tensor, *learned: Tensor) -> None:
    """Also of the gradients of something that weighs all outputs differently."""
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(whole)
    grads = [
        torch.autograd.grad((out * weights).sum(), learned, allow_unused=True)
        for out in (whole, found)
    ]
    for a, b in zip(*grads, strict=True):
        if a is not None or b is not None:
            torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("depth", [1, 3])
def test_a_stack_gives_seeds_what_the_whole_graph_does(name: str, seeds: str, depth: int) -> None:
    torch.manual_seed(0)
    data, wanted = random_graph(edges=150), SEEDS[seeds]
    convs = nn.ModuleList(CONVS[name](4 if layer == 0 else 8) for layer in range(depth))
    x, edge_attr = data.x.requires_grad_(), data.edge_attr.requires_grad_()
    whole = x
    for conv in convs:
        whole = conv(whole, data.edge_index, edge_attr).tanh()
    trimmed = trim_to_seeds(data.edge_index, len(x), wanted, num_layers=depth)
    found = x[trimmed.node]
    rows = []
    for conv, layer in zip(convs, trimmed.layers, strict=True):
        assert layer.num_sources == len(found)
        rows.append(layer.num_targets)
        found = (found, found[: layer.num_targets])
        found = conv(found, layer.edge_index, edge_attr[layer.edge]).tanh()
    assert rows == sorted(rows, reverse=True) and rows[-1] == len(found) < 10
    whole = whole[:wanted] if isinstance(wanted, int) else whole[wanted]
    same(whole, found, x, edge_attr, *convs.parameters())


def test_a_drawn_batch_is_not_copied() -> None:
    torch.manual_seed(0)
    batch = first(random_graph(400, 1600), [3, 3])
    trimmed = trim_to_seeds(batch.edge_index, len(batch.x), batch.batch_size, num_layers=2)
    sizes = torch.tensor(batch.num_sampled_nodes).cumsum(0).tolist()
    assert trimmed.node == slice(0, sizes[2])
    counts = [(layer.num_sources, layer.num_targets) for layer in trimmed.layers]
    assert counts == [(sizes[2], sizes[1]), (sizes[1], sizes[0])]
    for layer in trimmed.layers:
        assert isinstance(layer.edge, slice)
        assert layer.edge_index.data_ptr() == batch.edge_index.data_ptr()


@pytest.mark.parametrize("drawn", [False, True])
def test_types_of_nodes_and_edges(drawn: bool) -> None:
    torch.manual_seed(0)
    data = shop()
    data["shop"].x = torch.randn(4, 2)
    seeds: Any = {"item": torch.tensor([7, 2])}
    if drawn:
        data = first(data, [2, 2], ("item", torch.tensor([7, 2])))
        seeds = {"item": data["item"].batch_size}
    x, edges, attr = (getattr(data, f"{name}_dict") for name in ("x", "edge_index", "edge_attr"))
    sizes = {t: nodes.shape[1] for t, nodes in x.items()}
    for nodes in x.values():
        nodes.requires_grad_()
    # A type to which no edge leads has an output in no layer, so it is read by the first alone
    convs = [
        HeteroGraphAttention(sizes, 8, 2, data.metadata(), edge_dim=2),
        HeteroGraphAttention(
            8, 8, 2, (["user", "item"], [e for e in edges if e[0] != "shop"]), edge_dim=2
        ),
    ]
    whole = x
    counts = {t: len(nodes) for t, nodes in x.items()}
    trimmed = trim_to_seeds(edges, counts, seeds, num_layers=2)
    found = {t: nodes[trimmed.node[t]] for t, nodes in x.items()}
    for conv, layer in zip(convs, trimmed.layers, strict=True):
        kinds = conv.edge_types
        whole = conv(whole, {e: edges[e] for e in kinds}, {e: attr[e] for e in kinds})
        found = conv(
            found,
            {e: layer.edge_index[e] for e in kinds},
            {e: attr[e][layer.edge[e]] for e in kinds},
            num_targets={t: layer.num_targets[t] for t in found},
        )
    at = slice(0, seeds["item"]) if drawn else seeds["item"]
    assert len(found["item"]) == 2
    learned = [*x.values(), *(p for conv in convs for p in conv.parameters())]
    same(whole["item"][at], found["item"], *learned)
    with pytest.raises(ValueError, match=r"num_targets\['item'\]=99, but x_dict has"):
        convs[0](x, edges, attr, num_targets={"item": 99})


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        (61, "seeds must be at most the 60 nodes that there are, got 61"),
        (torch.ones(4, dtype=torch.bool), r"seeds must be a mask of the 60 nodes, got \(4,\)"),
        (torch.tensor([1, 1]), "seeds names a node more than once"),
        (torch.tensor([60]), "seeds names node 60, but there are 60"),
    ],
)
def test_wrong_seeds_are_told(seeds: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        trim_to_seeds(random_graph().edge_index, 60, seeds, num_layers=2)


MODELS: dict[str, tuple[int, dict[str, Any], list[int | None]]] = {
    # depth, options, and how many nodes each layer computes: None for all
    "edges": (3, {"mask": Edges()}, [-1, -1, 5]),
    "one hop": (2, {"mask": Neighborhood(1)}, [-1, 5]),
    "two hops": (2, {"mask": Neighborhood(2)}, [-1, 5]),
    "tokens of edges": (2, {"mask": Edges(), "edge_features": 2, "edge_dim": 3}, [-1, 5]),
    "scores of edges": (2, {"mask": Edges(), "edge_features": 2, "max_hops": 2}, [-1, 5]),
    "GATv2, post": (2, {"mask": Edges(), "score": "additive_v2", "norm_order": "post"}, [-1, 5]),
    "local below global": (2, {"mask": [Edges(), None]}, [None, 5]),
    "global below local": (3, {"mask": [None, Edges(), Edges()]}, [-1, -1, 5]),
    "both in one": (2, {"local": Edges(), "degree_scaler": True, "edge_features": 2}, [None, 5]),
    "a virtual node": (3, {"mask": Edges(), "virtual_nodes": 1}, [None, -1, 5]),
    "tables": (2, {"mask": Edges(), "biases": [RandomWalkBias(2, 3)], "walk_steps": 3}, [-1, 5]),
    "shared blocks": (2, {"mask": Edges(), "num_groups": 1, "layer_scale": 0.1}, [-1, 5]),
}


def transformer(name: str, **more: Any) -> tuple[GraphTransformer, list[int]]:
    """A model, and how many tokens its layers compute."""
    depth, options, _ = MODELS[name]
    more = {"num_classes": 3, "level": "node", **more}
    model = GraphTransformer(8, depth, 2, node_features=4, **options, **more).eval()
    rows: list[int] = []
    for block in model.encoder.blocks:
        block.feed_forward.register_forward_hook(lambda _, inputs, out: rows.append(out.shape[-2]))
    return model, rows


@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_what_the_nodes_in_question_need(name: str) -> None:
    torch.manual_seed(0)
    # Each edge but once, as only the mask `Edges()` tells repeated ones apart
    data = random_graph(edges=120)
    edge_index = data.edge_index.unique(dim=1)
    edge_attr = data.edge_attr[: edge_index.shape[1]]
    model, rows = transformer(name)
    with_attr = "edge_features" in MODELS[name][1]
    x, edge_attr = data.x.requires_grad_(), edge_attr.requires_grad_()
    inputs = x, edge_index, edge_attr if with_attr else None
    mask = torch.zeros(60, dtype=torch.bool)
    mask[[3, 17, 18, 40, 59]] = True
    whole, every = model(*inputs)[mask], list(rows)
    rows.clear()
    found = model(*inputs, node_mask=mask)
    for got, some, total in zip(rows, MODELS[name][2], every, strict=True):
        assert got == some or (some is None and got == total) or (some == -1 and 5 < got < total)
    same(whole, found, x, edge_attr, *model.parameters())


@pytest.mark.parametrize("level", ["edge", "link"])
def test_pairs_need_their_ends(level: Any) -> None:
    torch.manual_seed(0)
    data, pairs = random_graph(edges=120), torch.tensor([[3, 50, 3], [17, 3, 59]])
    edge_index = data.edge_index.unique(dim=1)
    edge_attr = data.edge_attr[: edge_index.shape[1]]
    classes = None if level == "link" else 3
    model, rows = transformer("tokens of edges", level=level, num_classes=classes)
    found = model(data.x, edge_index, edge_attr, edge_label_index=pairs)
    assert rows[-1] == 4 and rows[0] < 60
    tokens, space = model.encode(data.x, edge_index, edge_attr)
    if level == "link":
        whole = model.head(tokens, pairs)
    else:
        whole = model.head(tokens, *model._pairs(space, edge_index, pairs))
    same(whole, found, *model.parameters())


def test_maps_and_features_stay_whole() -> None:
    torch.manual_seed(0)
    data, mask = random_graph(), torch.arange(60) < 5
    model, rows = transformer("edges")
    with record_attention(model) as recorded, torch.no_grad():
        seen = model(data.x, data.edge_index, node_mask=mask)
    assert rows == [60, 60, 60]
    assert [one.shape[-2:] for one in recorded] == [(60, 60)] * 3
    torch.testing.assert_close(seen, model(data.x, data.edge_index, node_mask=mask))
    assert [len(x) for x in model.features(data.x, data.edge_index, layers=[0, 2])] == [60, 60]


def test_nobody_and_everybody_in_question() -> None:
    torch.manual_seed(0)
    data = random_graph()
    model, rows = transformer("edges")
    whole = model(data.x, data.edge_index)
    for mask in (torch.zeros(60, dtype=torch.bool), torch.arange(60) > 0):
        found = model(data.x, data.edge_index, node_mask=mask)
        torch.testing.assert_close(found, whole[mask])
        found.sum().backward()
    assert rows == [60] * 9


@pytest.mark.parametrize("keep", [torch.tensor([1, 1]), torch.tensor([60]), torch.ones(2)])
def test_wrong_positions_are_told(keep: Tensor) -> None:
    model, _ = transformer("edges")
    tokens, space = model.embed(torch.randn(60, 4), random_graph().edge_index)
    with pytest.raises(ValueError, match="keep must hold"):
        model.encoder(tokens, space, keep=keep)


def test_a_batch_of_samples_keeps_the_same_positions() -> None:
    torch.manual_seed(0)
    encoder = Encoder(8, 2, 2, mask=[Neighborhood(0.5), None]).eval()
    x, points = torch.randn(3, 12, 8), Points(torch.rand(3, 12, 2))
    keep = torch.tensor([7, 0])
    same(encoder(x, points)[:, keep], encoder(x, points, keep=keep), *encoder.parameters())
    causal = Decoder(8, 2, 2).eval()
    same(causal(x)[:, keep], causal(x, keep=keep), *causal.parameters())
    cached = causal(x, cache=causal.new_cache(), keep=keep)
    torch.testing.assert_close(cached, causal(x)[:, keep], atol=1e-5, rtol=1e-5)
