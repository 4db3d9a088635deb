"""Scores of learned tables: the gradient of a row is a sum in one order, by no scattered writes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_core import Bias, EdgeBias, Graph, Grid, RelativeTable, Sequence, Space
from attention_core.spaces import Pairs, pairs as module
from tests.devices.counting import CountingDevice

H = 3


def found(bias: Bias, spaces: tuple[Space, Space], of: Tensor) -> list[Tensor]:
    """Scores of all pairs, the gradient of the table, and one through that gradient."""
    scores = bias(Pairs.all(spaces, heads=H))
    of = of.clone().requires_grad_()
    (grad,) = torch.autograd.grad(scores, [bias.table], of, create_graph=True)
    (twice,) = torch.autograd.grad(grad.square().sum(), of)
    (once,) = torch.autograd.grad(bias(Pairs.all(spaces, heads=H)), [bias.table], of.detach())
    torch.testing.assert_close(once, grad, atol=1e-12, rtol=0)
    return [scores, grad, twice]


@pytest.mark.parametrize(
    "bias",
    [
        RelativeTable.t5(H, special=True),
        RelativeTable.t5(H, 8, 20, bidirectional=False),
        RelativeTable.swin(H, (4,)),
        RelativeTable.hops(H, 5, special=True),
    ],
)
@pytest.mark.parametrize(
    "spaces",
    [
        (Sequence(9),) * 2,
        (Sequence(7, special=2),) * 2,
        (Sequence(2, start=-3), Sequence(5, start=4, special=1)),
        (Sequence(8, start=5), Sequence(3)),
        (Sequence(4).append(Sequence(3, start=4)), Sequence(1)),
    ],
)
def test_diagonals_are_what_pairs_are(
    bias: RelativeTable, spaces: tuple[Space, Space], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    of = torch.randn(1, H, spaces[0].length, spaces[1].length, dtype=torch.float64)
    bias.double()
    assert Pairs.all(spaces).by_offset is None
    wanted = found(bias, spaces, of)
    monkeypatch.setattr(module, "_MANY", 0)
    assert Pairs.all(spaces).by_offset is not None
    for got, expected in zip(found(bias, spaces, of), wanted, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


def test_pairs_that_are_not_whole_sequences_have_no_diagonals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MANY", 0)

    class Steps(Sequence):
        pass

    kept = Sequence(5).keep(torch.tensor([0, 1, 3]))
    for space in (Sequence.packed([4]), Sequence.padded([4]), kept, Grid(5), Steps(4), Sequence(1)):
        assert Pairs.all((space, space)).by_offset is None
    few = Pairs.all((Sequence(4),) * 2)
    few.whole = False
    assert few.by_offset is None


@pytest.mark.parametrize("length", [12, 150])
def test_a_gpu_writes_no_pair_by_itself(length: int) -> None:
    """`index_put` adds up the pairs of one row one after the other, and there are millions."""
    graph = Graph(torch.arange(length).repeat(2, 1), length, edge_attr=torch.arange(length) % 2)
    for bias, space in (
        (RelativeTable.t5(H), Sequence(length)),
        (RelativeTable.swin(H, (3, 3)), Grid(3, length // 3)),
        (EdgeBias(H, types=2), graph),
    ):
        with CountingDevice() as device:
            there = device.moved(bias)
            pairs = Pairs.all((space.to("cuda"),) * 2, heads=H, device="cuda")
            with device.counting() as counts:
                there(pairs).square().sum().backward()
        names = {name for name, _ in counts.kernels}
        assert not {"index_put", "index_put_", "_index_put_impl_"} & names, counts
