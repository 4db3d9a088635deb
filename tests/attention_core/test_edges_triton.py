"""The Triton kernels of `edges` beside plain torch, and what dropout draws on a GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from attention_core.backends.edges import dropout


@pytest.mark.parametrize(
    "cases",
    [pytest.param("few", marks=pytest.mark.quick), pytest.param("all", marks=pytest.mark.slow)],
)
def test_kernels_equal_the_plain_path(cases: str) -> None:
    """Values and gradients, in Triton's interpreter, which a process of its own has to ask for."""
    pytest.importorskip("triton")
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.attention_core.edges_in_triton", cases],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert found.stdout.strip() == "equal", found.stdout + found.stderr


def test_dropout_is_philox_and_keeps_what_it_should() -> None:
    """Known answers are those of Random123, whose authors Philox is from."""
    full = (1 << 32) - 1
    for number, expected in ((0, 0x6627E8D5), (full, 0x408F276D)):
        seed = torch.tensor([-1 if number else 0])
        counter = tuple(torch.tensor([number]) for _ in range(4))
        assert dropout.philox(seed, counter).item() == expected
    first, second = (dropout.kept(torch.tensor([seed]), 8, 5000, 1 / 0.7) for seed in (1, 2))
    for kept in (first, second):
        assert abs(kept.double().mean() - 0.7) < 0.01
        assert (kept.double().mean(1) - 0.7).abs().max() < 0.03  # of each head
    agreement = (first == second).double().mean()  # of what is drawn apart
    assert abs(agreement - (0.7**2 + 0.3**2)) < 0.01
    assert bool(dropout.kept(torch.tensor([3]), 2, 100, 1.0).all())
