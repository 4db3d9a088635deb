"""What `flex` compiles is lowered for GPUs that are not here, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")

from attention_core import (
    Bias,
    Causal,
    Grid,
    Mask,
    Neighborhood,
    RelativeTable,
    Sequence,
    Space,
    attend,
    plan,
)
from attention_core.backends.flex import compiled, proof
from tests.devices.lowering import NotRun, lowering

HEADS, GROUPS, DIM = 4, 2, 64


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "space", "mask", "bias"),
    [
        (90, Sequence.packed([100, 156, 200]), Causal() & Neighborhood(64), RelativeTable.t5),
        (80, Grid(24, 16, special=1), Neighborhood(3), None),
    ],
    ids=["packed windows, T5, sm_90", "grid, sm_80"],
)
def test_forward_and_backward_are_lowered_and_compiled(
    capability: int,
    space: Space,
    mask: Mask,
    bias: Callable[[int], Bias] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The gradients of a table are summed there too, and no register is spilled."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiled._compiled.cache_clear()
    torch._dynamo.reset()
    tokens = [
        torch.randn(1, heads, space.length, DIM, dtype=torch.bfloat16, requires_grad=True)
        for heads in (HEADS, GROUPS, GROUPS)
    ]
    table = None if bias is None else bias(HEADS)
    options: dict[str, Any] = {"bias": table, "softcap": None if table is None else 20.0}
    made = plan(space, mask, heads=HEADS, head_dim=DIM, grad=True, backend="flex", **options)
    monkeypatch.setattr(made.prepared, "compiled", True)
    with (
        lowering(capability, tmp_path) as lowered,
        mock.patch.object(compiled, "_COMPILER", lowered),
        mock.patch.object(proof, "holds", lambda *args: True),
    ):
        with pytest.raises(NotRun):
            attend(*tokens, plan=made, **options)
        _, backward = lowered.sources
        found = lowered.compile()
    compiled._compiled.cache_clear()
    assert ("tl.atomic_add" in backward) == (table is not None)
    templates = [kernel for kernel in found if "_tem_" in kernel.name]
    assert len(templates) == 2 and "backward" in templates[1].name
    for kernel in found:
        assert 0 < kernel.registers <= 255 and kernel.spilled == 0, kernel
