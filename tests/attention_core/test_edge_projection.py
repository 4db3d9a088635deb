"""How layers make an `EdgeProjection`, and of several kinds of edges one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from attention_core.edge_projection import EdgeProjection, as_tensor, joined, project, rows

E, F, H, D = 5, 3, 2, 4


def test_a_plain_layer_is_taken_apart_and_another_is_called() -> None:
    """Hooks and adapters would not be asked, were only the weights taken."""
    attr, layer = torch.randn(E, F), nn.Linear(F, H * D, bias=False)
    found = project(layer, attr, H)
    assert isinstance(found, EdgeProjection) and found.attr is attr
    torch.testing.assert_close(as_tensor(found), layer(attr).view(E, H, D))
    at = torch.tensor([3, 0, 3])
    torch.testing.assert_close(rows(found, at), layer(attr).view(E, H, D)[at])
    prune.l1_unstructured(layer, "weight", amount=0.5)  # makes the weight anew before each call
    with torch.no_grad():
        layer.weight_orig.mul_(2)
    adapted = nn.Sequential(nn.Linear(F, H * D, bias=False), nn.Tanh())
    biased = nn.Linear(F, H * D)
    for other in (layer, adapted, biased):
        found = project(other, attr, H)
        assert isinstance(found, Tensor)
        torch.testing.assert_close(found, other(attr).view(E, H, D))


def test_kinds_of_edges_lie_side_by_side_while_that_is_less() -> None:
    kinds = [
        EdgeProjection(torch.randn(2, size), torch.randn(H, D, size, requires_grad=True))
        for size in (3, 1)
    ]
    like = torch.zeros(0, H, D)
    for first in (kinds[0], kinds[0].tensor()):
        parts = [first, 3, kinds[1], 0]
        wanted = torch.cat([kinds[0].tensor(), torch.zeros(3, H, D), kinds[1].tensor()])
        found = joined(parts, like)
        assert isinstance(found, type(first))
        torch.testing.assert_close(as_tensor(found), wanted)
    wide = EdgeProjection(torch.randn(2, H * D), torch.randn(H, D, H * D))
    assert isinstance(joined([kinds[0], wide], like), Tensor)
    assert isinstance(joined([wide, 1], like), EdgeProjection)
