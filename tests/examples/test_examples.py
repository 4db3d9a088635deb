"""The domains of `examples/`: small enough to copy, true to what they claim."""

import importlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import one_hot

from attention_core.training.compose import run_hydra
from attention_core.training.run import train
from tools.claims import experiments

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = ("audio", "point_clouds")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports the module of an example, as `--config-dir` does; forgets it afterwards."""

    def imported(name: str) -> Any:
        monkeypatch.syspath_prepend(str(EXAMPLES / name))
        monkeypatch.delitem(sys.modules, name, raising=False)
        module = importlib.import_module(name)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    torch.set_num_threads(1)
    torch.manual_seed(0)
    return imported


def test_every_example_with_a_configuration_is_tested() -> None:
    assert {path.parents[1].name for path in EXAMPLES.glob("*/experiment/*.yaml")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_domain_is_one_python_and_one_yaml_file_under_120_lines(name: str) -> None:
    files = {p for p in (EXAMPLES / name).rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert {p.name for p in files} == {f"{name}.py", f"{name}.yaml"}
    assert sum(len(p.read_text().splitlines()) for p in files) < 120


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("audio", ["data.samples=40", "model.dim=16"]),
        ("point_clouds", ["data.samples=64", "data.points=24", "model.dim=16"]),
    ],
)
def test_an_example_goes_through_a_whole_run(
    name: str, overrides: list[str], example: Callable[[str], Any], tmp_path: Path
) -> None:
    example(name)
    run = tmp_path / "run"
    given = [f"experiment={name}", "trainer.max_epochs=1", f"hydra.run.dir={run}", *overrides]
    run_hydra(train, given, flags=[], config_dir=EXAMPLES / name)
    results = json.loads((run / "results.json").read_text())
    assert math.isfinite(results["test/loss"])
    (stated,) = (each for each in experiments() if each.name == name)
    assert {claim.metric for claim in stated.claims} <= results.keys()
    assert (run / "figures" / "attention.png").stat().st_size > 20_000


# --------------------------------------------------------------------- what the audio example hears


@pytest.mark.parametrize("hertz", [300.0, 1000.0, 2500.0])
def test_a_tone_is_loudest_in_the_mel_band_of_its_pitch(
    hertz: float, example: Callable[[str], Any]
) -> None:
    audio = example("audio")
    tone = torch.sin(2 * torch.pi * hertz * torch.arange(4000) / audio.RATE)
    band = audio.spectrogram(tone).mean(0).argmax()
    # Bands are even in mel = 2595 log10(1 + f / 700), up to half the rate (O'Shaughnessy, 1987)
    mel, top = (2595 * math.log10(1 + f / 700) for f in (hertz, audio.RATE / 2))
    assert abs(int(band) - (mel / top * (audio.BANDS + 1) - 1)) <= 1


def test_a_word_is_heard_alike_alone_and_among_others(example: Callable[[str], Any]) -> None:
    audio = example("audio")
    words = audio.Words(samples=0, batch_size=4, classes=["ai", "uoi", "iaea"])
    samples = [words.say(target) for target in range(3)]
    assert len({len(sample["patches"]) for sample in samples}) == 3, "of any length"
    model = audio.SpectrogramEncoder(16, 2, 2, num_classes=3).eval()
    batch = words.collate(samples)
    together = model(batch["patches"], batch["grids"])
    for sample, output in zip(samples, together, strict=True):
        alone = words.collate([sample])
        torch.testing.assert_close(model(alone["patches"], alone["grids"])[0], output)


# --------------------------------------------------------------- what the point clouds are made of


def test_points_lie_on_the_surface_of_their_solid(example: Callable[[str], Any]) -> None:
    surface = example("point_clouds").surface
    x, y, z = surface("torus", 500).T
    torch.testing.assert_close(((x**2 + y**2).sqrt() - 1) ** 2 + z**2, torch.full((500,), 0.16))
    x, y, z = surface("cylinder", 500).T
    torch.testing.assert_close(x**2 + y**2, torch.ones(500))
    assert z.min() < -0.9 and z.max() > 0.9 and z.abs().max() <= 1
    x, y, z = surface("cone", 500).T
    torch.testing.assert_close((x**2 + y**2).sqrt(), (1 - z) / 2)
    for solid, order in (("sphere", 2), ("cube", math.inf), ("octahedron", 1)):
        norm = torch.linalg.vector_norm(surface(solid, 500), order, dim=1)
        torch.testing.assert_close(norm, torch.ones(500))


@pytest.mark.parametrize("solid", ["cube", "cone", "sphere"])
def test_points_are_spread_evenly_over_the_surface(
    solid: str, example: Callable[[str], Any]
) -> None:
    points = example("point_clouds").surface(solid, 20_000)
    if solid == "cube":  # a sixth on each face
        face = points.abs().argmax(1) * 2 + (points.amax(1) > -points.amin(1))
        shares, expected = one_hot(face, 6).float().mean(0), torch.full((6,), 1 / 6)
    elif solid == "cone":  # the half next to the tip has a quarter of the surface
        shares, expected = (points[:, 2] > 0).float().mean(), torch.tensor(0.25)
    else:  # Archimedes: equal heights have equal areas
        shares = torch.histc(points[:, 2], 4, -1, 1) / len(points)
        expected = torch.full((4,), 0.25)
    torch.testing.assert_close(shares, expected, atol=0.02, rtol=0)


def test_a_cloud_of_any_order_is_the_same_solid(example: Callable[[str], Any]) -> None:
    model = example("point_clouds").CloudEncoder(16, 2, 2, num_classes=3).eval()
    cloud = torch.randn(1, 30, 3)
    torch.testing.assert_close(model(cloud), model(cloud[:, torch.randperm(30)]))
