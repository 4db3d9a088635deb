"""On a GPU `blocks` multiply halves as they are and sum them in float32; all else is float32."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_core import Causal, Neighborhood, RelativeTable, Sequence, attend
from attention_core.backends.blocks.chunks import Work
from tests.devices.counting import CountingDevice

H, D, L = 4, 8, 60


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"softcap": 3.0, "scale": 0.3, "sink": torch.linspace(-1, 1, H)},
        {"bias": RelativeTable.t5(H)},
    ],
)
def test_products_are_of_halves(
    dtype: torch.dtype, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    multiplied: set[torch.dtype] = set()
    product = Work.product

    def noted(self: Work, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        multiplied.add(self.settings.products)
        assert out.dtype == torch.float32
        found = product(self, a, b, out)
        assert found.dtype == torch.float32
        return found

    monkeypatch.setattr(Work, "product", noted)
    bmm = torch.bmm

    def seen(a: Tensor, b: Tensor, out_dtype: torch.dtype | None = None, **more: Any) -> Tensor:
        assert a.dtype == b.dtype == dtype and (out_dtype is None) == (dtype == torch.float32)
        return bmm(a, b, **more) if out_dtype is None else bmm(a, b, out_dtype, **more)

    given = [torch.randn(2, h, L, D).to(dtype) for h in (H, 2, 2)]
    space, mask, of = Sequence(L), Causal() & Neighborhood(7), torch.randn(2, H, L, D).to(dtype)
    exact = [x.float().requires_grad_() for x in given]
    wanted = attend(*exact, space=space, mask=mask, backend="reference", **options)
    wanted_grads = torch.autograd.grad(wanted, exact, of.float())
    with CountingDevice() as device:
        there = [x.requires_grad_() for x in device.moved(given)]
        moved = {
            name: device.moved(deepcopy(x)) if isinstance(x, torch.nn.Module | Tensor) else x
            for name, x in options.items()
        }
        monkeypatch.setattr(torch, "bmm", seen)
        out = attend(*there, space=space.to("cuda"), mask=mask, backend="blocks", **moved)
        out.backward(device.moved(of))
        monkeypatch.setattr(torch, "bmm", bmm)
        found = [out.detach().cpu(), *(x.grad.cpu() for x in there)]
    atol = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for one, other in zip(found, [wanted, *wanted_grads], strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.float(), other, atol=atol, rtol=atol)
    assert multiplied == {dtype}
