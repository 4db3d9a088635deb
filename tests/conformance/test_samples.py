"""Rules 4 and 8: tokens are where their coordinates say, alone, decoded, padded or packed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from attention_core import (
    ALiBi,
    BackendError,
    Bias,
    Causal,
    ContinuousBias,
    Dilated,
    EdgeBias,
    Edges,
    GlobalTokens,
    Graph,
    Grid,
    Mask,
    Neighborhood,
    Points,
    PrefixLM,
    RelativeTable,
    Sequence,
    Space,
    Window,
    attend,
)
from tests.conformance.cases import (
    BACKENDS,
    GRAPHS,
    ONE_GRAPH,
    SEGMENTS,
    features,
    graph,
    serving,
)

H, KV, D = 4, 2, 4
CLOSE = {"rtol": 1e-10, "atol": 1e-10}

MASKS: list[Mask | None] = [
    Causal(), Causal() & Neighborhood(2), Causal() & Window(3), PrefixLM(2), Causal() & Dilated(2),
    (Causal() & Neighborhood(1)) | GlobalTokens(0), None,
]  # fmt: skip


def sequence_biases() -> list[Bias | None]:
    torch.manual_seed(0)
    return [
        None,
        ALiBi(H),
        RelativeTable.t5(H, 6, 5).double(),
        RelativeTable.swin(H, (4,)).double(),
    ]


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def qkv(batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return randn(batch, H, length, D), randn(batch, KV, length, D), randn(batch, KV, length, D)


# -- rule 4: decoding ----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_decoding_one_token_equals_the_last_row(mask: Mask | None, backend: str) -> None:
    """With a space and, as in decoding, without one."""
    q, k, v = qkv(2, 7)
    for bias in sequence_biases():
        full = attend(q, k, v, mask=mask, bias=bias, backend=backend)
        for space in (None, (Sequence(1, start=6), Sequence(7))):
            last = attend(q[:, :, -1:], k, v, space=space, mask=mask, bias=bias, backend=backend)
            torch.testing.assert_close(last, full[:, :, -1:], **CLOSE)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(derandomize=True, deadline=None, max_examples=20, database=None)
@given(cuts=st.sets(st.integers(1, 6)), mask=st.sampled_from(MASKS), which=st.integers(0, 3))
def test_any_chunking_of_the_queries_equals_the_full_pass(
    backend: str, cuts: set[int], mask: Mask | None, which: int
) -> None:
    q, k, v = qkv(1, 7)
    bias = sequence_biases()[which]
    full = attend(q, k, v, space=Sequence(7), mask=mask, bias=bias, backend=backend)
    edges = [0, *sorted(cuts), 7]
    chunks = [
        attend(
            q[:, :, a:b], k, v, space=(Sequence(b - a, start=a), Sequence(7)),
            mask=mask, bias=bias, backend=backend,
        )
        for a, b in pairwise(edges)
    ]  # fmt: skip
    torch.testing.assert_close(torch.cat(chunks, dim=2), full, **CLOSE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_each_sample_of_a_padded_batch_decodes_at_its_own_place(
    mask: Mask | None, backend: str
) -> None:
    """Padding on either side of the keys; queries start where each sample ends."""
    q, k, v = qkv(3, 6)
    lengths = torch.tensor([3, 6, 1])
    for side, bias in [(s, b) for s in ("left", "right") for b in sequence_biases()]:
        space = Sequence.padded(lengths, side=side)
        full = attend(q, k, v, space=space, mask=mask, bias=bias, backend=backend)
        last = torch.full((3,), 5) if side == "left" else lengths - 1
        at = last[:, None, None, None].expand(-1, H, 1, D)
        one = attend(
            q.gather(2, at), k, v, space=(Sequence(1, start=lengths - 1), space), mask=mask,
            bias=bias, backend=backend,
        )  # fmt: skip
        torch.testing.assert_close(one, full.gather(2, at), **CLOSE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_else_the_cache_holds_does_not_matter(backend: str) -> None:
    """A cache of the last tokens only, and one out of order, for a mask that reaches so far."""
    q, k, v = qkv(1, 8)
    mask, bias = Causal() & Neighborhood(2), sequence_biases()[2]
    full = attend(q, k, v, mask=mask, bias=bias, backend=backend)
    for held in ([5, 6, 7], [7, 5, 6], [0, 2, 5, 6, 7]):
        space = Sequence(1, start=7), Sequence(8).keep(torch.tensor(held))
        one = attend(
            q[:, :, -1:], k[:, :, held], v[:, :, held], space=space, mask=mask, bias=bias,
            backend=backend,
        )  # fmt: skip
        torch.testing.assert_close(one, full[:, :, -1:], **CLOSE)


def _anywhere() -> dict[str, tuple[Space, Mask, Bias | None]]:
    torch.manual_seed(0)
    grid_bias = RelativeTable.swin(H, 3, special=True).double()
    return {
        "grid": (Grid(3, 3, special=1), Neighborhood(1), grid_bias),
        "grid-causal": (Grid(2, 4), Causal(), ALiBi(H)),
        "graph": (graph(ONE_GRAPH, 7), Edges(), EdgeBias(H, types=3).double()),
        "graph-hops": (graph(ONE_GRAPH, 7), Neighborhood(2), RelativeTable.hops(H, 3).double()),
        "points": (Points(randn(6, 2)), Neighborhood(1.5), ContinuousBias(H, (2, 2), 8).double()),
        "packed": (Sequence.packed([3, 4], special=1), Causal(), RelativeTable.t5(H).double()),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", _anywhere())
def test_some_queries_equal_their_rows_in_any_space(name: str, backend: str) -> None:
    space, mask, bias = _anywhere()[name]
    q, k, v = qkv(1, space.length)
    if backend not in serving(space, bias):
        with pytest.raises(BackendError, match="network on each pair"):
            attend(q, k, v, space=space, mask=mask, bias=bias, backend=backend)
        return
    full = attend(q, k, v, space=space, mask=mask, bias=bias, backend=backend)
    for some in ([2], [1, 4, 5], list(range(space.length))):
        index = torch.tensor(some)
        rows = attend(
            q[:, :, some], k, v, space=(space.keep(index), space), mask=mask, bias=bias,
            backend=backend,
        )  # fmt: skip
        torch.testing.assert_close(rows, full[:, :, some], **CLOSE)


# -- rule 8: packed equals separate --------------------------------------------------------------


class Samples(NamedTuple):
    """Samples alone, and together: a row of tokens, or a padded batch."""

    alone: list[Space]
    packed: Space
    padded: dict[str, Space]
    masks: list[Mask | None]
    biases: Callable[[], list[Bias | None]]


def _graphs(special: int) -> Samples:
    alone: list[Space] = []
    for first, count in ((0, 3), (3, 1), (4, 3)):
        mine = [i for i, (s, _) in enumerate(GRAPHS) if first <= s < first + count]
        edges = torch.tensor(GRAPHS).T[:, mine] - first
        attr = features(GRAPHS)[mine]
        alone.append(Graph(edges.reshape(2, -1), count, edge_attr=attr, special=special))
    together = graph(GRAPHS, 7, segments=torch.tensor(SEGMENTS), special=special)
    masks = [None, Edges(), Neighborhood(1), Neighborhood(2) & ~Edges(), ~Neighborhood(1)]
    return Samples(alone, together, {}, masks, lambda: [
        None, ALiBi(H), RelativeTable.hops(H, 2, special=True).double(),
        EdgeBias(H, types=3).double() + RelativeTable.hops(H, 1).double(),
    ])  # fmt: skip


def _sequences(special: int) -> Samples:
    lengths = [3, 0, 5, 1]
    padded: dict[str, Space] = {"right": Sequence.padded(lengths, special=special)}
    padded["longer"] = Sequence.padded(lengths, 7, special=special)
    if not special:
        padded["left"] = Sequence.padded(lengths, side="left")
    return Samples(
        [Sequence(n, special=special) for n in lengths],
        Sequence.packed(lengths, special=special),
        padded,
        [None, Causal(), Neighborhood(1), Window(2, shift=1) | GlobalTokens(0), ~Causal(),
         PrefixLM(torch.tensor([1, 0, 3, 2]))],
        lambda: [None, ALiBi(H), RelativeTable.t5(H, 8, 6, special=True).double(),
                 ContinuousBias(H, (4,), 8).double()],
    )  # fmt: skip


def _grids(special: int) -> Samples:
    sizes = [(2, 3), (0, 2), (1, 1), (3, 2)]
    return Samples(
        [Grid(*size, special=special) for size in sizes],
        Grid.packed(sizes, special=special),
        {},
        [None, Causal(), Neighborhood((0, 1)), Window((2, 1), shift=1), ~Dilated(2)],
        lambda: [None, ALiBi(H), RelativeTable.swin(H, 2, special=True).double(),
                 ContinuousBias(H, (2, 2), 8).double()],
    )  # fmt: skip


def _points(special: int) -> Samples:
    torch.manual_seed(3)
    clouds = [randn(n, 2) for n in (3, 1, 4)]
    segments = torch.tensor([0] * 3 + [1] + [2] * 4)
    padded: dict[str, Space] = {}
    if not special:
        batch = torch.zeros(3, 4, 2, dtype=torch.float64)
        valid = torch.zeros(3, 4, dtype=torch.bool)
        for b, cloud in enumerate(clouds):
            batch[b, : len(cloud)], valid[b, : len(cloud)] = cloud, True
        padded["right"] = Points(batch, valid=valid)
    return Samples(
        [Points(cloud, special=special) for cloud in clouds],
        Points(torch.cat(clouds), segments=segments, special=special),
        padded,
        [None, Neighborhood(1.2), ~Neighborhood(1.0)],
        lambda: [None, ALiBi(H), ContinuousBias(H, (2, 2), 8).double()],
    )


KINDS: dict[str, Callable[[int], Samples]] = {
    "sequence": _sequences, "grid": _grids, "graph": _graphs, "points": _points
}  # fmt: skip


def _alone(mask: Mask | None, sample: int) -> Mask | None:
    """A prefix per sample becomes that of one sample."""
    if isinstance(mask, PrefixLM) and isinstance(mask.n, Tensor):
        return PrefixLM(int(mask.n[sample]))
    return mask


def _together(space: Space, tokens: list[list[Tensor]]) -> list[Tensor]:
    """Tokens (1, H, L, D) of the samples as a row, or as a padded batch filled with garbage."""
    if space.batch is None:
        return [torch.cat(parts, dim=2) for parts in zip(*tokens, strict=True)]
    rows = []
    for b, parts in enumerate(tokens):
        valid = space.valid[b]
        rows.append([])
        for x in parts:
            filled = torch.full((1, x.shape[1], space.length, D), 7.0, dtype=x.dtype)
            rows[-1].append(filled.index_copy(2, valid.nonzero().squeeze(-1), x))
    return [torch.cat(parts) for parts in zip(*rows, strict=True)]


def _apart(space: Space, out: Tensor, samples: list[Space]) -> list[Tensor]:
    if space.batch is None:
        return list(out.split([s.length for s in samples], dim=2))
    assert (out.masked_select(~space.valid[:, None, :, None]) == 0).all()
    return [out[b : b + 1, :, space.valid[b]] for b in range(len(samples))]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("special", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_the_same_alone_padded_and_packed(
    kind: str, special: int, backend: str
) -> None:
    """Outputs, and gradients of its tokens and of the shared parameters of the bias."""
    samples = KINDS[kind](special)
    torch.manual_seed(2)
    tokens = [
        [randn(1, h, s.length, D).requires_grad_() for h in (H, KV, KV)] for s in samples.alone
    ]
    goals = [randn(1, H, s.length, D) for s in samples.alone]
    leaves = [x for parts in tokens for x in parts]
    for mask in samples.masks:
        for bias in samples.biases():
            if backend not in serving(samples.packed, bias):
                continue
            inputs = leaves + ([] if bias is None else list(bias.parameters()))
            options: dict[str, Any] = {"bias": bias, "backend": backend}
            alone = [
                attend(*parts, space=space, mask=_alone(mask, i), **options)
                for i, (parts, space) in enumerate(zip(tokens, samples.alone, strict=True))
            ]
            loss = sum((out * goal).sum() for out, goal in zip(alone, goals, strict=True))
            expected = torch.autograd.grad(loss, inputs, allow_unused=True)
            for name, space in {"packed": samples.packed, **samples.padded}.items():
                said = f"{name}, {mask}, {type(bias).__name__}: "
                out = attend(*_together(space, tokens), space=space, mask=mask, **options)
                apart = _apart(space, out, samples.alone)
                loss = sum((out * goal).sum() for out, goal in zip(apart, goals, strict=True))
                actual = torch.autograd.grad(loss, inputs, allow_unused=True)
                for got, wanted in zip([*apart, *actual], [*alone, *expected], strict=True):
                    got = torch.zeros(()) if got is None else got
                    wanted = torch.zeros_like(got) if wanted is None else wanted
                    torch.testing.assert_close(
                        got.expand_as(wanted).to(wanted), wanted, **CLOSE,
                        msg=lambda m, said=said: said + m,
                    )  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sample_does_not_see_its_neighbours(backend: str) -> None:
    """Changing one sample of a row leaves the others as they are, bit for bit."""
    for kind, make in KINDS.items():
        samples = make(1)
        space, first = samples.packed, samples.alone[0].length
        for mask, bias in [(m, b) for m in samples.masks for b in samples.biases()]:
            if backend not in serving(space, bias):
                continue
            q, k, v = qkv(1, space.length)
            before = attend(q, k, v, space=space, mask=mask, bias=bias, backend=backend)
            k[:, :, first:], v[:, :, first:] = 50.0, -1e4
            after = attend(q, k, v, space=space, mask=mask, bias=bias, backend=backend)
            assert torch.equal(before[:, :, :first], after[:, :, :first]), (kind, mask)
            assert not torch.equal(before, after)
