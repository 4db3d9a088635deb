"""Blocks of code in the documentation run as they stand, given what their page says is given."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attention_core
from attention_core import Sequence, explain

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str) -> list[str]:
    found = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    return [block for block in found if '"FOLDER' not in block]  # weights that nobody has here


@pytest.fixture
def scope(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What guide.md says is given; of its listings of calls, their arguments."""
    from torch_geometric.data import Batch, Data

    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # other tests compile
    torch.manual_seed(0)
    graph = Data(x=torch.rand(3, 2), edge_index=torch.tensor([[0, 1], [1, 0]]))
    return {
        **{name: getattr(attention_core, name) for name in attention_core.__all__},
        "torch": torch,
        "nn": nn,
        "Tensor": Tensor,
        **dict.fromkeys("qkv", torch.rand(2, 8, 1024, 64)),
        "num_nodes": 3,
        "batch": Batch.from_data_list([graph, graph]),
        "coordinates": torch.rand(5, 3),
        "space": Sequence(5),
        "index": torch.tensor([0, 2]),
        "tokens": torch.rand(1, 5, 8),
        "special": torch.empty(0, 8),
        "logits": torch.zeros(8),
        **dict.fromkeys(("space_of_queries", "space_of_keys"), Sequence(1024)),
    }


@pytest.mark.parametrize("page", ["guide.md", "nlp.md", "graph.md", "devices.md"])
def test_the_blocks_of_a_page_run(page: str, scope: dict[str, Any]) -> None:
    if page != "guide.md":  # these import what they use, but for what devices.md is all about
        names = attention_core.__all__ if page == "devices.md" else ()
        scope = {"torch": torch, **{name: getattr(attention_core, name) for name in names}}
    for block in blocks(page):
        try:
            exec(block, scope)
        except Exception as error:
            raise AssertionError(f"docs/{page}: {error} in:\n{block}") from error


def test_the_explanation_in_the_guide_is_the_one_that_is_given() -> None:
    pytest.importorskip("numba")
    call, said = re.findall(
        r"^>>> print\((explain\([^\n]*\))\)\n(.*?)^```",
        (DOCS / "guide.md").read_text(),
        re.M | re.S,
    )[0]
    names = {name: getattr(attention_core, name) for name in attention_core.__all__}
    assert eval(call, {**names, "explain": explain}) == said.strip()
