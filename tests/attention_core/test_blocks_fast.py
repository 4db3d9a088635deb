"""Kernels of blocks in numba beside plain torch: the same results, by the same operators."""

import os
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attention_core import (
    Bias,
    Causal,
    DenseBias,
    DenseMask,
    EdgeBias,
    GlobalTokens,
    Graph,
    Grid,
    Mask,
    Neighborhood,
    Plan,
    RelativeTable,
    Sequence,
    Space,
    attend,
    plan,
)
from attention_core.backends import fast as switch
from attention_core.backends.blocks import fast, layout
from attention_core.backends.blocks.operator import block_attention

pytest.importorskip("numba")

HEADS = 4


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(switch.SWITCH, "always")
    torch.manual_seed(0)  # tables of biases are drawn


def tokens(length: int, dtype: torch.dtype, *, batch: int = 2, kv: int = HEADS, dim: int = 20,
           value_dim: int = 40) -> list[Tensor]:  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    sizes = (HEADS, dim), (kv, dim), (kv, value_dim)
    return [
        torch.randn(batch, heads, length, d, dtype=dtype, generator=generator).requires_grad_()
        for heads, d in sizes
    ]


def both(run: Callable[[], tuple[Tensor, ...]], learned: list[Tensor]) -> list[list[Tensor]]:
    """What `run` gives and the gradients of it, with kernels and in plain torch."""
    found = []
    for how in ("always", "0"):
        os.environ[switch.SWITCH] = how
        torch.manual_seed(1)
        outputs = run()
        loss = sum((x.masked_fill(x.isinf(), 0).sin()).sum() for x in outputs)
        assert isinstance(loss, Tensor)
        found.append([*outputs, *torch.autograd.grad(loss, learned)])
    return found


def close(found: list[list[Tensor]], dtype: torch.dtype) -> None:
    for x, y in zip(*found, strict=True):
        scale = float(y.detach().masked_fill(y.isinf(), 0).abs().max())
        # Parameters of a bias are float32, and their gradients sums of thousands
        tolerance = (1e-5 if torch.float32 in (dtype, x.dtype) else 1e-13) * max(scale, 1)
        torch.testing.assert_close(x, y, rtol=0, atol=tolerance, equal_nan=True)


def ring(sizes: list[int]) -> Graph:
    """Rings of so many nodes, whose edges are of two types."""
    first, edges = 0, []
    for size in sizes:
        node = torch.arange(size)
        edges.append(torch.stack([node, (node + 1) % size]) + first)
        first += size
    edge = torch.cat(edges, dim=1)
    segments = torch.repeat_interleave(torch.tensor(sizes))
    return Graph(edge, first, segments=segments, edge_attr=torch.arange(edge.shape[1]) % 2)


SETTINGS: dict[str, tuple[Space, Mask | None, Bias | None]] = {
    "window": (Sequence(200), Neighborhood(20), None),
    "causal": (Sequence(203), Causal() & Neighborhood(37), None),
    "grid": (Grid(13, 17), Neighborhood(3), RelativeTable.swin(HEADS, 4)),
    "packed": (Sequence.packed(torch.tensor([5, 70, 1, 64])), None, None),
    "padded": (Sequence.padded(torch.tensor([90, 33])), Neighborhood(20), None),
    "global": (Sequence(150), GlobalTokens(0) | Neighborhood(9), RelativeTable.t5(HEADS)),
    "one for all heads": (
        Sequence(99), Neighborhood(9), DenseBias(nn.Parameter(torch.randn(99, 99)))),
    "of each sample": (
        Sequence(99), Neighborhood(9), DenseBias(nn.Parameter(torch.randn(2, HEADS, 99, 99)))),
    "hops": (ring([5, 12, 30, 3]), None, RelativeTable.hops(HEADS, 3)),
    "hops and types": (
        ring([5, 12, 30, 3]), None, RelativeTable.hops(HEADS, 3) + EdgeBias(HEADS, types=2)),
}  # fmt: skip


@pytest.mark.parametrize("kv", [HEADS, 2])
@pytest.mark.parametrize("name", SETTINGS)
def test_kernels_give_what_plain_torch_gives(name: str, kv: int) -> None:
    space, mask, bias = SETTINGS[name]
    dtype = torch.float32 if kv == HEADS else torch.float64
    learned = tokens(space.length, dtype, kv=kv)
    sink = torch.linspace(-2, 2, HEADS, dtype=dtype).requires_grad_()
    learned += [sink, *([] if bias is None else bias.parameters())]

    def run() -> tuple[Tensor, Tensor]:
        return attend(
            *learned[:3], space=space, mask=mask, bias=bias, sink=sink, return_lse=True,
            softcap=5.0 if name in ("causal", "hops") else None, backend="blocks",
        )  # fmt: skip

    close(both(run, learned), dtype)


def test_tables_are_looked_up_where_blocks_differ() -> None:
    for name, rows in (("hops", 7), ("hops and types", 7 * 3)):
        space, _, bias = SETTINGS[name]
        made = plan(space, None, bias, heads=HEADS, backend="blocks", grad=True)
        found = made.prepared.inputs(bias, HEADS, torch.float32)
        assert all(one.added.shape == (rows, HEADS) for one in found)
    space, _, bias = SETTINGS["hops"]
    made = plan(space, None, bias, heads=HEADS, backend="blocks", grad=True)
    again = [made.prepared.inputs(bias, HEADS, torch.float32) for _ in range(2)]
    assert all(a.index is b.index is not None for a, b in zip(*again, strict=True))
    table = RelativeTable.t5(HEADS)
    window = Sequence(2048), Neighborhood(20)
    made = plan(*window, table, heads=HEADS, backend="blocks", grad=True)
    assert all(one.index is None for one in made.prepared.inputs(table, HEADS, torch.float32))


def test_a_table_that_forbids_is_not_looked_up() -> None:
    """A row of -inf may leave a query without keys, of which an index knows nothing."""
    bias = RelativeTable.hops(HEADS, 3)
    with torch.no_grad():
        bias.table[:, 1] = -torch.inf
    learned = tokens(50, torch.float64, batch=1)

    def run() -> tuple[Tensor, ...]:
        space = SETTINGS["hops"][0]
        return attend(*learned, space=space, bias=bias, return_lse=True, backend="blocks")  # type: ignore[no-any-return]

    found = both(run, learned)
    close(found, torch.float64)
    assert (found[0][0][:, 1] == 0).all()


def test_kernels_may_be_switched_off_before_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    space, _, bias = SETTINGS["hops"]
    learned = tokens(space.length, torch.float64, batch=1)
    assert bias is not None
    wanted = [*learned, *bias.parameters()]
    grads = []
    for how in ("always", "0"):
        monkeypatch.setenv(switch.SWITCH, "always")
        output = attend(*learned, space=space, bias=bias, backend="blocks")
        monkeypatch.setenv(switch.SWITCH, how)
        grads.append(torch.autograd.grad(output.sin().sum(), wanted))
    close([list(grads[0]), list(grads[1])], torch.float64)


# -- Dropout ---------------------------------------------------------------------------------------


def weights(made: Plan, q: Tensor, k: Tensor, seed: int) -> Tensor:
    """(B, H, L, L) after dropout, as values that are the identity show them."""
    length = k.shape[2]
    v = torch.eye(length, dtype=k.dtype).expand(*k.shape[:2], length, length)
    torch.manual_seed(seed)
    return attend(q, k, v, plan=made, dropout_p=0.3)  # type: ignore[no-any-return]


def test_dropout_is_drawn_by_seed_query_and_key() -> None:
    q, k, _ = tokens(200, torch.float64)
    made = plan(Sequence(200), Neighborhood(20), heads=HEADS, batch=2, backend="blocks", grad=True)
    found = weights(made, q, k, 1)
    assert torch.equal(found, weights(made, q, k, 1))
    kept = found > 0
    assert not torch.equal(kept, weights(made, q, k, 2) > 0)
    whole = attend(q, k, torch.eye(200, dtype=q.dtype).expand(2, HEADS, 200, 200), plan=made)
    torch.testing.assert_close(found[kept], (whole / 0.7)[kept])
    allowed = whole > 0
    share = kept[allowed].double().mean()
    assert abs(share - 0.7) < 5 * (0.21 / int(allowed.sum())) ** 0.5
    # Heads and samples have draws of their own: two agree in 0.58 of the pairs
    pairs = kept.flatten(0, 1)[:, allowed[0, 0]].double()
    assert (torch.corrcoef(pairs) - torch.eye(2 * HEADS)).abs().max() < 0.06


def test_gradients_are_those_of_the_same_draw() -> None:
    """The first by differences of the output; the second, of plain torch, by those of the first."""
    q, k, v = tokens(70, torch.float64, batch=1, dim=4, value_dim=3)
    made = plan(Sequence(70), Neighborhood(9), heads=HEADS, backend="blocks", grad=True)
    step = 1e-6 * torch.randn(q.shape, dtype=q.dtype, generator=torch.Generator().manual_seed(3))

    def loss(q: Tensor) -> Tensor:
        torch.manual_seed(1)
        return attend(q, k, v, plan=made, dropout_p=0.3).sin().sum()  # type: ignore[no-any-return]

    def gradient(q: Tensor) -> Tensor:
        q = q.detach().requires_grad_()
        return torch.autograd.grad(loss(q), q, create_graph=True)[0]

    (first,) = torch.autograd.grad(loss(q), q, create_graph=True)
    change = (loss(q + step) - loss(q - step)) / 2
    torch.testing.assert_close(change, (first * step).sum(), rtol=1e-6, atol=0)
    (second,) = torch.autograd.grad((first * step).sum(), q)
    change = ((gradient(q + step) - gradient(q - step)) / 2 * step).sum()
    torch.testing.assert_close(change, (second * step).sum(), rtol=1e-6, atol=0)


# -- Numbers that are not finite -------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_score_that_overflows_shows(value: float) -> None:
    q, k, v = (x.detach() for x in tokens(40, torch.float64, batch=1))
    if value == torch.inf:
        q[0, 0, 7], k[0, 0, 7] = 1e200, 1e200
        sink = None
    else:
        sink = torch.tensor([value, 0.0, 0.0, 0.0], dtype=q.dtype)
    outputs = []
    for how in ("always", "0"):
        os.environ[switch.SWITCH] = how
        outputs.append(attend(q, k, v, mask=Neighborhood(5), sink=sink, backend="blocks"))
    assert torch.equal(outputs[0].isnan(), outputs[1].isnan())
    assert outputs[0][0, 0, 7].isnan().all()


# -- Threads, processes, modes ---------------------------------------------------------------------


def test_the_same_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """With many pieces, though the work is small; the keys of two pieces overlap."""
    monkeypatch.setattr(fast, "_PIECE", 1 << 10)
    bias, before = RelativeTable.t5(HEADS), torch.get_num_threads()
    learned = [*tokens(500, torch.float32, batch=1, kv=1), *bias.parameters()]
    made = plan(Sequence(500), Neighborhood(20), bias, heads=HEADS, backend="blocks", grad=True)

    def run() -> list[Tensor]:
        output = attend(*learned[:3], bias=bias, plan=made.renewed())
        return [output, *torch.autograd.grad(output.sin().sum(), learned)]

    try:
        torch.set_num_threads(1)
        one = run()
        torch.set_num_threads(3)
        assert all(torch.equal(x, y) for x, y in zip(one, run(), strict=True))
    finally:
        torch.set_num_threads(before)
    os.environ[switch.SWITCH] = "0"
    close([one, run()], torch.float32)


def test_python_threads_and_forked_processes() -> None:
    learned = tokens(200, torch.float32)

    def run() -> list[Tensor]:
        output = attend(*learned, mask=Neighborhood(20), backend="blocks")
        return [output, *torch.autograd.grad(output.sin().sum(), learned)]

    expected, found = run(), []
    threads = [threading.Thread(target=lambda: found.append(run())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for one in found:
        assert all(torch.equal(x, y) for x, y in zip(expected, one, strict=True))
    child = os.fork()
    if not child:
        torch.set_num_threads(1)  # as in loaders' workers: torch's own threads survive no fork
        os._exit(int(not torch.equal(run()[0], expected[0])))
    assert os.waitpid(child, 0)[1] == 0


def test_compiled_whole_and_checked_by_torch() -> None:
    q, k, v = tokens(60, torch.float32, batch=1)
    bias = RelativeTable.t5(HEADS)
    made = plan(Sequence(60), Neighborhood(9), bias, heads=HEADS, backend="blocks", grad=True)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, bias=bias, plan=made.renewed())  # type: ignore[no-any-return]

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    wanted = [q, k, v, bias.table]
    found = [
        [output, *torch.autograd.grad(output.sin().sum(), wanted)]
        for output in (compiled(q, k, v), run(q, k, v))
    ]
    close(found, torch.float32)
    blocks = made.prepared.inputs(bias, HEADS, torch.float32)
    added = [one.added.detach().requires_grad_() for one in blocks]
    nothing = [q.new_empty(0) for _ in blocks]
    assert all(one.pattern is None and one.index is not None for one in blocks)
    torch.library.opcheck(
        block_attention,
        (
            q, k, v, None, added, nothing, nothing, [one.index for one in blocks],
            [one.queries for one in blocks], [one.keys for one in blocks],
            [run for one in blocks for run in (one.query_run, one.key_run)],
            torch.zeros((), dtype=torch.long), 1, 0.3, None, 0.0, True, True, False,
            torch.float32,
        ),
        test_utils=["test_schema", "test_autograd_registration", "test_faketensor"],
    )  # fmt: skip


def test_what_a_plan_holds_is_laid_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    laid_out = layout._laid_out
    monkeypatch.setattr(layout, "_laid_out", lambda *a: calls.append(1) or laid_out(*a))
    q, k, v = tokens(100, torch.float32)
    made = plan(Sequence(100), Neighborhood(9), heads=HEADS, batch=2, backend="blocks", grad=True)
    for _ in range(2):
        attend(q, k, v, plan=made).sum().backward()
    assert len(calls) == 1
    attend(q.detach(), k.detach(), v.detach(), plan=made.renewed())
    assert len(calls) <= 2


def test_small_work_stays_in_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(switch.SWITCH, "1")
    monkeypatch.setattr(fast, "Call", None)
    q, k, v = tokens(20, torch.float32)
    assert attend(q, k, v, mask=Neighborhood(3), backend="blocks").isfinite().all()


@pytest.mark.parametrize("by_head", [False, True])
def test_a_bias_is_looked_up_where_heads_may_differ_in_what_they_allow(by_head: bool) -> None:
    q, k, v = tokens(48, torch.float64)
    given = torch.rand(1, HEADS if by_head else 1, 48, 48, generator=torch.Generator()) < 0.3
    given[:, :, 5] = False  # queries without any key, where a floor has to be in the right place
    given[:, 0, 7] = False
    mask, bias = DenseMask(given) & Neighborhood(2), RelativeTable.t5(heads=HEADS).double()
    nn.init.normal_(bias.table)

    def run() -> tuple[Tensor, ...]:
        out, lse = attend(q, k, v, mask=mask, bias=bias, return_lse=True, backend="blocks")
        return out, lse

    close(both(run, [q, k, v, bias.table]), torch.float64)


def test_rows_whose_scores_are_all_the_least_number_have_their_gradients() -> None:
    # As masks of Hugging Face have them: min + log(n) is min, so a log-sum-exp holds no n
    q, k, v = tokens(40, torch.float32)
    bias = torch.zeros(40, 40)
    bias[3], bias[9, :8] = torch.finfo(torch.float32).min, -1e4

    def run() -> tuple[Tensor, ...]:
        mask = Neighborhood(4)
        return (attend(q, k, v, mask=mask, bias=bias, softcap=9.0, backend="blocks"),)

    close(both(run, [q, k, v]), torch.float32)
