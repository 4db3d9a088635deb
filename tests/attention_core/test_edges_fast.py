"""The kernels of `edges` beside plain torch: the same numbers, whoever calls and how often."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from attention_core import Edges, Graph, attend, plan
from attention_core.backends.edges import fast, operator, plain, ways
from attention_core.backends.edges.pairs import Pairs
from attention_core.backends.edges.plain import Inputs
from attention_core.backends.fast import SWITCH
from attention_core.spaces.csr import CSR

pytest.importorskip("numba")

N, M, E, H, HKV = 30, 20, 200, 4, 2


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "always")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def pairs() -> Pairs:
    """With queries and keys that have none, one edge of two pairs, and a hub."""
    row = torch.cat([torch.randint(1, N - 1, (E - 60,)), torch.full((60,), 3)])
    csr = CSR(row, torch.randint(1, M - 1, (E,)), N, M)
    item = torch.randint(0, E // 2, (E,)).to(csr.row.dtype)
    return Pairs(*csr.tensors, item, M, *csr.transpose)


def inputs(score: str, dim: int, value_dim: int, **given: Any) -> Inputs:
    """Tokens in three layouts: as one projection leaves them, as three do, by head."""
    nothing: dict[str, Any] = dict.fromkeys(Inputs._fields)
    numbers = {"score": score, "heads": H, "scale": 0.7, "slope": 0.2, "grow": 1 / 0.7}
    numbers |= {"edge_sums": False, "edge_attr_grad": False}
    own = score == "additive"  # a number per token and head
    tokens = {
        "q": normal(N, 3, H, 1 if own else dim)[:, 1].transpose(0, 1),
        "k": normal(M, H if own else HKV, 1 if own else dim).transpose(0, 1),
        "v": normal(HKV, M, value_dim),
    }
    if score == "none":
        tokens |= {"q": None, "k": None}
    if score == "additive_v2":
        tokens["weight"] = normal(H, dim)
    return Inputs(**nothing | numbers | tokens | given)


def per_pair() -> dict[str, Any]:
    return {
        "bias": normal(E, H).T,
        "allowed": torch.rand(H, E) > 0.2,
        "keep": torch.rand(H, E) > 0.3,
        "sink": normal(H),
        "softcap": 2.0,
    }


def of_edges(score: str, dim: int, features: int = 3) -> dict[str, Any]:
    given = {"edge_attr": normal(E // 2, features), "edge_sums": True, "edge_attr_grad": True}
    if score == "dot":
        given["edge_query"] = normal(H, N, features)
    if score == "additive_v2":
        given["edge_weight"] = normal(HKV, dim, features)
    if score == "additive":
        given["edge_key"] = normal(E // 2, H, 1)
    return given


CASES = {
    "dot": lambda: inputs("dot", 5, 3, **per_pair(), **of_edges("dot", 5)),
    "additive": lambda: inputs("additive", 1, 4, **per_pair(), **of_edges("additive", 1)),
    "additive_v2": lambda: inputs("additive_v2", 6, 6, **per_pair(), **of_edges("additive_v2", 6)),
    "none": lambda: inputs("none", 1, 2, **per_pair()),
    # Two heads of which fill a vector each, so that heads that share a key are in several
    "wide": lambda: inputs("additive_v2", 40, 40),
}


@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_the_plain_path(case: str) -> None:
    torch.manual_seed(0)
    x, listed = CASES[case](), pairs()
    assert fast.takes(x, listed)
    found, expected = fast.forward(x, listed), plain.forward(x, listed)
    torch.testing.assert_close(tuple(found[:4]), tuple(expected[:4]), rtol=1e-12, atol=1e-12)
    of = [
        None if y is None else torch.randn_like(y)
        for y in (expected.out, expected.lse, expected.edge_sum)
    ]
    for of_lse in (of[1], None) if x.sink is None else (of[1],):
        rest = of[0], of_lse, of[2], x.bias is not None
        got, wanted = (
            fast.backward(x, listed, found, *rest),
            plain.backward(x, listed, expected, *rest),
        )
        for name, a, b in zip(got._fields, got, wanted, strict=True):
            assert (a is None) == (b is None), name
            if b is not None:
                torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11, msg=name)


def test_without_pairs_and_with_features_for_each_pair_it_is_plain_torch() -> None:
    x, listed = CASES["wide"](), pairs()
    none = listed._replace(row=listed.row[:0])
    assert ways.way(x, listed) is fast and ways.way(x, none) is plain
    assert ways.way(x._replace(edge_value=normal(E, HKV, 40)), listed) is plain
    assert ways.way(x._replace(v=normal(HKV, M, 300)), listed) is plain


# -- One kernel, called in many ways ---------------------------------------------------------------


def graph(nodes: int, edges: int) -> tuple[Graph, list[Tensor]]:
    torch.manual_seed(0)
    tokens = [torch.randn(1, nodes, H, 8).transpose(1, 2).requires_grad_() for _ in range(3)]
    return Graph(torch.randint(nodes, (2, edges)), nodes), tokens


def step(space: Graph, tokens: list[Tensor]) -> list[Tensor]:
    out = attend(*tokens, space=space, mask=Edges(), backend="edges")
    return [out, *torch.autograd.grad(out.square().sum(), tokens)]


def test_results_are_the_same_for_any_number_of_threads_and_callers() -> None:
    space, tokens = graph(500, 70_000)  # four pieces
    torch.set_num_threads(1)
    expected = step(space, tokens)
    found: list[list[Tensor]] = []

    def call() -> None:
        torch.set_num_threads(3)
        found.extend(step(space, tokens) for _ in range(3))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 12
    for some in found:
        for got, wanted in zip(some, expected, strict=True):
            assert torch.equal(got, wanted)


class Steps(torch.utils.data.Dataset[Tensor]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        return step(*graph(500, 70_000))[1 + index].detach()


def test_workers_of_a_data_loader_attend_after_their_parent_did() -> None:
    torch.set_num_threads(2)
    expected = step(*graph(500, 70_000))
    loader = DataLoader(Steps(), batch_size=None, num_workers=1, multiprocessing_context="fork")
    for got, wanted in zip(loader, expected[1:3], strict=True):
        assert torch.equal(got, wanted)


def test_the_operator_is_as_it_says() -> None:
    """Shapes, strides and gradients, of tokens in each layout; and whole programs."""
    space, (q, k, v) = graph(20, 60)
    csr = space.edges.csr
    arguments: list[Any] = [
        [*csr.tensors, csr.item], list(csr.transpose), csr.columns, "dot",
        *(x.detach()[0] for x in (q, k)), v.detach()[0].contiguous(),
        *[None] * 11, False, False, H, 0.5, None, 0.0, 1.0,
    ]  # fmt: skip
    for at in (4, 5, 6):
        arguments[at].requires_grad_()
    torch.library.opcheck(operator._forward, tuple(arguments))


def test_a_program_that_is_compiled_calls_them() -> None:
    torch._dynamo.reset()
    space, tokens = graph(500, 6000)
    made = plan(space, Edges(), heads=H, head_dim=8, grad=True, backend="edges")

    def program(*tokens: Tensor) -> Tensor:
        return attend(*tokens, plan=made).square().sum()

    compiled = torch.compile(program, backend="aot_eager", fullgraph=True)
    wanted, got = (torch.autograd.grad(f(*tokens), tokens) for f in (program, compiled))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_an_explanation_tells_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    space, _ = graph(20, 60)

    def told() -> bool:
        made = plan(space, Edges(), heads=H, head_dim=8, backend="edges")
        return "in kernels compiled by numba" in str(made)

    assert told()
    monkeypatch.setenv(SWITCH, "0")
    assert not told()


def test_they_are_off_where_they_are_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    x, listed = CASES["wide"](), pairs()
    monkeypatch.setenv(SWITCH, "0")
    assert ways.way(x, listed) is plain
    monkeypatch.setenv(SWITCH, "1")
    assert ways.way(x, listed) is plain  # little work
    monkeypatch.setattr(fast, "_PAYS", E)
    assert ways.way(x, listed) is fast
