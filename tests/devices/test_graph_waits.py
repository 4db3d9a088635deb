"""What a step of layers and models over graphs costs beside its mathematics: waits and copies of a
step, none of a layer, and kernels.

Each step is of a new batch. What a model of depth 4 has more than one of depth 2 is its layers'.
Kernels are those of plain torch, which Triton's are fewer than.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from attention_core import Bias, EdgeBias, Edges, Encoder, Graph, Neighborhood, RelativeTable
from attention_core.backends.edges import pairs, ways
from attention_core.plan_cache import PLANS
from graph import GraphTransformer, HeteroGraphAttention
from graph.layers import GATConv, GATv2Conv, TransformerConv
from tests.devices.counting import CountingDevice, Counts

DIM, HEADS, F = 16, 4, 5
#: More kernels than in the table, as a share, where torch is another version.
SLACK = 0.1
SIZES = (10, 7, 0, 12)
NODES = sum(SIZES)


@pytest.fixture(autouse=True)
def _in_plain_torch(monkeypatch):
    """Kernels in Triton, where that is installed, would compute nothing on this device."""
    monkeypatch.setattr(ways, "_INSTALLED", False)


class Step(NamedTuple):
    """A batch of graphs on the device, as a loader that knows of no `Graph` gives it."""

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor
    batch: Tensor

    def graph(self, **options: Any) -> Graph:
        return Graph(self.edge_index, NODES, segments=self.batch, num_graphs=len(SIZES), **options)


def drawn(seed: int) -> Step:
    generator = torch.Generator().manual_seed(seed)

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    first, parts = 0, []
    for size in SIZES:
        if size:
            parts.append(integers(size, 2, 3 * size + seed) + first)
        first += size
    edge_index = torch.cat(parts, 1)
    features = torch.randn(edge_index.shape[1], F, generator=generator)
    batch = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    return Step(torch.randn(NODES, DIM, generator=generator), edge_index, features, batch)


class Layers(nn.Module):
    def __init__(self, kind: Any, depth: int) -> None:
        super().__init__()
        each = DIM // HEADS
        self.layers = nn.ModuleList(kind(DIM, each, HEADS, edge_dim=F) for _ in range(depth))

    def forward(self, x: Tensor, *edges: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, *edges)
        return x


class Typed(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        metadata = ["a"], [("a", "to", "a"), ("a", "from", "a")]
        self.layers = nn.ModuleList(
            HeteroGraphAttention(DIM, DIM, HEADS, metadata) for _ in range(depth)
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        edges = {("a", "to", "a"): edge_index, ("a", "from", "a"): edge_index.flip(0)}
        for layer in self.layers:
            x = layer({"a": x}, edges)["a"]
        return x


def layers(kind: Any) -> Callable[[int], nn.Module]:
    return lambda depth: Layers(kind, depth)


def encoder(bias: Callable[[], Bias] | None = None, **options: Any) -> Callable[[int], nn.Module]:
    return lambda depth: Encoder(
        DIM, depth, HEADS, bias=None if bias is None else bias(), **options
    )


def hops() -> Bias:
    return RelativeTable.hops(HEADS, 5)


def transformer(**options: Any) -> Callable[[int], nn.Module]:
    return lambda depth: GraphTransformer(
        DIM, depth, HEADS, **{"num_classes": 3, "node_features": DIM, **options}
    )


def convolve(model: nn.Module, device: CountingDevice, step: Step) -> Tensor:
    return model(step.x, step.edge_index, step.edge_attr)


def typed(model: nn.Module, device: CountingDevice, step: Step) -> Tensor:
    return model(step.x, step.edge_index)


def encode(
    model: nn.Module, device: CountingDevice, step: Step, backend: str | None = None
) -> Tensor:
    return model(step.x, step.graph(), backend=backend)


def with_features(model: nn.Module, device: CountingDevice, step: Step) -> Tensor:
    return model(step.x, step.graph(edge_attr=step.edge_attr))


def predict(
    model: nn.Module, device: CountingDevice, step: Step, backend: str | None = None
) -> Tensor:
    features = None if "edge_attr" in model.unread else step.edge_attr
    return model(step.x, step.edge_index, features, step.batch, len(SIZES), backend=backend)


def some_nodes(model: nn.Module, device: CountingDevice, step: Step) -> Tensor:
    asked = device.moved(torch.arange(NODES) % 10 == 0)
    return model(step.x, step.edge_index, None, step.batch, len(SIZES), node_mask=asked)


def from_the_host(
    model: nn.Module, device: CountingDevice, step: Step, backend: str | None = None
) -> Tensor:
    """As a worker of a loader makes it."""
    x, edge_index, *_ = drawn(int(step.edge_index.shape[1]))
    graphs, first = [], 0
    for size in SIZES:
        own = (edge_index[0] >= first) & (edge_index[0] < first + size)
        graphs.append(
            Data(x=x[first : first + size], edge_index=edge_index[:, own] - first, num_nodes=size)
        )
        first += size
    space = Graph.from_pyg(Batch.from_data_list(graphs))
    space.edges.sort()
    return model(step.x, pickle.loads(pickle.dumps(space)).to("cuda"), backend=backend)


#: The most that there may be: waits of a step, and its copies; kernels of a step and of a layer,
#: forward and backward.
Most = tuple[int, int, tuple[int, int], tuple[int, int]]
ALONG: dict[str, Any] = {"mask": Edges()}
SCENARIOS: dict[str, tuple[Callable[[int], nn.Module], Callable[..., Tensor], Most]] = {
    # It asks how many edges are no self-loops
    "GATConv": (layers(GATConv), convolve, (1, 0, (21, 43), (1, 62))),
    "GATv2Conv": (layers(GATv2Conv), convolve, (1, 0, (21, 42), (1, 84))),
    "TransformerConv": (layers(TransformerConv), convolve, (0, 0, (14, 76), (1, 129))),
    "HeteroGraphAttention": (Typed, typed, (0, 0, (16, 60), (1, 109))),
    "along edges": (encoder(**ALONG), encode, (0, 0, (14, 46), (4, 87))),
    "along edges, features": (
        encoder(lambda: EdgeBias(HEADS, features=F), **ALONG, edge_dim=F),
        with_features,
        (0, 0, (30, 82), (8, 147)),
    ),
    "along edges, from the host": (encoder(**ALONG), from_the_host, (0, 1, (1, 46), (4, 87))),
    # The graph goes to the host, and what was found there comes back
    "hops": (encoder(hops), partial(encode, backend="dense"), (1, 2, (55, 18), (10, 48))),
    "hops, from the host": (
        encoder(hops), partial(from_the_host, backend="dense"), (0, 2, (53, 18), (10, 48)),
    ),
    "hops along pairs": (
        encoder(hops), partial(encode, backend="edges"), (1, 3, (42, 47), (7, 91)),
    ),
    "within 2 hops": (
        encoder(mask=Neighborhood(2)),
        partial(encode, backend="edges"),
        (1, 2, (8, 46), (4, 87)),
    ),
    "within 2 hops, from the host": (
        encoder(mask=Neighborhood(2)),
        partial(from_the_host, backend="edges"),
        (0, 2, (6, 46), (4, 87)),
    ),
    "GAT": (transformer(**ALONG, score="additive"), predict, (0, 0, (30, 42), (17, 84))),
    "Graphormer": (
        transformer(max_hops=5, max_degree=8, virtual_nodes=1, pooling="class"),
        partial(predict, backend="dense"),
        (1, 2, (132, 18), (35, 48)),
    ),
    "GPS": (
        transformer(local=Edges(), edge_features=F, edge_dim=DIM),
        predict,
        (1, 1, (41, 97), (20, 198)),
    ),
    "Exphormer": (
        transformer(**ALONG, virtual_nodes=1, expander_degree=4),
        predict,
        (2, 4, (74, 47), (25, 91)),
    ),
}  # fmt: skip


def counted(
    make: Callable[[int], nn.Module], step: Callable[..., Tensor], depth: int
) -> tuple[Counts, Counts]:
    """Counts of a second step, forward and backward."""
    torch.manual_seed(0)
    with CountingDevice() as device:
        model = device.moved(make(depth))
        for seed in range(2):
            given = Step(*device.moved(tuple(drawn(seed))))
            PLANS.clear()  # of equal graphs of other tests
            with device.counting() as forward:
                out = step(model, device, given)
            with device.counting() as backward:
                out.sum().backward()
    return forward, backward


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_step(name):
    make, step, (waits, copies, *kernels) = SCENARIOS[name]
    shallow, deep = counted(make, step, 2), counted(make, step, 4)
    for of, two, four, (most, most_of_layer) in zip(
        ((waits, copies), (0, 0)), shallow, deep, kernels, strict=True
    ):
        assert two.totals[:2] == four.totals[:2], (two, four)  # a layer waits for nothing
        assert two.waits.total() <= of[0] and two.copies.total() <= of[1], two
        of_layer = (four.totals[2] - two.totals[2]) / 2
        assert of_layer <= most_of_layer * (1 + SLACK), four
        assert two.totals[2] <= (most + 2 * most_of_layer) * (1 + SLACK), two


def test_a_step_for_some_nodes():
    """Which they are, and what they depend on, is found on the host; lists of pairs are moved."""
    make = transformer(**ALONG, score="additive", level="node")
    for depth in (2, 4):
        forward, backward = counted(make, some_nodes, depth)
        assert forward.waits.total() <= 2 and forward.copies.total() <= 3 + depth, forward
        assert backward.totals[:2] == (0, 0), backward


def test_a_graph_that_is_known_costs_nothing_again():
    with CountingDevice() as device:
        step = Step(*device.moved(tuple(drawn(0))))
        for kind in (GATConv, GATv2Conv, TransformerConv):
            model = device.moved(Layers(kind, 2))
            convolve(model, device, step)
            with device.counting() as counts:
                known = convolve(model, device, step)
            assert counts.totals[:2] == (0, 0), counts
            assert not {"sort", "searchsorted"} & {what for what, _ in counts.kernels}
            with torch.no_grad():
                step.edge_index[0, 0] += 1  # a change in place is seen
            changed = convolve(model, device, step)
            assert not torch.equal(changed.inner, known.inner)
            fresh = step._replace(edge_index=step.edge_index.clone())
            torch.testing.assert_close(changed.inner, convolve(model, device, fresh).inner)
            with torch.no_grad():
                step.edge_index[0, 0] -= 1


def test_edges_without_a_version_are_not_waited_for_either():
    """Those that were made in inference mode, which tell of no change in place."""
    with CountingDevice() as device:
        known = Step(*device.moved(tuple(drawn(0))))
        for kind in (GATConv, GATv2Conv, TransformerConv):
            model = device.moved(Layers(kind, 2))
            with torch.no_grad():
                wanted = convolve(model, device, known)
                with torch.inference_mode():
                    step = known._replace(edge_index=known.edge_index.clone())
                assert step.edge_index.is_inference()
                with device.counting() as counts:
                    found = convolve(model, device, step)
            assert counts.totals[:2] == (0, 0), counts
            torch.testing.assert_close(found.inner, wanted.inner)


def test_types_of_edges_that_change_are_seen():
    """One tensor stays, another takes its neighbour's place in memory, or is changed in place."""
    kinds = [("a", "to", "a"), ("a", "from", "a")]
    with CountingDevice() as device:
        layer = device.moved(HeteroGraphAttention(DIM, DIM, HEADS, (["a"], kinds)))
        step = Step(*device.moved(tuple(drawn(0))))
        found = []
        other = step.edge_index.flip(0)
        for change in (0, 1, 2):
            if change == 1:
                other = step.edge_index.flip(0)
            if change:
                other[0] = (other[0] + change) % 5
            out = layer({"a": step.x}, dict(zip(kinds, (step.edge_index, other), strict=True)))["a"]
            given = [x.clone() for x in (step.edge_index, other)]
            wanted = layer({"a": step.x}, dict(zip(kinds, given, strict=True)))["a"]
            torch.testing.assert_close(out.inner, wanted.inner)
            found.append(out.inner)
        assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])


def test_chunks_of_gatv2_are_not_waited_for(monkeypatch):
    """In plain torch, where the features of pairs are made a chunk at a time."""
    from attention_core.backends.edges.pairs import Pairs
    from attention_core.backends.edges.scores import AdditiveV2Scores
    from attention_core.spaces.csr import CSR

    step, seen = drawn(0), []
    for chunk in (1 << 25, 4 * DIM * HEADS):
        monkeypatch.setattr(pairs, "_GPU_CHUNK", chunk)
        with CountingDevice() as device:
            x, edge_index, *_ = device.moved(tuple(step))
            csr = CSR(edge_index[1], edge_index[0], NODES, NODES)
            listed = Pairs(*csr.tensors, csr.item, NODES, *csr.transpose)
            heads = x.expand(HEADS, -1, -1)
            with device.counting() as counts:
                weight = heads[:, 0].clone()
                scores = AdditiveV2Scores(listed, heads, heads, None, weight, 0.2, None, None)
                gradients = scores.gradients(scores.values(), None)
            assert counts.totals[:2] == (0, 0), counts
            seen.append([g.inner for g in gradients if g is not None])
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", [name for name in SCENARIOS if not name.endswith("the host")])
def test_values_are_those_of_the_cpu(name):
    make, step, _ = SCENARIOS[name]
    torch.manual_seed(1)
    model, given = make(2), drawn(0)
    with CountingDevice() as device:
        wanted = step(model, device, given)
        found = step(device.moved(model), device, Step(*device.moved(tuple(given))))
        torch.testing.assert_close(found.inner, wanted, atol=1e-5, rtol=1e-4)
