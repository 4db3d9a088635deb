"""FlexAttention: lists of blocks, generated code, orders of tokens, and what is compiled.

That values and gradients are right is for the conformance suite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_core import (
    ALiBi,
    BackendError,
    Bias,
    Causal,
    ContinuousBias,
    DenseMask,
    Dilated,
    EdgeBias,
    Edges,
    Encoder,
    GlobalTokens,
    Graph,
    Grid,
    Mask,
    Multiplier,
    Nearest,
    Neighborhood,
    Points,
    PrefixLM,
    RelativeTable,
    Rotary,
    ScalableSoftmax,
    Sequence,
    Space,
    Window,
    attend,
    plan,
)
from attention_core.backends import flex, reference
from attention_core.backends.flex import Prepared, compiled, proof
from attention_core.layers import encoder as encoder_module
from attention_core.spaces import Pairs
from tests.allocated import Allocated

H = 4


def ring(nodes: int, step: int = 1, **options: Any) -> Graph:
    node = torch.arange(nodes)
    edges = torch.cat([torch.stack([node, (node + s) % nodes]) for s in (step, step + 1)], 1)
    return Graph(edges, nodes, edge_attr=torch.arange(edges.shape[1]) % 3, **options)


def prepared(
    space: Space, mask: Mask | None = None, bias: Bias | None = None, **options: Any
) -> Prepared:
    found: Prepared = plan(space, mask, bias, heads=H, backend="flex", **options).prepared
    return found


class SameColumn(Mask):
    """A mask of one's own."""

    def allowed(self, pairs: Pairs) -> Tensor:
        return pairs.offset[..., 1] == 0


class Gravity(Bias):
    """A bias of one's own, whose strength is a number."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(0.3))

    def score(self, pairs: Pairs) -> Tensor:
        return -self.strength * pairs.distance**2


# -- lists of blocks -------------------------------------------------------------------------------

LISTED: dict[str, tuple[Space, Mask | None]] = {
    "window": (Sequence(130), Neighborhood(9)),
    "causal": (Sequence(130), Causal()),
    "padded": (Sequence.padded([70, 3, 40], 130), Causal() & Neighborhood(20)),
    "packed": (Sequence.packed([40, 1, 60, 29]), None),
    "grid": (Grid(24, 23), Neighborhood((1, 3))),
    "own": (Grid(24, 23), SameColumn()),
    "cells": (Grid.padded([(24, 24), (9, 5)], special=1), Neighborhood(1)),
    "points": (Points(torch.rand(2, 100, 3)), Neighborhood(0.2)),
    "edges": (ring(130), Edges()),
}


@pytest.mark.parametrize("name", LISTED)
def test_lists_hold_what_may_attend_and_are_as_narrow_as_that(name: str) -> None:
    space, mask = LISTED[name]
    found = prepared(space, mask)
    rows, size = found.rows, found.size
    explicit = reference.prepare(found.job).allowed
    assert explicit is not None
    allowed = explicit[:, 0].expand(rows, space.length, space.length)
    places = [found.lanes._tokens[side] for side in "qk"]
    at = torch.arange(rows)[:, None, None]
    inside = allowed[at, places[0][:, :, None], places[1][:, None]]
    inside &= torch.arange(inside.shape[2]) < space.length  # the last one stands for what fills up
    tiles = inside.unflatten(2, (-1, size)).unflatten(1, (-1, size))
    some, every = tiles.any(4).any(2), tiles.all(4).all(2)
    lists = found.lists._asdict()
    listed = {}
    for kind in ("", "full_"):
        for side in ("kv", "q"):
            count, index = lists[f"{kind}{side}_num_blocks"], lists[f"{kind}{side}_indices"]
            assert index.shape[-1] == max(int(count.max()), 1)
            table = torch.zeros(rows, count.shape[2], some.shape[2 if side == "kv" else 1]).bool()
            for row, block in torch.cartesian_prod(*map(torch.arange, (rows, count.shape[2]))):
                here = index[row, 0, block, : count[row, 0, block]]
                assert (here.diff() > 0).all()
                table[row, block, here.long()] = True
            listed[kind, side] = table if side == "kv" else table.mT
    for kind in ("", "full_"):
        assert torch.equal(listed[kind, "kv"], listed[kind, "q"])
    assert not (listed["", "kv"] & listed["full_", "kv"]).any()
    assert (every | ~listed["full_", "kv"]).all()
    assert ((listed["", "kv"] | listed["full_", "kv"]) | ~some).all()
    if name in ("window", "causal", "grid", "edges"):
        assert torch.equal(listed["", "kv"] | listed["full_", "kv"], some)


def test_a_long_sequence_needs_no_table_of_blocks() -> None:
    with Allocated() as allocated:
        found = prepared(Sequence(1 << 17), Causal() & Neighborhood(64))
    some, _, every = found.pairs_of_blocks
    assert some < every / 500 and found.lists.kv_indices.shape[-1] == 2
    assert allocated.largest < 64 << 20


def test_the_order_is_the_one_with_fewer_pairs_of_blocks() -> None:
    near, wide = Neighborhood(3), Grid(40, 150)
    assert "compact order" in str(plan(wide, near, backend="flex"))
    assert "compact order" not in str(plan(wide, Neighborhood((0, 9)), backend="flex"))
    assert "compact order" not in str(plan(Sequence(6000), near, backend="flex"))
    scattered = Grid(48, 48).keep(torch.randperm(2304)[:1000])
    assert (
        prepared(scattered, near).pairs_of_blocks[0]
        < 0.6
        * prepared(scattered, near & DenseMask(torch.ones(1000, 1000).bool())).pairs_of_blocks[2]
    )


# -- generated code --------------------------------------------------------------------------------


def _source(found: Prepared, bias: Bias | None = None) -> tuple[str, list[str]]:
    assert found.mask is not None
    return found.mask.source, found.write(bias, None, torch.float32).lines


def test_equal_structure_is_one_code() -> None:
    """Whatever the lengths, numbers and parameters, so that it is compiled once."""
    pairs: list[tuple[Callable[[int], Space], Mask, Callable[[], Bias]]] = [
        (lambda n: Sequence.packed([n, 2 * n]), Neighborhood(3), lambda: RelativeTable.t5(H)),
        (lambda n: Grid.padded([(n, 3), (2, n)]), Causal(), lambda: ContinuousBias(H, (1, 1))),
        (lambda n: ring(n + 100, special=1), Edges(), lambda: EdgeBias(H, types=3)),
        (lambda n: ring(n + 100), Neighborhood(2), lambda: RelativeTable.hops(H, 2)),
        (lambda n: Points(torch.randn(n, 3)), Neighborhood(0.5), Gravity),
    ]
    for make, mask, bias in pairs:
        first, second = (
            _source(prepared(make(n), mask, one), one) for n, one in ((8, bias()), (21, bias()))
        )
        assert first == second
    one, other = (prepared(Sequence(n), Causal()).mask for n in (8, 21))
    assert one is not None and other is not None
    assert one.mod.__code__ is other.mod.__code__  # type: ignore[attr-defined]
    assert _source(prepared(Sequence(9), Neighborhood(3))) != _source(
        prepared(Sequence(9), Neighborhood(4))
    )


def test_a_table_has_a_row_for_each_offset() -> None:
    bias = RelativeTable.t5(H)
    score = prepared(Sequence.packed([50, 30]), None, bias).write(bias, None, torch.float32)
    table = next(x for x in score.captured if x.requires_grad)
    assert table.shape == (H, 99) and len(score.lines) == 5
    table.sum().backward()
    assert bias.table.grad is not None and bias.table.grad.sum() == 99 * H


def test_floor_division_of_what_differs_from_pair_to_pair() -> None:
    class Behind(Mask):
        def allowed(self, pairs: Pairs) -> Tensor:
            return (pairs.query - pairs.key) // 3 == -1

    x = torch.randn(1, 2, 30, 4)
    found, wanted = (
        attend(x, x, x, space=Sequence(30), mask=Behind(), backend=name)
        for name in ("flex", "reference")
    )
    torch.testing.assert_close(found, wanted)


def test_what_cannot_be_generated_is_refused_by_name() -> None:
    class Looking(Mask):
        def allowed(self, pairs: Pairs) -> Tensor:
            return pairs.key > int(pairs.query.max())

    class Mixing(Mask):
        def allowed(self, pairs: Pairs) -> Tensor:
            return pairs.key > pairs.key.float().mean()

    class Writing(Mask):
        def allowed(self, pairs: Pairs) -> Tensor:
            allowed = pairs.key > pairs.query
            allowed &= pairs.key > 3
            return allowed

    for mask, words in (
        (Looking(), "looks at values of pairs"),
        (Mixing(), "not treat each pair alone"),
        (Writing(), "changes a tensor in place"),
    ):
        with pytest.raises(BackendError, match=f"backend='flex'.*{type(mask).__name__}.*{words}"):
            plan(Sequence(9), mask, backend="flex")
    cloud, network = Points(torch.rand(9, 2)), ContinuousBias(H, (1.0, 1.0))
    with pytest.raises(BackendError, match="'flex'.*ContinuousBias: it runs a network"):
        plan(cloud, None, network, backend="flex")
    assert plan(Sequence(5000), Neighborhood(4)).backend != "flex"


def test_dropout_draws_each_pair_alone() -> None:
    """As often as asked, and no two rows, columns, heads or samples alike."""
    torch.manual_seed(0)
    length, chance = 96, 0.3
    q, k = (torch.zeros(2, 3, length, 8) for _ in range(2))
    v = torch.eye(length).expand(2, 3, -1, -1)
    kept = attend(q, k, v, backend="flex", dropout_p=chance) > 0
    share = kept.float().mean()
    assert abs(share - (1 - chance)) < 4 * (chance * (1 - chance) / kept.numel()) ** 0.5
    for lines in (kept.flatten(0, 2), kept.mT.flatten(0, 2), kept.flatten(0, 1).flatten(1)):
        apart = lines.float() - share
        like = (apart @ apart.mT / apart.norm(dim=1) / apart.norm(dim=1)[:, None]).fill_diagonal_(0)
        assert like.abs().max() < 6 / lines.shape[1] ** 0.5
    again = attend(q, k, v, backend="flex", dropout_p=chance) > 0
    assert 0.5 < (again == kept).float().mean() < 0.65


# -- orders of tokens ------------------------------------------------------------------------------

ORDERED = {
    "grid": Grid(14, 40),
    "special": Grid(14, 40, special=1),
    "each its own": Grid(14, 40).keep(torch.stack([torch.randperm(560)[:300] for _ in range(2)])),
    "packed": Grid.packed([(14, 40), (6, 5)]),
}


@pytest.mark.parametrize("name", ORDERED)
def test_an_encoder_reorders_tokens_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    space = ORDERED[name]
    monkeypatch.setattr(flex.order, "_EAGER_SIZES", ((0, 16),))
    encoder = Encoder(
        16, 3, 2, mask=[None, Neighborhood(3)], bias=RelativeTable.swin(2, 3), rotary=Rotary(2)
    )
    x = torch.randn(2, space.length, 16, requires_grad=True)
    x_given = x[0] if space.segments is not None else x
    orders = []

    def counted(x: Tensor, order: Tensor) -> Tensor:
        orders.append(order)
        return x.gather(1, order[..., None].expand_as(x)) if order.ndim > 1 else x[..., order, :]

    monkeypatch.setattr(encoder_module, "taken_in", counted)
    found = []
    for backend in ("reference", "flex"):
        out = encoder(x_given, space, backend=backend)
        of = torch.autograd.grad(out.sin().sum(), [x, *encoder.parameters()])
        found.append([out, *of])
        assert len(orders) == (2 if backend == "flex" else 0)
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(
        *(
            encoder.intermediates(x_given, space, layers=[0, 2], backend=backend)
            for backend in ("reference", "flex")
        ),
        rtol=1e-3,
        atol=2e-4,
    )


def test_an_encoder_reorders_nothing_that_someone_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(x: Tensor, order: Tensor) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(encoder_module, "taken_in", never)
    monkeypatch.setattr(flex.order, "_EAGER_SIZES", ((0, 16),))
    space, x, near = Grid(14, 40), torch.randn(1, 560, 16), Neighborhood(3)
    hooked = Encoder(16, 1, 2, mask=near)
    hooked.blocks[0].register_forward_hook(lambda *_: None)
    table = DenseMask(torch.rand(560, 560) > 0.5)
    own = near & SameColumn()
    assert plan(space, near, backend="flex").order is not None
    for encoder in (
        hooked, Encoder(16, 2, 2, mask=[near, table]), Encoder(16, 1, 2, mask=own)
    ):  # fmt: skip
        out = encoder(x, space, backend="flex")
        torch.testing.assert_close(out, encoder(x, space, backend="reference"))


# -- what is compiled ------------------------------------------------------------------------------


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A CPU is taken for a device that FlexAttention is compiled for."""
    monkeypatch.setattr(flex, "_EAGER", set())
    monkeypatch.setattr(proof, "_PROVEN", {})
    yield monkeypatch


def _eagerly(q: Tensor, k: Tensor, v: Tensor, lists: Any, size: int, mask: Any, score: Any,
             scale: float, needs_lse: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    """In place of the compiled kernel: blocks of 128 in torch's own operations."""
    mods = (None if one is None else one.mod for one in (mask, score))
    return flex.attend_blocks(q, k, v, lists, size, *mods, scale)


class _Doubled(torch.autograd.Function):
    """A kernel whose gradient is wrong."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


@pytest.mark.parametrize("wrong", ["", "output", "log-sum-exp", "gradient", "raises"])
def test_a_structure_is_compared_once(wrong: str, compiles: pytest.MonkeyPatch) -> None:
    """What differs from `blocks` is one warning, and `blocks` runs from then on."""
    calls = []

    def kernel(*arguments: Any) -> tuple[Tensor, Tensor]:
        calls.append(arguments)
        out, lse = _eagerly(*arguments)
        if wrong == "raises":
            raise RuntimeError("illegal memory access")
        if wrong == "gradient":
            out = _Doubled.apply(out)
        return (
            (1.05 * out, lse) if wrong == "output" else (out, lse + 0.3 * (wrong == "log-sum-exp"))
        )

    compiles.setattr(compiled, "attend", kernel)
    compiles.setattr(proof, "_FORWARD_ONLY", set())
    for step, length in enumerate((130, 150, 170)):
        bias = RelativeTable.t5(2)
        q, k, v = (torch.randn(1, 2, length, 8, requires_grad=True) for _ in range(3))
        options: dict[str, Any] = {"mask": Causal(), "bias": bias, "return_lse": True}
        if wrong and not step:
            words = "illegal memory access" if wrong == "raises" else wrong
            with pytest.warns(UserWarning, match=f"(?s){words}.*'blocks' computes"):
                found = attend(q, k, v, backend="flex", **options)
        else:
            found = attend(q, k, v, backend="flex", **options)
        wanted = attend(q, k, v, backend="reference", **options)
        learned = [q, k, v, bias.table]
        of = (torch.autograd.grad(x[0].sin().sum() + x[1].sum(), learned) for x in (found, wanted))
        for got, expected in zip((*found, *next(of)), (*wanted, *next(of)), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert len(calls) == (1 if wrong else 4)
    assert len(proof._PROVEN) == 1 and len(calls[0][0][0, 0]) == 256  # of whole blocks


def test_what_a_compiler_would_unroll_is_refused(compiles: pytest.MonkeyPatch) -> None:
    """Inductor was not done with a search after a quarter of an hour."""
    for space, mask in ((ring(200), Edges()), (Points(torch.rand(60, 3)), Nearest(9))):
        with pytest.raises(BackendError, match="searches a list of pairs"):
            plan(space, mask, backend="flex")
    plan(ring(40), Edges(), backend="flex")


def test_too_many_shapes_are_named(compiles: pytest.MonkeyPatch) -> None:
    """torch.compile would run the rest for all pairs, without a word."""
    compiles.setattr(compiled, "_COMPILER", "eager")
    compiled._compiled.cache_clear()
    torch.compiler.reset()
    limited = torch._dynamo.config.patch(recompile_limit=1, automatic_dynamic_shapes=False)
    with limited, torch.no_grad():
        for length in (130, 300):
            q, k, v = (torch.randn(1, 2, length, 16) for _ in range(3))
            if length == 130:
                found = attend(q, k, v, mask=Neighborhood(5), backend="flex")
            else:
                with pytest.warns(UserWarning, match="for 1 shapes.*recompile_limit.*'blocks'"):
                    found = attend(q, k, v, mask=Neighborhood(5), backend="flex")
            wanted = attend(q, k, v, mask=Neighborhood(5), backend="reference")
            torch.testing.assert_close(found, wanted)
    compiled._compiled.cache_clear()
    torch.compiler.reset()


GRID = Grid(9, 8)
#: Structures whose code differs: space, mask, bias and options.
STRUCTURES: dict[str, tuple[Any, Mask | None, Callable[[], Bias | None], dict[str, Any]]] = {
    "causal, softcap": (Sequence(70), Causal(), lambda: None, {"softcap": 3.0}),
    "padded left, window": (
        Sequence.padded([70, 30], side="left"), Causal() & Neighborhood(9), lambda: None, {}
    ),
    "packed, special, T5": (
        Sequence.packed([20, 31, 7], special=1), Neighborhood(4),
        lambda: RelativeTable.t5(H, special=True), {},
    ),
    "radii, Swin": (GRID, Neighborhood((1, 3)), lambda: RelativeTable.swin(H, 5), {}),
    "tokens of each sample": (
        GRID.keep(torch.stack([torch.randperm(72)[:50] for _ in range(2)])),
        Neighborhood(2) | GlobalTokens((0, 0)), lambda: ALiBi(H), {},
    ),
    "shifted windows, network": (
        GRID, Window(4, shift=2), lambda: ContinuousBias(H, (3, 3), 16), {}
    ),
    "NATTEN, dilated": (
        GRID, Neighborhood(1, "shift", dilation=2) & ~Dilated((2, 3)), lambda: None, {}
    ),
    "a torus": (Grid(9, 8, wrap=(False, True)), Neighborhood(2), lambda: ALiBi(H), {}),
    "of one's own": (GRID, SameColumn(), Gravity, {}),
    "score mods": (
        Sequence(70), Causal(),
        lambda: Multiplier(RelativeTable.t5(H)) + ScalableSoftmax(H, 20, causal=True), {},
    ),
    "a ball": (Points(torch.rand(60, 3)), Neighborhood(0.4), lambda: None, {}),
    "edges": (ring(40, special=1), Edges(), lambda: EdgeBias(H, types=3), {}),
    "hops": (ring(20), Neighborhood(3), lambda: RelativeTable.hops(H, 4), {}),
    "prefixes, decoding": (
        (Sequence(3, start=67), Sequence(70)), PrefixLM(torch.tensor([3, 9])), lambda: None, {}
    ),
}  # fmt: skip


def _inputs(name: str) -> tuple[Any, list[Tensor]]:
    torch.manual_seed(0)
    space, mask, make, options = STRUCTURES[name]
    query, key = space if isinstance(space, tuple) else (space, space)
    batch = query.batch or (1 if query.segments is not None or query.searched else 2)
    q = torch.randn(batch, H, query.length, 16)
    k, v = (torch.randn(batch, H // 2, key.length, 16) for _ in range(2))
    return {"space": space, "mask": mask, "bias": make(), **options}, [q, k, v]


@pytest.mark.parametrize("name", STRUCTURES)
def test_torchs_own_backward_pass_takes_the_code(name: str) -> None:
    """That of FlexAttention in eager mode, which `flex_attention` itself does not let a CPU call:
    it traces the gradient of each score_mod, as a compiler does."""
    from torch._higher_order_ops.flex_attention import flex_attention as operator
    from torch.nn.attention.flex_attention import BlockMask

    arguments, (q, k, v) = _inputs(name)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    bias, softcap = arguments["bias"], arguments.get("softcap")
    made = plan(
        arguments["space"], arguments["mask"], bias, heads=H, batch=len(q), softcap=softcap,
        backend="flex",
    )  # fmt: skip
    found: Prepared = made.prepared
    score = found.write(bias, softcap, torch.float32)
    program = score.program()

    def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor, *x: Tensor) -> Tensor:
        if program is None:
            return score + 0
        return flex.program._made(program.source)(*x)(score, b, h, i, j)

    assert found.mask is not None
    own = [found.arranged(x, side) for x, side in ((q, 0), (k, 1), (v, 1))]
    blocks = BlockMask(
        seq_lengths=(own[0].shape[2], own[1].shape[2]), BLOCK_SIZE=(found.size,) * 2,
        mask_mod=found.mask.mod, **found.lists._asdict(),
    )  # fmt: skip
    out, *_ = operator(
        *own, score_mod, blocks.as_tuple(), 0.25, {}, tuple(score.captured), ()
    )  # fmt: skip
    out = found.restored(out)
    wanted = attend(q, k, v, backend="reference", **arguments)
    learned = [q, k, v, *([] if bias is None else bias.parameters())]
    of = (torch.autograd.grad(x.sin().sum(), learned) for x in (out, wanted))
    for got, expected in zip((out, *next(of)), (wanted, *next(of)), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_device_is_asked_for_no_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off the CPU shapes are found on the meta device, which has none: the code is the same."""
    arguments, (q, _, _) = _inputs(name)
    bias, softcap = arguments["bias"], arguments.get("softcap")
    made = plan(
        arguments["space"], arguments["mask"], bias, heads=H, batch=len(q), softcap=softcap,
        backend="flex",
    )  # fmt: skip
    expected = made.prepared.write(bias, softcap, torch.float32).lines
    monkeypatch.setattr(flex.tracing, "_COMPUTES", set())
    assert made.prepared.write(bias, softcap, torch.float32).lines == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", list(STRUCTURES)[:12])  # each takes about nine seconds of a core
def test_compiled(name: str, compiles: pytest.MonkeyPatch) -> None:
    """By Inductor, forward: on a CPU it has no more."""
    arguments, inputs = _inputs(name)
    with torch.no_grad():
        found = attend(*inputs, backend="flex", **arguments)
        wanted = attend(*inputs, backend="reference", **arguments)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert list(proof._PROVEN.values()) == [None]
