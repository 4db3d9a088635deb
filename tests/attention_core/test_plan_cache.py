"""Plans are kept for equal spaces, masks and biases, and no answer is ever stale."""

import copy
import gc
import random
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attention_core import (
    ALiBi,
    BackendError,
    Bias,
    Causal,
    DenseMask,
    Dilated,
    EdgeBias,
    Edges,
    GlobalTokens,
    Graph,
    Grid,
    Mask,
    Nearest,
    Neighborhood,
    Points,
    PrefixLM,
    RelativeTable,
    Sequence,
    Space,
    Window,
    attend,
    plan,
    planning,
)
from attention_core.layers import Encoder
from attention_core.plan_cache import PLANS, PlanCache, contents
from attention_core.score_mods import ScalableSoftmax

L, H, D = 24, 2, 4


@pytest.fixture(autouse=True)
def empty():
    PLANS.clear()
    yield
    PLANS.clear()


@pytest.fixture
def chosen(monkeypatch):
    """The jobs that were planned, and not found."""
    jobs = []
    choose = planning._choose
    monkeypatch.setattr(
        planning, "_choose", lambda job, backend: (jobs.append(job), choose(job, backend))[1]
    )
    return jobs


def inputs(length=L, batch=1, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, H, length, D, generator=generator).to(dtype) for _ in range(3)]


def ring(n=L):
    node = torch.arange(n)
    return torch.stack([torch.cat([node, (node + 1) % n]), torch.cat([(node + 1) % n, node])])


SPACES = {
    "sequence": lambda: Sequence(L),
    "later": lambda: Sequence(L, start=3),
    "special": lambda: Sequence(L - 2, special=2),
    "padded": lambda: Sequence.padded([L, 9]),
    "padded otherwise": lambda: Sequence.padded([11, L]),
    "packed": lambda: Sequence.packed([10, L - 10]),
    "packed otherwise": lambda: Sequence.packed([12, L - 12]),
    "grid": lambda: Grid(4, 6),
    "wrapped": lambda: Grid(4, 6, wrap=(False, True)),
    "other grid": lambda: Grid(6, 4),
    "points": lambda: Points(torch.linspace(0, 9, L)[:, None]),
    "graph": lambda: Graph(ring(), L),
    "graphs": lambda: Graph(ring(12), L, segments=torch.arange(L) // 12),
}
MASKS = {
    "none": lambda: None,
    "causal": Causal,
    "near": lambda: Neighborhood(2),
    "farther": lambda: Neighborhood(3),
    "shifted": lambda: Neighborhood(2, border="shift"),
    "both": lambda: Causal() & Neighborhood(4),
    "either": lambda: ~Causal() | GlobalTokens(0),
    "prefix": lambda: PrefixLM(5),
    "window": lambda: Window(4),
    "dilated": lambda: Dilated(2),
    "nearest": lambda: Nearest(3),
    "edges": Edges,
    "dense": lambda: DenseMask(torch.eye(L, dtype=torch.bool)),
    "other dense": lambda: DenseMask(torch.eye(L, dtype=torch.bool).roll(1, 0)),
}
BIASES = {
    "none": lambda: None,
    "alibi": lambda: ALiBi(H),
    "table": lambda: seeded(RelativeTable.t5(H, 8)),
    "mod": lambda: ScalableSoftmax(H, 16),
    "sum": lambda: ALiBi(H) + seeded(RelativeTable.t5(H, 8)),
}


def seeded(bias):
    with torch.no_grad():
        for x in bias.parameters():
            x.copy_(torch.linspace(-1, 1, x.numel()).view_as(x))
    return bias


def draw(number):
    """The arguments of a call, drawn by its number: few, so that they come again."""
    pick = random.Random(number)
    space, mask = SPACES[pick.choice([*SPACES])](), MASKS[pick.choice([*MASKS])]()
    bias = BIASES[pick.choice([*BIASES])]() if pick.random() < 0.4 else None
    grad = pick.random() < 0.5
    options = {
        "space": space,
        "mask": mask,
        "bias": bias,
        "softcap": pick.choice([None, None, 5.0]),
        "backend": pick.choice([None, "dense", "blocks", "edges"]),
    }
    batch = space.batch or pick.choice([1, 2])
    return inputs(batch=batch, dtype=pick.choice([torch.float32, torch.float64])), options, grad


def answer(number):
    """What such a call gives, gradients included, or the words it is refused with."""
    tensors, options, grad = draw(number)
    mode = torch.enable_grad() if grad else random.Random(number).choice(MODES)()
    with mode:
        tensors = [x.requires_grad_(grad) for x in tensors]
        try:
            out = attend(*tensors, **options)
        except (TypeError, ValueError, BackendError) as error:
            return [str(error)]
        if not grad:
            return [out.clone()]
        return [out, *torch.autograd.grad(out.square().sum(), tensors)]


MODES = [torch.no_grad, torch.inference_mode]


def same(one, two):
    return len(one) == len(two) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one, two, strict=True)
    )


def fresh(number):
    PLANS.clear()
    return answer(number)


def test_a_stream_of_calls_gives_what_each_gives_alone(chosen):
    numbers = [random.Random(n).randrange(250) for n in range(500)]
    expected = {number: fresh(number) for number in sorted(set(numbers))}
    PLANS.clear()
    chosen.clear()
    calls = 0
    for number in numbers:
        got = answer(number)
        calls += not isinstance(got[0], str)
        assert same(got, expected[number]), draw(number)[1:]
    assert calls > 150 and len(chosen) < len(numbers) - calls / 4


def test_threads_share_what_is_kept():
    numbers = list(range(60)) * 3
    expected = [fresh(number) for number in range(60)]
    PLANS.clear()
    with ThreadPoolExecutor(4) as threads:
        for number, got in zip(numbers, threads.map(answer, numbers), strict=True):
            assert same(got, expected[number]), draw(number)[1:]


@pytest.mark.parametrize("space", SPACES)
def test_equal_spaces_and_masks_of_the_package_are_recognised(space, chosen):
    for mask in MASKS:
        try:
            plan(SPACES[space](), MASKS[mask](), heads=H)
        except (TypeError, ValueError):
            continue
        chosen.clear()
        again = plan(SPACES[space](), MASKS[mask](), heads=H)
        assert not chosen, mask
        assert str(again) == str(plan(SPACES[space](), MASKS[mask](), heads=H))


@pytest.mark.parametrize(
    "other",
    [{"heads": 4}, {"head_dim": 8}, {"batch": 2}, {"grad": True}, {"softcap": 3.0},
     {"weights": True}, {"backend": "dense"}, {"bias": ALiBi(H)}, {"mask": Neighborhood(2.0)},
     {"dtype": torch.bfloat16}],
    ids=str,
)  # fmt: skip
def test_what_differs_is_planned_anew(other, chosen):
    given = {"mask": Neighborhood(2), "heads": H}
    plan(Sequence(L), **given)
    plan(Sequence(L), **given)
    assert len(chosen) == 1
    plan(Sequence(L), **{**given, **other})
    assert len(chosen) == 2


def through_numpy(x):
    x.numpy()[...] = x.roll(3, 0).numpy()


def through_data(x):
    x.data.copy_(x.roll(3, 0))


def in_place(x):
    x.copy_(x.roll(3, 0))


def in_inference_mode(x):
    with torch.inference_mode():
        x.copy_(x.roll(3, 0))


#: A tensor, and what is made of it: what keeps it serves before and after.
EDITED = {
    "mask": (lambda: torch.rand(L, L) < 0.3, lambda m: (Sequence(L), DenseMask(m))),
    "one of two": (
        lambda: torch.rand(L, L) < 0.5,
        lambda m: (Sequence(L), Causal() & DenseMask(m)),
    ),
    "prefix": (lambda: torch.tensor([1, 5, 9, 20]), lambda n: (Sequence(L), PrefixLM(n))),
    "valid": (lambda: torch.arange(L) < 9, lambda x: (Space(L, valid=x), None)),
    "samples": (lambda: torch.arange(L) // 9, lambda x: (Space(L, segments=x), None)),
    "places": (lambda: torch.rand(L, 2) * 9, lambda x: (Points(x), Neighborhood(1.5))),
    "special": (
        lambda: torch.arange(L) < 2,
        lambda x: (Space(L, special=x, coordinates=torch.arange(L)[:, None]), Causal(axes=0)),
    ),
}


@pytest.mark.parametrize("edit", [through_numpy, through_data, in_place, in_inference_mode])
@pytest.mark.parametrize("what", EDITED)
def test_an_edit_of_any_kind_is_seen(what, edit):
    torch.manual_seed(0)
    make, use = EDITED[what]
    edited = make()
    space, mask = use(edited)
    q, k, v = inputs(batch=4)
    backends = ["reference", "dense", "blocks", "edges"]
    before = [attend(q, k, v, space=space, mask=mask, backend=name) for name in backends]
    edit(edited)
    if what == "places":  # a cloud copies them, and so does not see it
        space, mask = use(edited)
    known = len(PLANS)
    got = [attend(q, k, v, space=space, mask=mask, backend=name) for name in backends]
    assert len(PLANS) == known + len(backends)
    PLANS.clear()
    expected = attend(q, k, v, space=space, mask=mask, backend="reference")
    for now, old in zip(got, before, strict=True):
        torch.testing.assert_close(now, expected)
        assert not torch.allclose(now, old)


def test_edges_that_differ_are_other_graphs():
    q, k, v = inputs()
    for edges in (ring(), ring().roll(1, 1), ring().flip(0), ring()[:, ::2], ring()):
        for mask in (Edges(), Neighborhood(1)):
            found = [
                attend(q, k, v, space=Graph(edges, L), mask=mask, backend=name)
                for name in ("edges", "blocks", "reference")
            ]
            torch.testing.assert_close(found[0], found[2])
            torch.testing.assert_close(found[1], found[2])


def test_learned_features_of_edges_and_biases_get_their_own_gradients(chosen):
    q, k, v = inputs()
    bias = EdgeBias(H, features=3)
    gradients = []
    for _ in range(2):
        attr = torch.linspace(-1, 1, 2 * L * 3).view(-1, 3).requires_grad_()
        space = Graph(ring(), L, edge_attr=attr)
        out = attend(q, k, v, space=space, mask=Edges(), bias=bias)
        gradients.append(torch.autograd.grad(out.square().sum(), [attr, *bias.parameters()]))
    assert len(chosen) == 1
    assert same(*gradients) and gradients[0][0].abs().sum() > 0
    with torch.no_grad():
        for x in bias.parameters():
            x.mul_(-3)
    moved = attend(q, k, v, space=space, mask=Edges(), bias=bias)
    expected = attend(q, k, v, space=space, mask=Edges(), bias=bias, backend="reference")
    assert len(chosen) == 2 and chosen[1].bias is bias  # of the reference, which is never kept
    torch.testing.assert_close(moved, expected)


@pytest.mark.parametrize("mask", [None, Edges(), Neighborhood(1)], ids=str)
@pytest.mark.parametrize("backend", ["dense", "blocks", "edges"])
def test_types_of_edges_may_change_where_edges_do_not(mask, backend, monkeypatch):
    if backend == "blocks":  # where kernels look the types up
        monkeypatch.setenv("ATTENTION_CORE_FAST", "always")
    q, k, v = inputs()
    bias = seeded(EdgeBias(H, types=3))
    for shift in range(3):
        types = (torch.arange(2 * L) + shift) % 3
        space = Graph(ring(), L, edge_attr=types)
        got = attend(q, k, v, space=space, mask=mask, bias=bias, backend=backend)
        expected = attend(q, k, v, space=space, mask=mask, bias=bias, backend="reference")
        torch.testing.assert_close(got, expected)


def test_what_inference_found_serves_training(chosen):
    encoder = Encoder(8, 2, H, mask=Neighborhood(3), bias=RelativeTable.t5(H, 8))
    x = torch.randn(2, L, 8)
    with torch.inference_mode():
        encoder(x)
    encoder(x).sum().backward()
    first = [p.grad.clone() for p in encoder.parameters()]
    jobs = len(chosen)
    with torch.inference_mode():
        encoder(x)
    encoder.zero_grad()
    encoder(x).sum().backward()
    assert len(chosen) == jobs == 2
    assert same(first, [p.grad for p in encoder.parameters()])


@dataclass(frozen=True)
class UpTo(Mask):
    """A mask of the user's own, of something that no field tells."""

    def allowed(self, pairs):
        return pairs.distance <= WIDTH[0]


class Half(Sequence):
    def norm(self, offset):
        return super().norm(offset) / WIDTH[0]


class Told(Bias):
    def score(self, pairs):
        return pairs.distance.float() * WIDTH[0]

    def block_key(self, space):
        return None


WIDTH = [1]


@pytest.mark.parametrize(
    "given",
    [
        {"mask": UpTo()},
        {"mask": Causal() & UpTo()},
        {"space": Half(L), "mask": Neighborhood(1)},
        {"bias": Told(), "mask": Causal()},
        {"space": Points(torch.rand(L, 2).requires_grad_()), "mask": Neighborhood(1)},
    ],
    ids=["mask", "composed", "space", "bias", "learned places"],
)
@pytest.mark.parametrize("backend", ["dense", "blocks", "edges"])
def test_what_may_look_anywhere_is_planned_anew(given, backend):
    q, k, v = inputs()
    given = {"space": Sequence(L), **given}
    try:
        for WIDTH[0] in (1, 4, 2):
            got = attend(q, k, v, **given, backend=backend)
            torch.testing.assert_close(got, attend(q, k, v, **given, backend="reference"))
        assert not len(PLANS)
    finally:
        WIDTH[0] = 1


def test_an_attribute_of_the_callers_own_makes_it_unknown():
    space, mask = Sequence(L), Neighborhood(1)
    object.__setattr__(mask, "allowed", lambda pairs: pairs.distance <= 2)
    plan(space, mask)
    space.norm = lambda offset: offset.abs().squeeze(-1) // 2
    plan(space, Neighborhood(1))
    assert not len(PLANS)


def test_own_modes_of_torch_are_left_alone():
    plan(Sequence(L), Causal())
    with FlopCounterMode(display=False):
        assert contents(plan(Sequence(L), Causal()).job, None) is None
    assert torch.vmap(lambda x: x * len(plan(Sequence(L), Causal()).job.spaces))(
        torch.ones(2)
    ).sum()


def test_nothing_of_the_caller_is_kept_alive():
    space = Graph(ring(), L, edge_attr=torch.randn(2 * L, 3))
    space = space.with_tokenwise({"name": torch.randn(L)})
    mask, bias = DenseMask(torch.rand(L, L) < 0.5) & Edges(), EdgeBias(H, features=3)
    for backend in ("dense", "blocks", "edges"):
        made = plan(space, mask, bias, backend=backend)
        made.prepared.pairs if backend != "blocks" else None  # noqa: B018
    held = [space, mask, mask.first.tensor, bias, bias.weight if hasattr(bias, "weight") else bias,
            space.edges, space.edges.attr, space.tokenwise["name"], space.nodes]  # fmt: skip
    alive = [weakref.ref(one) for one in held]
    del held, space, mask, bias, made
    gc.collect()
    assert len(PLANS) == 3 and [ref() for ref in alive] == [None] * len(alive)


def made(length, bound=None):
    return contents(plan(Sequence(length), bound or Causal()).job, None)


def test_few_are_kept_the_last_used_ones():
    cache = PlanCache(most=3)
    wanted = [made(length) for length in (3, 4, 5, 6)]
    for one in wanted[:3]:
        cache.keep(one, [])
    cache.find(wanted[0])
    cache.keep(wanted[3], [])
    assert [cache.find(one) is not None for one in wanted] == [True, False, True, True]


def test_bytes_are_bounded_and_count_what_grows():
    cache = PlanCache(most_bytes=10_000)
    one, two, three = (made(length) for length in (3, 4, 5))
    cache.keep(one, [torch.zeros(6000, dtype=torch.uint8)])
    assert cache.find(one) is None  # more than half
    grows = [torch.zeros(3000, dtype=torch.uint8)]
    cache.keep(one, grows)
    cache.keep(two, [torch.zeros(3000, dtype=torch.uint8)])
    assert cache.find(one) is grows and cache.find(two) is not None and 6000 < cache.bytes < 7000
    grows.append(torch.zeros(5000, dtype=torch.uint8))
    assert cache.find(one) is grows
    cache.keep(three, [])
    assert cache.find(one) is grows and cache.find(two) is None and 8000 < cache.bytes < 10_000


def test_large_ones_are_kept_the_second_time():
    cache, one = PlanCache(), made(3)
    large = [torch.zeros(2 << 20, dtype=torch.uint8)]
    cache.keep(one, large)
    assert cache.find(one) is None
    cache.keep(one, large)
    assert cache.find(one) is large


def test_many_that_are_alike_take_four_places():
    for length in range(10):
        plan(Sequence.padded([L, length]), Causal())
    assert len(PLANS) == 4


def test_planning_waits_for_no_one():
    with PLANS._lock:  # as in a process that was forked while a thread of its parent kept a plan
        assert plan(Sequence(L), Causal()).backend and not len(PLANS)


def test_plans_can_be_copied():
    kept = plan(Sequence(L), Neighborhood(2), heads=H)
    twin = copy.deepcopy(plan(Sequence(L), Neighborhood(2), heads=H))
    q, k, v = inputs()
    assert torch.equal(attend(q, k, v, plan=twin), attend(q, k, v, plan=kept))


def test_spaces_of_another_device_are_not_waited_for():
    job = plan(Sequence(L), Causal()).job
    job.spaces[0].coordinates = job.spaces[0].coordinates.to("meta")
    assert contents(job, None) is None
    assert contents(plan(Space(L)).job, None) is not None


def test_a_graph_that_a_transform_was_refused_with_serves_later_calls():
    graph, x = Graph(torch.tensor([[0, 1, 2], [1, 2, 0]]), 3), torch.randn(1, 2, 3, 4)

    def total(q):
        return attend(q, x, x, space=graph, mask=Edges(), backend="edges").sum()

    with pytest.raises(BackendError, match=r"torch\.func"):
        torch.func.grad(total)(x)
    expected = attend(x, x, x, space=graph, mask=Edges(), backend="reference")
    torch.testing.assert_close(total(x), expected.sum())
