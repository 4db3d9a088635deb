"""What heads attend to, as numbers."""

import networkx
import pytest
import torch
from torch import Tensor, nn

from attention_core import Bias, Edges, Neighborhood, record_attention
from attention_core.spaces import Pairs
from graph import GATConv, GraphTransformer
from graph.interpret import (
    attention_by_hops,
    attention_maps,
    attention_rollout,
    mean_attention_distance,
    pooling_attention,
)

#: A path with a branch, a ring, and two nodes without an edge: three graphs of one batch.
GRAPHS = [networkx.Graph([(0, 1), (1, 2), (2, 3), (1, 4)]), networkx.cycle_graph(5)]
GRAPHS.append(networkx.empty_graph(2))
UNION = networkx.disjoint_union_all(GRAPHS)
EDGES = torch.tensor(list(UNION.to_directed().edges)).T
BATCH = torch.tensor([0] * 5 + [1] * 5 + [2] * 2)
INPUTS = {"x": torch.arange(12) % 3, "edge_index": EDGES, "batch": BATCH, "num_graphs": 3}


class Near(Bias):
    """Each head a preference of its own for what is near."""

    def score(self, pairs: Pairs) -> Tensor:
        return -(pairs.head + 1.0) * pairs.distance.clamp(max=9)


def model(**options: object) -> GraphTransformer:
    torch.manual_seed(0)
    return GraphTransformer(8, 2, 2, num_classes=2, node_types=3, **options).eval()  # type: ignore[arg-type]


def even_shares(most: int) -> Tensor:
    """Of attention to all nodes of one's graph, counted with networkx: up to `most` hops, beyond,
    unconnected."""
    hops = dict(networkx.all_pairs_shortest_path_length(UNION))
    shares = torch.zeros(most + 3)
    for query in range(12):
        keys = (BATCH[query] == BATCH).nonzero().squeeze(-1).tolist()
        for key in keys:
            hop = hops[query].get(key)
            at = most + 2 if hop is None else min(hop, most + 1)
            shares[at] += 1 / len(keys) / 12
    return shares


def test_an_even_spread_is_that_of_networkx() -> None:
    profile = attention_by_hops(attention_maps(model(), INPUTS), most=2)
    assert profile.layers == ["layer 1", "layer 2"]
    assert profile.hops == ["0", "1", "2", "> 2", "unconnected"]
    torch.testing.assert_close(profile.even, even_shares(2).expand(2, 5))
    torch.testing.assert_close(profile.shares.sum(-1), torch.ones(2, 2))


def test_what_does_not_prefer_is_evenly_spread_and_what_does_is_not() -> None:
    even = model(biases=[Near()])
    for block in even.encoder.blocks:
        nn.init.zeros_(block.attention.query.weight)  # type: ignore[union-attr, arg-type]
        nn.init.zeros_(block.attention.query.bias)  # type: ignore[union-attr, arg-type]
    profile = attention_by_hops(attention_maps(even, INPUTS))
    hops = dict(networkx.all_pairs_shortest_path_length(UNION))
    for head in range(2):
        shares = torch.zeros(7)
        for query in range(12):
            keys = (BATCH[query] == BATCH).nonzero().squeeze(-1).tolist()
            apart = torch.tensor([float(hops[query].get(key, 9)) for key in keys])
            weights = (-(head + 1) * apart).softmax(0) / 12
            shares.index_add_(0, torch.tensor([hops[query].get(k, 6) for k in keys]), weights)
        columns = [*range(4), 6]  # the path is three hops long
        torch.testing.assert_close(profile.shares[0, head], shares[columns])
    assert profile.hops == ["0", "1", "2", "3", "unconnected"]


def test_virtual_nodes_masks_and_second_attentions() -> None:
    profile = attention_by_hops(attention_maps(model(local=Edges(), virtual_nodes=2), INPUTS))
    assert profile.layers == ["layer 1", "layer 1, local", "layer 2", "layer 2, local"]
    assert profile.hops[-2:] == ["unconnected", "virtual node"]
    local = profile.even[1]
    # two virtual nodes and one's neighbours, of which there are 1, 3, 2, 1, 1; 2 on a ring; none
    one_hop = sum(n / (n + 2) for n in (1, 3, 2, 1, 1, 2, 2, 2, 2, 2, 0, 0)) / 12
    torch.testing.assert_close(local[[1, -1]], torch.tensor([one_hop, 1 - one_hop]))
    assert (local[[0, 2, 3, 4]] == 0).all()
    near = attention_by_hops(attention_maps(model(mask=[Neighborhood(1), None]), INPUTS))
    assert (near.shares[0, :, 2:] == 0).all()
    assert (near.shares[1, :, 2:] > 0).all()


def test_attention_between_some_nodes() -> None:
    one = model(virtual_nodes=1, pooling="attention")
    layers = attention_maps(one, INPUTS)
    assert [layer.name for layer in layers] == ["layer 1", "layer 2"]  # and not the pooling
    nodes = torch.tensor([7, 5, 2])
    dense = layers[1].pairs.dense()[0]
    token = torch.tensor([9, 7, 3])  # one virtual node in front of each graph's
    weights, even = layers[1].between(nodes, head=1)
    torch.testing.assert_close(weights, dense[1][token][:, token])
    assert torch.equal(even > 0, torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool())
    torch.testing.assert_close(even[even > 0], torch.full((5,), 1 / 6))
    mean, _ = layers[1].between(nodes)
    torch.testing.assert_close(mean, dense.mean(0)[token][:, token])


class Plain(nn.Module):
    """Layers called as PyG's are, outside of any encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = GATConv(4, 4, heads=3), GATConv(12, 4)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x, edge_index), edge_index)
        return out


def test_layers_of_pyg_style_are_seen() -> None:
    inputs = {"x": torch.randn(12, 4), "edge_index": EDGES}
    profile = attention_by_hops(attention_maps(Plain().eval(), inputs))
    assert profile.layers == ["first", "second"]
    assert profile.hops == ["0", "1"]  # with self-loops
    assert profile.shares.shape == (2, 3, 2)
    assert profile.shares[1, 1:].isnan().all()  # it has one head
    torch.testing.assert_close(profile.shares[0].sum(-1), torch.ones(3))


def test_what_cannot_be_seen() -> None:
    with pytest.raises(ValueError, match="eval mode"):
        attention_maps(model().train(), INPUTS)
    with pytest.raises(ValueError, match="no layer of Linear attends between nodes"):
        attention_maps(nn.Linear(2, 2).eval(), {"input": torch.zeros(1, 2)})
    with pytest.raises(ValueError, match="there are 2 heads, no head 2"):
        attention_maps(model(), INPUTS)[0].between(torch.tensor([0]), head=2)


# ------------------------------------------------------------------------------- what is pooled


def tokens_of(graph: int, virtual: int) -> Tensor:
    """Places of its tokens in a row where each graph's virtual nodes stand in front."""
    sizes = [5, 5, 2]
    start = sum(sizes[:graph]) + virtual * graph
    return torch.arange(start, start + virtual + sizes[graph])


@pytest.mark.parametrize("pooling", ["mean", "max", "class", "special", "attention", "map"])
def test_pooled_attention_and_rollout_of_each_graph_alone(pooling: str) -> None:
    virtual = 2
    one = model(virtual_nodes=virtual, pooling=pooling)
    with record_attention(one) as maps, torch.no_grad():
        one(**INPUTS)
    layers = [weights[0] for weights in maps][:2]
    pooled, rolled = pooling_attention(one, INPUTS), attention_rollout(one, INPUTS)
    assert pooled.shape == (2, 12) and rolled.shape == (12,)
    for graph in range(3):
        at, nodes = tokens_of(graph, virtual), graph == BATCH
        first, last = (layer[:, at][:, :, at] for layer in layers)
        length = len(at)
        row = torch.zeros(length)
        if pooling in ("attention", "map"):
            of_nodes = maps[2][0][:, graph][:, nodes]
            torch.testing.assert_close(pooled[:, nodes], of_nodes)
            row[virtual:] = of_nodes.mean(0)
        else:
            place = {"class": slice(1), "special": slice(virtual)}.get(
                pooling, slice(virtual, None)
            )
            row[place] = 1 / len(row[place])
            expected = torch.einsum("q,hqk->hk", row, last)
            torch.testing.assert_close(pooled[:, nodes], expected[:, virtual:])
        for layer in (last, first):
            row = row @ (0.5 * layer.mean(0) + 0.5 * torch.eye(length))
        torch.testing.assert_close(rolled[nodes], row[virtual:])


def test_how_far_heads_look_in_hops() -> None:
    one = model(virtual_nodes=1)
    profile = attention_by_hops(attention_maps(one, INPUTS), most=9)
    connected = [n for n, name in enumerate(profile.hops) if name.isdigit()]
    shares = profile.shares[..., connected]
    hops = torch.tensor([float(profile.hops[n]) for n in connected])
    expected = (shares * hops).sum(-1) / shares.sum(-1)
    torch.testing.assert_close(mean_attention_distance(one, INPUTS), expected)


def test_layers_and_heads_asked_for() -> None:
    whole = attention_maps(model(), INPUTS)
    (last, first) = attention_maps(model(), INPUTS, layers=[-1, 0], heads=[1])
    assert (last.name, first.name) == ("layer 2", "layer 1") and last.heads == [1]
    torch.testing.assert_close(last.pairs.values, whole[1].pairs.values[:, 1:])
    with pytest.raises(ValueError, match="there are 2 layers, no layer 2"):
        attention_maps(model(), INPUTS, layers=[2])
    for wrong, message in (
        (model(level="node"), "must pool graphs, level='graph', got level='node'"),
        (model(local=Edges()), "one attention for each layer, but 2 layers have 4"),
    ):
        with pytest.raises(ValueError, match=message):
            attention_rollout(wrong, INPUTS)
    with pytest.raises(TypeError, match="must be a GraphTransformer, which pools, got Plain"):
        pooling_attention(Plain().eval(), INPUTS)  # type: ignore[arg-type]
