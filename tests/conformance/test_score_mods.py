"""Score mods: the same values and gradients in every backend that has them, and FlexAttention's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.checkpoint import checkpoint

from attention_core import (
    Additive,
    AdditiveV2,
    ALiBi,
    BackendError,
    Bias,
    Causal,
    DenseBias,
    Edges,
    Encoder,
    Multiplier,
    Neighborhood,
    Pairs,
    RelativeTable,
    ScalableSoftmax,
    ScoreMod,
    Sequence,
    attend,
    explain,
    plan,
    record_attention,
)
from tests.attention_core.test_blocks import make_tiny
from tests.conformance import oracle
from tests.conformance.cases import (
    DIM,
    HEADS,
    PLACES,
    TWICE,
    assert_same,
    attend_with_gradients,
    can,
    edge_features,
    gradients,
    masks_of,
    oracle_with_gradients,
    tensors,
)
from tests.conformance.score_mods import Forbidding, Softcap, score_mods_of
from tests.conformance.test_derivatives import assert_equal_derivatives
from tests.conformance.test_finite import prove as prove_finite

EXACT = {"rtol": 1e-9, "atol": 1e-9}
BACKENDS = can("score mod")
OTHERS = [backend for backend in BACKENDS if backend != "reference"]


# -- every space against the oracle ----------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_backends_equal_the_oracle(place: str) -> None:
    """Output, weights, log-sum-exp and all gradients; in `blocks` also in many tiny chunks."""
    where, turn = PLACES[place], list(PLACES).index(place)
    masks, mods = list(masks_of(place).values()), list(score_mods_of(place).values())
    sink = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True)
    for number, options in enumerate(({}, {"sink": sink, "softcap": 1.5}), 2 * turn):
        mask, modded = masks[number % len(masks)], mods[number % len(mods)]
        what = f"{mask}, {modded.name}"
        expected = oracle_with_gradients(where, mask, modded, **options)
        for backend in BACKENDS:
            found = attend_with_gradients(backend, where, mask, modded, **options)
            assert_same(found, expected, f"{backend}, {what}", **EXACT)
        with pytest.MonkeyPatch.context() as patch:
            make_tiny(patch)
            found = attend_with_gradients("blocks", where, mask, modded, **options)
            assert_same(found, expected, f"tiny blocks, {what}", **EXACT)


@pytest.mark.parametrize("place", ["sequence", "packed+special", "kept-grid-each", "graph+virtual"])
def test_second_derivatives(place: str) -> None:
    where, mods = PLACES[place], score_mods_of(place)
    masks = list(masks_of(place).values())
    for number, name in enumerate(("softcap, near, bias", "gate", "bias, softcap")):
        mask, modded = masks[2 * number + 1], mods[name]
        q, k, v = tensors(where)
        for backend in TWICE[1:]:
            assert_equal_derivatives(
                backend,
                [q, k, v, *modded.parameters],
                lambda name, mask=mask, modded=modded, q=q, k=k, v=v: attend(
                    q, k, v, space=where.space, mask=mask.mask, bias=modded.bias, backend=name,
                    return_lse=True,
                ),
            )  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_is_drawn_alike_in_backward(backend: str) -> None:
    where = PLACES["padded"]
    modded, mask = score_mods_of("padded")["softcap, near, bias"], masks_of("padded")["near"]

    def call(*inputs: Tensor) -> Tensor:
        torch.manual_seed(0)
        return attend(*inputs[:3], space=where.space, mask=mask.mask, bias=modded.bias,
                      backend=backend, dropout_p=0.4)  # fmt: skip

    assert torch.autograd.gradcheck(call, (*tensors(where), *modded.parameters), fast_mode=True)


@pytest.mark.parametrize("kind", [None, Additive, AdditiveV2])
def test_scores_and_features_of_edges(kind: type[Additive | AdditiveV2] | None) -> None:
    """What is modified may be any score, of keys to which features of edges are added."""
    torch.manual_seed(0)
    options = {"edge": True} if kind is Additive else {}
    score = None if kind is None else kind(HEADS, DIM, **options).double()
    where, modded = PLACES["graph"], score_mods_of("graph")["softcap, near, bias"]
    both = edge_features(where)
    learned = [] if score is None else list(score.parameters())
    found = []
    for backend in can("edge features"):
        q, k, v = tensors(where)
        out, weights = attend(
            q, k, v, space=where.space, mask=Edges(), bias=modded.bias, score=score,
            softcap=3.0, backend=backend, return_weights="pairs", **both,
        )  # fmt: skip
        inputs = [q, k, v, *both.values(), *learned, *modded.parameters]
        found.append([out, weights.values, *torch.autograd.grad(out.sin().sum(), inputs)])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, **EXACT)


@pytest.mark.parametrize("which", [0, 1, 2], ids="qkv")
@pytest.mark.parametrize("place", ["padded+special", "packed", "graphs"])
def test_what_is_not_finite_shows_where_it_may_be_seen(place: str, which: int) -> None:
    """Rules 11 and 15."""
    masks, mods = list(masks_of(place).values()), score_mods_of(place)
    for number, backend in enumerate(BACKENDS, which):
        modded = mods[("softcap", "near", "gate")[number % 3]]
        prove_finite(
            place, which, masks[number], modded, backend, (torch.nan, torch.inf)[which % 2]
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", ["padded+special", "graphs"])
def test_a_masked_key_changes_nothing(place: str, backend: str) -> None:
    """Bit for bit, gradients of what score mods learn included (rule 11)."""
    where, mods = PLACES[place], score_mods_of(place)
    for mask, name in zip(masks_of(place).values(), 2 * list(mods), strict=False):
        seen = oracle.truth(where.world, mask.claim, HEADS)
        seen = seen.unflatten(1, (-1, HEADS // 2)).any(2).any(-2)  # (B, Hkv, Lk)
        found = []
        for garbage in (0.0, 1e4):
            q, k, v = tensors(where)
            k, v = (
                x.detach().masked_fill(~seen[..., None], garbage).requires_grad_() for x in (k, v)
            )
            out = attend(q, k, v, space=where.space, mask=mask.mask, bias=mods[name].bias,
                         backend=backend)  # fmt: skip
            found.append([out, *gradients(out, [q, k, v, *mods[name].parameters])])
        for got, wanted in zip(*found, strict=True):
            assert torch.equal(got, wanted), f"{mask}, {name}"


# -- FlexAttention ---------------------------------------------------------------------------------

Mod = Callable[..., Tensor]


class Flex(ScoreMod):
    """A score_mod of FlexAttention, as it is written for it."""

    def __init__(self, score_mod: Mod, *learned: nn.Parameter) -> None:
        super().__init__()
        self.score_mod, self.learned = score_mod, nn.ParameterList(learned)

    def modify(self, score: Tensor, pairs: Pairs) -> Tensor:
        return self.score_mod(score, pairs.batch, pairs.head, pairs.query, pairs.key)


def flex_mods() -> dict[str, tuple[Mod, Bias]]:
    """Those of its documentation and others: as it has them, and as classes of ours."""
    generator = torch.Generator().manual_seed(3)
    caps, rates, table = (
        nn.Parameter(torch.rand(*shape, dtype=torch.float64, generator=generator) + 0.5)
        for shape in ((HEADS,), (HEADS,), (1, HEADS, 7, 7))
    )
    slopes = torch.tensor([2.0 ** (-8 * (h + 1) / HEADS) for h in range(HEADS)]).double()
    cap = Softcap(HEADS)
    cap.caps = caps

    def flex(mod: Mod, *learned: nn.Parameter) -> tuple[Mod, Bias]:
        return mod, Flex(mod, *learned)

    return {
        "causal": flex(lambda s, b, h, q, k: torch.where(q >= k, s, -torch.inf)),
        "relative": flex(lambda s, b, h, q, k: s + (q - k)),
        "checkerboard": flex(lambda s, b, h, q, k: torch.where(
            (q - k) % 2 == 0, s * 0.5, torch.where(q % 2 == 0, s * 2, s))),
        "alibi": (lambda s, b, h, q, k: s - slopes[h] * (q - k).abs(), ALiBi(HEADS)),
        "softcap by head": (lambda s, b, h, q, k: caps[h] * torch.tanh(s / caps[h]), cap),
        "decay by distance": flex(lambda s, b, h, q, k: s * rates[h] ** (q - k).abs(), rates),
        "clamp": flex(lambda s, b, h, q, k: s.clamp(-0.3, 0.3)),
        "factor of a table": (
            lambda s, b, h, q, k: s * (1 + table[0, h, q, k]), Multiplier(DenseBias(table))
        ),
        "log n, then alibi": (
            lambda s, b, h, q, k: s * caps[h] * (q + 1).double().log() - slopes[h] * (q - k).abs(),
            _scalable(caps) + ALiBi(HEADS),
        ),
    }  # fmt: skip


def _scalable(slope: nn.Parameter) -> ScalableSoftmax:
    mod = ScalableSoftmax(HEADS, 7, causal=True)
    mod.slope = slope
    return mod


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", flex_mods())
def test_flex_attention(name: str) -> None:
    """Values are theirs; gradients those of their score_mod over all pairs."""
    score_mod, bias = flex_mods()[name]
    inputs = [
        torch.randn(2, HEADS, 7, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)
    ]
    q, k, v = inputs
    index = torch.arange(7)
    scores = score_mod(
        q @ k.mT / 8**0.5, torch.arange(2)[:, None, None, None],
        torch.arange(HEADS)[:, None, None], index[:, None], index,
    )  # fmt: skip
    explicit = scores.softmax(-1) @ v
    with torch.no_grad():  # on a CPU it has no gradients
        theirs = flex_attention(*(x.detach() for x in inputs), score_mod=score_mod)
    torch.testing.assert_close(explicit, theirs, **EXACT)
    learned = [*inputs, *(x for x in bias.tensors() if x.requires_grad)]
    expected = gradients(explicit, learned)
    for backend in BACKENDS:
        ours = attend(*inputs, bias=bias, backend=backend)
        torch.testing.assert_close(ours, theirs, **EXACT)
        for got, wanted in zip(gradients(ours, learned), expected, strict=True):
            torch.testing.assert_close(got, wanted, **EXACT)


# -- order, precision, memory ----------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_terms_act_in_order(backend: str) -> None:
    q, k, v = (torch.randn(1, HEADS, 9, 8, dtype=torch.float64) for _ in range(3))
    cap, alibi = Softcap(HEADS).double(), ALiBi(HEADS)
    distance = (torch.arange(9)[:, None] - torch.arange(9)).abs()
    added = -alibi.slopes.double()[:, None, None] * distance
    caps = cap.caps[:, None, None]
    for bias, expected in (
        (alibi + cap, lambda s: caps * torch.tanh((s + added) / caps)),
        (cap + alibi, lambda s: caps * torch.tanh(s / caps) + added),
    ):
        out, lse = attend(q, k, v, bias=bias, backend=backend, return_lse=True)
        scores = expected(q @ k.mT / 8**0.5)
        torch.testing.assert_close(out, scores.softmax(-1) @ v, **EXACT)
        torch.testing.assert_close(lse, scores.logsumexp(-1), **EXACT)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_are_float32_under_autocast(backend: str) -> None:
    seen = set()

    class Looking(Softcap):
        def modify(self, score: Tensor, pairs: Pairs) -> Tensor:
            seen.add((score.dtype, torch.is_autocast_enabled("cpu")))
            return super().modify(score, pairs)

    bias = Looking(HEADS).bfloat16()
    q, k, v = (torch.randn(1, HEADS, 40, 8, requires_grad=True) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v, mask=Neighborhood(3), bias=bias, backend=backend)
        gradients(out, [q, *bias.parameters()])
    assert seen == {(torch.float32, False)} and out.dtype == torch.bfloat16


@pytest.mark.parametrize("backend", OTHERS)
def test_a_layer_learns_and_is_recorded(backend: str) -> None:
    """Two layers with a score mod of their own and one with a bias: each plan is for its kind."""
    torch.manual_seed(0)
    biases = [Softcap(2) + ALiBi(2), ALiBi(2) + RelativeTable.t5(2), RelativeTable.t5(2)]
    encoder = Encoder(dim=8, depth=3, heads=2, mask=Causal() & Neighborhood(20), bias=biases)
    x, found = torch.randn(2, 70, 8), []
    for name in (backend, "reference"):
        with record_attention(encoder, layers=[0]) as maps:
            out = encoder(x, backend=name)
        found.append([out, maps[0], *torch.autograd.grad(out.sin().sum(), encoder.parameters())])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", OTHERS)
def test_activation_checkpointing(backend: str) -> None:
    """Both of torch's ways, and second derivatives of the one that has them."""
    inputs, cap = tensors(PLACES["sequence"]), Softcap(HEADS).double()

    def call(*inputs: Tensor) -> Tensor:
        return attend(*inputs, mask=Causal(), bias=cap + ALiBi(HEADS), backend=backend)

    (wanted,) = torch.autograd.grad(call(*inputs).sin().sum(), cap.caps, create_graph=True)
    out = checkpoint(call, *inputs, use_reentrant=False)
    (found,) = torch.autograd.grad(out.sin().sum(), cap.caps, create_graph=True)
    torch.testing.assert_close(found, wanted, **EXACT)
    if backend in TWICE:
        of_both = (torch.autograd.grad(x.sin().sum(), inputs[0]) for x in (found, wanted))
        torch.testing.assert_close(*of_both, **EXACT)
    checkpoint(call, *inputs, use_reentrant=True).sin().sum().backward()
    torch.testing.assert_close(cap.caps.grad, wanted.detach(), **EXACT)


@pytest.mark.slow
def test_a_compiled_layer_is_the_same() -> None:
    """The graph breaks where the score mod is asked."""
    encoder = Encoder(dim=8, depth=1, heads=2, mask=Neighborhood(20), bias=Softcap(2) + ALiBi(2))
    x, found = torch.randn(1, 70, 8), []
    for compiled in (False, True):
        if compiled:
            encoder.blocks[0].compile(backend="aot_eager")
        out = encoder(x, backend="blocks")
        found.append([out, *torch.autograd.grad(out.sin().sum(), encoder.parameters())])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


# -- what is refused -------------------------------------------------------------------------------


class Gated(ScoreMod):
    """Its gate is a tensor of others, which `tensors()` may name."""

    def __init__(self, gate: Tensor, named: bool = True) -> None:
        super().__init__()
        self.gate, self.named = gate, named

    def modify(self, score: Tensor, pairs: Pairs) -> Tensor:
        return score * self.gate[pairs.query]

    def tensors(self) -> list[Tensor]:
        return [self.gate] if self.named else []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tensor_of_others_gets_its_gradient(backend: str) -> None:
    """Also where it comes from the queries themselves."""
    q, k, v = tensors(PLACES["sequence"])
    found = []
    for name in (backend, "reference"):
        gate = q.mean((0, 1, 3)).sigmoid()
        out = attend(q, k, v, bias=Gated(gate), backend=name)
        found.append(torch.autograd.grad(out.sin().sum(), [q, k, v], create_graph=True))
        if backend in TWICE:
            found[-1] += torch.autograd.grad(found[-1][0].sin().sum(), [q, k, v])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, **EXACT)


def test_a_tensor_that_is_not_named_is_refused() -> None:
    q, k, v = tensors(PLACES["sequence"])
    gate = torch.rand(6, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r"tensors\(\) of Gated leaves out a tensor.*\(6,\)"):
        attend(q, k, v, bias=Gated(2 * gate, named=False), backend="blocks")
    with torch.no_grad():
        attend(q, k, v, bias=Gated(2 * gate, named=False), backend="blocks")


def test_other_parameters_in_backward_are_refused() -> None:
    q, k, v = tensors(PLACES["sequence"])
    cap = Softcap(HEADS).double()
    caps = torch.ones(HEADS, dtype=torch.float64, requires_grad=True)

    class Calling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cap = cap

        def forward(self, backend: str) -> Tensor:
            return attend(q, k, v, bias=self.cap, backend=backend).sum()

    functional_call(Calling(), {"cap.caps": caps}, ("edges",)).backward()
    assert caps.grad is not None and cap.caps.grad is None
    out = functional_call(Calling(), {"cap.caps": caps}, ("blocks",))
    with pytest.raises(BackendError, match="asks Softcap again.*'reference' or 'edges'"):
        out.backward()


class Wrong(ScoreMod):
    def modify(self, score: Tensor, pairs: Pairs) -> Tensor:
        return score[..., :1, None]


def test_errors_say_what_is_wrong() -> None:
    q, k, v = tensors(PLACES["sequence"])
    with pytest.raises(ValueError, match=r"Wrong.modify gives .* for scores of shape \(2, 4, 6, 6"):
        attend(q, k, v, bias=Wrong(), backend="reference")
    with pytest.raises(ValueError, match="Softcap has heads=2.*4 query heads"):
        attend(q, k, v, bias=Softcap(2))
    with pytest.raises(TypeError, match="Softcap has no scores to add"):
        Softcap(2)(Pairs.all((Sequence(3),) * 2))
    with pytest.raises(TypeError, match="Multiplier needs a bias that gives numbers, got Softcap"):
        Multiplier(Softcap(2))
    with pytest.raises(NotImplementedError, match="ScoreMod must define modify"):
        attend(q, k, v, bias=ScoreMod())
    added = plan(Sequence(6), bias=ALiBi(HEADS), batch=2)
    with pytest.raises(ValueError, match="made for a bias that is added.*modifies"):
        attend(q, k, v, bias=Softcap(HEADS), plan=added)


def test_the_plan_tells() -> None:
    told = explain(Sequence(9), Causal(), Softcap(2) + Forbidding() + ALiBi(2))
    assert "bias learned Softcap + Forbidding + ALiBi in this order" in told
    assert "dense is out: scaled_dot_product_attention" in told
    assert "no score mod (Softcap, Forbidding)" in told
