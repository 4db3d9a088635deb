"""Rule 12, dropout in layers; and rule 13, biases without memory for all pairs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_core import (
    Bias,
    Causal,
    ContinuousBias,
    DenseBias,
    EdgeBias,
    Edges,
    Encoder,
    Graph,
    Grid,
    Mask,
    MultiheadAttention,
    Multiplier,
    Neighborhood,
    RelativeTable,
    Sequence,
    Space,
    attend,
)
from tests.allocated import Allocated
from tests.conformance.cases import BACKENDS, can

# -- rule 12: dropout is off in eval ---------------------------------------------------------------

CASES: dict[str, tuple[Space, Mask | None]] = {
    "sequence": (Sequence(6), Causal()),
    "padded": (Sequence.padded([6, 2]), None),
    "grid": (Grid(2, 3), Neighborhood(1)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "autocast"])
def test_dropout_is_off_in_eval(case: str, backend: str, dtype: str) -> None:
    """In eval a layer with dropout equals one without, bit for bit; in training it does not."""
    space, mask = CASES[case]
    torch.manual_seed(0)
    options: dict[str, Any] = {"kv_heads": 2, "bias": RelativeTable.hops(4, 2), "sink": True}
    dropping = MultiheadAttention(16, 4, attention_dropout=0.5, **options)
    plain = MultiheadAttention(16, 4, **options)
    plain.load_state_dict(dropping.state_dict())
    x = torch.randn(2, 6, 16)

    def run(layer: nn.Module) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
            return layer(x, space=space, mask=mask, backend=backend)

    assert torch.equal(run(dropping.eval()), run(plain.eval()))
    assert torch.equal(run(dropping), run(dropping))
    assert torch.equal(run(plain.train()), run(plain.eval()))
    dropping.train()
    assert not torch.allclose(run(dropping), run(plain), atol=1e-3)
    assert not torch.equal(run(dropping), run(dropping))


def test_dropout_is_off_in_the_eval_of_a_whole_encoder() -> None:
    torch.manual_seed(0)
    encoder = Encoder(dim=16, depth=2, heads=4, dropout=0.5).eval()
    x = torch.randn(2, 5, 16)
    assert torch.equal(encoder(x), encoder(x))
    encoder.train()
    assert not torch.equal(encoder(x), encoder(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_keeps_the_mean(backend: str) -> None:
    """In training the mean over many draws is the output without dropout."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 3, 4, dtype=torch.float64) for _ in range(3))
    many = [x.expand(4000, 1, 3, 4) for x in (q, k, v)]
    mean = attend(*many, backend=backend, dropout_p=0.3).mean(0, keepdim=True)
    torch.testing.assert_close(mean, attend(q, k, v, backend=backend), atol=0.06, rtol=0)


@pytest.mark.parametrize("backend", can("edge features"))
def test_dropout_keeps_the_mean_of_edge_features(backend: str) -> None:
    torch.manual_seed(0)
    q, k, v, *edges = (torch.randn(1, 1, 3, 4, dtype=torch.float64) for _ in range(5))
    many = [x.expand(4000, 1, 3, 4) for x in (q, k, v)]
    options: dict[str, Any] = {"space": ring(3), "backend": backend}
    for name, x in zip(("edge_key", "edge_value"), edges, strict=True):
        options[name] = x[0, 0, [0, 1, 2, 2, 1, 0], None]
    mean = attend(*many, dropout_p=0.3, **options).mean(0, keepdim=True)
    torch.testing.assert_close(mean, attend(q, k, v, **options), atol=0.06, rtol=0)


# -- rule 13: no L × L tensor outside `reference` and `dense` -------------------------------------


def ring(nodes: int) -> Graph:
    """Each node sees the two before it."""
    node = torch.arange(nodes)
    source, target = torch.cat([node, node]), torch.cat([node + 1, node + 2]) % nodes
    return Graph(torch.stack([source, target]), nodes, edge_attr=torch.arange(2 * nodes) % 3)


L, H = 1024, 2
SPARSE: dict[str, tuple[Space, Mask, Bias]] = {
    "sequence": (Sequence(L), Neighborhood(4), RelativeTable.t5(H)),
    "causal": (Sequence(L), Causal() & Neighborhood(4), ContinuousBias(H, (4,), 8)),
    "grid": (Grid(32, 32), Neighborhood(1), RelativeTable.swin(H, 3)),
    "grid-continuous": (Grid(32, 32), Neighborhood(1), ContinuousBias(H, (2, 2), 8)),
    "score mod": (Sequence(L), Neighborhood(4), Multiplier(RelativeTable.t5(H))),
    "edges": (ring(L), Edges(), EdgeBias(H, types=3)),
    "hops": (ring(L), Neighborhood(2), RelativeTable.hops(H, 3)),
}


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b not in ("reference", "dense")])
@pytest.mark.parametrize("name", SPARSE)
def test_no_tensor_of_all_pairs(name: str, backend: str) -> None:
    """Forward and backward, the bias learning: nothing comes near L² elements."""
    space, mask, bias = SPARSE[name]
    q, k, v = (torch.randn(1, H, L, 8, requires_grad=True) for _ in range(3))
    with Allocated() as allocated:
        attend(q, k, v, space=space, mask=mask, bias=bias, backend=backend).sum().backward()
    assert 4 * L * H < allocated.largest < 4 * L * L / 4
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in bias.parameters())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bias_of_two_layers_receives_both_gradients(backend: str) -> None:
    """A table shared by two calls and by the samples of a batch adds up what all of them say."""
    torch.manual_seed(0)
    table = RelativeTable.t5(2, 8, 6).double()
    q, k, v = (torch.randn(3, 2, 5, 4, dtype=torch.float64) for _ in range(3))
    parts = [
        torch.autograd.grad(attend(q[b : b + 1], k[b : b + 1], v[b : b + 1], bias=table,
                                   backend=backend).sum(), table.table)[0]
        for b in range(3)
    ]  # fmt: skip
    whole = attend(q, k, v, bias=table, backend=backend).sum()
    again = attend(q, k, v, bias=table, backend=backend).sum()
    got = torch.autograd.grad(whole + again, table.table)[0]
    torch.testing.assert_close(got, 2 * sum(parts), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_plain_tensor_learns_as_a_bias(backend: str) -> None:
    tensor = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    q, k, v = (torch.randn(1, 2, 5, 4, dtype=torch.float64) for _ in range(3))
    goal = torch.randn(1, 2, 5, 4, dtype=torch.float64)
    got, wanted = (
        torch.autograd.grad((attend(q, k, v, bias=b, backend=name) * goal).sum(), tensor)[0]
        for b, name in ((tensor, backend), (DenseBias(tensor), "reference"))
    )
    assert wanted.abs().sum() > 0
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
