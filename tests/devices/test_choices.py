"""What the plan chooses on a GPU is what docs/devices.md says, with a reason for each."""

from __future__ import annotations

import pytest
import torch

from tools.choices import JOBS, PAGE, Job, rewrite

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the page is about a GPU that is only named"
)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: f"{job.name}, {job.dtype}")
def test_the_choice_is_the_one_that_has_the_reason(job: Job) -> None:
    made = job.plan()
    assert made.backend == job.expected, str(made)
    assert "Estimated for an sm_90 GPU, not measured on this machine" in str(made)


def test_the_page_shows_these_choices() -> None:
    text = PAGE.read_text()
    assert rewrite(text) == text, "python -m tools.choices writes the table"
    assert len(JOBS) >= 20 and all(job.why.endswith(".") for job in JOBS)
