"""Faults that were found where good parts meet, on the backends that had them and on others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attention_core import (
    DenseMask,
    Grid,
    Mask,
    Nearest,
    Neighborhood,
    Pairs,
    Points,
    Sequence,
    attend,
    explain,
)
from attention_core.backends import measured
from attention_core.plan_cache import PLANS
from tests.devices.counting import CountingDevice


class Chosen(Mask):
    """Allow by a choice between two numbers of Python."""

    def __init__(self, before: bool, after: bool) -> None:
        self.before, self.after = before, after

    def allowed(self, pairs: Pairs) -> Tensor:
        return torch.where(pairs.key <= pairs.query, self.before, self.after)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("after", [True, False])
def test_flex_writes_a_choice_between_bools(before: bool, after: bool) -> None:
    x, given = torch.randn(1, 1, 9, 4), {"space": Sequence(9), "mask": Chosen(before, after)}
    torch.testing.assert_close(
        attend(x, x, x, backend="flex", **given), attend(x, x, x, backend="reference", **given)
    )


def test_flex_serves_nearest_of_special_tokens_alone() -> None:
    space = Grid(3, 3, special=2).keep(torch.tensor([1, 0]))
    x, given = torch.randn(1, 1, 2, 4), {"space": space, "mask": Nearest(4)}
    torch.testing.assert_close(
        attend(x, x, x, backend="flex", **given), attend(x, x, x, backend="reference", **given)
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_own_masks_are_explained_for_a_gpu_that_is_not_there() -> None:
    found = explain(Sequence(31, special=2), Chosen(True, False), heads=2, device="cuda")
    assert "flex" in str(found)


def test_numbers_beyond_floats_decide_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(measured.FOLDER, str(tmp_path))
    name = measured.device_name(torch.device("cpu"))
    assert name is not None
    factors = {"dense": {"float32": [10**400, 10**400]}}
    written = {"edition": measured.EDITION, "device": name, "date": "2026-11-30"}
    measured.path_of(name).write_text(json.dumps({**written, "factors": factors}))
    measured._read.cache_clear()
    with pytest.warns(RuntimeWarning, match="costs are estimated"):
        assert measured.of_device(torch.device("cpu")) is None
    measured._read.cache_clear()


@pytest.mark.parametrize("backend", ["reference", "dense", "blocks", "flex"])
def test_a_large_sink_leaves_the_log_sum_exp_alone(backend: str) -> None:
    q, k, v = torch.randn(3, 1, 2, 5, 4).unbind()
    _, plain = attend(q, k, v, backend=backend, return_lse=True)
    _, beside = attend(q, k, v, sink=torch.full((2,), 150.0), backend=backend, return_lse=True)
    torch.testing.assert_close(beside, plain)


def test_what_is_written_to_the_original_changes_no_space_on_a_device() -> None:
    x, places = torch.randn(1, 2, 20, 8), torch.randn(20, 2)
    allowed = torch.cdist(places, places) <= 0.8
    wanted = attend(x, x, x, mask=DenseMask(allowed), backend="reference")
    with CountingDevice() as device:
        space = Points(places)
        there = space.to("cuda")
        assert space.coordinates is not None
        space.coordinates.mul_(3)
        for backend in ("dense", "blocks", "flex"):
            PLANS.clear()
            q = device.moved(x)
            out = attend(q, q, q, space=there, mask=Neighborhood(0.8), backend=backend)
            torch.testing.assert_close(out.cpu(), wanted, msg=backend)
