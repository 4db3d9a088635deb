"""Rules 2 and 14: a query without keys gives zeros, and so do empty spaces; never NaN."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_core import (
    ALiBi,
    Bias,
    Causal,
    Decoder,
    DenseBias,
    DenseMask,
    Edges,
    Encoder,
    Graph,
    Grid,
    Mask,
    MultiheadAttention,
    Neighborhood,
    Points,
    PrefixLM,
    RelativeTable,
    Rotary,
    Sequence,
    Space,
    attend,
    pool,
)
from attention_core.layers.pooling import Pooling
from tests.conformance.cases import BACKENDS, ONE_GRAPH, REFUSALS, TWICE, can, graph

H = 2


def _forbidding() -> DenseBias:
    bias = torch.zeros(5, 5)
    bias[1], bias[3] = -torch.inf, -torch.inf
    return DenseBias(bias.requires_grad_())


def _rows_off() -> DenseMask:
    allowed = torch.ones(5, 5, dtype=torch.bool)
    allowed[1], allowed[3] = False, False
    return DenseMask(allowed)


def _heads_off() -> DenseMask:
    return DenseMask(torch.tensor([False, True])[None, :, None, None].expand(1, 2, 5, 5))


#: space, mask, bias, and which queries have no key: (B or 1, H or 1, Lq)
EMPTY: dict[str, tuple[Space, Mask | None, Bias | None, Any]] = {
    "mask": (Sequence(5), _rows_off(), None, [[[0, 1, 0, 1, 0]]]),
    "mask-of-a-head": (Sequence(5), _heads_off(), None, [[[1] * 5, [0] * 5]]),
    "contradiction": (Sequence(5), Causal() & ~Causal(), ALiBi(H), [[[1] * 5]]),
    "bias": (Sequence(5), None, _forbidding(), [[[0, 1, 0, 1, 0]]]),
    "mask-and-bias": (Sequence(5), ~_rows_off(), _forbidding(), [[[1] * 5]]),
    "causal-and-bias": (Sequence(5), Causal(), _forbidding(), [[[0, 1, 0, 1, 0]]]),
    "padding": (Sequence.padded([5, 2, 0]), None, None, [[[0] * 5], [[0, 0, 1, 1, 1]], [[1] * 5]]),
    "padding-left": (
        Sequence.padded([5, 2, 0], side="left"), Causal(), RelativeTable.t5(H),
        [[[0] * 5], [[1, 1, 1, 0, 0]], [[1] * 5]],
    ),
    "isolated": (graph(ONE_GRAPH, 7), Edges(), None, [[[0, 0, 0, 0, 0, 1, 1]]]),
    "unconnected": (graph(ONE_GRAPH, 7), ~Neighborhood(0), ALiBi(H), [[[0, 0, 0, 0, 0, 1, 1]]]),
    "far-points": (
        Points(torch.tensor([[0.0], [1.0], [9.0]])), Neighborhood(2) & ~Neighborhood(0), None,
        [[[0, 0, 1]]],
    ),
    "packed": (
        Sequence.packed([1, 3, 1]), ~Neighborhood(0), RelativeTable.hops(H, 2), [[[1, 0, 0, 0, 1]]]
    ),
}  # fmt: skip

MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "weights": {"return_weights": True},
    "lse": {"return_lse": True},
    "dropout": {"dropout_p": 0.4},
    "dropout-weights": {"dropout_p": 0.4, "return_weights": True, "return_lse": True},
    "sink": {"sink": torch.tensor([0.5, -1.0]), "return_weights": True, "return_lse": True},
    "closed-sink": {"sink": torch.tensor([-torch.inf, 0.0]), "return_lse": True},
    "softcap": {"softcap": 2.0, "return_weights": True},
}

MODES_OF = [(b, m) for b in BACKENDS for m in MODES if (b, m) not in REFUSALS]


def _tensors(space: Space, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    batch, length = space.batch or 1, space.length
    shapes = (batch, H, length, 8), (batch, 1, length, 8), (batch, 1, length, 8)
    return [torch.randn(s).to(dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize(("backend", "mode"), MODES_OF)
@pytest.mark.parametrize("case", EMPTY)
def test_a_query_without_keys(case: str, backend: str, mode: str, dtype: str) -> None:
    """Rule 2: output 0, weights 0, lse -inf, gradient 0."""
    space, mask, bias, rows = EMPTY[case]
    autocast = dtype == "autocast"
    q, k, v = _tensors(space, torch.float32 if autocast else getattr(torch, dtype))
    empty = torch.tensor(rows, dtype=torch.bool).expand(len(q), H, space.length)
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        result = attend(q, k, v, space=space, mask=mask, bias=bias, backend=backend, **MODES[mode])
    out, *rest = result if isinstance(result, tuple) else (result,)
    assert (out[empty] == 0).all() and out.isfinite().all()
    assert mode.startswith("dropout") or (out[~empty] != 0).any(-1).all()
    if MODES[mode].get("return_weights"):
        weights = rest.pop(0)
        assert (weights[empty] == 0).all() and weights.isfinite().all()
    if MODES[mode].get("return_lse"):
        lse = rest.pop(0)
        assert (lse[empty] == -torch.inf).all() and lse[~empty].isfinite().all()
    learned = [] if bias is None else [p for p in bias.parameters() if p.requires_grad]
    if isinstance(bias, DenseBias):
        learned = [bias.tensor]
    every = torch.autograd.grad(
        out.float().square().sum(), [q, k, v, *learned], retain_graph=True, allow_unused=True
    )
    assert all(g is None or g.isfinite().all() for g in every)
    assert every[0] is not None and (every[0][empty] == 0).all()
    # What an empty row says about its zero output reaches no one
    of_empty = torch.autograd.grad(out[empty].sum(), [q, k, v, *learned], allow_unused=True)
    assert all(g is None or (g == 0).all() for g in of_empty)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", EMPTY)
def test_the_log_sum_exp_has_a_gradient_where_it_is_finite(case: str, backend: str) -> None:
    """Rule 2 for those who train on the log-sum-exp: no NaN comes back from -inf."""
    space, mask, bias, rows = EMPTY[case]
    q, k, v = _tensors(space, torch.float64)
    empty = torch.tensor(rows, dtype=torch.bool).expand(len(q), H, space.length)
    _, lse = attend(q, k, v, space=space, mask=mask, bias=bias, backend=backend, return_lse=True)
    gradients = torch.autograd.grad(lse.masked_fill(empty, 0).sum(), (q, k))
    assert all(g.isfinite().all() for g in gradients) and (gradients[0][empty] == 0).all()


def nobody() -> dict[str, Space]:
    no_edges = torch.zeros(2, 0, dtype=torch.long)
    return {
        "space": Space(0),
        "sequence": Sequence(0),
        "padded": Sequence.padded([0, 0]),
        "padded-nobody": Sequence.padded([]),
        "packed": Sequence.packed([0, 0]),
        "packed-nobody": Sequence.packed([]),
        "grid": Grid(0, 3),
        "packed-grids": Grid.packed([(0, 2), (2, 0)]),
        "graph": Graph(no_edges, 0),
        "graphs": Graph(no_edges, 0, segments=no_edges[0], num_graphs=2),
        "points": Points(torch.zeros(0, 2)),
        "packed-points": Points(torch.zeros(0, 2), segments=no_edges[0]),
        "kept": Sequence(4).keep(torch.zeros(0, dtype=torch.long)),
        "kept-each": Sequence(4).keep(torch.zeros(2, 0, dtype=torch.long)),
    }


def _positional(space: Space) -> list[tuple[Mask | None, Bias | None]]:
    found: list[tuple[Mask | None, Bias | None]] = [
        (None, None),
        (DenseMask(torch.ones(0, 0, dtype=torch.bool)), DenseBias(torch.zeros(0, 0))),
    ]
    if type(space) is not Space:
        found += [(Neighborhood(1), ALiBi(H)), (~Neighborhood(1), None)]
    if space.ordered:
        found += [(Causal(), RelativeTable.hops(H, 2)), (Causal() | Neighborhood(1), None)]
    if isinstance(space, Graph):
        found += [(Edges(), RelativeTable.hops(H, 2))]
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", nobody())
def test_a_space_of_nobody(name: str, backend: str) -> None:
    """Rule 14: no queries and no keys."""
    space = nobody()[name]
    batch = 2 if space.batch is None else space.batch
    for mask, bias in _positional(space):
        q, k = (torch.zeros(batch, H, 0, 4, requires_grad=True) for _ in range(2))
        v = torch.zeros(batch, H, 0, 3, requires_grad=True)
        out, weights, lse = attend(
            q, k, v, space=space, mask=mask, bias=bias, backend=backend,
            return_weights=True, return_lse=True,
        )  # fmt: skip
        assert out.shape == (batch, H, 0, 3)
        assert weights.shape == (batch, H, 0, 0) and lse.shape == (batch, H, 0)
        assert all(g.numel() == 0 for g in torch.autograd.grad(out.sum(), (q, k, v)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sink", [False, True], ids=["", "sink"])
@pytest.mark.parametrize(("mask", "bias"), [(None, None), (Neighborhood(1), ALiBi(H))])
def test_empty_queries_and_empty_keys(
    backend: str, sink: bool, mask: Mask | None, bias: Bias | None
) -> None:
    """Rule 14: empty queries give an empty result, empty keys give zeros."""
    logits = torch.zeros(H, requires_grad=True) if sink else None
    for queries, keys in ((0, 3), (3, 0)):
        q, k, v = (torch.randn(2, H, n, 4, requires_grad=True) for n in (queries, keys, keys))
        out, weights, lse = attend(
            q, k, v, space=(Sequence(queries), Sequence(keys)), mask=mask, bias=bias, sink=logits,
            backend=backend, return_weights=True, return_lse=True,
        )  # fmt: skip
        assert out.shape == (2, H, queries, 4) and (out == 0).all()
        assert weights.shape == (2, H, queries, keys)
        assert lse.shape == (2, H, queries) and (lse == -torch.inf).all()
        gradients = torch.autograd.grad(out.sum(), (q, k, v), allow_unused=True)
        assert all(g is None or (g == 0).all() for g in gradients)


def test_no_space_and_nobody() -> None:
    """Rule 14 without a space: the plan chooses, and nothing breaks."""
    for queries, keys in ((0, 0), (0, 3), (3, 0)):
        q, k = torch.randn(1, H, queries, 4), torch.randn(1, H, keys, 4)
        assert (attend(q, k, k) == 0).all()


@pytest.mark.parametrize("mask", [None, Causal()])
@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_heads_without_features(backend: str | None, mask: Mask | None) -> None:
    """Rule 14: a head of size 0 scores 0, so values are averaged; values of size 0 give none."""
    for dim, value_dim in ((0, 3), (4, 0), (0, 0)):
        q, k = (torch.randn(2, H, 5, dim, requires_grad=True) for _ in range(2))
        v = torch.randn(2, H, 5, value_dim, requires_grad=True)
        out, weights, lse = attend(
            q, k, v, mask=mask, backend=backend, return_weights=True, return_lse=True
        )
        even = torch.ones(5, 5) if mask is None else torch.ones(5, 5).tril()
        even = even / even.sum(-1, keepdim=True)
        if not dim:
            torch.testing.assert_close(weights, even.expand(2, H, 5, 5))
            torch.testing.assert_close(out, even @ v)
        assert out.shape == (2, H, 5, value_dim) and lse.isfinite().all()
        gradients = torch.autograd.grad(out.sum(), (q, k, v), allow_unused=True)
        sizes = [None if g is None else g.shape for g in gradients]
        assert all(n in (None, x.shape) for n, x in zip(sizes, (q, k, v), strict=True))


@pytest.mark.parametrize("backend", can("edge features"))
def test_features_of_edges_of_heads_without_features(backend: str) -> None:
    q, v = torch.randn(1, H, 7, 0), torch.randn(1, H, 7, 3)
    space = graph(ONE_GRAPH, 7)
    edge_key, edge_value = torch.randn(len(ONE_GRAPH), H, 0), torch.randn(len(ONE_GRAPH), H, 3)
    found = attend(q, q, v, space=space, mask=Edges(), edge_key=edge_key, edge_value=edge_value,
                   backend=backend)  # fmt: skip
    wanted = attend(q, q, v, space=space, mask=Edges(), edge_value=edge_value, backend="reference")
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [None, ALiBi(H), RelativeTable.t5(H)])
def test_a_batch_of_no_samples(bias: Bias | None, backend: str) -> None:
    q, k, v = (torch.randn(0, H, 5, n, requires_grad=True) for n in (4, 4, 3))
    out = attend(q, k, v, mask=Neighborhood(1), bias=bias, backend=backend)
    assert out.shape == (0, H, 5, 3)
    learned = [] if bias is None else list(bias.parameters())
    of = torch.autograd.grad(out.sum(), [q, k, v, *learned], allow_unused=True)
    assert all(g is None or (g == 0).all() for g in of)


@pytest.mark.parametrize("backend", TWICE)
def test_second_derivatives_of_no_samples(backend: str) -> None:
    q = torch.randn(0, H, 5, 4, requires_grad=True)
    out = attend(q, q, q, mask=Causal(), backend=backend)
    (first,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), q)
    assert first.shape == second.shape == q.shape


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "mask",
    [
        DenseMask(torch.ones(0, H, 5, 5, dtype=torch.bool)),
        PrefixLM(torch.zeros(0, dtype=torch.long)),
    ],
    ids=["tensor", "per-sample"],
)
def test_a_mask_of_no_samples(mask: Mask, backend: str) -> None:
    x = torch.randn(0, H, 5, 4)
    out, lse = attend(x, x, x, mask=mask, backend=backend, return_lse=True)
    assert out.shape == x.shape and lse.shape == x.shape[:3]


def test_no_heads_are_named() -> None:
    none = torch.zeros(1, 0, 3, 4)
    with pytest.raises(ValueError, match=r"at least one head, got none: q \(1, 0, 3, 4\)"):
        attend(none, none, none)


@pytest.mark.parametrize("how", ["mean", "sum", "max"])
def test_pooling_nobody(how: Pooling) -> None:
    """A sample without tokens gives 0, a batch without samples nothing."""
    for space, rows in ((Sequence.padded([0, 0]), 2), (Sequence(0), 2), (Sequence(3), 0)):
        x = torch.randn(rows, space.length, 4)
        assert torch.equal(pool(x, space, how), torch.zeros(rows, 4))
    for space, rows in ((Sequence(0), 1), (Sequence.packed([]), 0), (Sequence.packed([0, 0]), 2)):
        assert torch.equal(pool(torch.randn(0, 4), space, how), torch.zeros(rows, 4))


@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 0, 8), (0, 0, 8), (0, 8)])
def test_layers_of_nobody(shape: tuple[int, ...]) -> None:
    for layer in (
        MultiheadAttention(8, 2, qk_norm="cosine", gate=True, sink=True),
        Encoder(8, 1, 2, bias=RelativeTable.t5(2), rotary=Rotary(), drop_path=[0.5]),
        Decoder(8, 1, 2),
    ):
        x = torch.randn(shape, requires_grad=True)
        out = layer(x)
        assert out.shape == shape
        out.sum().backward()
