"""`dense` on a GPU: which kernels it calls and with what, seen without one.

`varlen_attn` is a stand-in with the signatures that torch has had, which looks at its arguments as
the kernel does and computes sample by sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn import functional as F

from attention_core import (
    ALiBi,
    Causal,
    Dilated,
    Grid,
    Mask,
    Neighborhood,
    Sequence,
    Space,
    attend,
    plan,
)
from attention_core.backends import derivatives, sdpa, varlen
from attention_core.errors import BackendError
from attention_core.plan_cache import PLANS
from tests.devices.counting import CountingDevice

H, D = 4, 12


class Kernel:
    """What stands in for `varlen_attn`, and what it was called with."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int,
                 max_k: int, window: tuple[int, int], scale: float | None,
                 gqa: bool) -> Tensor:  # fmt: skip
        self.calls.append({"window": window, "tokens": len(q), "heads": k.shape[1]})
        assert cu_q is cu_k and cu_q.dtype == torch.int32 and cu_q.is_cuda
        assert type(max_q) is int and max_q == max_k
        assert type(window) is tuple
        assert q.shape[-1] == k.shape[-1] == v.shape[-1] and q.shape[-1] % 8 == 0
        assert q.ndim == 3 and all(x.dtype == torch.bfloat16 and x.stride(-1) == 1 for x in (q, k))
        assert gqa or q.shape[1] == k.shape[1]
        assert scale is None or (type(scale) is float and scale > 0)
        starts = cu_q.inner.tolist()  # type: ignore[attr-defined]
        lengths = [end - start for start, end in pairwise(starts)]
        assert starts[0] == 0 and sum(lengths) == len(q) and max(lengths) == max_q
        out = []
        for one_q, one_k, one_v in zip(*(x.split(lengths) for x in (q, k, v)), strict=True):
            one_q, one_k, one_v = (x.transpose(0, 1).float() for x in (one_q, one_k, one_v))
            one_k, one_v = (x.repeat_interleave(len(one_q) // len(x), 0) for x in (one_k, one_v))
            at = torch.arange(one_q.shape[1], device=q.device)
            offset = at - at[:, None]
            sees = torch.ones_like(offset) > 0
            if window[0] >= 0:
                sees = sees & (offset >= -window[0])
            if window[1] >= 0:
                sees = sees & (offset <= window[1])
            scores = one_q @ one_k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
            weights = scores.masked_fill(~sees, -torch.inf).softmax(-1)
            out.append((weights @ one_v).transpose(0, 1))
        return torch.cat(out).to(q.dtype)


def releases(kernel: Kernel) -> dict[str, Any]:
    """The signatures of `varlen_attn`, by the release of torch."""

    def torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False,
                   return_aux=None):  # fmt: skip
        window = (-1, 0) if is_causal else (-1, -1)
        return kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window, None, False)

    def torch_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None,
                   scale=None, window_size=(-1, -1)):  # fmt: skip
        return kernel(
            query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size, scale, False
        )

    def torch_2_15(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None,
                   scale=None, window_size=(-1, -1), enable_gqa=False, seqused_k=None,
                   block_table=None, num_splits=None):  # fmt: skip
        return kernel(
            query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size, scale, enable_gqa
        )

    return {"2.10": torch_2_10, "2.11": torch_2_11, "2.15": torch_2_15}


@pytest.fixture
def device() -> Iterator[CountingDevice]:
    torch.manual_seed(0)
    with CountingDevice() as entered:
        yield entered


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    PLANS.clear()  # which keep the kernel that they were made with
    found = Kernel()
    monkeypatch.setattr(varlen, "kernel", lambda: releases(found)["2.15"])
    return found


def qkv(batch: int, length: int, kv_heads: int = H, value_dim: int = D) -> list[Tensor]:
    sizes = ((H, D), (kv_heads, D), (kv_heads, value_dim))
    return [torch.randn(batch, h, length, d).bfloat16() for h, d in sizes]


def both(
    device: CountingDevice, tensors: list[Tensor], space: Space, backend: str = "dense", **options
) -> Iterator[tuple[Tensor, Tensor]]:
    """Output and gradients on the device, each with that of `reference` on the CPU."""
    there = [x.requires_grad_() for x in device.moved(tensors)]
    here = [x.detach().requires_grad_() for x in tensors]
    moved = {
        n: device.moved(x) if isinstance(x, torch.nn.Module) else x for n, x in options.items()
    }
    out = attend(*there, space=space.to("cuda"), backend=backend, **moved)
    wanted = attend(*here, space=space, backend="reference", **options)
    of = torch.randn_like(wanted)
    out.backward(device.moved(of))
    wanted.backward(of)
    yield out.detach().cpu(), wanted.detach()
    for one, other in zip(there, here, strict=True):
        yield one.grad.cpu(), other.grad


SPACES = {
    "packed": (1, Sequence.packed([3, 1, 7])),
    "packed twice": (2, Sequence.packed([4, 0, 5])),
    "right": (2, Sequence.padded([3, 6])),
    "left": (3, Sequence.padded([3, 0, 6], 8, side="left")),
    "plain": (2, Sequence(11)),
    "a row": (2, Sequence.padded([5], 8).keep(torch.arange(7))),
}
MASKS = {
    (-1, -1): [None, Neighborhood(float("inf"))],
    (-1, 0): [Causal()],
    (2, 2): [Neighborhood(2), Neighborhood((2,)) & Neighborhood(4)],
    (2, 0): [Causal() & Neighborhood(2), Neighborhood(2.5) & Causal()],
}


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize(("window", "mask"), [(w, m) for w, masks in MASKS.items() for m in masks])
def test_samples_are_one_call(
    name: str, window: tuple[int, int], mask: Mask | None, device: CountingDevice, kernel: Kernel
) -> None:
    batch, space = SPACES[name]
    if name == "a row":  # of one sample, which the batch has its own of
        batch = 1
    if name == "plain" and window in ((-1, -1), (-1, 0)):
        pytest.skip("SDPA's own kernels do that")
    tokens = int(space.valid.sum()) if space.valid is not None else batch * space.length
    for found, wanted in both(device, qkv(batch, space.length, 2), space, mask=mask):
        torch.testing.assert_close(found, wanted, atol=3e-2, rtol=2e-2)
    assert kernel.calls == [{"window": window, "tokens": tokens, "heads": 2}]


@pytest.mark.parametrize("release", ["2.10", "2.11", "2.15"])
@pytest.mark.parametrize(("window", "mask"), [(w, masks[0]) for w, masks in MASKS.items()])
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_every_signature(
    release: str, window: tuple[int, int], mask: Mask | None, kv_heads: int,
    device: CountingDevice, kernel: Kernel, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(varlen, "kernel", lambda: releases(kernel)[release])
    tensors = qkv(1, 11, kv_heads, value_dim=9)
    space = Sequence.packed([3, 1, 7])
    for found, wanted in both(device, tensors, space, mask=mask, scale=0.5):
        torch.testing.assert_close(found, wanted, atol=3e-2, rtol=2e-2)
    if release == "2.10" and window[0] > 0:
        assert not kernel.calls
    else:
        heads = kv_heads if release == "2.15" else H
        assert kernel.calls == [{"window": window, "tokens": 11, "heads": heads}]


def test_the_signature_of_this_torch_is_known() -> None:
    assert varlen.takes((5, 0)) and varlen.takes((-1, -1))


def test_a_call_waits_for_nothing(device: CountingDevice, kernel: Kernel) -> None:
    q, k, v = (x.requires_grad_() for x in device.moved(qkv(2, 11)))
    space = Sequence.packed([3, 1, 7])
    made = plan(
        space, Causal(), heads=H, head_dim=D, batch=2, device="cuda", dtype=q.dtype, grad=True,
        backend="dense",
    )  # fmt: skip
    assert "varlen_attn: 6 samples in one kernel" in str(made)
    with device.counting() as counts:
        attend(q, k, v, plan=made).sum().backward()
    assert not counts.waits and not counts.copies, counts
    assert len(kernel.calls) == 1


@pytest.mark.parametrize(
    ("mask", "options", "dtype"),
    [
        (Causal(), {"sink": torch.randn(H)}, torch.bfloat16),
        (None, {"scale": -1.0}, torch.bfloat16),
        (Causal(), {}, torch.float32),
        (Neighborhood(2), {}, torch.float64),
        (Neighborhood(2), {"bias": ALiBi(H)}, torch.bfloat16),
        (Causal() | Neighborhood(1), {}, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("planned", [True, False])
def test_what_the_kernel_cannot_do(
    mask: Mask | None, options: dict[str, Any], dtype: torch.dtype, planned: bool,
    device: CountingDevice, kernel: Kernel,
) -> None:  # fmt: skip
    """It is computed all the same, whether the plan knew of it or took it for the kernel's."""
    tensors = [x.to(dtype) for x in qkv(1, 11, 2)]
    space = Sequence.packed([3, 1, 7])
    there, moved = device.moved(tensors), device.moved(options)
    made = plan(
        space, mask, options.get("bias"), heads=H, head_dim=D, device="cuda",
        dtype=dtype if planned else torch.bfloat16, backend="dense",
    )  # fmt: skip
    found = attend(*there, plan=made, **moved).cpu()
    wanted = attend(*tensors, space=space, mask=mask, backend="reference", **options)
    torch.testing.assert_close(found, wanted, atol=3e-2, rtol=2e-2)
    assert not kernel.calls


def test_other_spaces_keep_their_masks(device: CountingDevice, kernel: Kernel) -> None:
    """Where places do not follow each other in a row, no window of tokens is one of places."""
    for space, mask in (
        (Sequence.packed([6, 5]).keep(torch.tensor([0, 2, 3, 6, 7])), Neighborhood(1)),
        (Sequence.packed([3, 3], special=1), Causal()),
        (Grid.packed([(2, 3), (1, 4)]), Neighborhood(1)),
        (Sequence.packed([5, 5]).keep(torch.tensor([0, 5, 1, 6])), None),
    ):
        made = plan(space, mask, device="cuda", dtype=torch.float16, backend="dense")
        assert made.prepared.rows is None, (space, mask)


@pytest.mark.parametrize("mask", [None, Dilated(2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_heads_are_repeated_where_no_fused_kernel_shares_them(
    mask: Mask | None, dtype: torch.dtype, device: CountingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[bool, int]] = []

    def fused(q, k, v, *, enable_gqa, **options):
        asked.append((enable_gqa, k.shape[1]))
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=enable_gqa, **options)

    monkeypatch.setattr(sdpa, "scaled_dot_product_attention", fused)
    tensors = [x.to(dtype) for x in qkv(2, 9, 2)]
    for found, wanted in both(device, tensors, Sequence(9), mask=mask):
        torch.testing.assert_close(found, wanted, atol=3e-2, rtol=2e-2)
    shared = mask is None and dtype == torch.bfloat16  # as flash does
    assert asked == [(shared, 2 if shared else H)]


def test_biases_are_not_rounded_to_halves(device: CountingDevice) -> None:
    """At distance 300 bfloat16 has no odd numbers: rounded, a key would weigh e times too much."""
    q, k, v = qkv(1, 400)
    found, wanted = next(both(device, [q, k, v], Sequence(400), bias=ALiBi(H)))
    torch.testing.assert_close(found, wanted, atol=1e-2, rtol=1e-2)
    assert found.dtype == torch.bfloat16
    exact = attend(*(x.double() for x in (q, k, v)), bias=ALiBi(H), backend="reference")
    assert (found.double() - exact).abs().max() < 2e-2


@pytest.mark.slow
def test_a_program_serves_samples_of_any_number_and_lengths() -> None:
    """torch's kernel is an operator, which is told the longest sample by a number of the host."""

    @torch.library.custom_op("attention_core_tests::varlen", mutates_args=())
    def operator(q: Tensor, starts: Tensor, longest: int) -> Tensor:
        assert int(starts.diff().max()) == longest
        return 2 * q

    operator.register_fake(lambda q, starts, longest: torch.empty_like(q))

    def function(q, k, v, starts, _, longest, __, scale=None, window_size=(-1, -1)):
        return operator(q, starts, longest)

    names = frozenset({"scale", "window_size"})
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(varlen.attend, fullgraph=True, backend="eager")
    for lengths in ([3, 8], [9, 1, 4], [2] * 6, [11, 5]):
        starts = torch.tensor([0, *lengths]).cumsum(0).int()
        rows = varlen.Rows(starts, max(lengths), (-1, 0), None, function, names)
        q = torch.randn(1, H, sum(lengths), D)
        torch.testing.assert_close(compiled(rows, q, q, q, 0.5), 2 * q)
    assert counters["stats"]["unique_graphs"] <= 2


def test_second_derivatives_are_refused() -> None:
    """torch's operator is known by the name of its node."""

    @torch.library.custom_op("attention_core_tests::_varlen_attn", mutates_args=())
    def operator(q: Tensor) -> Tensor:
        return 2 * q

    operator.register_autograd(lambda ctx, grad: 2 * grad)
    q = torch.randn(6, H, 8, requires_grad=True)
    rows = torch.tensor([0, 2, 3, 5, 6, 7])
    out = torch.zeros(8, H, 8).index_copy(0, rows, operator(q))
    out = out[..., :5].view(2, 4, H, 5).transpose(1, 2)
    derivatives.refuse_second("dense", out)
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(BackendError, match="has no second derivatives"):
        grad.sum().backward()
