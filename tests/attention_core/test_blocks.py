"""The backend `blocks` where it has many tiles: the suite's small spaces fit into one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

import attention_core.backends.blocks.flops  # noqa: F401  # so that the operators are counted
from attention_core import (
    Causal,
    ContinuousBias,
    Dilated,
    Encoder,
    GlobalTokens,
    Grid,
    Mask,
    Neighborhood,
    Pairs,
    Points,
    PrefixLM,
    RelativeTable,
    Sequence,
    Space,
    Window,
    attend,
    plan,
)
from attention_core.backends import blocks
from attention_core.backends.blocks import chunks, prepared, search, tiling
from attention_core.spaces import BlockKey, TilePairs, TileStatus
from tests.allocated import Allocated
from tests.conformance.cases import (
    PLACES,
    assert_same,
    attend_with_gradients,
    biases_of,
    masks_of,
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of three queries and two keys, searched from the top, and chunks of a few blocks."""
    make_tiny(monkeypatch)


def make_tiny(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(prepared, "choose_sizes", lambda axes, reach: tiling.Sizes(3, 2))
    patch.setattr(tiling, "_SMALL", 1)
    patch.setattr(search, "_COARSEST", 2)
    patch.setattr(chunks, "_CHUNK", 100)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("place", PLACES)
def test_every_mask_in_tiny_tiles(place: str) -> None:
    """Values and gradients are those of `reference`, so no tile is missed or taken for whole."""
    biases = list(biases_of(place).values())
    for number, mask in enumerate(masks_of(place).values()):
        biased = biases[number % len(biases)]
        found, wanted = (
            attend_with_gradients(backend, PLACES[place], mask, biased)
            for backend in ("blocks", "reference")
        )
        what = f"{mask} with {biased.name}"
        assert_same(found, wanted, what, rtol=1e-9, atol=1e-9)


def masks(kind: str) -> st.SearchStrategy[Mask]:
    single = [
        st.builds(Neighborhood, st.integers(0, 9)),
        st.builds(Window, st.integers(1, 7), shift=st.integers(0, 4)),
    ]
    if kind in ("grid", "torus"):
        halves = st.integers(0, 9).map(lambda n: n / 2)
        single.append(st.builds(Neighborhood, halves, border=st.just("shift")))
        single.append(st.just(Causal(axes=0)))
    if kind == "torus":
        single[1] = st.builds(Window, st.tuples(st.integers(1, 7), st.just(1)))
        single.append(st.builds(Dilated, st.integers(1, 4), axes=st.just(0)))
    elif kind != "points":
        single += [st.just(Causal()), st.builds(Dilated, st.integers(1, 4))]
    if kind == "sequence":
        spots = st.lists(st.integers(0, 40), max_size=3)
        single += [st.builds(PrefixLM, st.integers(0, 50)), spots.map(lambda n: GlobalTokens(*n))]
    if kind == "grid":
        spots = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=2)
        single.append(spots.map(lambda n: GlobalTokens(*n)))
    return st.recursive(
        st.one_of(single),
        lambda inner: st.one_of(
            st.builds(lambda a, b: a & b, inner, inner),
            st.builds(lambda a, b: a | b, inner, inner),
            st.builds(lambda a: ~a, inner),
        ),
        max_leaves=4,
    )


@st.composite
def places(draw: st.DrawFn) -> tuple[str, Space]:
    kind = draw(st.sampled_from(["sequence", "grid", "torus", "points"]))
    special = draw(st.integers(0, 2))
    if kind == "sequence":
        lengths = draw(st.lists(st.integers(0, 70), min_size=1, max_size=4))
        packed = draw(st.booleans())
        made = Sequence.packed if packed else Sequence.padded
        return kind, made(lengths, special=special)
    if kind in ("grid", "torus"):
        sizes = draw(
            st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3)
        )
        return kind, Grid.packed(sizes, special=special, wrap=(False, kind == "torus"))
    count = draw(st.integers(1, 60))
    generator = torch.Generator().manual_seed(count)
    return kind, Points(8 * torch.rand(count, 2, generator=generator), special=special)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), place=places())
def test_any_composition_on_any_space(data: st.DataObject, place: tuple[str, Space]) -> None:
    kind, space = place
    mask = data.draw(masks(kind))
    batch, length = space.batch or 1, space.length
    generator = torch.Generator().manual_seed(0)
    q, k, v, weight = (
        torch.randn(batch, 2, length, 4, generator=generator, dtype=torch.float64) for _ in range(4)
    )
    found = []
    with pytest.MonkeyPatch.context() as patch:
        make_tiny(patch)
        for backend in ("blocks", "reference"):
            inputs = [x.clone().requires_grad_() for x in (q, k, v)]
            out, lse = attend(*inputs, space=space, mask=mask, backend=backend, return_lse=True)
            gradients = torch.autograd.grad((out * weight).sum(), inputs)
            found.append([out, lse, *gradients])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


# -- what it costs ---------------------------------------------------------------------------------


def test_a_window_on_100_000_tokens_trains_in_linear_memory() -> None:
    """64 numbers a token and head come in; nothing has many times as many, let alone L² of them."""
    length = 100_000
    table = RelativeTable.t5(1)
    q, k, v = (torch.randn(1, 1, length, 64, requires_grad=True) for _ in range(3))
    with Allocated() as allocated:
        out = attend(q, k, v, space=Sequence(length), mask=Neighborhood(128), bias=table,
                     backend="blocks")  # fmt: skip
        out.sum().backward()
    assert q.grad is not None and table.table.grad is not None
    assert 4 * 64 * length <= allocated.largest <= 4 * 80 * length


def test_a_window_on_a_million_tokens_is_planned_in_little_memory() -> None:
    """The list of keys has five a token, in 8 bytes each; what compares blocks is twice as much."""
    length = 1_000_000
    with Allocated() as allocated:
        made = plan(Sequence(length), Neighborhood(128), heads=4, backend="blocks")
        kept = [group.keys for group in made.prepared.groups]
    assert sum(keys.numel() for keys in kept) < 6 * length
    assert allocated.largest < 4 * 30 * length


def test_blocks_that_are_arranged_alike_share_their_mask_and_bias() -> None:
    space, mask = Sequence(4096), Causal() & Neighborhood(100)
    made = plan(space, mask, RelativeTable.t5(4), heads=4, backend="blocks")
    arrangements = [
        len(made.prepared.patterns(number, made.job.bias).pairs.query)
        for number in range(len(made.prepared.groups))
    ]
    assert sum(arrangements) <= 8 < sum(len(group.queries) for group in made.prepared.groups)


@pytest.mark.parametrize(
    ("space", "mask", "at_most"),
    [
        (Sequence(4096), Neighborhood(128), 1.3),
        (Sequence(4096), Causal() & Neighborhood(128), 1.6),
        (Sequence(4096), Dilated(4) & Neighborhood(256), 1.6),
        (Grid(64, 64), Neighborhood(3), 3.2),
        (Grid(64, 64), Neighborhood(3, border="shift"), 3.0),
        (Grid(64, 64), Neighborhood(3, border="shift", dilation=2), 3.0),
        (Grid(64, 64, wrap=(False, True)), Neighborhood(3), 3.2),
        (Grid(16, 16, 16), Neighborhood(2), 6.0),
        (Grid(56, 56), Window(7), 1.0),
        (Grid(56, 56), Window(7, shift=3), 1.0),
        (Sequence.packed([400, 64, 1000, 7]), None, 1.1),
        (Sequence(4096), Neighborhood(32) | GlobalTokens(0, 2000), 2.0),
        (Sequence(2048, special=1), Neighborhood(32), 2.2),
    ],
    ids=str,
)
def test_the_pairs_computed_are_about_the_pairs_allowed(
    space: Space, mask: Mask | None, at_most: float
) -> None:
    made = plan(space, mask, backend="blocks")
    computed = sum(group.pairs for group in made.prepared.groups)
    reference = plan(space, mask, backend="reference").prepared
    allowed = int(reference.allowed.sum())
    assert allowed <= computed <= at_most * allowed


def test_a_score_other_than_the_dot_product_is_refused_by_name() -> None:
    from attention_core import Additive

    q, k, v = (torch.randn(1, 2, 4, 8) for _ in range(3))
    with pytest.raises(NotImplementedError, match="blocks.*dot products, no Additive"):
        attend(q, k, v, score=Additive(2, 8), backend="blocks")


def test_a_bias_of_ones_own_is_scored_for_every_block() -> None:
    """It may depend on anything, so nothing is shared, and the numbers are right."""
    from attention_core import Bias

    class Parity(Bias):
        def score(self, pairs: Pairs) -> Tensor:
            return (pairs.query % 3 + pairs.key % 2 + pairs.batch) * 1.0

    q, k, v = (torch.randn(2, 2, 300, 8, dtype=torch.float64) for _ in range(3))
    found, wanted = (
        attend(q, k, v, mask=Neighborhood(20), bias=Parity(), backend=backend)
        for backend in ("blocks", "reference")
    )
    torch.testing.assert_close(found, wanted)


def test_a_network_of_the_offset_runs_once_for_all_blocks() -> None:
    bias = ContinuousBias(2, (20.0,), 8)
    rows: list[int] = []
    bias.mlp.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    q, k, v = (torch.randn(1, 2, 2048, 8) for _ in range(3))
    attend(q, k, v, mask=Neighborhood(20), bias=bias, backend="blocks")
    assert sum(rows) < 2048


@pytest.mark.parametrize("bias", [None, RelativeTable.t5(2)], ids=["plain", "learned"])
def test_a_compiled_layer_is_one_graph(bias: RelativeTable | None) -> None:
    counters.clear()
    encoder = Encoder(dim=16, depth=1, heads=2, mask=Causal() & Neighborhood(20), bias=bias)
    x = torch.randn(1, 600, 16)
    results = []
    for compiled in (False, True):
        if compiled:
            encoder.blocks[0].compile(backend="aot_eager", fullgraph=True)
        out = encoder(x, backend="blocks")
        gradients = torch.autograd.grad(out.square().sum(), list(encoder.parameters()))
        results.append([out, *gradients])
    assert counters["stats"]["unique_graphs"] >= 1
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted)


def test_the_work_of_blocks_is_counted() -> None:
    """Two products of matrices forward and five backward, for the pairs in blocks alone."""
    q, k, v = (torch.randn(2, 3, 1000, 16, requires_grad=True) for _ in range(3))
    made = plan(Sequence(1000), Neighborhood(40), heads=3, head_dim=16, batch=2, backend="blocks")
    pairs = 2 * 3 * sum(group.pairs for group in made.prepared.groups)
    with FlopCounterMode(display=False) as counter:
        attend(q, k, v, plan=made).sum().backward()
    assert counter.get_total_flops() == 7 * 2 * 16 * pairs


class SameColumn(Mask):
    """As the guide has it."""

    def allowed(self, pairs: Pairs) -> Tensor:
        return pairs.offset[..., 1] == 0

    def tile_status(self, tiles: TilePairs) -> TileStatus:
        low, high = tiles.offset
        some, every = (low <= 0) & (high >= 0), (low == 0) & (high == 0)
        return TileStatus(some[:, 1], every[:, 1])

    def block_key(self, space: Space) -> BlockKey | None:
        return BlockKey.of_place(space)


@pytest.mark.usefixtures("tiny")
def test_a_mask_of_ones_own_says_where_it_reaches() -> None:
    q, k, v = (torch.randn(1, 2, 96, 4, dtype=torch.float64) for _ in range(3))
    space = Grid(8, 12)
    made = plan(space, SameColumn(), heads=2, backend="blocks")
    assert sum(group.pairs for group in made.prepared.groups) < 96 * 96 / 2
    found, wanted = (
        attend(q, k, v, space=space, mask=SameColumn(), backend=backend)
        for backend in ("blocks", "reference")
    )
    torch.testing.assert_close(found, wanted)


def test_the_worked_example_of_the_docstring() -> None:
    mask = Causal() & Neighborhood(32)
    prepared = plan(Sequence(256), mask, heads=2, head_dim=16, backend="blocks").prepared
    shapes = [(tuple(g.queries.shape), tuple(g.keys.shape), g.pairs) for g in prepared.groups]
    assert shapes == [((1, 32), (1, 32), 1_024), ((7, 32), (7, 64), 14_336)]
    found = prepared.blocks(None, 2, torch.float32)
    assert [tuple(one.added.shape) for one in found] == [(1, 1, 32, 32), (1, 1, 32, 64)]
    assert [one.pattern for one in found] == [None, None]
    assert (tuple(found[1].queries.shape), tuple(found[1].keys.shape)) == ((7, 2), (7, 4))
    assert found[1].query_run == found[1].key_run == 16
    assert sum(int((one.added == 0).sum()) * len(one.queries) for one in found) == 7_920
    assert "1,024    (1, 1, 32, 32)" in str(blocks.__doc__)


def test_one_head_of_keys_among_others_in_one_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTENTION_CORE_FAST", "0")
    # Its rows are one stride apart, so they are viewed as rows and never copied
    fused = torch.randn(2, 64, 6 * 4)
    q = fused[..., :16].unflatten(-1, (4, 4)).transpose(1, 2)
    k, v = (x[:, None] for x in fused[..., 16:].chunk(2, dim=-1))
    want = attend(q, k, v, mask=Neighborhood(5), backend="reference")
    torch.testing.assert_close(attend(q, k, v, mask=Neighborhood(5), backend="blocks"), want)
