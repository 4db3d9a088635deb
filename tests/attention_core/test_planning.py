"""What the plan chooses, shares and says."""

from __future__ import annotations

import re

import pytest
import torch

from attention_core import (
    ALiBi,
    BackendError,
    Causal,
    EdgeBias,
    Edges,
    Graph,
    Grid,
    MultiheadAttention,
    Neighborhood,
    Plan,
    RelativeTable,
    Sequence,
    attend,
    explain,
    plan,
)
from attention_core.backends import fast
from attention_core.spaces import Pairs


def ring(nodes: int) -> Graph:
    node = torch.arange(nodes)
    return Graph(torch.stack([node, (node + 1) % nodes]), nodes)


@pytest.mark.parametrize(
    ("space", "mask", "expected"),
    [
        (Sequence(512), None, "dense"),
        (Sequence(512), Causal(), "dense"),
        (Grid(14, 14), Neighborhood(3), "dense"),
        (ring(2000), Edges(), "edges"),
        (ring(10), Edges(), "dense"),
        (Sequence(20_000), Neighborhood(4), "edges"),
        (Sequence(4096), Causal() & Neighborhood(128), "blocks"),
        # Blocks compute three pairs for one that is allowed, which kernels alone make up for
        (Grid(64, 64), Neighborhood(3), "blocks" if fast.installed() else "edges"),
        (Sequence.packed([1000] * 8), None, "dense"),
        (Sequence.packed([1000] * 8), Causal(), "dense"),
        (Sequence.packed([1000] * 8), Neighborhood(64), "blocks"),
    ],
)
def test_choice(space: Sequence | Grid | Graph, mask: object, expected: str) -> None:
    assert plan(space, mask, grad=True).backend == expected


def test_weights_come_from_the_explicit_softmax() -> None:
    assert plan(Sequence(512), weights=True).backend == "reference"


def test_no_tensor_is_made_where_none_is_needed() -> None:
    for mask in (None, Neighborhood(511), Causal() | ~Causal()):
        prepared = plan(Sequence(512), mask, backend="dense").prepared
        if mask is None or isinstance(mask, Neighborhood):
            assert prepared.allowed is None and not prepared.causal
    causal = plan(Sequence(512), Causal(), backend="dense").prepared
    assert causal.causal and causal.allowed is None
    last = plan((Sequence(1, start=511), Sequence(512)), Causal(), backend="dense").prepared
    assert not last.causal and last.allowed is None
    padded = plan(Sequence.padded([3, 512]), backend="dense").prepared
    assert padded.allowed.shape == (2, 1, 1, 512)


def test_packed_samples_are_attended_one_after_the_other() -> None:
    space = Sequence.packed([3, 0, 500, 20])
    for mask in (None, Causal()):
        prepared = plan(space, mask, backend="dense").prepared
        assert prepared.samples.lengths == [3, 500, 20] and prepared.allowed is None
        assert prepared.causal == (mask is not None)
    # No longer end to end, no longer in order, not all pairs, or not alike
    mixed, turned = torch.randperm(523), torch.arange(522, -1, -1)
    for other, mask in (
        (space.keep(mixed), None),
        (space.keep(turned), None),
        (Sequence(3).keep(torch.tensor([2, 1, 0])).append(Sequence(1, start=9)), Causal()),
        (space, Neighborhood(2)),
        (Sequence.packed([3, 500], special=1), Causal()),
    ):
        assert plan(other, mask, backend="dense").prepared.samples is None


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_packed_samples_have_their_own_triangle_beside_a_sink(kv_heads: int) -> None:
    space, sink = Sequence.packed([5, 1, 9]), torch.randn(2, dtype=torch.float64)
    q, k, v = (torch.randn(3, h, 15, 4, dtype=torch.float64) for h in (2, kv_heads, kv_heads))
    found, wanted = (
        attend(q, k, v, space=space, mask=Causal(), sink=sink, return_lse=True, backend=backend)
        for backend in ("dense", "reference")
    )
    torch.testing.assert_close(found, wanted)


def test_a_million_edges_are_planned_without_their_square() -> None:
    chosen = plan(ring(100_000), Edges() & ~Neighborhood(0))
    assert chosen.backend == "edges" and len(chosen.prepared.row) == 100_000


def test_a_shared_bias_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bias, calls = RelativeTable.t5(2), []
    score = bias.score

    def counted(pairs: Pairs) -> torch.Tensor:
        calls.append(pairs)
        return score(pairs)

    monkeypatch.setattr(bias, "score", counted)
    q = torch.randn(1, 2, 6, 4)
    shared = plan(Sequence(6), Causal(), bias, heads=2, grad=True)
    for _ in range(3):
        attend(q, q, q, bias=bias, plan=shared)
    assert len(calls) == 1


def test_explanations_read_as_sentences() -> None:
    text = explain(Sequence(1024), Causal() & Neighborhood(128), ALiBi(8), heads=8, grad=True)
    assert text.startswith(
        "A sequence of 1,024 tokens; mask Causal() & Neighborhood(128), bias ALiBi"
    )
    assert "Of 1,048,576 pairs the mask allows at most 263,168 (25%)." in text
    assert "Backend blocks: " in text and text.endswith(".")


def test_explanations_show_what_each_backend_would_take() -> None:
    text = explain(Sequence(4096), Neighborhood(64), heads=4, grad=True)
    estimates = re.search(
        r"forward and backward: blocks (\d+) ms, edges .*, dense .*, reference .*", text
    )
    assert estimates and 5 < int(estimates[1]) < 500, text
    text = explain(Sequence(4096), Neighborhood(64), heads=4, softcap=20.0)
    assert "core, forward: " in text and "dense is out: " in text and "softcap" in text
    assert "Special tokens are exempt" in explain(Grid(4, 4, special=1), Neighborhood(1))
    text = explain(Sequence(1), softcap=50.0, dtype=torch.bfloat16)
    assert "softcap=50.0" in text
    assert text.startswith(
        "A sequence of 1 token; mask none, bias none, dtype bfloat16, 1 head of 64.\n"
    )
    assert str(plan(Sequence(8), backend="edges")).endswith("You asked for this backend.")


def test_errors() -> None:
    q = torch.randn(2, 4, 6, 8)
    with pytest.raises(ValueError, match="must be one of reference, dense, blocks, flex, edges"):
        attend(q, q, q, backend="flash")
    with pytest.raises(BackendError, match="backend='dense' cannot do this.*softcap=5.0"):
        attend(q, q, q, softcap=5.0, backend="dense")
    with pytest.raises(ValueError, match="the plan is for batch 1 and 4 heads"):
        attend(q, q, q, plan=plan(Sequence(6), heads=4))
    with pytest.raises(ValueError, match="give either them or plan="):
        attend(q, q, q, plan=plan(Sequence(6), heads=4, batch=2), mask=Causal())
    with pytest.raises(ValueError, match="does not fit the spaces, which hold 3"):
        attend(q, q, q, space=Sequence.padded([6, 1, 2]))
    assert isinstance(plan(Sequence(6)), Plan)


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("gpu", "device must be cpu, cuda, cuda:N or so, got 'gpu'"),
        ("CUDA", "device must be cpu, cuda, cuda:N or so, got 'CUDA'"),
        ("xla", "device must be cpu, cuda or another that this machine has, got 'xla:0'"),
        (
            "meta",
            "device must be one that holds numbers, such as cpu or cuda, for a backend to be "
            "chosen, got 'meta'",
        ),
    ],
)
def test_a_device_that_cannot_be_planned_for_is_named(device: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        explain(Sequence(8), Causal(), device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would be planned there")
@pytest.mark.parametrize("backend", ["dense", "flex"])
def test_a_plan_for_another_device_is_refused(backend: str) -> None:
    q = torch.randn(1, 1, 8, 64)
    made = plan(Sequence(8), Causal(), device="cuda", backend=backend)
    with pytest.raises(ValueError, match="^the plan is for cuda:0, but q is on cpu$"):
        attend(q, q, q, plan=made)


def test_edges_listed_twice_go_to_the_backend_that_tells_them_apart() -> None:
    twice = Graph(torch.tensor([[0, 0, 1], [1, 1, 0]]), 2)
    made = plan(twice, Edges())
    assert made.backend == "edges" and "more than once" in str(made)
    assert plan(ring(10), Edges()).backend == "dense"  # the same size, nothing twice
    many = torch.randint(2000, (2, 6000)).repeat(1, 2)
    assert plan(Graph(many, 2000), Edges()).backend == "edges"
    q, k = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 2, 4)
    values = torch.tensor([1.0, 2.0]).view(1, 1, 2, 1)
    # Either edge has all of the weight between them
    assert attend(q, k, values, space=twice, mask=Edges()).flatten().tolist() == [2.0, 1.0]


def test_a_bias_by_features_takes_a_graph_without_edges_and_names_another_width() -> None:
    q = torch.randn(1, 2, 3, 4)
    none = Graph(torch.zeros(2, 0, dtype=torch.long), 3, edge_attr=torch.randn(0, 5))
    bias = EdgeBias(2, features=5)
    torch.testing.assert_close(attend(q, q, q, space=none, bias=bias), attend(q, q, q))
    other = Graph(torch.tensor([[0], [1]]), 3, edge_attr=torch.randn(1, 4))
    with pytest.raises(ValueError, match="features=5, edge_attr is .1, 4."):
        attend(q, q, q, space=other, bias=bias)


@pytest.mark.parametrize("type", [-1, 3])
def test_a_type_of_edges_that_there_is_not_is_named(type: int) -> None:
    q = torch.randn(1, 2, 3, 4)
    space = Graph(torch.tensor([[0, 1], [1, 2]]), 3, edge_attr=torch.tensor([1, type]))
    with pytest.raises(ValueError, match=r"types=3, so edge_attr must be 0 to 2; it runs from"):
        attend(q, q, q, space=space, bias=EdgeBias(2, types=3))


def test_plans_know_what_products_are_computed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = MultiheadAttention(8, 2), torch.randn(1, 4, 8)
    assert layer.plan(x, Sequence(4)).job.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.plan(x, Sequence(4)).job.dtype == torch.bfloat16
        # Autocast leaves float64 alone
        assert layer.plan(x.double(), Sequence(4)).job.dtype == torch.float64
    made = []
    monkeypatch.setattr(
        "attention_core.attention.plan_attention",
        lambda *args, **options: made.append(options["dtype"]) or plan(*args, **options),
    )
    q = torch.randn(1, 2, 4, 8, dtype=torch.float16)
    attend(q, q, q)
    assert made == [torch.float16]
    with pytest.raises(TypeError, match="dtype must be a floating point"):
        plan(Sequence(4), dtype=torch.int64)
