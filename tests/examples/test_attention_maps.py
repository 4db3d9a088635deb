"""`examples/attention_maps.py`: from a run and an image file to figures and arrays."""

import runpy
from pathlib import Path

import numpy
import pytest
import torch

from attention_core.training.compose import run_hydra
from attention_core.training.predict import load_trained
from attention_core.training.run import train
from vision.interpret import attention_maps

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "attention_maps.py"


@pytest.mark.slow
def test_a_run_and_an_image_give_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    torch.set_num_threads(1)
    run, file, output = tmp_path / "run", tmp_path / "digit.npy", tmp_path / "maps"
    limits = [f"trainer.limit_{stage}_batches=1" for stage in ("train", "val", "test")]
    options = ["experiment=vision/digits", "trainer.max_epochs=1", f"hydra.run.dir={run}", *limits]
    run_hydra(train, options, flags=[], config_dir=None)
    image = numpy.random.default_rng(0).random((8, 8))
    numpy.save(file, image)
    main = runpy.run_path(str(SCRIPT))["main"]
    main([str(run), str(file), str(output), "--layer", "0", "--query", "1", "2"])
    names = ("", "_rollout", "_layers", "_distance")
    assert {path.name for path in output.glob("*.png")} == {
        f"attention{name}.png" for name in names
    }
    arrays = numpy.load(output / "maps.npz")
    assert arrays["rollout"].shape == (4, 4) and arrays["distance"].shape == (4, 4)
    _, task = load_trained(run)
    images = torch.tensor(image, dtype=torch.float32)[None, None]
    expected = attention_maps(task.model, images, layers=[0], query=(1, 2))[0][0]  # type: ignore[arg-type]
    numpy.testing.assert_allclose(arrays["maps"], expected, atol=1e-6)
    assert "3 arrays" in capsys.readouterr().out
