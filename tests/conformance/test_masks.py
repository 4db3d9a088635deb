"""Rules 1, 3, 6 and 7: what a mask says, alone and composed."""

from __future__ import annotations

import dataclasses
import math
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from attention_core import (
    Causal,
    DenseMask,
    Dilated,
    GlobalTokens,
    Grid,
    Mask,
    Neighborhood,
    PrefixLM,
    Sequence,
    Space,
    Window,
    attend,
    plan,
)
from tests.conformance import oracle
from tests.conformance.cases import (
    BACKENDS,
    NO_MASK,
    PLACES,
    Masked,
    attend_with_gradients,
    biases_of,
    masks_of,
    serving,
    single_masks,
)


def attended(
    space: Space | tuple[Space, Space], mask: Mask | None, backend: str, batch: int = 1, heads=1
) -> Tensor:
    """(B, H, Lq, Lk): who attends to whom, read off the weights of equal scores."""
    spaces = space if isinstance(space, tuple) else (space, space)
    q, k = (torch.zeros(batch, heads, s.length, 4) for s in spaces)
    _, weights = attend(q, k, k, space=space, mask=mask, backend=backend, return_weights=True)
    allowed = weights > 0
    count = allowed.sum(-1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(weights, allowed / count)  # all allowed keys weigh the same
    return allowed


def attended_at(place: str, mask: Masked, backend: str) -> Tensor:
    batch, heads, _, _ = PLACES[place].shape
    return attended(PLACES[place].space, mask.mask, backend, batch, heads)


def truth(place: str, mask: Masked) -> Tensor:
    return oracle.truth(PLACES[place].world, mask.claim, PLACES[place].shape[1])


# -- rule 1: True means "may attend" -------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_true_means_may_attend(backend: str) -> None:
    one = torch.tensor([[True, False, False], [False, False, True]])
    space = (Sequence(2), Sequence(3))
    for mask in (one, one[None, None], DenseMask(one)):
        assert torch.equal(attended(space, mask, backend)[0, 0], one)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_a_mask_of_numbers_is_refused(dtype: torch.dtype, backend: str | None) -> None:
    x, mask = torch.zeros(1, 1, 3, 4), torch.ones(3, 3, dtype=dtype)
    with pytest.raises(TypeError, match=f"mask must be bool.*{dtype}"):
        attend(x, x, x, mask=mask, backend=backend)
    with pytest.raises(TypeError, match="must be bool"):
        DenseMask(mask)
    for name in ("attn_mask", "key_padding_mask"):
        with pytest.raises(TypeError, match=f"{name} must be bool.*{dtype}"):
            Mask.from_torch_mha(**{name: mask})


@pytest.mark.parametrize("shape", [(3,), (2, 1, 3), (2, 3, 3), (1, 1, 1, 3, 3)])
def test_masks_that_do_not_say_which_dimension_is_which(shape: tuple[int, ...]) -> None:
    x = torch.zeros(2, 1, 3, 4)
    with pytest.raises(ValueError) as error:
        attend(x, x, x, mask=torch.ones(shape, dtype=torch.bool))
    assert str(shape) in str(error.value) and "(B, H, Lq, Lk)" in str(error.value)


@pytest.mark.parametrize("backend", [None, *BACKENDS])
@pytest.mark.parametrize(
    "shape", [(2, 3), (3, 2), (1, 3), (2, 1, 4, 3), (3, 1, 3, 3), (1, 2, 3, 3)]
)
def test_masks_of_another_shape(shape: tuple[int, ...], backend: str | None) -> None:
    """(B, Lk) among them: it would broadcast silently where B is 1 or Lq."""
    x = torch.zeros(2, 1, 3, 4)
    with pytest.raises(ValueError) as error:
        attend(x, x, x, mask=torch.ones(shape, dtype=torch.bool), backend=backend)
    assert str(shape) in str(error.value) and "(2, 1, 3, 3)" in str(error.value)


# -- rule 3: composition -------------------------------------------------------------------------

TABLE = list(product([False, True], repeat=2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_truth_tables(backend: str) -> None:
    one, two = (DenseMask(torch.tensor([[row[i] for row in TABLE]])) for i in (0, 1))
    space = (Sequence(1), Sequence(4))
    for mask, column in (
        (one & two, [a and b for a, b in TABLE]),
        (one | two, [a or b for a, b in TABLE]),
        (~one, [not a for a, _ in TABLE]),
        (one & ~two | ~one & two, [a != b for a, b in TABLE]),
        (one | ~one, [True] * 4),
        (one & ~one, [False] * 4),
    ):
        assert attended(space, mask, backend)[0, 0, 0].tolist() == column


ORDERED = [name for name, place in PLACES.items() if place.kind in ("sequence", "grid")]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", ORDERED)
def test_causal_and_anything_means_both(place: str, backend: str) -> None:
    """Special tokens are exempt from both; a written mask speaks for them too."""
    causal = single_masks(PLACES[place])["causal"]
    alone = attended_at(place, causal, backend)
    for mask in list(masks_of(place).values())[1:]:
        both = alone & attended_at(place, mask, backend)
        assert torch.equal(attended_at(place, causal & mask, backend), both), mask
        assert torch.equal(attended_at(place, mask & causal, backend), both), mask


def expressions(place: str) -> st.SearchStrategy[Masked]:
    """Trees of `&`, `|` and `~` over the masks of a space."""
    leaves = st.sampled_from(list(single_masks(PLACES[place]).values()))
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds(lambda a, b: a & b, inner, inner),
            st.builds(lambda a, b: a | b, inner, inner),
            inner.map(lambda a: ~a),
        ),
        max_leaves=6,
    )


drawn = settings(derandomize=True, deadline=None, max_examples=60, database=None)


@drawn
@given(data=st.data(), place=st.sampled_from(list(PLACES)))
def test_every_expression_means_what_it_says(data: st.DataObject, place: str) -> None:
    """No combination is dropped: drawn trees against the oracle's truth."""
    mask = data.draw(expressions(place))
    expected = truth(place, mask)
    for backend in BACKENDS:
        assert torch.equal(attended_at(place, mask, backend), expected), (backend, mask)


@drawn
@given(data=st.data(), place=st.sampled_from(list(PLACES)))
def test_de_morgan(data: st.DataObject, place: str) -> None:
    one, two = data.draw(expressions(place)), data.draw(expressions(place))
    for backend in BACKENDS:
        neither = attended_at(place, ~(one | two), backend)
        assert torch.equal(neither, attended_at(place, ~one & ~two, backend))
        not_both = attended_at(place, ~(one & two), backend)
        assert torch.equal(not_both, attended_at(place, ~one | ~two, backend))
        assert torch.equal(attended_at(place, ~~one, backend), attended_at(place, one, backend))


@drawn
@given(data=st.data(), place=st.sampled_from(list(PLACES)))
def test_what_a_mask_promises_of_its_structure_is_true(data: st.DataObject, place: str) -> None:
    """The plan relies on it: never more pairs than `count_bound`; all of them if `allows_all`."""
    mask = data.draw(expressions(place))
    batch, heads, queries, keys = PLACES[place].shape
    job = plan(PLACES[place].space, mask.mask, batch=batch, heads=heads, backend="dense").job
    allowed = truth(place, mask)
    assert allowed.any(1).sum() <= job.count_bound <= batch * queries * keys
    if job.mask is not None and job.mask.allows_all(job.spaces):
        assert torch.equal(allowed, truth(place, NO_MASK))


@settings(drawn, max_examples=30)
@given(data=st.data(), place=st.sampled_from(list(PLACES)))
def test_backends_agree_on_every_expression_and_bias(data: st.DataObject, place: str) -> None:
    """Values and gradients of drawn masks with drawn biases."""
    mask = data.draw(expressions(place))
    biased = data.draw(st.sampled_from(list(biases_of(place).values())))
    expected = attend_with_gradients("reference", PLACES[place], mask, biased)
    for backend in serving(PLACES[place].space, biased.bias)[1:]:
        for got, wanted in zip(
            attend_with_gradients(backend, PLACES[place], mask, biased), expected, strict=True
        ):
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


# -- rule 6: windows and radii are inclusive on both sides ----------------------------------------

PICTURES: dict[str, tuple[Space, Mask, str]] = {
    "radius": (
        Sequence(5),
        Neighborhood(1),
        """
        ■ ■ · · ·
        ■ ■ ■ · ·
        · ■ ■ ■ ·
        · · ■ ■ ■
        · · · ■ ■""",
    ),
    "causal radius of 2 is 3 keys": (
        Sequence(5),
        Causal() & Neighborhood(2),
        """
        ■ · · · ·
        ■ ■ · · ·
        ■ ■ ■ · ·
        · ■ ■ ■ ·
        · · ■ ■ ■""",
    ),
    "radius 0 is oneself": (Sequence(2), Neighborhood(0), "■ · \n · ■"),
    "a radius between two whole numbers": (Sequence(3), Neighborhood(1.5), "■■· \n ■■■ \n ·■■"),
    "windows": (
        Sequence(5),
        Window(2),
        """
        ■ ■ · · ·
        ■ ■ · · ·
        · · ■ ■ ·
        · · ■ ■ ·
        · · · · ■""",
    ),
    "shifted windows": (
        Sequence(5),
        Window(2, shift=1),
        """
        ■ · · · ·
        · ■ ■ · ·
        · ■ ■ · ·
        · · · ■ ■
        · · · ■ ■""",
    ),
    "a shift the other way": (Sequence(4), Window(3, shift=-1), "■■·· \n ■■·· \n ··■■ \n ··■■"),
    "dilated": (Sequence(4), Dilated(3), "■··■ \n ·■·· \n ··■· \n ■··■"),
    "prefix": (Sequence(4), PrefixLM(2), "■■·· \n ■■·· \n ■■■· \n ■■■■"),
    "global": (Sequence(4), GlobalTokens(1), "·■·· \n ■■■■ \n ·■·· \n ·■··"),
    "a square around each cell": (
        Grid(2, 3),
        Neighborhood(1),
        """
        ■ ■ · ■ ■ ·
        ■ ■ ■ ■ ■ ■
        · ■ ■ · ■ ■
        ■ ■ · ■ ■ ·
        ■ ■ ■ ■ ■ ■
        · ■ ■ · ■ ■""",
    ),
    "a row whose ends meet": (
        Grid(5, wrap=True),
        Neighborhood(1),
        """
        ■ ■ · · ■
        ■ ■ ■ · ·
        · ■ ■ ■ ·
        · · ■ ■ ■
        ■ · · ■ ■""",
    ),
    "windows across the seam": (
        Grid(4, wrap=True),
        Window(2, shift=1),
        "■··■ \n ·■■· \n ·■■· \n ■··■",
    ),
    "before in time, all in space": (Grid(2, 2), Causal(axes=0), "■■·· \n ■■·· \n ■■■■ \n ■■■■"),
    "a box around each cell": (
        Grid(2, 3),
        Neighborhood((0, 1)),
        """
        ■ ■ · · · ·
        ■ ■ ■ · · ·
        · ■ ■ · · ·
        · · · ■ ■ ·
        · · · ■ ■ ■
        · · · · ■ ■""",
    ),
    "a grid is read row by row": (
        Grid(2, 2),
        Causal(),
        """
        ■ · · ·
        ■ ■ · ·
        ■ ■ ■ ·
        ■ ■ ■ ■""",
    ),
    "a window that is moved inside": (
        Sequence(5),
        Neighborhood(1, border="shift"),
        """
        ■ ■ ■ · ·
        ■ ■ ■ · ·
        · ■ ■ ■ ·
        · · ■ ■ ■
        · · ■ ■ ■""",
    ),
    "an even window": (Sequence(3), Neighborhood(0.5, "shift"), "■■· \n ■■· \n ·■■"),
    "dilated windows": (
        Sequence(6),
        Neighborhood(1, border="shift", dilation=2),
        """
        ■ · ■ · ■ ·
        · ■ · ■ · ■
        ■ · ■ · ■ ·
        · ■ · ■ · ■
        ■ · ■ · ■ ·
        · ■ · ■ · ■""",
    ),
    "queries that share a window": (
        Sequence(6),
        Neighborhood(1, border="shift", stride=3),
        """
        ■ ■ ■ · · ·
        ■ ■ ■ · · ·
        ■ ■ ■ · · ·
        · · · ■ ■ ■
        · · · ■ ■ ■
        · · · ■ ■ ■""",
    ),
    "a window that ends at the query": (
        Sequence(4),
        Neighborhood(1, border="shift", stride=2, is_causal=True),
        """
        ■ · · ·
        ■ ■ · ·
        · ■ ■ ·
        · ■ ■ ■""",
    ),
    "special tokens see and are seen": (
        Sequence(3, special=1),
        Neighborhood(0),
        """
        ■ ■ ■ ■
        ■ ■ · ·
        ■ · ■ ·
        ■ · · ■""",
    ),
    "special tokens stay exempt": (
        Sequence(3, special=1),
        ~Neighborhood(1),
        """
        ■ ■ ■ ■
        ■ · · ■
        ■ · · ·
        ■ ■ · ·""",
    ),
}


def picture(drawn: str) -> list[list[bool]]:
    return [[c == "■" for c in row if c in "■·"] for row in drawn.strip().splitlines()]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PICTURES)
def test_masks_look_like_their_pictures(name: str, backend: str) -> None:
    space, mask, drawn = PICTURES[name]
    assert attended(space, mask, backend)[0, 0].tolist() == picture(drawn)


# -- rule 7: a radius that reaches everything is no mask -----------------------------------------

FAR: dict[str, list[Any]] = {"sequence": [8, 100, math.inf], "grid": [8, 100, math.inf]}
FAR |= {"torus": [2, 8, math.inf], "points": [100.0, math.inf], "graph": [math.inf]}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", [name for name, p in PLACES.items() if p.kind in FAR])
def test_a_radius_beyond_the_extent_is_no_mask(place: str, backend: str) -> None:
    """Bit for bit, gradients too, however large the radius; not connected is infinitely far.

    Only the pairs of `edges`, `blocks` and `flex` come in another order, so their sums may differ
    in the last bit.
    """
    reordered = backend in ("edges", "blocks", "flex")
    exact = {"rtol": 1e-13, "atol": 1e-13} if reordered else {"rtol": 0, "atol": 0}
    none, *_ = masks_of(place).values()
    biased = biases_of(place)["dense-heads"]
    expected = attend_with_gradients(backend, PLACES[place], none, biased)
    for radius in FAR[PLACES[place].kind]:
        far = Masked(f"near {radius}", Neighborhood(radius), oracle.near(radius))
        actual = attend_with_gradients(backend, PLACES[place], far, biased)
        for got, wanted in zip(actual, expected, strict=True):
            torch.testing.assert_close(got, wanted, **exact)


@pytest.mark.parametrize(
    "place", ["sequence", "grid", "torus", "volume", "cross-sequence", "decoding"]
)
def test_a_radius_of_just_the_extent_costs_no_mask(place: str) -> None:
    """The largest distance d: radius d is no mask at all, d - 1 is one."""
    places = PLACES[place]
    queries, keys = places.world.queries[0], places.world.keys[0]
    extent = max(
        oracle.Pair(places.world, 0, 0, i, j).distance
        for i, j in product(range(len(queries)), range(len(keys)))
    )
    for radius, tensor in ((extent, False), (extent - 1, True)):
        made = plan(places.space, Neighborhood(radius), batch=places.shape[0], backend="dense")
        assert (made.prepared.allowed is not None) == tensor


def test_masks_are_made_anew_of_their_fields() -> None:
    """As FSDP2 does with dataclasses, where it casts what goes into a block."""
    for place in PLACES.values():
        for masked in single_masks(place).values():
            mask = masked.mask
            made = dataclasses.replace(mask) if dataclasses.is_dataclass(mask) else mask
            assert repr(made) == repr(mask)
            assert made == mask or isinstance(mask, DenseMask | PrefixLM)  # they hold tensors
