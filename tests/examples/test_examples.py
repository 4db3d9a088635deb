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
from omegaconf import OmegaConf
from torch.nn.functional import one_hot

from attention_core.testing import check_bias, check_space
from attention_core.training.compose import run_hydra
from attention_core.training.run import train
from tools.claims import experiments

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
#: At most so many lines: those with a space of their own also read real data.
LINES = {"audio": 120, "point_clouds": 120, "globe": 180, "syntax_trees": 230}


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
    assert {path.parents[1].name for path in EXAMPLES.glob("*/experiment/*.yaml")} == set(LINES)


@pytest.mark.parametrize("name", LINES)
def test_a_domain_is_one_python_and_one_yaml_file_of_few_lines(name: str) -> None:
    files = {p for p in (EXAMPLES / name).rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert {p.name for p in files} == {f"{name}.py", f"{name}.yaml"}
    assert sum(len(p.read_text().splitlines()) for p in files) < LINES[name]


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


# ------------------------------------------------------------------ spaces of an example's own


def run_of(name: str, overrides: list[str], folder: Path) -> dict[str, float]:
    """Train an example; return what it measures."""
    given = [f"experiment={name}", f"hydra.run.dir={folder}", *overrides]
    run_hydra(train, given, flags=[], config_dir=EXAMPLES / name)
    assert (folder / "figures" / "attention.png").stat().st_size > 20_000
    (stated,) = (each for each in experiments() if each.name == name)
    results: dict[str, float] = json.loads((folder / "results.json").read_text())
    assert {claim.metric for claim in stated.claims} <= results.keys()
    return results


@pytest.mark.slow
def test_land_is_foretold_better_than_by_interpolation(
    example: Callable[[str], Any], tmp_path: Path
) -> None:
    globe = example("globe")
    check_space(globe.Sphere(globe.lattice(30)))
    two = torch.stack([globe.lattice(20), globe.lattice(20)])
    check_space(globe.Sphere(two, valid=torch.arange(40).view(2, 20) % 5 > 0))
    check_bias(globe.Fading(2), globe.Sphere(globe.lattice(20)))
    paris, tokyo, kerguelen = (
        torch.tensor([math.cos(a) * math.cos(o), math.cos(a) * math.sin(o), math.sin(a)])
        for a, o in torch.deg2rad(torch.tensor([[48.86, 2.35], [35.68, 139.69], [-45.0, 80.0]]))
    )
    assert globe.Sphere(two).norm(paris - tokyo).item() == pytest.approx(87.4, abs=0.1)
    assert globe.is_land(torch.stack([paris, tokyo, kerguelen])).tolist() == [1, 1, 0]
    data = globe.Globe(samples=0, places=1200, radius=9, batch_size=2)
    data.load()

    def accuracy(power: float) -> float:
        hits = [
            globe.interpolated(sample["places"], sample["seen"], power) == sample["target"]
            for sample in data.test_set
        ]
        return float(torch.cat(hits).float().mean())

    beside = [accuracy(power) for power in (2, 3, 4, 6, math.inf)]
    assert 0.87 < beside[-1] < max(beside) < 0.89, "the nearest place, and the best power"
    results = run_of("globe", ["data.samples=70", "optimizer.lr=6e-3"], tmp_path / "run")
    assert results["test/accuracy"] > max(beside)


@pytest.mark.slow
def test_hidden_nodes_are_named_better_than_by_their_parents(
    example: Callable[[str], Any], tmp_path: Path
) -> None:
    trees = example("syntax_trees")
    quick = ["trainer.max_epochs=1", "data.batch_size=8", "model.dim=32", "model.depth=2"]
    results = run_of("syntax_trees", [*quick, "optimizer.lr=8e-3"], tmp_path / "run")
    (about,) = (each.about for each in experiments() if each.name == "syntax_trees")
    config = OmegaConf.load(tmp_path / "run" / "config.yaml").data
    del config["_target_"]
    data = trees.Trees(**OmegaConf.to_container(config))
    data.load()
    few = [tree for tree in data.test_set if len(tree["types"]) < 20][:3]
    batch = data.collate(few)
    check_space(trees.Tree(batch["path"], segments=batch["segments"]))
    check_space(trees.Tree(few[0]["path"]))
    share = trees.beside(data)
    assert 0.45 < share < 0.5 and "47%" in about["gives"]
    assert results["test/accuracy"] > share + 0.05
