"""What a GPU is estimated to take, on a machine without one; and factors that were measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from attention_core import (
    Causal,
    Edges,
    Encoder,
    Graph,
    Neighborhood,
    RelativeTable,
    Sequence,
    explain,
    plan,
    planning,
)
from attention_core.backends import measured, roofline
from attention_core.plan_cache import PLANS
from attention_core.planning import BACKENDS

CPU = torch.device("cpu")


def costs(*given: object, **options: object) -> dict[str, float]:
    job = plan(*given, device="cuda", **options).job  # type: ignore[arg-type]
    return {
        name: backend.cost(job)
        for name, backend in BACKENDS.items()
        if not backend.unsupported(job)
    }


def test_a_gpu_that_is_not_there_is_explained() -> None:
    space = Sequence.packed([3000, 500, 4000])
    text = explain(space, Causal(), heads=8, device="cuda", dtype=torch.bfloat16, grad=True)
    assert "Backend dense: " in text
    assert (
        "Estimated for an sm_90 GPU, not measured on this machine, forward and backward: " in text
    )
    made = plan(space, Causal(), device="cuda:1")
    assert made.job.device == torch.device("cuda:1") and made.job.spaces[0] is space
    assert "Estimated on one CPU core, forward: " in explain(space, Causal())


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ((8, 0), "sm_80"),
        ((8, 9), "sm_80"),
        ((7, 5), "sm_80"),
        ((9, 0), "sm_90"),
        ((12, 0), "sm_90"),
    ],
)
def test_a_device_has_the_class_that_is_no_newer(
    capability: tuple[int, int], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(roofline, "_capability", lambda index: capability)
    assert roofline.gpu_of(torch.device("cuda")).name == name


def test_estimates_follow_the_work() -> None:
    space = Sequence(4096)
    whole = costs(space, heads=8, dtype=torch.bfloat16)["dense"]
    # A fused kernel of 2 · 2 · 4096² · 8 · 64 products, at 35 % of the peak
    assert whole == pytest.approx(4 * 4096**2 * 8 * 64 / (0.35 * 989_000) + 4_000, rel=1e-6)
    causal = costs(space, Causal(), heads=8, dtype=torch.bfloat16)["dense"]
    assert causal < 0.6 * whole
    assert costs(space, heads=8)["dense"] > 5 * whole  # there is no flash in float32
    both = costs(space, heads=8, dtype=torch.bfloat16, grad=True)["dense"]
    assert 3 * whole < both < 5 * whole
    # Few kernels are what tiny work takes
    tiny = costs(Sequence(8), Neighborhood(2), heads=2)
    assert min(tiny, key=tiny.__getitem__) == "dense" and tiny["dense"] < 50_000
    # Biases of all pairs are written and read; a table's gradient sorts them
    t5 = RelativeTable.t5(8)
    with_bias = costs(space, None, t5, dtype=torch.bfloat16, grad=True)
    assert with_bias["dense"] > 5 * both
    edge_index = torch.randint(20_000, (2, 200_000))
    sparse = costs(Graph(edge_index, 20_000), Edges(), heads=8, head_dim=8)
    assert min(sparse, key=sparse.__getitem__) == "edges"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for measured factors, which nothing is known from yet."""
    monkeypatch.setenv(measured.FOLDER, str(tmp_path))
    PLANS.clear()
    yield tmp_path
    PLANS.clear()
    measured._read.cache_clear()


def test_what_was_measured_decides_and_is_named(folder: Path) -> None:
    space, mask = Sequence(64), Neighborhood(8)
    before = plan(space, mask).job
    assert plan(space, mask, backend=None).backend == "dense"
    name = measured.device_name(CPU)
    assert name is not None
    factors = {"dense": {"float32": (900.0, 1.0), "bfloat16": (2.0, 2.0)}}
    path = measured.keep(measured.measured_now(name, "2026-11-30", factors))
    assert path.parent == folder and not [one for one in folder.iterdir() if one != path]
    assert measured.factor(before, "dense") == 900 and measured.factor(before, "edges") == 1
    halves = plan(space, mask, dtype=torch.float16).job
    assert measured.factor(halves, "dense") == 2
    assert measured.factor(plan(space, mask, grad=True).job, "dense") == 1
    PLANS.clear()
    assert plan(space, mask).backend != "dense"
    said = f"Estimated as measured by `attn check` in float32 on 2026-11-30 on {name} ("
    assert said in explain(space, mask)


def test_what_is_said_to_be_measured_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = measured.device_name(CPU)
    assert name is not None

    def estimates(factors: dict[str, Any], **options: Any) -> str:
        measured.keep(measured.measured_now(name, "2026-11-30", factors))
        return explain(Sequence(64), Causal(), **options).splitlines()[-1]

    def numbers(text: str) -> str:
        return text[text.index(" forward: ") :]

    with measured.ignored():
        shipped = explain(Sequence(64), Causal()).splitlines()[-1]
    one = {"float32": (50.0, 50.0)}
    every = dict.fromkeys(("reference", "dense", "blocks", "edges"), one)
    by = "Estimated as measured by `attn check` in float32 on 2026-11-30 on"
    # What is computed in float64 takes the factors of float32, and says so
    for dtype in (torch.float32, torch.float64):
        text = estimates(every, dtype=dtype)
        assert text.startswith(f"{by} {name}, forward: ") and numbers(text) != numbers(shipped)
    # Of another dtype, of no kernel, of kernels that there are not: no factor is in the numbers
    for factors, dtype in (
        (every, torch.bfloat16), ({}, torch.float32), ({"another": one}, torch.float32),
    ):  # fmt: skip
        text, of = estimates(factors, dtype=dtype), str(dtype).removeprefix("torch.")
        none = f"(`attn check` of 2026-11-30 has timed none of these in {of})"
        assert text.startswith(f"Estimated on one CPU core {none}, forward: ")
        assert numbers(text) == numbers(shipped)
    some = {"dense": one, "edges": one}
    rest = "reference, blocks not timed"
    assert f"{name} ({rest}: estimated), " in estimates(some)
    text = estimates({**some, measured.OTHERS: one})
    assert f"{name} ({rest}: with the median factor of what was), " in text
    monkeypatch.setattr(measured, "_conditions", lambda: (3, False))
    text = estimates(every)
    monkeypatch.undo()
    monkeypatch.setenv(measured.FOLDER, str(folder))
    now = measured.said_of(*measured._conditions())
    text = explain(Sequence(64), Causal())
    assert f"{name} (it had 3 threads, no kernels in numba, now there are {now}), " in text


def test_a_plan_in_a_compiled_program_has_the_factors(
    folder: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """In one graph, where no file is read; nothing is said of caches."""
    name = measured.device_name(CPU)
    assert name is not None
    one = {"dense": {"float32": (2.0, 3.0)}}
    measured.keep(measured.measured_now(name, "2026-11-30", one))
    encoder, x, space = Encoder(8, 1, 2), torch.randn(1, 16, 8), Sequence(16)
    job = plan(space).job
    torch._dynamo.reset()

    @torch.compile(backend="eager", fullgraph=True)
    def run(x: torch.Tensor) -> tuple[torch.Tensor, float]:
        return encoder(x, space), measured.factor(job, "dense")

    found, factor = run(x)
    torch.testing.assert_close(found, encoder(x, space))
    assert factor == 2
    assert not [one for one in recwarn if "lru_cache" in str(one.message)]


def test_a_kernel_of_a_gpu_is_named_by_its_backend(folder: Path) -> None:
    job = plan(Sequence(64), device="cuda", dtype=torch.bfloat16).job
    one = {"bfloat16": (2.0, 2.0)}
    found = measured.measured_now("a GPU", "2026-11-30", {"flash": one, "edges": one})
    text = planning._source(job, found, ["dense", "flex"])
    assert text == (
        "as measured by `attn check` in bfloat16 on 2026-11-30 on a GPU (flex not timed: estimated)"
    )
    assert planning._source(job, found, ["flex"]).startswith("for an sm_90 GPU (`attn check` of ")


BROKEN: dict[str, Callable[[str], str | bytes | None]] = {
    "cut": lambda text: text[: len(text) // 2],
    "no number": lambda text: text.replace("2.0", '"2.0"'),
    "infinite": lambda text: text.replace("2.0", "Infinity"),
    "negative": lambda text: text.replace("2.0", "-2.0"),
    "of another device": lambda text: text.replace('"device": "', '"device": "Another '),
    "a list": lambda text: "[]",
    "no threads": lambda text: text.replace('"threads": ', '"threads": -'),
    "no date": lambda text: text.replace("2026-11-30", "\\u001b[31m"),
    "deep": lambda text: "[" * 100_000,
    "no text": lambda text: text.encode("utf-16"),
    "a folder": lambda text: None,
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_file_is_ignored_with_one_warning(how: str, folder: Path) -> None:
    name = measured.device_name(CPU)
    assert name is not None
    path = measured.keep(
        measured.measured_now(name, "2026-11-30", {"dense": {"float32": (2.0, 2.0)}})
    )
    job = plan(Sequence(4)).job
    assert measured.factor(job, "dense") == 2
    broken = BROKEN[how](path.read_text())
    path.unlink()
    if broken is None:
        path.mkdir()
    else:
        path.write_bytes(broken if isinstance(broken, bytes) else broken.encode())
    measured._read.cache_clear()
    with pytest.warns(RuntimeWarning, match="not what `attn check` writes") as told:
        assert measured.factor(job, "dense") == 1
        assert measured.factor(job, "dense") == 1
    assert len(told) == 1 and "\x1b" not in str(told[0].message)


def test_factors_of_other_estimates_are_left(folder: Path) -> None:
    name = measured.device_name(CPU)
    assert name is not None
    path = measured.keep(
        measured.measured_now(name, "2026-11-30", {"dense": {"float32": (2.0, 2.0)}})
    )
    path.write_text(json.dumps({**json.loads(path.read_text()), "edition": 0}))
    measured._read.cache_clear()
    assert measured.of_device(CPU) is None
