"""docs/spaces.md, run as it stands; and spaces written from what it says."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from attention_core.spaces import Pairs, Space
from attention_core.testing import check_space

PAGE = Path(__file__).parents[2] / "docs" / "spaces.md"


def test_the_blocks_of_the_page_run_and_raise_what_they_say() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    scope: dict[str, Any] = {}
    torch.manual_seed(0)
    refused = 0
    for block in blocks:
        said = re.search(r"^# AssertionError: (.*)\Z", block.rstrip(), re.MULTILINE)
        if said is None:
            exec(block, scope)
            continue
        refused += 1
        with pytest.raises(AssertionError, match=re.escape(said[1])):
            exec(block, scope)
    assert len(blocks) > 15 and refused == 4


class Torus(Space):
    """Places (L, 2) on a square of size 1 whose borders meet."""

    def __init__(self, places: torch.Tensor) -> None:
        super().__init__(len(places), coordinates=places)

    def distance(self, pairs: Pairs) -> torch.Tensor:
        along = pairs.offset.abs()
        return torch.linalg.vector_norm(torch.minimum(along, 1 - along), dim=-1)


class Week(Space):
    """Hours (L,) since a Monday: apart by hours of the day plus three for each day of the week."""

    def __init__(self, hour: torch.Tensor, segments: torch.Tensor | None = None) -> None:
        times = {"day": hour // 24 % 7, "hour": hour % 24}
        super().__init__(len(hour), segments=segments, tokenwise=times)

    def distance(self, pairs: Pairs) -> torch.Tensor:
        apart = []
        for name, size in (("hour", 24), ("day", 7)):
            along = (pairs.take(name, "key") - pairs.take(name, "query")).abs()
            apart.append(torch.minimum(along, size - along))
        return apart[0] + 3 * apart[1]


def test_spaces_that_the_page_leaves_to_its_reader_pass_the_check() -> None:
    torch.manual_seed(0)
    check_space(Torus(torch.rand(24, 2)))
    hours = torch.randint(2000, (30,))
    week = Week(hours, segments=torch.arange(30) // 12)
    check_space(week)
    monday = Week(torch.tensor([0, 23, 6 * 24, 7 * 24]))
    assert Pairs.all((monday, monday)).distance[0, 0, 0].tolist() == [0, 1, 3, 0]
