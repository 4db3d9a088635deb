"""Rules 5, 9 and 11: what happens to a score, in which order, and what has no part in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_core import (
    Additive,
    AdditiveV2,
    ALiBi,
    Causal,
    DenseBias,
    DenseMask,
    Score,
    Sequence,
    attend,
)
from tests.conformance import oracle
from tests.conformance.cases import (
    BACKENDS,
    DIM,
    GRAPH_PLACES,
    HEADS,
    PLACES,
    assert_same,
    attend_with_gradients,
    biases_of,
    can,
    edge_features,
    gradients,
    masks_of,
    oracle_with_gradients,
    serving,
    tensors,
)

EXACT = {"rtol": 1e-9, "atol": 1e-9}

# -- every option against the oracle ------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "scale": {"scale": 0.8},
    "negative scale": {"scale": -0.3},
    "softcap": {"softcap": 0.7},
    "sink": {},
    "softcap, scale and sink": {"scale": 2.0, "softcap": 1.1},
}
SOME = ["sequence", "padded-left", "packed+special", "grid+special", "graph", "graphs+virtual",
        "padded-points", "cross-packed", "nowhere"]  # fmt: skip


def options(name: str) -> dict[str, Any]:
    chosen = dict(OPTIONS[name])
    if "sink" in name:
        logits = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)
        chosen["sink"] = nn.Parameter(logits)
    return chosen


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("place", SOME)
def test_options_equal_the_oracle(place: str, name: str) -> None:
    """Values, and the gradients of q, k, v, the bias and the sink."""
    masks, biases = masks_of(place), biases_of(place)
    for mask, bias in (("dense-full", "dense-heads"), (list(masks)[-1], "sum")):
        where, chosen = PLACES[place], options(name)
        expected = oracle_with_gradients(where, masks[mask], biases[bias], **chosen)
        able = serving(where.space, biases[bias].bias)
        for backend in set(able) & set(can("softcap")) if "softcap" in name else able:
            actual = attend_with_gradients(backend, where, masks[mask], biases[bias], **chosen)
            assert_same(actual, expected, f"{backend}, {mask}, {bias}", **EXACT)


def _oracle_score(score: Score) -> oracle.Score:
    def additive(query: Tensor, keys: Tensor, edges: Tensor, head: int) -> Tensor:
        of_query = sum(query[d] * score.query[head, d] for d in range(DIM))
        s = of_query + keys @ score.key[head]
        if score.edge is not None:
            s = s + edges @ score.edge[head]
        return torch.where(s > 0, s, 0.2 * s)

    def additive_v2(query: Tensor, keys: Tensor, edges: Tensor, head: int) -> Tensor:
        s = query + keys + edges
        return torch.where(s > 0, s, 0.2 * s) @ score.weight[head]

    def cosine(query: Tensor, keys: Tensor, edges: Tensor, head: int) -> Tensor:
        keys = keys + edges
        return score.strength[head] * (keys @ query) / (query.norm() * keys.norm(dim=-1))

    known = {Additive: additive, AdditiveV2: additive_v2, Cosine: cosine}
    return known[type(score)]


class Cosine(Score):
    """A score of the user's own, which knows nothing of edges."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.randn(HEADS))

    def forward(self, query: Tensor, key: Tensor, head: Tensor) -> Tensor:
        return self.strength[head] * torch.cosine_similarity(query, key, dim=-1)


@pytest.mark.parametrize("backend", can("score"))
@pytest.mark.parametrize("kind", [Additive, AdditiveV2])
@pytest.mark.parametrize("place", SOME)
def test_additive_scores(place: str, kind: type[Score], backend: str) -> None:
    """GAT's and GATv2's, with gradients of their weights."""
    torch.manual_seed(0)
    score = kind(HEADS, DIM).double()
    mask, biased = list(masks_of(place).values())[-1], biases_of(place)["sum"]
    where = PLACES[place]
    q, k, v = tensors(where)
    learned = [q, k, v, *score.parameters(), *biased.parameters]
    expected, weights, lse = oracle.attention(
        where.world, mask.claim, biased.scored, q, k, v, score=_oracle_score(score)
    )
    found = attend(
        q, k, v, space=where.space, mask=mask.mask, bias=biased.bias, score=score,
        backend=backend, return_weights=True, return_lse=True,
    )  # fmt: skip
    assert_same(list(found), [expected, weights, lse], backend, **EXACT)
    for got, wanted in zip(gradients(found[0], learned), gradients(expected, learned), strict=True):
        torch.testing.assert_close(got, wanted, **EXACT)


@pytest.mark.parametrize("backend", can("edge features"))
@pytest.mark.parametrize("score", [lambda: Additive(HEADS, DIM, edge=True),
                                   lambda: AdditiveV2(HEADS, DIM), Cosine])  # fmt: skip
@pytest.mark.parametrize("place", GRAPH_PLACES)
def test_scores_with_edge_features(place: str, score: Callable[[], Score], backend: str) -> None:
    """With the mask that lists edges, and with the last, where pairs have none."""
    torch.manual_seed(0)
    made, where, biased = score().double(), PLACES[place], biases_of(place)["none"]
    masks = masks_of(place)
    for mask in (masks["edges"], list(masks.values())[-1]):
        both = edge_features(where)
        expected = oracle_with_gradients(where, mask, biased, score=_oracle_score(made), **both)
        found = attend_with_gradients(backend, where, mask, biased, score=made, **both)
        assert_same(found, expected, f"{backend}, {mask}", **EXACT)
        q, k, v = tensors(where)
        learned, of = list(made.parameters()), []
        for out in (
            attend(q, k, v, space=where.space, mask=mask.mask, score=made, backend=backend, **both),
            oracle.attention(where.world, mask.claim, biased.scored, q, k, v,
                               score=_oracle_score(made), **both)[0],
        ):  # fmt: skip
            of.append(gradients(out, learned))
        assert_same(*of, f"{backend}, {mask}, weights of the score", **EXACT)


# -- rule 5: scale → softcap → bias → mask → sink → softmax → dropout ----------------------------


def row(
    backend: str, scores: list[float], **options: Any
) -> tuple[list[float], list[float], float]:
    """Dropped weights, weights and log-sum-exp of one query whose scores, unscaled, are given."""
    n = len(scores)
    q = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    k = torch.tensor(scores, dtype=torch.float64).view(1, 1, n, 1)
    v = torch.eye(n, dtype=torch.float64)[None, None]
    space = (Sequence(1), Sequence(n))
    out, weights, lse = attend(
        q, k, v, space=space, backend=backend, return_weights=True, return_lse=True,
        **{"scale": 1.0} | options,
    )  # fmt: skip
    return out.flatten().tolist(), weights.flatten().tolist(), lse.item()


def softmax(*scores: float, sink: float | None = None) -> list[float]:
    total = sum(math.exp(s) for s in scores) + (0 if sink is None else math.exp(sink))
    return [math.exp(s) / total for s in scores]


def cap(score: float, at: float) -> float:
    return at * math.tanh(score / at)


def bias(*scores: float) -> DenseBias:
    return DenseBias(torch.tensor([scores], dtype=torch.float64))


def allowed(*allowed: bool) -> DenseMask:
    return DenseMask(torch.tensor([allowed]))


@pytest.mark.parametrize("backend", can("softcap"))
def test_scale_then_softcap(backend: str) -> None:
    out, *_ = row(backend, [1.0, 3.0], scale=2.0, softcap=1.5)
    assert out == pytest.approx(softmax(cap(2.0, 1.5), cap(6.0, 1.5)))
    assert out != pytest.approx(softmax(2 * cap(1.0, 1.5), 2 * cap(3.0, 1.5)))


@pytest.mark.parametrize("backend", can("softcap"))
def test_softcap_then_bias(backend: str) -> None:
    """A bias reaches beyond the cap (x-transformers caps it too)."""
    out, *_ = row(backend, [1.0, 3.0], softcap=1.5, bias=bias(9.0, 0.0))
    assert out == pytest.approx(softmax(cap(1.0, 1.5) + 9, cap(3.0, 1.5)))
    assert out != pytest.approx(softmax(cap(10.0, 1.5), cap(3.0, 1.5)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_scale_then_bias(backend: str) -> None:
    out, *_ = row(backend, [1.0, 3.0], scale=0.5, bias=bias(4.0, 0.0))
    assert out == pytest.approx(softmax(0.5 + 4, 1.5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_bias_then_mask(backend: str) -> None:
    """No bias opens what the mask has closed, not even an infinite one."""
    for height in (50.0, math.inf):
        out, weights, lse = row(
            backend, [1.0, 3.0, 2.0], bias=bias(height, 0.5, 0.0), mask=allowed(False, True, True)
        )
        assert out == weights == pytest.approx([0.0, *softmax(3.5, 2.0)])
        assert lse == pytest.approx(math.log(math.exp(3.5) + math.exp(2.0)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_mask_then_sink(backend: str) -> None:
    """The sink is not masked, scaled or biased, and has no part in the log-sum-exp."""
    sink = torch.tensor([0.7], dtype=torch.float64)
    out, weights, lse = row(
        backend, [1.0, 3.0, 2.0], scale=0.5, bias=bias(1.0, 1.0, 1.0), sink=sink,
        mask=allowed(True, False, True),
    )  # fmt: skip
    first, _, last = weights
    assert [first, last] == pytest.approx(softmax(1.5, 2.0, sink=0.7))
    assert out == pytest.approx(weights) and sum(weights) < 0.95
    assert lse == pytest.approx(math.log(math.exp(1.5) + math.exp(2.0)))


@pytest.mark.parametrize("backend", can("softcap"))
def test_softcap_spares_the_sink(backend: str) -> None:
    sink = torch.tensor([5.0], dtype=torch.float64)
    out, *_ = row(backend, [1.0, 3.0], softcap=1.0, sink=sink)
    assert out == pytest.approx(softmax(cap(1.0, 1.0), cap(3.0, 1.0), sink=5.0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sink", [None, 0.5])
def test_softmax_then_dropout(backend: str, sink: float | None) -> None:
    """Kept weights grow by 1 / (1 - p), nothing is renormalised; those returned are whole."""
    torch.manual_seed(0)
    p, scores = 0.25, [0.1 * i for i in range(400)]
    logit = None if sink is None else torch.tensor([sink], dtype=torch.float64)
    out, weights, _ = row(backend, scores, scale=0.1, dropout_p=p, sink=logit)
    assert weights == pytest.approx(softmax(*(0.1 * s for s in scores), sink=sink))
    kept = [o != 0 for o in out]
    expected = [w / (1 - p) for w, keep in zip(weights, kept, strict=True) if keep]
    assert [o for o in out if o != 0] == pytest.approx(expected)
    assert 0.15 < 1 - sum(kept) / len(kept) < 0.35


# -- rule 9: a per-head bias belongs to the query head --------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_a_bias_per_head_is_that_of_the_query_head(kv_heads: int, backend: str) -> None:
    """Grouped heads equal full ones whose keys and values are repeated, h → h // (H / Hkv)."""
    torch.manual_seed(0)
    heads, length, share = 6, 5, 6 // kv_heads
    q = torch.randn(2, heads, length, 4, dtype=torch.float64, requires_grad=True)
    k, v = torch.randn(2, 2, kv_heads, length, 4, dtype=torch.float64, requires_grad=True)
    by_head = DenseBias(nn.Parameter(torch.randn(1, heads, length, length, dtype=torch.float64)))
    sink = torch.randn(heads, dtype=torch.float64, requires_grad=True)
    closed = DenseMask(torch.rand(1, heads, length, length) > 0.3)
    for b in (by_head, ALiBi(heads), by_head + ALiBi(heads)):
        learned = [q, k, v, sink, *b.parameters()]
        common = {"mask": Causal() & closed, "bias": b, "backend": backend, "sink": sink}
        grouped = attend(q, k, v, **common)
        order = [h // share for h in range(heads)]
        whole = attend(q, k[:, order], v[:, order], **common)
        torch.testing.assert_close(grouped, whole, **EXACT)
        for got, wanted in zip(gradients(grouped, learned), gradients(whole, learned), strict=True):
            torch.testing.assert_close(got, wanted, **EXACT)
        for h in range(heads):  # and each head is what it is alone
            if b is by_head:
                tensor = by_head.tensor[:, h : h + 1]
                one = attend(
                    q[:, h : h + 1], k[:, [h // share]], v[:, [h // share]], backend=backend,
                    mask=Causal() & DenseMask(closed.tensor[:, h : h + 1]), bias=tensor,
                    sink=sink[h : h + 1],
                )  # fmt: skip
                torch.testing.assert_close(one, grouped[:, h : h + 1], **EXACT)


# -- rule 11: a masked key has no part in anything -------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", list(PLACES))
def test_a_masked_key_changes_nothing(place: str, dtype: torch.dtype, backend: str) -> None:
    """Bit for bit: outputs, and all gradients; those of the masked key itself are zero."""
    where = PLACES[place]
    every = biases_of(place).values()
    biased = [one for one in every if backend in serving(where.space, one.bias)][-2]
    for mask in list(masks_of(place).values())[::3]:
        seen = oracle.truth(where.world, mask.claim, HEADS)
        seen = seen.unflatten(1, (-1, HEADS // 2)).any(2).any(-2)  # (B, Hkv, Lk)
        found = []
        for garbage in (0.0, 1e4, -3e3):
            q, k, v = tensors(where, dtype=dtype)
            k, v = (
                x.detach().masked_fill(~seen[..., None], garbage).requires_grad_() for x in (k, v)
            )
            out, weights, lse = attend(
                q, k, v, space=where.space, mask=mask.mask, bias=biased.bias, backend=backend,
                return_weights=True, return_lse=True,
            )  # fmt: skip
            of = gradients(out, [q, k, v, *biased.parameters])
            assert (of[1][~seen] == 0).all() and (of[2][~seen] == 0).all()
            found.append([out, weights, lse, *of])
        for other in found[1:]:
            for got, wanted in zip(other, found[0], strict=True):
                assert torch.equal(got, wanted), mask


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", ["sequence", "padded", "padded-left", "packed", "graphs"])
def test_what_one_query_may_not_see_does_not_change_its_row(place: str, backend: str) -> None:
    """Keys that others see: the rows of those who do not stay as they are, bit for bit."""
    where = PLACES[place]
    biased = biases_of(place)["hops"]
    for mask in masks_of(place).values():
        seen = oracle.truth(where.world, mask.claim, HEADS)
        q, k, v = tensors(where)
        before = attend(q, k, v, space=where.space, mask=mask.mask, bias=biased.bias,
                        backend=backend)  # fmt: skip
        for j in range(where.shape[-1]):
            k2, v2 = k.detach().clone(), v.detach().clone()
            k2[:, :, j], v2[:, :, j] = 300.0, -1e5
            after = attend(q, k2, v2, space=where.space, mask=mask.mask, bias=biased.bias,
                           backend=backend)  # fmt: skip
            blind = ~seen[..., j]
            assert torch.equal(before[blind], after[blind]), (mask, j)
