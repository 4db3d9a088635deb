"""Values and gradients in every dtype, and rule 10: positions stay float32 under any autocast."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_core import (
    ALiBi,
    Bias,
    ContinuousBias,
    Grid,
    MultiheadAttention,
    Pairs,
    RelativeTable,
    Rotary,
    Sequence,
    Sinusoidal,
    attend,
)
from attention_core.layers.attention import QKNorm
from attention_core.layers.residual import Norm, make_norm
from tests.conformance import oracle
from tests.conformance.cases import (
    BACKENDS,
    HEADS,
    PLACES,
    biases_of,
    can,
    edge_features,
    gradients,
    masks_of,
    serving,
    tensors,
)

# -- gradcheck in float64 --------------------------------------------------------------------------

CHECKED = [
    ("padded", "(causal & near)", "t5+special"), ("packed+special", "(causal & ~dense)", "sum"),
    ("grid+special", "near", "continuous"), ("graph", "edges", "edge-types"),
    ("graphs+virtual", "near-2", "hops"), ("padded-points", "near", "continuous"),
    ("kept-grid-each", "~causal", "swin"), ("decoding-each", "causal", "t5-oneway"),
    ("cross-packed", "none", "dense-heads"), ("graph", "near-2", "sum-alibi"),
]  # fmt: skip


#: Each in each backend that does not refuse the bias there.
CHECKED_IN = [
    (*one, backend)
    for one in CHECKED
    for backend in serving(PLACES[one[0]].space, biases_of(one[0])[one[2]].bias)
]


@pytest.mark.parametrize(("place", "mask", "bias", "backend"), CHECKED_IN)
def test_gradcheck(place: str, mask: str, bias: str, backend: str) -> None:
    """Output and log-sum-exp, against finite differences; queries without keys included."""
    where, masked, biased = PLACES[place], masks_of(place)[mask], biases_of(place)[bias]
    sink = torch.randn(HEADS, dtype=torch.float64, requires_grad=True)
    finite = oracle.truth(where.world, masked.claim, HEADS).any(-1)
    inputs = (*tensors(where), sink, *biased.parameters)

    def function(q: Tensor, k: Tensor, v: Tensor, sink: Tensor, *_: Tensor) -> Any:
        out, lse = attend(
            q, k, v, space=where.space, mask=masked.mask, bias=biased.bias, sink=sink,
            backend=backend, return_lse=True,
        )  # fmt: skip
        return out, lse.masked_fill(~finite | lse.isinf(), 0)

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize(("place", "mask", "bias", "backend"), CHECKED_IN)
def test_gradcheck_of_every_entry(place: str, mask: str, bias: str, backend: str) -> None:
    """The whole Jacobian, entry by entry."""
    where, masked, biased = PLACES[place], masks_of(place)[mask], biases_of(place)[bias]
    q, k, v = (x.detach()[:, :2].requires_grad_() for x in tensors(where))

    def function(*inputs: Tensor) -> Tensor:
        return attend(
            inputs[0].repeat(1, 2, 1, 1), *inputs[1:3], space=where.space, mask=masked.mask,
            bias=biased.bias, backend=backend,
        )  # fmt: skip

    assert torch.autograd.gradcheck(function, (q, k, v, *biased.parameters))


@pytest.mark.parametrize("backend", can("edge features"))
@pytest.mark.parametrize(
    ("place", "mask"), [("graph", "edges"), ("graph+virtual", "near-2"), ("graphs", "none")]
)
def test_gradcheck_with_edge_features(place: str, mask: str, backend: str) -> None:
    where, masked = PLACES[place], masks_of(place)[mask]

    def function(q: Tensor, k: Tensor, v: Tensor, edge_key: Tensor, edge_value: Tensor) -> Tensor:
        return attend(
            q, k, v, space=where.space, mask=masked.mask, edge_key=edge_key,
            edge_value=edge_value, backend=backend,
        )  # fmt: skip

    inputs = (*tensors(where), *edge_features(where).values())
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("backend", can("softcap"))
def test_gradcheck_with_softcap(backend: str) -> None:
    where, masked = PLACES["padded"], masks_of("padded")["causal"]

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, space=where.space, mask=masked.mask, softcap=0.8, backend=backend)

    assert torch.autograd.gradcheck(function, tensors(where), fast_mode=True)


# -- float32 and bfloat16 against float64 ----------------------------------------------------------

#: bfloat16 has 8 bits: a softmax over a handful of scores of size 1 is good to a few hundredths.
TOLERANCE = {
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.bfloat16: {"rtol": 0.05, "atol": 0.08},
}


def _run(
    place: str, mask: str, bias: str, backend: str, dtype: torch.dtype, autocast: bool
) -> list[Tensor]:
    where, masked, biased = PLACES[place], masks_of(place)[mask], biases_of(place)[bias]
    # Values that bfloat16 holds exactly, so that all start from the same numbers
    start = [x.detach().to(torch.bfloat16) for x in tensors(where)]
    q, k, v = (x.to(torch.float32 if autocast else dtype).requires_grad_() for x in start)
    module = biased.bias
    if dtype != torch.float64 and module is not None:
        module = module.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out, weights, lse = attend(
            q, k, v, space=where.space, mask=masked.mask, bias=module, backend=backend,
            return_weights=True, return_lse=True,
        )  # fmt: skip
    expected = torch.bfloat16 if autocast else dtype
    assert out.dtype == weights.dtype == expected
    assert lse.dtype == torch.promote_types(expected, torch.float32)
    parameters = [] if module is None else list(module.parameters())
    found = gradients(out, [q, k, v, *parameters])
    assert [g.dtype for g in found[:3]] == [q.dtype] * 3
    return [x.detach() for x in (out, weights, lse, *found)]


def _claims() -> list[tuple[str, str, str]]:
    claims = []
    for turn, place in enumerate(PLACES):
        masks, biases = list(masks_of(place)), list(biases_of(place))
        for i in (1, 2):
            claims.append(
                (place, masks[(5 * turn * i) % len(masks)], biases[-(turn + i) % len(biases)])
            )
    return claims


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize(("place", "mask", "bias"), _claims())
def test_lower_precision(place: str, mask: str, bias: str, dtype: str) -> None:
    """float32 and bfloat16 tensors, and autocast, in every backend; gradients too."""
    expected = _run(place, mask, bias, "reference", torch.float64, False)
    autocast = dtype == "autocast"
    kind = torch.bfloat16 if autocast else getattr(torch, dtype)
    for backend in serving(PLACES[place].space, biases_of(place)[bias].bias):
        found = _run(place, mask, bias, backend, kind, autocast)
        for i, (got, wanted) in enumerate(zip(found, expected, strict=True)):
            torch.testing.assert_close(
                got.double(), wanted, **TOLERANCE[kind],
                msg=lambda m, b=backend, i=i: f"{b}, result {i}: {m}",
            )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("backend", can("edge features"))
@pytest.mark.parametrize("mask", ["edges", "near-2"])
def test_lower_precision_of_edge_features(mask: str, backend: str, dtype: str) -> None:
    where, masked = PLACES["graph"], masks_of("graph")[mask]
    autocast = dtype == "autocast"
    kind = torch.bfloat16 if autocast else getattr(torch, dtype)
    results = []
    for given in (torch.float64, torch.float32 if autocast else kind):
        inputs = [*tensors(where), *edge_features(where).values()]
        q, k, v, *edges = (x.detach().to(torch.bfloat16).to(given) for x in inputs)
        learned = [x.requires_grad_() for x in edges]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and given != torch.float64):
            out = attend(q, k, v, space=where.space, mask=masked.mask, edge_key=edges[0],
                         edge_value=edges[1], backend=backend)  # fmt: skip
        assert out.dtype == (given if given == torch.float64 else kind)
        results.append([out, *gradients(out, learned)])
    for got, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got.double(), wanted, **TOLERANCE[kind])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_softmax_of_bfloat16_is_summed_in_float32(backend: str) -> None:
    """4,096 equal weights: summed in bfloat16, they would stop at 256."""
    q = torch.zeros(1, 1, 1, 8, dtype=torch.bfloat16)
    k = torch.zeros(1, 1, 4096, 8, dtype=torch.bfloat16)
    v = torch.ones_like(k)
    space = (Sequence(1), Sequence(4096))
    out, lse = attend(q, k, v, space=space, backend=backend, return_lse=True)
    torch.testing.assert_close(out.float(), torch.ones(1, 1, 1, 8), rtol=0.01, atol=0)
    assert lse.item() == pytest.approx(math.log(4096), rel=1e-5)


# -- rule 10 ---------------------------------------------------------------------------------------


def _positional() -> dict[str, tuple[Bias, Sequence | Grid]]:
    torch.manual_seed(0)
    far = Sequence(4, start=40_001)  # bfloat16 cannot tell these places apart
    return {
        "alibi": (ALiBi(12), far),
        "t5": (RelativeTable.t5(12), Sequence(700)),
        "swin": (RelativeTable.swin(12, 7), Grid(7, 7, special=1)),
        "hops": (RelativeTable.hops(12, 300, special=True), Sequence(400, special=1)),
        "continuous": (ContinuousBias(12, (30, 30), 16), Grid(9, 5)),
        "sum": (ALiBi(12) + RelativeTable.t5(12), Sequence(300)),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", _positional())
def test_biases_are_the_same_under_autocast(name: str, dtype: torch.dtype) -> None:
    """Bit for bit, and in float32; of 12 slopes, 4 are no powers of two."""
    bias, space = _positional()[name]
    pairs = Pairs.all((space, space), heads=12)
    plain = bias(pairs)
    with torch.autocast("cpu", dtype):
        under = bias(Pairs.all((space, space), heads=12))
    assert plain.dtype == under.dtype == torch.float32 and torch.equal(plain, under)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("axes", [1, 2])
def test_angles_are_the_same_under_autocast(axes: int, dtype: torch.dtype) -> None:
    """The angles bit for bit; and rotating in bfloat16 rounds once, at the end."""
    space = Sequence(8, start=30_000) if axes == 1 else Grid(40, 3, special=1)
    rotary = Rotary(axes=axes)
    x = torch.randn(1, 2, space.length, 16)
    plain, turned = rotary.angles(space, 16), rotary(x, space)
    sines = Sinusoidal(16, axes=axes)(space)
    with torch.autocast("cpu", dtype):
        under = rotary.angles(space, 16)
        assert under.dtype == torch.float32 and torch.equal(plain, under)
        assert torch.equal(sines, Sinusoidal(16, axes=axes)(space))
        assert torch.equal(rotary(x, space), turned)
        low = rotary(x.to(dtype), space)
    assert low.dtype == dtype
    assert torch.equal(low, rotary(x.to(dtype).float(), space).to(dtype))


@pytest.mark.parametrize("axes", [1, 2])
def test_angles_from_first_principles(axes: int) -> None:
    """coordinate · 10000^(-2i/d) for each axis, to float32's precision; special tokens have 0."""
    space = Sequence(5, start=3, special=1) if axes == 1 else Grid(2, 3, special=1)
    places = places_inside = [(i,) for i in range(3, 8)]
    if axes == 2:
        places_inside = [(i, j) for i in range(2) for j in range(3)]
    places = [(0,) * axes, *places_inside]
    d = 8 // axes
    expected = [
        [place[a] * 10_000 ** (-2 * i / d) for a in range(axes) for i in range(d // 2)]
        for place in places
    ]
    torch.testing.assert_close(Rotary(axes=axes).angles(space, 8), torch.tensor(expected))


@pytest.mark.parametrize("heads", [1, 2, 3, 8, 12, 20])
def test_slopes_from_first_principles(heads: int) -> None:
    assert ALiBi(heads).slopes.tolist() == torch.tensor(oracle.alibi_slopes(heads)).tolist()


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 20), (320, 800), (4, 3)])
def test_t5_buckets_from_first_principles(buckets: int, max_distance: int, both: bool) -> None:
    """Every offset to both sides, far beyond max_distance.

    Where the formula lands on a whole number in exact arithmetic, rounding decides; the published
    code rounds in float32, so such offsets may be one bucket off from this one, in Python floats.
    """
    bias = RelativeTable.t5(1, buckets, max_distance, both)
    bias.table = nn.Parameter(torch.arange(buckets, dtype=torch.float32)[:, None])
    length = 1000
    space = (Sequence(1, start=length), Sequence(2 * length))
    found = bias(Pairs.all(space))[0, 0, 0].long().tolist()
    expected = [
        oracle.t5_bucket(place - length, buckets, max_distance, both) for place in range(2 * length)
    ]
    differ = [i for i in range(2 * length) if found[i] != expected[i]]
    assert all(
        abs(found[i] - expected[i]) == 1 and _on_the_edge(i - length, buckets, max_distance, both)
        for i in differ
    )


def _on_the_edge(offset: int, buckets: int, max_distance: int, both: bool) -> bool:
    buckets = buckets // 2 if both else buckets
    exact = buckets // 2
    growth = math.log(abs(offset) / exact) / math.log(max_distance / exact) * (buckets - exact)
    return abs(growth - round(growth)) < 1e-4


def test_a_half_precision_query_does_not_round_the_bias() -> None:
    """The bias of a far key in bfloat16 attention is that of float32."""
    space = (Sequence(1, start=1001), Sequence(1002))
    q, k = torch.zeros(1, 1, 1, 4, dtype=torch.bfloat16), torch.zeros(1, 1, 1002, 4).bfloat16()
    for backend in BACKENDS:
        _, lse = attend(q, k, k, space=space, bias=ALiBi(1), backend=backend, return_lse=True)
        slope = 2.0**-8
        exact = math.log(sum(math.exp(-slope * d) for d in range(-0, 1002)))
        assert lse.item() == pytest.approx(exact, rel=1e-5), backend


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_keys_do_not_blur_in_bfloat16(backend: str) -> None:
    """Where all keys are far, scores differ by less than bfloat16 resolves at their size.

    The bias is float32, so the outputs of two backends may differ by one rounding of bfloat16.
    """
    torch.manual_seed(0)
    q = torch.zeros(1, 2, 1, 4, dtype=torch.bfloat16)
    k = torch.zeros(1, 2, 600, 4, dtype=torch.bfloat16)
    v = torch.randn(1, 2, 600, 4).bfloat16()
    space = (Sequence(1, start=1000), Sequence(600))
    found = attend(q, k, v, space=space, bias=ALiBi(2), backend=backend)
    exact = attend(q.double(), k.double(), v.double(), space=space, bias=ALiBi(2))
    torch.testing.assert_close(found.double(), exact, rtol=2**-7, atol=2**-8)


# -- what is added to a norm is a number in every dtype --------------------------------------------


HALVES = ["float16", "bfloat16", "float32", "autocast"]


def _zeros_give_numbers(layer: nn.Module, how: str) -> None:
    """The output for a token of zeros, and every gradient."""
    x = torch.randn(1, 4, 8)
    x[0, 2] = 0
    if how != "autocast":
        dtype = getattr(torch, how)
        layer, x = layer.to(dtype), x.to(dtype)
    x.requires_grad_()
    with torch.autocast("cpu", torch.float16, enabled=how == "autocast"):
        out = layer(x)
    assert out.isfinite().all()
    of = torch.autograd.grad(out.float().square().sum(), [x, *layer.parameters()])
    assert all(g.isfinite().all() for g in of)


@pytest.mark.parametrize("how", HALVES)
@pytest.mark.parametrize("qk_norm", ["layer", "rms", "cosine"])
def test_queries_and_keys_of_zeros(qk_norm: QKNorm, how: str) -> None:
    torch.manual_seed(0)
    _zeros_give_numbers(MultiheadAttention(8, 2, qk_norm=qk_norm, key_bias=False), how)


@pytest.mark.parametrize("how", HALVES)
@pytest.mark.parametrize("norm", ["layer", "layer-no-bias", "rms"])
def test_a_norm_of_zeros(norm: Norm, how: str) -> None:
    """With BERT's eps, 1e-12, which float16 takes for 0."""
    torch.manual_seed(0)
    _zeros_give_numbers(make_norm(norm, 8, 1e-12), how)


def test_half_precision_does_not_change_the_norms_of_published_models() -> None:
    """float16 holds 1e-6 and 1e-5 to within its rounding."""
    x = torch.randn(5, 8, dtype=torch.float16) / 64
    for norm in ("layer", "rms"):
        for eps in (1e-6, 1e-5):
            layer = make_norm(norm, 8, eps)
            wanted = layer(x.float())
            torch.testing.assert_close(layer.half()(x).float(), wanted, rtol=4e-3, atol=2e-3)
