"""The k nearest tokens: beside all distances, of any size and in any company."""

from __future__ import annotations

import pytest
import torch
from sklearn.neighbors import kneighbors_graph
from torch import Tensor

from attention_core import (
    Causal,
    Decoder,
    Encoder,
    Grid,
    Mask,
    Nearest,
    Neighborhood,
    Points,
    Sequence,
    Space,
    attend,
    plan,
)
from attention_core.masks import algebra


def chosen(mask: Mask, query: Space, key: Space | None = None) -> Tensor:
    """(B, Lq, Lk) bool: the pairs that are listed."""
    key = query if key is None else key
    found = mask.candidates((query, key))
    assert found is not None
    rows = query.batch or key.batch or 1
    table = torch.zeros(rows, query.length, key.length, dtype=torch.bool)
    table[0 if found.batch is None else found.batch, found.query, found.key] = True
    assert int(table.sum()) == len(found.query)
    return table


def by_sorting(k: int, loop: bool, query: Tensor, key: Tensor) -> Tensor:
    """(Lq, Lk) the same of two clouds; where they are one, no loops."""
    apart = torch.cdist(query, key, compute_mode="donot_use_mm_for_euclid_dist")
    if not loop and query is key:
        apart.fill_diagonal_(torch.inf)
    nearest = apart.argsort(dim=-1, stable=True)[:, :k]
    found = torch.zeros_like(apart, dtype=torch.bool).scatter(-1, nearest, True)
    return found & apart.isfinite()


def clouds() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tight = [drawn(900, 3) * 0.01, drawn(200, 3) * 50, drawn(1, 3) * 1e6]
    lattice = torch.cartesian_prod(*[torch.arange(11.0, dtype=torch.float64)] * 3)
    return {
        "even": drawn(1500, 3),
        "a cluster and far ones": torch.cat(tight)[torch.randperm(1101, generator=generator)],
        "equally far": lattice,
        "all in one place": torch.zeros(700, 2, dtype=torch.float64),
        "on a line": drawn(1200, 1) * torch.tensor([[1.0, 0.0, 0.0]]),
        "many axes": drawn(600, 12),
        "few": drawn(5, 2),
    }


@pytest.mark.parametrize("name", clouds())
@pytest.mark.parametrize("loop", [True, False])
def test_the_nearest_of_a_cloud_are_those_of_all_distances(name: str, loop: bool) -> None:
    places = clouds()[name]
    for k in (1, 16):
        found = chosen(Nearest(k, loop=loop), Points(places))[0]
        torch.testing.assert_close(found, by_sorting(k, loop, places, places))
    other = places[::3] * 1.5 + 1
    found = chosen(Nearest(4), Points(other), Points(places))[0]
    torch.testing.assert_close(found, by_sorting(4, loop, other, places))


def test_they_are_those_of_scikit_learn() -> None:
    places = clouds()["even"]
    for loop in (True, False):
        theirs = kneighbors_graph(places.numpy(), 8, include_self=loop).toarray()
        found = chosen(Nearest(8, loop=loop), Points(places))[0]
        assert torch.equal(found, torch.from_numpy(theirs).bool())


def test_a_cloud_has_the_same_nearest_in_any_company() -> None:
    torch.manual_seed(0)
    parts = [
        torch.randn(n, 3) * scale for n, scale in ((600, 1.0), (40, 0.01), (3, 9.0), (300, 4.0))
    ]
    mask = Nearest(6)
    alone = [chosen(mask, Points(part))[0] for part in parts]
    packed = Points.pack([Points(part, special=1) for part in parts])
    padded = Points.pad([Points(part) for part in parts])
    in_row, in_batch = chosen(mask, packed)[0], chosen(mask, padded)
    first = 0
    for row, own in enumerate(alone):
        n = len(own)
        last = first + n + 1
        assert torch.equal(in_row[first + 1 : last, first + 1 : last], own)
        assert torch.equal(in_batch[row, :n, :n], own)
        assert int(in_batch[row].sum()) == int(own.sum()) == n * min(n, 6)
        first = last
    assert int(in_row.sum()) == sum(int(own.sum()) for own in alone)
    # Padding that differs where places are shared
    valid = torch.rand(3, 600) > 0.5
    shared = chosen(mask, Points(parts[0], valid=valid))
    for row, at in enumerate(valid):
        kept = chosen(mask, Points(parts[0][at]))[0]
        assert torch.equal(shared[row][at][:, at], kept)
        assert not bool(shared[row][~at].any())


def test_equally_far_keys_are_taken_in_order_on_a_grid() -> None:
    found = chosen(Nearest(4), Grid(3, 3))[0]
    # The place itself, then of the eight around it the first three
    assert found[4].nonzero().squeeze(-1).tolist() == [0, 1, 2, 4]
    assert chosen(Nearest(2, loop=False), Sequence(4))[0].int().tolist() == [
        [0, 1, 1, 0],
        [1, 0, 1, 0],
        [0, 1, 0, 1],
        [0, 1, 1, 0],
    ]


@pytest.mark.parametrize("backend", ["dense", "blocks", "edges"])
def test_backends_agree_and_the_choice_has_no_gradient(backend: str) -> None:
    torch.manual_seed(0)
    places = torch.randn(2, 200, 3, dtype=torch.float64, requires_grad=True)
    valid = torch.rand(2, 200) > 0.2
    q, k, v = torch.randn(3, 2, 2, 200, 4, dtype=torch.float64).requires_grad_().unbind(0)
    space = Points(places, valid=valid, special=0)
    wanted = attend(q, k, v, space=space, mask=Nearest(9), backend="reference")
    found = attend(q, k, v, space=space, mask=Nearest(9), backend=backend)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    grads = [torch.autograd.grad(out.square().sum(), [q, k, v]) for out in (wanted, found)]
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-8)
    assert places.grad is None


def test_many_points_are_planned_pair_by_pair() -> None:
    torch.manual_seed(0)
    cloud = Points(torch.rand(5000, 3))
    made = plan(cloud, Nearest(16), heads=4, head_dim=8, grad=True)
    assert made.backend == "edges"
    assert len(made.prepared.row) == 5000 * 16
    assert plan(cloud, Nearest(16) | Nearest(2), heads=4).job.count_bound == 5000 * 18


def test_a_decoder_with_a_cache_refuses_what_later_keys_displace() -> None:
    decoder = Decoder(8, 1, 2, mask=Nearest(3)).eval()
    with pytest.raises(ValueError, match=r"Nearest\(3\) depends on where a sample ends"):
        decoder(torch.randn(1, 4, 8), cache=decoder.new_cache())


def test_layers_leave_out_nothing_that_is_to_be_chosen_from() -> None:
    torch.manual_seed(0)
    cloud, keep = Points(torch.randn(60, 3)), torch.tensor([5, 40])
    for mask in (Nearest(4), Neighborhood(1.0) & ~Nearest(4), Causal() | Nearest(4)):
        space = Sequence(60) if isinstance(mask, algebra._Or) else cloud
        encoder, x = Encoder(8, 3, 2, mask=mask).eval(), torch.randn(1, 60, 8)
        torch.testing.assert_close(encoder(x, space, keep=keep), encoder(x, space)[:, keep])


@pytest.mark.parametrize("k", [0, -1, 1.5, True])
def test_a_wrong_number_is_told(k: object) -> None:
    with pytest.raises((TypeError, ValueError), match="k must be"):
        Nearest(k)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="loop must be"):
        Nearest(2, loop="no")  # type: ignore[arg-type]
    assert repr(Nearest(2)) == "Nearest(2)"
    assert repr(Nearest(2, loop=False)) == "Nearest(2, loop=False)"


@pytest.mark.parametrize("backend", ["reference", "dense", "blocks", "edges", None])
def test_no_keys_are_nearest_where_there_are_none(backend: str | None) -> None:
    q, k = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 0, 4)
    spaces = Sequence(3), Sequence(0)
    assert not attend(q, k, k, space=spaces, mask=Nearest(2), backend=backend).any()
