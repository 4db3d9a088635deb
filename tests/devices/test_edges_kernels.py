"""The Triton kernels of `edges` compile for GPUs that are not here, and spill no registers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

import triton

from attention_core.backends.edges.triton import launch, tuning
from tests.devices.ahead import compiling
from tests.devices.edges_kernels import EVERY, FEW, TABLE, Case, compiled, inputs

KERNELS = {
    "forward_hubs", "forward_rows", "query_hubs", "query_rows", "key_hubs", "key_rows",
}  # fmt: skip


def test_the_table_is_of_every_case() -> None:
    """`python -m tests.devices.edges_kernels` writes it, when kernels change."""
    table = json.loads(TABLE.read_text())
    assert set(table) == {"triton", *map(str, EVERY)}
    for case in EVERY:
        features = {"feature_pairs"} if case.sizes[-1] else set()
        assert set(table[str(case)]) == KERNELS | features
    assert {case.dtype for case in FEW} == {case.dtype for case in EVERY}
    assert {case.dtype for case in FEW if case.options} == {case.dtype for case in EVERY}


@pytest.mark.slow
@pytest.mark.parametrize("case", FEW, ids=str)
def test_kernels_compile_and_spill_no_more_than_they_did(case: Case) -> None:
    table = json.loads(TABLE.read_text())
    known, found = table[str(case)], compiled(case)
    assert [kernel.name for kernel in found] == list(known)
    for kernel in found:
        assert 0 < kernel.registers <= 255
        if triton.__version__ == table["triton"]:  # another assembler spills elsewhere
            assert kernel.spilled <= known[kernel.name]["spilled"], kernel


@pytest.mark.slow
def test_a_few_configurations_are_measured_once(tmp_path: Path) -> None:
    """None of which spills, for heads as a GAT has them; and none where sums are to be the same."""
    x, pairs = inputs(FEW[-1])
    tuning._tuned.cache_clear()
    with compiling(90, tmp_path) as found:
        launch.forward(x, pairs)
        tried = [kernel for kernel in found if kernel.name == "forward_rows"]
        assert 3 <= len(tried) <= 8
        assert all(kernel.spilled == 0 for kernel in tried)
        assert len({(kernel.warps, kernel.registers) for kernel in tried}) > 2
        count = len(found)
        launch.forward(x._replace(v=torch.ones_like(x.v)), pairs)
        assert len(found) == count
    tuning._tuned.cache_clear()
