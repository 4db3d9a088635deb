"""What the `edges` backend allocates, keeps and does once; and that it compiles whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_core import (
    Additive,
    AdditiveV2,
    Bias,
    EdgeBias,
    EdgeProjection,
    Edges,
    Graph,
    MultiheadAttention,
    Plan,
    Score,
    attend,
    plan,
)
from attention_core.backends.edges import (
    features as edges_features,
    pair_scores as edges_pair_scores,
    pairs as edges_pairs,
    plain,
)
from attention_core.backends.fast import SWITCH
from attention_core.edge_projection import tensors_of
from attention_core.spaces import edge_list
from tests.allocated import Allocated

N, E, H, D = 2000, 40_000, 4, 16
FEATURES = 8


def graph() -> Graph:
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(N, (2, E), generator=generator)
    return Graph(edge_index, N, edge_attr=torch.randint(3, (E,), generator=generator))


class Product(Score):
    def forward(self, query: Tensor, key: Tensor, head: Tensor) -> Tensor:
        return (query * key).sum(-1)


@pytest.mark.parametrize("edge_features", [None, "tensor", "projection"])
@pytest.mark.parametrize("score", [None, Additive(H, D, edge=True), AdditiveV2(H, D), Product()])
def test_no_features_of_pairs_are_made_or_kept(
    score: Score | None, edge_features: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of E·H·D numbers would show; what is kept is of the size of q, k and v.

    Given features of edges are kept as they are, and nothing is larger than their gradient: of
    those with a projection there is nothing for each edge and head. The operators look inside
    themselves under this mode only where it is entered there too.
    """
    monkeypatch.setenv(SWITCH, "0")  # kernels allocate nothing inside
    for module in (edges_pairs, edges_pair_scores, edges_features):
        monkeypatch.setattr(module, "_CHUNK", 1 << 16)
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    given: dict[str, Any] = {}
    if edge_features == "tensor":
        given = {n: torch.randn(E, H, D, requires_grad=True) for n in ("edge_key", "edge_value")}
    elif edge_features == "projection":
        attr = torch.randn(E, FEATURES, requires_grad=True)
        of_key, of_value = torch.randn(2, H, D, FEATURES, requires_grad=True).unbind()
        given = {
            "edge_key": EdgeProjection(attr, of_key),
            "edge_value": EdgeProjection(attr, of_value),
        }
    edges = tensors_of(*given.values())
    mode = Allocated(*edges)

    def watched(function: Any) -> Any:
        def call(*args: Any) -> Any:
            with mode:
                return function(*args)

        return call

    for name in ("forward", "backward"):
        monkeypatch.setattr(plain, name, watched(getattr(plain, name)))
    q, k, v = (torch.randn(1, H, N, D, requires_grad=True) for _ in range(3))
    space = graph()
    with mode, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = attend(q, k, v, space=space, mask=Edges(), score=score, backend="edges", **given)
    per_pair, features = 4 * E * H, 4 * E * H * D
    assert per_pair // H <= mode.largest <= features / 4
    for x in edges:
        kept.pop(x.data_ptr(), None)
    with mode:
        out.sum().backward()
    assert mode.largest <= (features if edge_features == "tensor" else features / 4)
    scores = 3 * per_pair if type(score) is Product else 0  # autograd's, of the composed softmax
    tokens, structure = 4 * N * H * D, 7 * 4 * E
    sums = 2 * 4 * N * H * FEATURES if edge_features == "projection" else 0  # and queries of them
    assert sum(kept.values()) <= 5 * tokens + structure + scores + sums + 10_000


def test_a_graph_is_sorted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For two layers, two forward passes and all their plans."""
    made = []

    class Counted(edge_list.CSR):
        def __init__(self, *args: Any) -> None:
            made.append(args)
            super().__init__(*args)

    monkeypatch.setattr(edge_list, "CSR", Counted)
    sorts = []
    sort = Tensor.sort
    monkeypatch.setattr(Tensor, "sort", lambda *a, **k: (sorts.append(a), sort(*a, **k))[1])
    space, bias = graph(), EdgeBias(H, types=3)
    layers = [MultiheadAttention(8, H, bias=bias), MultiheadAttention(8, H, kv_heads=2)]
    x = torch.randn(N, 8)
    for _ in range(2):
        for layer in layers:
            x = layer(x, space=space, mask=Edges(), backend="edges")
        x.sum().backward()
        x = x.detach()
    assert len(made) == 1 and len(sorts) == 2  # by query, and for gradients by key


@pytest.mark.slow
@pytest.mark.parametrize("edge_dim", [None, 1])
@pytest.mark.parametrize("score", [None, Additive(H, D, edge=True), AdditiveV2(H, D)])
def test_a_compiled_model_is_one_graph(score: Score | None, edge_dim: int | None) -> None:
    """With its plan made outside: `fullgraph` raises at any break. Gradients too."""
    torch._dynamo.reset()
    space = graph()
    bias: Bias = EdgeBias(H, types=3)
    if edge_dim is not None:
        space.edges.attr = space.edges.attr[:, None].float()
        bias = EdgeBias(H, features=1)
    layer = MultiheadAttention(
        32, H, head_dim=D, kv_heads=2, edge_dim=edge_dim, score=score, bias=bias
    )
    x = torch.randn(1, N, 32)
    made = layer.plan(x, space, Edges(), backend="edges")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, plan: Plan) -> Tensor:
            return self.layer(x, plan=plan)

    compiled = torch.compile(Model(), backend="aot_eager", fullgraph=True)
    results = []
    for model in (Model(), compiled):
        layer.zero_grad()
        out = model(x, made.renewed())  # a plan remembers the bias of its forward pass
        out.square().mean().backward()
        results.append([out, *(p.grad for p in layer.parameters())])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("score", [None, Additive(H, D), AdditiveV2(H, D)])
def test_a_gpu_gives_what_the_cpu_gives(score: Score | None) -> None:
    results = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        q, k, v = (torch.randn(1, h, N, D, dtype=torch.float64) for h in (H, 2, 2))
        leaves = [x.to(device).requires_grad_() for x in (q, k, v)]
        made = plan(
            graph().to(device), Edges(), score=score, heads=H, device=device, backend="edges"
        )
        score = None if score is None else score.double().to(device)
        out = attend(*leaves, score=score, plan=made)
        out.square().sum().backward()
        results.append([out.cpu(), *(x.grad.cpu() for x in leaves)])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
