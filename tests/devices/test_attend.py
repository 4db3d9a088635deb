"""`attend` without a plan, on spaces that were made on the host: right, and waiting for nothing.

Kernels in Triton, which may be chosen, compute nothing on this device.
"""

import copy

import pytest
import torch

from attention_core import (
    ALiBi,
    Causal,
    ContinuousBias,
    Dilated,
    GlobalTokens,
    Graph,
    Grid,
    Nearest,
    Neighborhood,
    Points,
    PrefixLM,
    RelativeTable,
    ScalableSoftmax,
    Sequence,
    Space,
    Window,
    attend,
)
from attention_core.plan_cache import PLANS
from tests.devices.counting import CountingDevice

torch.manual_seed(0)
PACKED = Sequence.packed([20, 3, 17])
PADDED = Sequence.padded([9, 15], special=1)
GRID = Grid(6, 7, special=2)
PACKED_GRIDS = Grid.packed([(3, 4), (5, 5)], special=1)
CLOUD = Points(torch.rand(40, 3), special=1)
RING = Graph(torch.tensor([list(range(12)), [*range(1, 12), 0]]), 12, special=1)

CASES = {
    "packed": (PACKED, None, None),
    "packed, causal": (PACKED, Causal(), None),
    "packed, window": (PACKED, Neighborhood(3), RelativeTable.t5(2)),
    "packed, windows and global": (PACKED, Window(4) | GlobalTokens(0, 2), ALiBi(2)),
    "packed, dilated": (PACKED, Dilated(2) & Causal(), None),
    "packed, prefix": (PACKED, PrefixLM(2), None),
    "padded": (PADDED, Neighborhood(4), RelativeTable.t5(2)),
    "grid": (GRID, Neighborhood((1, 2)), RelativeTable.swin(2, (6, 7))),
    "grid, shifted": (GRID, Neighborhood(1, border="shift"), None),
    "grid, dilated": (GRID, Neighborhood(1, border="shift", dilation=2), None),
    "grid, one axis": (GRID, Causal(axes=1), ContinuousBias(2, (5, 6), hidden=4)),
    "grid, every other row": (GRID, Dilated(2, axes=0), None),
    "grid that wraps": (Grid(6, 8, wrap=(False, True)), Neighborhood(2), None),
    "packed grids": (PACKED_GRIDS, Window(2), ContinuousBias(2, (4, 4), hidden=4)),
    "points": (CLOUD, Neighborhood(0.4), None),
    "nearest points": (CLOUD, Nearest(4), None),
    "graph": (RING, Neighborhood(2), RelativeTable.hops(2, 3)),
    "nowhere": (Space(9), None, None),
    "score mod": (PACKED, Neighborhood(3), ScalableSoftmax(2, 16)),
}


@pytest.mark.parametrize("backend", ["reference", "dense", "blocks", "flex", None])
@pytest.mark.parametrize("name", CASES)
def test_it_is_right_and_nobody_waits(name, backend):
    space, mask, bias = CASES[name]
    if backend == "dense" and name == "score mod":
        pytest.skip("dense has no score mods")
    if backend == "flex" and name in ("nearest points", "graph"):
        pytest.skip("compiled, flex searches no lists of pairs")
    torch.manual_seed(1)
    q = torch.randn(space.batch or 1, 2, space.length, 8)
    wanted = attend(q, q, q, space=space, mask=mask, bias=bias, backend="reference")
    PLANS.clear()
    with CountingDevice() as device, torch.no_grad():
        x, there = device.moved(q), space.to("cuda")
        bias = None if bias is None else device.moved(copy.deepcopy(bias))
        attend(x, x, x, space=there, mask=mask, bias=bias, backend=backend)
        PLANS.clear()
        with device.counting() as counts:
            out = attend(x, x, x, space=there, mask=mask, bias=bias, backend=backend)
        if not any(what.startswith("triton") for what, _ in counts.kernels):
            torch.testing.assert_close(out.cpu(), wanted)
    assert not counts.waits and counts.copies.total() <= 1, counts
    PLANS.clear()
